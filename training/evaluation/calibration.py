"""How honest a classifier's probabilities are, and what makes them so: a temperature, and thresholds label by label.

Temperature scaling is that of Guo et al., On Calibration of Modern Neural Networks (https://arxiv.org/abs/1706.04599).
Both are learnt on validation and folded into the last linear layer, so that whatever loads the model obeys them.
"""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from lstmpool.training.tasks.task import Classification


BINS = 15  # of the expected calibration error and of the reliability diagram
TEMPERATURES = (0.02, 50.0)


def probability_metrics(task: Classification, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Log-loss, Brier score and expected calibration error of `logits` (N, C); lower is better."""
    confidence, correct = task.confidences(logits, labels)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(confidence[bins == b].sum() - correct[bins == b].sum()) for b in range(BINS)]
    return {
        "log_loss": task.log_loss(logits, labels),
        "brier": task.brier(logits, labels),
        "ece": float(sum(gaps) / len(confidence)),
    }


def fit_temperature(task: Classification, logits: np.ndarray, labels: np.ndarray) -> float:
    """The T for which logits / T (N, C) have the least log-loss; above 1 where the model is too sure of itself."""

    def loss_at(log_temperature: float) -> float:
        return task.log_loss(logits / np.exp(log_temperature), labels)

    found = minimize_scalar(loss_at, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


@torch.no_grad()
def fold_temperature(head: nn.Linear, temperature: float) -> None:
    """From now on `head` gives its logits divided by `temperature`."""
    head.weight.div_(temperature)
    head.bias.div_(temperature)


def tune_thresholds(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The logit (C,) above which each label is best given: where its F1 on these rows is highest.

    Thresholds lie midway between neighbouring logits; of those equally good, the one nearest 0, probability 0.5, is
    taken. A label without a row, or one that every row has, keeps 0.
    """
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels)
    return np.array([_best_threshold(*columns) for columns in zip(logits.T, labels.T, strict=True)])


def _best_threshold(logits: np.ndarray, labels: np.ndarray) -> float:
    if labels.min() == labels.max():
        return 0.0
    distinct = np.unique(logits)
    candidates = np.concatenate([[0.0], (distinct[1:] + distinct[:-1]) / 2, [distinct[0] - 1]])
    order = logits.argsort()
    hits_above = labels[order][::-1].cumsum()[::-1]  # of the rows from here up
    first = np.searchsorted(logits[order], candidates, side="right")
    given = len(logits) - first
    hits = np.where(given > 0, hits_above[np.minimum(first, len(logits) - 1)], 0)
    f1 = 2 * hits / (given + labels.sum())
    best = candidates[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best).argmin()])


@torch.no_grad()
def fold_thresholds(head: nn.Linear, thresholds: np.ndarray) -> None:
    """From now on a logit above 0 means what one above its threshold meant."""
    head.bias.sub_(torch.as_tensor(thresholds, dtype=head.bias.dtype, device=head.bias.device))
