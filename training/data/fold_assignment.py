"""Puts training rows into folds: balanced by their labels, without leaks, and the same way for the same seed.

Rows with the same text, or of the same group (`--group_column`), form one unit and stay in one fold (see `units_of`).
Every fold gets about the same share:

    one label a text    of each class
    several labels      of each label, and of the rows without any
    one number          of each bin of the number; bins hold equally many rows
    several numbers     of each bin of each number, as is usual in competitions with such targets

For several labels or numbers, this is iterative stratification (Sechidis et al., On the Stratification of Multi-Label
Data, 2011), which counts each unit once.
"""

import warnings
from collections.abc import Iterable

import numpy as np
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from lstmpool.training.data.holdout import units_of
from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.tasks.task import BINS, Task


def assign_folds(train: Split, task: Task, folds: int, seed: int) -> np.ndarray:
    """The fold of each row, (N,), from 1 to `folds`.

    Raises:
        InputError: if there are fewer texts, groups or texts of a class than folds, or a fold would be empty.
    """
    units = np.asarray(units_of(train))
    _check_enough(train, task, units, folds)
    indicators = task.indicators(train.labels, units, folds)
    if indicators is None:
        assigned = _by_stratum(train, task, units, folds, seed)
    else:
        assigned = _iterative(indicators, folds, seed)[units]
    empty = sorted(set(range(1, folds + 1)) - set(assigned.tolist()))
    if empty:
        raise InputError(
            f"--cv_folds {folds}: fold {empty[0]} would be empty, because the groups differ too much in size. Choose "
            "fewer folds."
        )
    return assigned


def _by_stratum(train: Split, task: Task, units: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each row, (N,), by one stratum a row."""
    bins = min(BINS, (units.max() + 1) // folds)
    strata = np.array(task.strata(train.labels, bins))
    each_row_is_a_unit = units.max() + 1 == len(units)
    kind = StratifiedKFold if each_row_is_a_unit else StratifiedGroupKFold
    splitter = kind(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about bins with fewer units than folds
        return _numbered(splitter.split(strata, strata, units), len(train))


def _iterative(indicators: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each unit, (U,), by `indicators` (U, K)."""
    splitter = MultilabelStratifiedKFold(folds, shuffle=True, random_state=seed)
    return _numbered(splitter.split(indicators, indicators), len(indicators))


def _numbered(splits: Iterable[tuple[np.ndarray, np.ndarray]], total: int) -> np.ndarray:
    """For each of `total` items, the number of the split that holds it out, from 1. A split is (kept, held out)."""
    numbers = np.zeros(total, dtype=int)
    for number, (_, held_out) in enumerate(splits, 1):
        numbers[held_out] = number
    return numbers


def _check_enough(train: Split, task: Task, units: np.ndarray, folds: int) -> None:
    found = units.max() + 1
    merged = ""
    if train.groups is not None and found < len(set(train.groups)):
        merged = f" (of {len(set(train.groups))} groups; groups that share a text count as one)"
    what = "texts" if train.groups is None else "groups"
    if found < folds:
        raise InputError(
            f"--cv_folds {folds} needs that many different {what} in {train.source}, found {found}{merged}. Choose "
            "fewer folds."
        )
    rarest = task.rarest_class(train.labels, units)
    if rarest is not None and rarest[1] < folds:
        name, count = rarest
        raise InputError(
            f"--cv_folds {folds} needs that many different {what} of each class, found {count} of {name!r}{merged}. "
            "Choose fewer folds, add rows, or leave that class out."
        )
