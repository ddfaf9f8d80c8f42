"""Training rows whose label looks wrong, by what models say of rows that they were not fitted to.

`linear_issues` fits such models: linear ones on the frozen backbone's layers. A cross-validation has its own. From
their answers, cleanlab (an extra) finds the rows: it estimates how often rows of one class are labelled as another,
and takes that many, the least likely labels first (Northcutt et al., Confident Learning, 2021). With several labels a
text, it does so for each label, and a row is listed only where the model is sure of the contrary, see `DOUBTED`.

N rows, L layers, S the width of a layer's vector, C outputs.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from lstmpool.training.evaluation.linear import deal_folds
from lstmpool.training.model.linear_start import FOLDS, fit_start, logits_without, summed_loss
from lstmpool.training.tasks.task import Classification


LINEAR = "a linear model of the backbone's layers before training"
OF_FOLDS = "the model of its fold"
# With several labels, no decision that is listed has a higher probability. Of many labels that are hard to tell, one
# is predicted wrongly for most rows, so that cleanlab by itself lists most of them (benchmarks/LABELS.md).
DOUBTED = 0.1


@dataclass(frozen=True)
class LabelIssues:
    """The training rows that look mislabelled, the least likely label first.

    Args:
        rows: their numbers among the training rows, (M,).
        quality: what the model thinks of the label given, from 0 to 1, (M,). One label a text: its probability.
            Several: that of the least likely decision, for a label or against it.
        suggested: what the model answers, as encoded labels, (M,) or (M, C).
        judged: how many rows were judged.
        total: how many training rows there are.
        model: which model has judged a row, without having seen it.
        seconds: what this took beyond the run itself.
    """

    rows: np.ndarray
    quality: np.ndarray
    suggested: np.ndarray
    judged: int
    total: int
    model: str
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """The numbers for metrics.json."""
        return {"found": len(self.rows), "judged": self.judged, "rows": self.total, "judged_by": self.model}


def find_issues(
    task: Classification,
    logits: np.ndarray,
    labels: np.ndarray,
    fold_of: np.ndarray,
    rows: np.ndarray | None = None,
    total: int | None = None,
    model: str = OF_FOLDS,
    seconds: float = 0.0,
) -> LabelIssues:
    """Finds the rows that look mislabelled. It draws nothing at random.

    Args:
        task: what the labels mean.
        logits: of each row, (N, C), by a model that was fitted to the rows of other folds.
        labels: the rows' encoded labels, (N,) or (N, C).
        fold_of: the fold of each row, (N,).
        rows (*optional*): the rows' numbers among the training rows, (N,). Unset: these are all, in order.
        total, model, seconds: see `LabelIssues`. Unset: N rows, the models of folds, and no time.
    """
    rows = np.arange(len(labels)) if rows is None else rows
    judged = np.flatnonzero(_known(labels, fold_of, logits.shape[1]))
    found, quality = _by_cleanlab(task.probabilities(logits[judged]), labels[judged])
    found = found[np.argsort(quality[found], kind="stable")]
    chosen = judged[found]
    return LabelIssues(
        rows[chosen],
        quality[found],
        task.decide(logits[chosen]),
        judged=len(judged),
        total=len(rows) if total is None else total,
        model=model,
        seconds=seconds,
    )


def _known(labels: np.ndarray, fold_of: np.ndarray, outputs: int) -> np.ndarray:
    """Whether a row's model has seen all labels that the row has, (N,).

    To any other model such a label is as good as impossible, so the row would look mislabelled for that alone.
    """
    folds, fold = np.unique(fold_of, return_inverse=True)
    inside = np.zeros((len(folds), outputs), dtype=int)  # rows of each label, by fold
    np.add.at(inside, (fold, labels) if labels.ndim == 1 else fold, 1 if labels.ndim == 1 else labels)
    is_unseen = inside.sum(0) == inside  # (folds, C)
    if labels.ndim == 1:
        return ~is_unseen[fold, labels]
    return ~((labels > 0) & is_unseen[fold]).any(1)


def _by_cleanlab(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows that look mislabelled, and the quality of all rows' labels, (N,).

    Labels that all rows have, or none, are passed over: cleanlab compares rows that have one with others.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    if not len(labels) or (labels == labels[0]).all():
        return np.zeros(0, dtype=int), np.ones(len(labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes with few rows: nothing is asked of them
        # one process: others would take as long to start as they save
        if labels.ndim == 1:
            found = find_label_issues(labels, probabilities, n_jobs=1)
            return np.flatnonzero(found), get_label_quality_scores(labels, probabilities)
        differs = labels.min(0) != labels.max(0)
        labels, probabilities = labels[:, differs].astype(int), probabilities[:, differs]
        # each label is a choice of two classes
        choices = np.stack([1 - probabilities, probabilities], axis=2)  # (N, C, 2)
        found = [find_label_issues(labels[:, c], choices[:, c], n_jobs=1) for c in range(labels.shape[1])]
    given = np.where(labels > 0, probabilities, 1 - probabilities)  # (N, C)
    listed = (np.stack(found, axis=1) & (given <= DOUBTED)).any(axis=1)
    return np.flatnonzero(listed), given.min(axis=1)


def linear_issues(
    task: Classification, states: np.ndarray, labels: np.ndarray, units: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """What linear models say of rows that they were not fitted to: logits (N, C), and the fold of each row, (N,).

    As in stage 1, cross-validation chooses which layers they read, and how strongly they are regularised.

    Args:
        task: what the labels mean.
        states: the rows' layer states, (N, L, S).
        labels: encoded, (N,) or (N, C).
        units: the number of each row's unit, (N,). Rows of a unit, such as those with one text, stay in one fold.
        seed: of the folds.
    """
    strata = np.asarray(task.strata(labels))
    _, first_row, unit = np.unique(units, return_index=True, return_inverse=True)
    if len(first_row) < 2:  # no row is left that a model could be fitted to
        return np.zeros((len(labels), len(task.names))), np.zeros(len(labels), dtype=int)
    fold_of = deal_folds(strata[first_row], FOLDS, seed)[unit]
    of_class = None if task.has_thresholds else strata
    loss = summed_loss(task.problem_type)  # also where the run weighs or smooths labels: these are to be probabilities
    start = fit_start(states, labels, len(task.names), loss, of_class, seed)
    return logits_without(fold_of, states, labels, start, loss), fold_of
