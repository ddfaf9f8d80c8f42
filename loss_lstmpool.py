"""The loss of logits (B, C) for labels, by `problem_type`, and the labels that each kind takes.

B batch, C labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .configuration_lstmpool import LstmPoolConfig
from .fields_lstmpool import MULTI, REGRESSION, SINGLE


def loss_of(logits: Tensor, labels: Tensor, config: LstmPoolConfig) -> Tensor:
    """The mean over the batch, in float32. `labels` are integers (B,) for one class a text, with -100 for a row that
    does not count; zeros and ones (B, C) for several labels; numbers (B, C), or (B,) if C is 1, for a regression.

    Raises ValueError for labels of another shape or with other values.
    """
    if not _fit(labels, len(logits), config):
        raise ValueError(_what_is_wrong(labels, len(logits), config))
    if config.problem_type == SINGLE:
        return F.cross_entropy(logits.float(), labels.long())
    labels = labels.view_as(logits).float()
    if config.problem_type == REGRESSION:
        return F.mse_loss(logits.float(), labels)
    return F.binary_cross_entropy_with_logits(logits.float(), labels)


def _fit(labels: Tensor, batch_size: int, config: LstmPoolConfig) -> bool:
    """Whether `labels` have the shape and the values that the loss for `problem_type` needs."""
    classes, problem_type = config.num_labels, config.problem_type
    if problem_type == SINGLE:
        fit = labels.shape == (batch_size,) and not labels.is_floating_point()
    else:
        fit = labels.shape == (batch_size, classes) or (classes == 1 and labels.shape == (batch_size,))
    if not fit or torch.compiler.is_compiling():  # in a graph, values cannot be looked at
        return fit
    if problem_type == SINGLE:
        allowed = (labels >= 0) & (labels < classes) | (labels == -100)
    elif problem_type == MULTI:
        allowed = (labels >= 0) & (labels <= 1)
    else:
        allowed = ~labels.isnan()  # NaN is a missing number
    return bool(allowed.all())


def _what_is_wrong(labels: Tensor, batch_size: int, config: LstmPoolConfig) -> str:
    """What is told of labels that do not fit."""
    classes, problem_type = config.num_labels, config.problem_type
    if problem_type == SINGLE:
        expected = f"integers of shape {(batch_size,)} in 0..{classes - 1}"
    elif problem_type == MULTI:
        expected = f"zeros and ones of shape {(batch_size, classes)}"
    else:
        expected = f"numbers of shape {(batch_size, classes)}"
    return (
        f"labels for problem_type={problem_type!r} must be {expected}, got {labels.dtype} of shape "
        f"{tuple(labels.shape)}: {labels.flatten()[:8].tolist()} ... Set problem_type to what the labels are, "
        f"and num_labels ({classes}) to how many there are."
    )
