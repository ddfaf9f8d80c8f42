"""How Trainer evaluates: by the metrics of the task, in float32, without an effect on training."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import EvalPrediction, Trainer
from transformers.utils import enable_tf32

from lstmpool.training.loop.divergence import check_logits
from lstmpool.training.tasks.task import Task


@dataclass(frozen=True)
class TrainerMetrics:
    """For `Trainer(compute_metrics=...)`. `scale` (C,): what training divides the targets by, if it does."""

    task: Task
    scale: np.ndarray | None = None

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """All metrics, in the targets' own units. Raises Diverged if the logits are not numbers."""
        logits = np.asarray(prediction.predictions)  # (N, C)
        check_logits(logits)
        labels = np.asarray(prediction.label_ids)  # (N,) or (N, C)
        if self.scale is not None:
            logits = logits * self.scale
            labels = labels * self.scale
        return self.task.score(self.task.decide(logits), labels)


@contextmanager
def in_float32(trainer: Trainer) -> Iterator[None]:
    """Within this block, the model runs in float32, whatever precision it is trained in.

    For training, accelerate puts a `forward` with autocast in front of the model's own. TF32 is a setting of torch.
    """
    model = trainer.model
    with_autocast = vars(model).get("forward") if hasattr(model, "_original_forward") else None
    trains_in_tf32 = trainer.args.tf32 or trainer.args.torch_compile
    if with_autocast is not None:
        model.forward = model._original_forward
    if trains_in_tf32:
        enable_tf32(False)
    try:
        yield
    finally:
        if with_autocast is not None:
            model.forward = with_autocast
        if trains_in_tf32:
            enable_tf32(True)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """After this block, torch draws the random numbers that it would have drawn without it.

    Each pass over rows draws a seed for the workers that read them, even where there are none.
    """
    with torch.random.fork_rng(devices=[]):  # nothing is drawn on other devices: dropout is off
        yield
