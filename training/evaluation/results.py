"""The numbers of a finished run, by split."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lstmpool.training.evaluation.calibration import probability_metrics
from lstmpool.training.tasks.task import Task


@dataclass(frozen=True)
class Evaluation:
    """The finished model's logits for each split, and how good they are."""

    task: Task
    logits: dict[str, np.ndarray]  # (N, C)
    targets: dict[str, np.ndarray]  # of the splits that have labels: (N,) or (N, C)
    learned: dict[str, Any]  # after training, from validation: see `learned_head`
    results: dict[str, dict[str, float]]  # metrics of the splits that have labels
    intervals: dict[str, tuple[float, float]]  # 95% intervals of the headline metric, where there are any

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
        for split, of_split in logits.items():
            if split not in targets:
                continue
            answers, labels = task.decide(of_split), targets[split]
            results[split] = task.score(answers, labels)
            if task.has_probabilities:
                results[split] |= probability_metrics(task, of_split, labels)
            interval = task.interval(answers, labels)
            if interval is not None:
                intervals[split] = interval
        return cls(task, logits, targets, learned, results, intervals)

    def record(self) -> dict[str, Any]:
        """The numbers for metrics.json."""
        intervals = {}
        for split, (low, high) in self.intervals.items():
            intervals[split] = {"metric": self.task.headline, "low": low, "high": high}
        return {"results": self.results, "intervals": intervals, "learned_on_validation": self.learned}
