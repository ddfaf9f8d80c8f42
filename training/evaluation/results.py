"""The numbers of a finished run, by split, and what they warn of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lstmpool.training.evaluation.by_class import ByClass, ranking_metrics
from lstmpool.training.evaluation.calibration import probability_metrics
from lstmpool.training.tasks.metrics import LOWER_IS_BETTER
from lstmpool.training.tasks.task import Task


LEARN_MORE = (
    "Train for more steps (--num_train_epochs), at higher rates (--learning_rate, --head_learning_rate) or on more "
    "rows."
)


@dataclass(frozen=True)
class Evaluation:
    """The finished model's logits for each split, and how good they are."""

    task: Task
    logits: dict[str, np.ndarray]  # (N, C)
    targets: dict[str, np.ndarray]  # of the splits that have labels: (N,) or (N, C)
    learned: dict[str, Any]  # after training, from validation: see `learned_head`
    results: dict[str, dict[str, float]]  # metrics of the splits that have labels
    intervals: dict[str, tuple[float, float]]  # 95% intervals of the headline metric, where there are any
    by_class: dict[str, ByClass] = field(default_factory=dict)  # of the same splits, unless outputs are numbers

    @classmethod
    def of(
        cls,
        task: Task,
        logits: dict[str, np.ndarray],
        targets: dict[str, np.ndarray],
        learned: dict[str, Any],
    ) -> "Evaluation":
        """Measures every split that has labels."""
        results: dict[str, dict[str, float]] = {}
        intervals: dict[str, tuple[float, float]] = {}
        by_class: dict[str, ByClass] = {}
        for split, of_split in logits.items():
            if split not in targets:
                continue
            answers, labels = task.decide(of_split), targets[split]
            results[split] = task.score(answers, labels)
            if task.has_probabilities:
                results[split] |= probability_metrics(task, of_split, labels)
                results[split] |= ranking_metrics(task, of_split, labels)
                by_class[split] = ByClass.of(task, of_split, labels)
            interval = task.interval(answers, labels)
            if interval is not None:
                intervals[split] = interval
        return cls(task, logits, targets, learned, results, intervals, by_class)

    @property
    def judged_on(self) -> str | None:
        """The split whose numbers are told in detail, see `judged_split`."""
        return judged_split(self.results)

    def compared(self, split: str) -> np.ndarray:
        """The answers for a split by which the model is compared with others, in the form of its labels.

        The threshold of two classes was moved for macro F1, which may cost accuracy on purpose. Others have no such
        threshold, so it is taken out of the logits again.
        """
        logits = self.logits[split]
        if self.task.has_two_classes and "folded_thresholds" in self.learned:
            logits = logits + np.array(self.learned["folded_thresholds"])
        return self.task.decide(logits)

    def record(self) -> dict[str, Any]:
        """The numbers for metrics.json."""
        intervals = {}
        for split, (low, high) in self.intervals.items():
            intervals[split] = {"metric": self.task.headline, "low": low, "high": high}
        by_class = {split: of.record() for split, of in self.by_class.items()}
        return {
            "results": self.results,
            "intervals": intervals,
            "by_class": by_class,
            "learned_on_validation": self.learned,
        }


def judged_split(results: Mapping[str, Any]) -> str | None:
    """Of the splits with `results`: test or, if it has no labels, validation; None if neither has any."""
    return next((name for name in ("test", "validation") if name in results), None)


def nothing_learnt(
    evaluation: Evaluation, labels: Sequence[Any], losses: tuple[float, float] | None = None
) -> list[str]:
    """A line that says so if the model is no better than the simplest answer to every row; else no line.

    Args:
        evaluation: of a trained model. Its headline metric on validation is what counts.
        labels: of the training rows. The simplest answer follows from them.
        losses (*optional*): the last training loss, and that of the simplest answer. They count where there are no
            validation rows.
    """
    task = evaluation.task
    if "validation" in evaluation.results:
        title = f"validation {task.titles[task.headline]}"
        found = task.score(evaluation.compared("validation"), evaluation.targets["validation"])[task.headline]
        simplest = _simplest(task, labels, evaluation.targets["validation"])
        lower_is_better = task.headline in LOWER_IS_BETTER
    elif losses is not None:
        title, lower_is_better = "training loss", True
        found, simplest = losses
    else:
        return []
    could_not_be_better = simplest == (0 if lower_is_better else 1)
    is_better = found < simplest if lower_is_better else found > simplest
    if is_better or could_not_be_better:
        return []
    return [
        f"this run has learnt nothing: its {title}, {found:.4g}, is no better than the {simplest:.4g} of one answer "
        f"for all rows ({task.simplest_title}). {LEARN_MORE}"
    ]


def no_label_given(evaluation: Evaluation, tuned: bool) -> list[str]:
    """A line that says so if a text may have several labels, and none got a single one; else no line.

    `tuned`: whether thresholds were moved already.
    """
    logits = [values for split, values in evaluation.logits.items() if split != "train"]
    if not evaluation.task.has_thresholds or not logits or any(values.max() > 0 for values in logits):
        return []
    remedy = LEARN_MORE if tuned else "--tune_thresholds moves each label's best threshold to 0.5."
    return [f"no score has passed 0.5, so no text was given a label. {remedy}"]


def _simplest(task: Task, labels: Sequence[Any], targets: np.ndarray) -> float:
    """The headline metric on `targets` of the simplest model, fitted on the training rows' `labels`."""
    model = task.simplest_model()
    model.fit(np.zeros((len(labels), 1)), np.asarray(labels))
    return task.score(model.predict(np.zeros((len(targets), 1))), targets)[task.headline]
