"""The losses that the model itself does not have: weighted classes, smoothed labels, smooth L1.

They are given to Trainer, so that the saved model keeps its own plain loss.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lstmpool.training.tasks.labels import SINGLE
from lstmpool.training.training_arguments import TrainingArguments


Loss = Callable[..., Tensor]


def make_loss(args: TrainingArguments, problem_type: str, labels: list[Any], num_labels: int) -> Loss | None:
    """What `Trainer(compute_loss_func=...)` wants, or None where the model's own loss is meant.

    Args:
        labels: those of the training rows, by whose counts classes are weighted.
        num_labels: C.
    """
    if problem_type == SINGLE and labels and (args.class_weights or args.label_smoothing_factor):
        weights = balanced_weights(labels, num_labels) if args.class_weights else torch.ones(num_labels)
        smoothing = args.label_smoothing_factor

        def loss(logits: Tensor, labels: Tensor) -> Tensor:  # the sum over rows
            log_probs = F.log_softmax(logits, dim=-1)  # (B, C)
            of_label = -log_probs.gather(1, labels[:, None]).squeeze(1)  # (B,)
            smoothed = (1 - smoothing) * of_label - smoothing * log_probs.mean(-1)
            return (weights.to(logits.device)[labels] * smoothed).sum()

    elif args.regression_loss == "smooth_l1":

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            return F.smooth_l1_loss(logits, labels.view_as(logits).float(), reduction="sum")

    else:
        return None

    def mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        # Trainer counts the labels of all accumulated batches, so that the sum of their losses is a mean
        return loss(outputs["logits"].float(), labels) / (
            labels.numel() if num_items_in_batch is None else num_items_in_batch
        )

    return mean_loss


def balanced_weights(labels: list[int], num_labels: int) -> Tensor:
    """(C,): inverse to a class's frequency, 1 on average over the rows; 0 for a class without rows."""
    counts = np.bincount(labels, minlength=num_labels)
    return torch.tensor(np.where(counts > 0, len(labels) / np.maximum(counts, 1) / (counts > 0).sum(), 0)).float()
