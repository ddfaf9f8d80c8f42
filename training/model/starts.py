"""Where a new classifier starts: at the answers that are best without reading any text.

Its bias gives each label's share in the training rows, or the targets' mean. So the first steps need not learn that.
Reference: Lin et al., Focal Loss for Dense Object Detection (https://arxiv.org/abs/1708.02002), section 3.3.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import log_expit, log_softmax
from torch import nn

from lstmpool.training.tasks.task import Task


HALF = 0.5  # of a row: a class or label without rows gets so much, since its logit would be infinite


@torch.no_grad()
def set_prior(head: nn.Linear, labels: Sequence[Any], task: Task, balanced: bool = False) -> None:
    """Sets the bias of a new classifier to `prior` of the training rows' labels. It draws no random number."""
    head.bias.copy_(torch.as_tensor(prior(labels, task, balanced)))


def prior(labels: Sequence[Any], task: Task, balanced: bool = False) -> np.ndarray:
    """The logits (C,) that have the least loss for all rows alike.

    Args:
        labels: of the training rows, as the model is trained on them: (N,) or (N, C).
        task: one label: the logits are the logarithms of the classes' shares. Several: each label's log-odds. Numbers:
            the targets' means.
        balanced: whether the loss lets every class count the same. Then all shares are the same, too.
    """
    table = np.asarray(labels)
    if task.has_numbers:
        return table.reshape(len(table), -1).mean(0)
    if task.has_thresholds:
        share = (table.sum(0, dtype=float) / len(table)).clip(HALF / len(table), 1 - HALF / len(table))
        return np.log(share) - np.log1p(-share)
    if balanced:
        return np.zeros(len(task.names))
    counts = np.bincount(table, minlength=len(task.names)) + HALF
    return np.log(counts / counts.sum())


def loss_of_prior(labels: Sequence[Any], task: Task) -> float:
    """The mean of the model's own loss over the rows, if it gives `prior` for each of them."""
    table, logits = np.asarray(labels), prior(labels, task)
    if task.has_numbers:
        return float(((table.reshape(len(table), -1) - logits) ** 2).mean())
    if task.has_thresholds:
        share = table.mean(0)
        return float(-(share * log_expit(logits) + (1 - share) * log_expit(-logits)).mean())
    share = np.bincount(table, minlength=len(task.names)) / len(table)
    return float(-share @ log_softmax(logits))
