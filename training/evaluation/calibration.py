"""How honest a classifier's probabilities are, and what makes them so: a temperature, and thresholds label by label.

Temperature scaling is that of Guo et al., On Calibration of Modern Neural Networks (https://arxiv.org/abs/1706.04599).
Both are learnt on validation and folded into the last linear layer, so that whatever loads the model obeys them.
"""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from torch import nn

from lstmpool.training.tasks.labels import SINGLE


BINS = 15  # of the expected calibration error and of the reliability diagram
TEMPERATURES = (0.02, 50.0)


def probability_metrics(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> dict[str, float]:
    """Log-loss, Brier score and expected calibration error of logits (N, C); lower is better.

    For one label a text, log-loss and Brier score are means over rows, the latter of the sum over classes. For several
    they are means over all N x C decisions.
    """
    if problem_type == SINGLE:
        wanted = np.eye(logits.shape[1])[labels]  # (N, C)
        brier = ((softmax(logits, axis=1) - wanted) ** 2).sum(1).mean()
    else:
        brier = ((expit(logits) - labels) ** 2).mean()
    confidence, correct = confidences(logits, labels, problem_type)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(confidence[bins == b].sum() - correct[bins == b].sum()) for b in range(BINS)]
    return {
        "log_loss": log_loss(logits, labels, problem_type),
        "brier": float(brier),
        "ece": float(sum(gaps) / len(confidence)),
    }


def log_loss(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """The mean of -log p of what is true."""
    if problem_type == SINGLE:
        return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())
    return float((np.logaddexp(0, logits) - logits * labels).mean())


def confidences(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> tuple[np.ndarray, np.ndarray]:
    """The probability (M,) of what is claimed, and whether it is so: of a row's likeliest class, or of every label."""
    if problem_type == SINGLE:
        return softmax(logits, axis=1).max(1), (logits.argmax(1) == labels).astype(float)
    return expit(logits).ravel(), np.asarray(labels, dtype=float).ravel()


def fit_temperature(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """The T for which logits / T (N, C) have the least log-loss; above 1 where the model is too sure of itself."""
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(
        lambda log_t: log_loss(logits / np.exp(log_t), labels, problem_type), bounds=(low, high), method="bounded"
    )
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
