"""Losses that the model itself does not have: weighted classes, smoothed labels, smooth L1.

Trainer gets them, so the saved model keeps its own plain loss.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class WeightedCrossEntropy:
    """The cross-entropy with smoothed labels, weighted by each row's class and summed over the rows."""

    weights: Tensor | None  # (C,); None: all classes weigh the same
    smoothing: float = 0.0  # the share of the target that is spread over all classes

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_probs = F.log_softmax(logits, dim=-1)  # (B, C)
        of_label = -log_probs.gather(1, labels[:, None]).squeeze(1)  # (B,)
        losses = (1 - self.smoothing) * of_label - self.smoothing * log_probs.mean(-1)
        if self.weights is None:
            return losses.sum()
        return (self.weights.to(logits.device)[labels] * losses).sum()


@dataclass(frozen=True)
class SmoothL1:
    """The smooth L1 loss, summed over rows and targets. Outliers weigh less in it than in a squared error."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.smooth_l1_loss(logits, labels.view_as(logits).float(), reduction="sum")


@dataclass(frozen=True)
class MeanLoss:
    """The mean of a loss over the labels of all accumulated batches, as `Trainer(compute_loss_func=...)` needs it."""

    summed: Any  # one of the losses above

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        count = labels.numel() if num_items_in_batch is None else num_items_in_batch
        return self.summed(outputs["logits"].float(), labels) / count


def balanced_weights(labels: list[int], num_labels: int) -> Tensor:
    """Weights of the classes, (C,): inverse to their frequency, 1 on average over the rows, 0 for one without rows."""
    counts = np.bincount(labels, minlength=num_labels)
    present = counts > 0
    weights = np.where(present, len(labels) / np.maximum(counts, 1) / present.sum(), 0)
    return torch.tensor(weights).float()
