"""Computes what Trainer asks for after each evaluation: the metrics of the task."""

from dataclasses import dataclass

import numpy as np
from transformers import EvalPrediction

from lstmpool.training.tasks.task import Task


@dataclass(frozen=True)
class TrainerMetrics:
    """For `Trainer(compute_metrics=...)`. `scale` (C,): what training divides the targets by, if it does."""

    task: Task
    scale: np.ndarray | None = None

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """All metrics, in the targets' own units."""
        logits = np.asarray(prediction.predictions)  # (N, C)
        labels = np.asarray(prediction.label_ids)  # (N,) or (N, C)
        if self.scale is not None:
            logits = logits * self.scale
            labels = labels * self.scale
        return self.task.score(self.task.decide(logits), labels)
