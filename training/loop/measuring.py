"""What Trainer asks for after each evaluation: the metrics of the task."""

from dataclasses import dataclass

import numpy as np
from transformers import EvalPrediction

from lstmpool.training.tasks.task import Task


@dataclass(frozen=True)
class TrainerMetrics:
    """For `Trainer(compute_metrics=...)`. `scale` (C,): what targets were divided by in training, if they were."""

    task: Task
    scale: np.ndarray | None = None

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """All metrics, in the targets' own units."""
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        if self.scale is not None:  # one value for labels (N,) of a single target
            logits = logits * self.scale
            labels = labels * self.scale
        return self.task.score(self.task.decide(logits), labels)
