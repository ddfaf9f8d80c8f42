"""A linear model on fixed vectors, tuned as one would tune it by hand: what a trained model should be better than.

How strongly it is regularised is chosen by cross-validation on the rows that it is fitted to. Both steps are bounded,
so that they take seconds: of many rows some are drawn, and the more a fit costs, the fewer are tried.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.base import BaseEstimator

from lstmpool.fields_lstmpool import MULTI, REGRESSION
from lstmpool.training.tasks.metrics import LOWER_IS_BETTER
from lstmpool.training.tasks.task import Task


ROWS = 5000  # that a linear model is fitted to, or scored on, at most
FOLDS, STRENGTHS = 5, (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)  # strengths: C, or 1 / alpha
FEW_FOLDS, FEW_STRENGTHS = 3, (1e-3, 0.01, 0.1, 1.0)  # where all of them would take long
# Rows x features x outputs, of the last fit and of all fits before it. One core does about 2e8 a second.
LAST_WORK, CHOICE_WORK = 4e9, 1e9


def linear_features(u: np.ndarray, v: np.ndarray | None = None) -> np.ndarray:
    """The features of a text: its vector, (N, H). Of a pair: [u, v, |u - v|, u * v], (N, 4H)."""
    if v is None:
        return u
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)


def drawn(total: int, limit: int, seed: int) -> np.ndarray:
    """The numbers of at most `limit` of `total` rows, ascending, drawn where there are more."""
    if total <= limit:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, limit, replace=False))


def rows_fitted(total: int, features: int, task: Task) -> int:
    """To how many of `total` rows with so many `features` a linear model is fitted."""
    return min(total, ROWS, max(1, int(LAST_WORK / (features * _outputs(task, features)))))


def fit_linear(features: np.ndarray, labels: np.ndarray, task: Task, seed: int) -> BaseEstimator:
    """The linear model of `task`, as regularised as cross-validation finds best, fitted to all rows.

    Args:
        features: (N, F). Of many rows, `rows_fitted` says how many are drawn.
        labels: the rows' encoded labels, (N,) or (N, C).
        task: its headline metric chooses.
        seed: draws rows and folds.
    """
    rows = drawn(len(features), rows_fitted(*features.shape, task), seed)
    features, labels = features[rows], labels[rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rare labels, and of fits that stop early: the scores tell
        strength = _best_strength(features, labels, task, seed)
        return _fitted(task.linear_model(strength), features, labels, task)


def _fitted(model: BaseEstimator, features: np.ndarray, labels: np.ndarray, task: Task) -> BaseEstimator:
    if (labels == labels[0]).all():  # from labels that are all alike, a linear model learns nothing, or fails
        model = task.simplest_model()
    return model.fit(features, labels)


def _best_strength(features: np.ndarray, labels: np.ndarray, task: Task, seed: int) -> float:
    """The strength whose models score best on the rows that they were not fitted to. Of equals, the first."""
    work = features.shape[1] * _outputs(task, features.shape[1])  # of one row
    folds, strengths = FOLDS, STRENGTHS
    if len(features) * work * (folds - 1) * len(strengths) > CHOICE_WORK:
        folds, strengths = FEW_FOLDS, FEW_STRENGTHS
    affordable = int(CHOICE_WORK / (work * (folds - 1) * len(strengths)))
    some = drawn(len(features), max(affordable, 2 * len(task.names), 2), seed)
    features, labels = features[some], labels[some]
    fold_of = deal_folds(task.strata(labels), min(folds, len(features)), seed)
    sign = -1 if task.headline in LOWER_IS_BETTER else 1
    scores = [sign * _held_out_score(strength, features, labels, fold_of, task) for strength in strengths]
    return strengths[int(np.argmax(scores))]


def _held_out_score(
    strength: float, features: np.ndarray, labels: np.ndarray, fold_of: np.ndarray, task: Task
) -> float:
    """The headline metric of all rows, each predicted by the model that was fitted without its fold."""
    if fold_of.max() == 0:  # a single row
        return 0.0
    answers = np.zeros(labels.shape, dtype=float if task.has_numbers else labels.dtype)
    for fold in np.unique(fold_of):
        held = fold_of == fold
        model = _fitted(task.linear_model(strength), features[~held], labels[~held], task)
        answers[held] = model.predict(features[held]).reshape(answers[held].shape)
    return task.score(answers, labels)[task.headline]


def deal_folds(strata: Sequence[int], folds: int, seed: int) -> np.ndarray:
    """The fold of each row, (N,). Each stratum is dealt out evenly, also one with fewer rows than folds."""
    order = np.random.default_rng(seed).permutation(len(strata))
    order = order[np.argsort(np.asarray(strata)[order], kind="stable")]
    fold_of = np.empty(len(strata), dtype=int)
    fold_of[order] = np.arange(len(strata)) % folds
    return fold_of


def _outputs(task: Task, features: int) -> float:
    """The outputs that a fit costs as much as, by measurement: several labels are fitted one by one."""
    if task.problem_type == REGRESSION:
        return max(1.0, features / 100)  # whatever the targets: it is solved once, by the products of all features
    return len(task.names) * (8.0 if task.problem_type == MULTI else 1.0)
