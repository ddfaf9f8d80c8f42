"""Measures how honest a classifier's probabilities are, and learns what makes them so: a temperature and thresholds.

Temperature scaling is that of Guo et al., On Calibration of Modern Neural Networks (https://arxiv.org/abs/1706.04599).
Both are learnt on validation and folded into the last linear layer, so all code that loads the model obeys them.
"""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from lstmpool.training.evaluation.by_class import margins
from lstmpool.training.tasks.task import Classification, blocks


BINS = 15  # for the expected calibration error and the reliability diagram
TEMPERATURES = (0.02, 50.0)


def probability_metrics(task: Classification, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Log-loss, Brier score and expected calibration error of `logits` (N, C); lower is better."""
    claims, gaps = 0, np.zeros(BINS)  # of each bin, what was claimed minus what is true
    for block in blocks(logits):
        confidence, correct = task.confidences(logits[block], labels[block])
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        gaps += np.bincount(bins, confidence - correct, minlength=BINS)
        claims += len(confidence)
    return {
        "log_loss": task.log_loss(logits, labels),
        "brier": task.brier(logits, labels),
        "ece": float(np.abs(gaps).sum() / claims),
    }


def fit_temperature(task: Classification, logits: np.ndarray, labels: np.ndarray) -> float:
    """The T for which logits / T (N, C) have the least log-loss. It is above 1 if the model is too sure of itself."""

    def loss_at(log_temperature: float) -> float:
        return task.log_loss(logits / np.exp(log_temperature), labels)

    found = minimize_scalar(loss_at, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


@torch.no_grad()
def fold_temperature(head: nn.Linear, temperature: float, skip: nn.Linear | None = None) -> None:
    """From now on, `head` gives its logits divided by `temperature`, and so does `skip`, which is added to them."""
    for part in [head] if skip is None else [head, skip]:
        for parameter in part.parameters():
            parameter.div_(temperature)


def tune_thresholds(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The thresholds (C,) for the logits (N, C): above its threshold, a label is given. They maximise each label's F1.

    A threshold lies midway between neighbouring logits. Of equally good ones, the one nearest 0 (probability 0.5) is
    taken. A label that no row has, or every row, keeps 0.
    """
    labels = np.asarray(labels)  # (N, C), 0 or 1
    return np.array([_best_threshold(*columns) for columns in zip(logits.T, labels.T, strict=True)])


def tune_two_classes(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The thresholds (2,) to take off the logits (N, 2) of two classes, so that the likelier one is the answer.

    The first one is 0: only their difference counts. It maximises macro F1, the mean of both classes' F1, so it does
    not matter which class is looked for. It is found as in `tune_thresholds`.
    """
    ahead = margins(logits)
    return np.array([0.0, _best_threshold(ahead, np.asarray(labels), of_both=True)])


def _best_threshold(logits: np.ndarray, labels: np.ndarray, of_both: bool = False) -> float:
    """The threshold of one label: `logits` and `labels` are (N,). `of_both`: for the F1 of its absence, too."""
    if labels.min() == labels.max():
        return 0.0
    logits = np.asarray(logits, dtype=float)
    distinct = np.unique(logits)
    ends = [distinct[0] - 1, distinct[-1] + 1]
    candidates = np.concatenate([[0.0], (distinct[1:] + distinct[:-1]) / 2, ends])
    order = logits.argsort()
    hits_above = labels[order][::-1].cumsum()[::-1]  # true labels among the rows from here up
    first = np.searchsorted(logits[order], candidates, side="right")
    given = len(logits) - first
    hits = np.where(given > 0, hits_above[np.minimum(first, len(logits) - 1)], 0)
    true = labels.sum()
    f1 = 2 * hits / (given + true)
    if of_both:
        missed = true - hits
        not_given = len(logits) - given
        f1 = f1 + 2 * (not_given - missed) / (not_given + len(logits) - true)
    best = candidates[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best).argmin()])


@torch.no_grad()
def fold_thresholds(head: nn.Linear, thresholds: np.ndarray) -> None:
    """From now on, `head` gives its logits minus `thresholds` (C,): above 0 means above the threshold."""
    head.bias.sub_(torch.as_tensor(thresholds, dtype=head.bias.dtype, device=head.bias.device))
