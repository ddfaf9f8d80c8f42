"""The losses that the model itself does not have: weighted classes, smoothed labels, smooth L1.

They are given to Trainer, so that the saved model keeps its own plain loss.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class WeightedCrossEntropy:
    """The sum over rows of the cross-entropy, each row's by the weight of its class, with smoothed labels."""

    weights: Tensor | None  # (C,); None: all alike
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
    """The sum over rows and targets of the smooth L1 loss, which minds outliers less than squares do."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.smooth_l1_loss(logits, labels.view_as(logits).float(), reduction="sum")


@dataclass(frozen=True)
class MeanLoss:
    """What `Trainer(compute_loss_func=...)` wants: the mean of a loss over the labels of all accumulated batches."""

    summed: Any  # one of the above

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        count = labels.numel() if num_items_in_batch is None else num_items_in_batch
        return self.summed(outputs["logits"].float(), labels) / count


def balanced_weights(labels: list[int], num_labels: int) -> Tensor:
    """(C,): inverse to a class's frequency, 1 on average over the rows; 0 for a class without rows."""
    counts = np.bincount(labels, minlength=num_labels)
    present = counts > 0
    weights = np.where(present, len(labels) / np.maximum(counts, 1) / present.sum(), 0)
    return torch.tensor(weights).float()
