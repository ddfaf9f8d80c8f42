"""How Trainer evaluates: by the metrics of the task, in float32, without an effect on training. How it predicts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction, Trainer
from transformers.utils import enable_tf32

from lstmpool.training.data.order import by_length
from lstmpool.training.loop.divergence import check_logits
from lstmpool.training.tasks.task import SCORED, Task


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


@contextmanager
def in_given_order(trainer: Trainer) -> Iterator[None]:
    """Within this block, Trainer evaluates rows in the order given, whichever order it trains in.

    With `group_by_length`, it would choose an order of its own. This sets Trainer's own copy of the arguments.
    """
    strategy = trainer.args.train_sampling_strategy
    trainer.args.train_sampling_strategy = "random"
    try:
        yield
    finally:
        trainer.args.train_sampling_strategy = strategy


def predict_logits(trainer: Trainer, dataset: Dataset) -> np.ndarray:
    """The logits (N, C) of the rows, in their order, computed from the longest text to the shortest.

    Labels are ignored.

    Raises:
        Diverged: if some are NaN or infinite, as after training that has diverged.
    """
    if "labels" in dataset.column_names:
        dataset = dataset.remove_columns("labels")
    ordered, order = by_length(dataset)
    with in_given_order(trainer):
        found = trainer.predict(ordered).predictions
    check_logits(found)
    # of many labels, they stay as narrow as the model gives them
    logits = np.empty_like(found, dtype=np.float64 if found.shape[1] <= SCORED else None)
    logits[order] = found
    return logits
