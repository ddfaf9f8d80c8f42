"""Which training rows are in which fold: spread by their labels, without leaks, and the same for the same seed.

Rows with the same text, or of the same group (`--group_column`), are in one fold, as those held out for validation are
on one side (see `units_of`). What is spread is, for one label a text, the classes; for one number, its bins of equally
many rows; for several labels, each of them, and the rows without any; for several numbers, the bins of each, as is
usual in competitions with such targets. The last two are iterative stratification (Sechidis et al., On the
Stratification of Multi-Label Data, 2011), which counts a unit of several rows as one.
"""

import warnings
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pandas
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from lstmpool.training.data.holdout import BINS, strata_of, units_of
from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.tasks.labels import MULTI, REGRESSION, SINGLE, Labels


def assign_folds(train: Split, labels: Labels, folds: int, seed: int) -> np.ndarray:
    """The fold (N,) of each row, from 1 to `folds`.

    Raises:
        InputError: if there are fewer rows, groups or rows of a class than folds, or a fold would be empty.
    """
    units = np.array(units_of(train))
    _check_enough(train, labels, units, folds)
    if labels.problem_type == MULTI or (labels.problem_type == REGRESSION and len(labels.names) > 1):
        of_units = _iterative(train.labels, labels.problem_type, units, folds, seed)
        assigned = of_units[units]
    else:
        bins = min(BINS, (units.max() + 1) // folds)
        strata = np.array(strata_of(train.labels, labels.problem_type, bins))
        lone = len(set(units)) == len(units)
        splitter = (StratifiedKFold if lone else StratifiedGroupKFold)(folds, shuffle=True, random_state=seed)
        assigned = np.zeros(len(train), dtype=int)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of bins with fewer units than folds
            for fold, (_, held) in enumerate(splitter.split(strata, strata, units), 1):
                assigned[held] = fold
    if missing := sorted(set(range(1, folds + 1)) - set(assigned.tolist())):
        raise InputError(
            f"--cv_folds {folds}: fold {missing[0]} would be empty, because the groups are of very different sizes. "
            "Choose fewer folds."
        )
    return assigned


def _iterative(targets: list[Any], problem_type: str, units: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold (U,) of each unit."""
    table = pandas.DataFrame(np.array(targets, dtype=float)).groupby(units)  # of (N, C), by unit
    if problem_type == MULTI:
        has = table.max().to_numpy() > 0  # (U, C)
        spread = np.column_stack([has, ~has.any(1)])
    else:
        means = table.mean().to_numpy()  # (U, C)
        shares = np.linspace(0, 1, min(BINS, len(means) // folds) + 1)[1:-1]
        edges = np.quantile(means, shares, axis=0)  # (bins - 1, C)
        bins = (means[:, :, None] > edges.T[None]).sum(-1)  # (U, C): equal numbers are in one bin
        spread = (bins[:, :, None] == np.arange(len(edges) + 1)).reshape(len(bins), -1)  # (U, C * bins)
    splitter = MultilabelStratifiedKFold(folds, shuffle=True, random_state=seed)
    assigned = np.zeros(len(spread), dtype=int)
    for fold, (_, held) in enumerate(splitter.split(spread, spread), 1):
        assigned[held] = fold
    return assigned


def _check_enough(train: Split, labels: Labels, units: np.ndarray, folds: int) -> None:
    found, merged = units.max() + 1, ""
    if train.groups is not None and found < len(set(train.groups)):
        merged = f" (of {len(set(train.groups))} groups; rows of different ones with the same text join them)"
    what = "texts" if train.groups is None else "groups"
    if found < folds:
        raise InputError(
            f"--cv_folds {folds} needs that many different {what} in {train.source}, found {found}{merged}. Choose "
            "fewer folds."
        )
    if labels.problem_type == SINGLE:
        units_with = defaultdict(set)
        for unit, label in zip(units.tolist(), train.labels, strict=True):
            units_with[label].add(unit)
        rarest, count = min(Counter({label: len(of) for label, of in units_with.items()}).items(), key=lambda x: x[1])
        if count < folds:
            raise InputError(
                f"--cv_folds {folds} needs that many different {what} of each class, found {count} of "
                f"{labels.names[rarest]!r}{merged}. Choose fewer folds, add rows, or leave that class out."
            )
