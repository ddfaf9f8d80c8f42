"""The numbers of a finished run, by split."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lstmpool.training.evaluation.calibration import probability_metrics
from lstmpool.training.tasks.task import Task


@dataclass(frozen=True)
class Evaluation:
    """What the finished model gives for each split, and how good that is."""

    task: Task
    logits: dict[str, np.ndarray]  # (N, C)
    targets: dict[str, np.ndarray]  # of the splits that have labels: (N,) or (N, C)
    learned: dict[str, Any]  # after training, on validation
    results: dict[str, dict[str, float]]  # metrics of the splits that have labels
    intervals: dict[str, tuple[float, float]]  # of the headline metric, 95%

    @classmethod
    def of(
        cls,
        task: Task,
        logits: dict[str, np.ndarray],
        targets: dict[str, np.ndarray],
        learned: dict[str, Any],
    ) -> "Evaluation":
        """Measures every split that has labels."""
        results, intervals = {}, {}
        for split, labels in targets.items():
            if split not in logits:
                continue
            answers = task.decide(logits[split])
            results[split] = task.score(answers, labels)
            if task.has_probabilities:
                results[split] |= probability_metrics(task, logits[split], labels)
            intervals[split] = task.interval(answers, labels)
        return cls(task, logits, targets, learned, results, intervals)

    def record(self) -> dict[str, Any]:
        """For metrics.json."""
        intervals = {}
        for split, (low, high) in self.intervals.items():
            intervals[split] = {"metric": self.task.headline, "low": low, "high": high}
        return {"results": self.results, "intervals": intervals, "learned_on_validation": self.learned}
