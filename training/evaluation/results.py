"""The numbers of a finished run, by split, and the files that show them: plots and a table of predictions."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from lstmpool.training.data.rows import Split
from lstmpool.training.evaluation.calibration import confidences, probability_metrics
from lstmpool.training.evaluation.predictions import prediction_table, write_table
from lstmpool.training.output.folder import Writer
from lstmpool.training.output.plots import confusion_matrix, learning_curve, predicted_against_true, reliability
from lstmpool.training.tasks.labels import REGRESSION, SINGLE, Labels
from lstmpool.training.tasks.metrics import TaskMetrics
from lstmpool.training.training_arguments import TrainingArguments


@dataclass(frozen=True)
class Evaluation:
    """What the finished model gives for each split, and how good that is."""

    metrics: TaskMetrics
    labels: Labels
    logits: dict[str, np.ndarray]  # (N, C)
    targets: dict[str, np.ndarray]  # of the splits that have labels: (N,) or (N, C)
    learned: dict[str, Any]  # after training, on validation
    results: dict[str, dict[str, float]] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # of the headline metric, 95%

    def __post_init__(self):
        for name, logits in self.logits.items():
            if name in self.targets:
                decisions, targets = self.metrics.decide(logits), self.targets[name]
                self.results[name] = self.metrics.compute(decisions, targets)
                if self.labels.problem_type != REGRESSION:
                    self.results[name] |= probability_metrics(logits, targets, self.labels.problem_type)
                self.intervals[name] = self.metrics.interval(decisions, targets)

    def plots(self, log_history: list[dict[str, Any]]) -> dict[str, Writer]:
        """What draws each plot, by its file's name; of the test rows, or of validation where there are none."""
        headline = self.metrics.headline
        plots = {}
        if log_history:
            plots["learning_curve.png"] = partial(
                learning_curve, log_history, metric=headline, title=self.metrics.titles[headline]
            )
        split = next((name for name in ("test", "validation") if name in self.results), None)
        if split is None:
            return plots
        logits, targets, names = self.logits[split], self.targets[split], self.labels.names
        if self.labels.problem_type == REGRESSION:
            columns = targets.reshape(len(targets), -1)
            plots["predicted_against_true.png"] = partial(predicted_against_true, columns, logits, names)
        if self.labels.problem_type == SINGLE:
            plots["confusion_matrix.png"] = partial(confusion_matrix, targets, logits.argmax(1), names)
        if temperature := self.learned.get("temperature"):
            # thresholds that were folded in later are no matter of temperature
            shift = np.array(self.learned.get("folded_thresholds", 0.0))
            curves = {"before": (logits + shift) * temperature, "after": logits + shift}
            curves = {name: confidences(of, targets, self.labels.problem_type) for name, of in curves.items()}
            plots["reliability.png"] = partial(reliability, curves)
        return plots

    def predictions(self, split: Split, args: TrainingArguments) -> dict[str, Writer]:
        """What writes the table of test predictions, by its file's name."""
        if "test" not in self.logits:
            return {}
        texts = {"text": split.texts} | ({"text_pair": split.pairs} if split.pairs else {})
        table = prediction_table(
            self.logits["test"],
            split.ids,
            self.labels.names,
            self.labels.problem_type,
            texts if args.predictions_with_text else None,
        )
        return {f"test_predictions.{args.predictions_format}": partial(write_table, table)}

    def record(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "results": self.results,
            "intervals": {
                name: {"metric": self.metrics.headline, "low": low, "high": high}
                for name, (low, high) in self.intervals.items()
            },
            "learned_on_validation": self.learned,
        }
