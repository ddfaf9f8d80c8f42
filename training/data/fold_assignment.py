"""Which training rows are in which fold: spread by their labels, without leaks, and the same for the same seed.

Rows with the same text, or of the same group (`--group_column`), are in one fold, as those held out for validation are
on one side (see `units_of`). What is spread is, for one label a text, the classes; for one number, its bins of equally
many rows; for several labels, each of them, and the rows without any; for several numbers, the bins of each, as is
usual in competitions with such targets. The last two are iterative stratification (Sechidis et al., On the
Stratification of Multi-Label Data, 2011), which counts a unit of several rows as one.
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
    """The fold (N,) of each row, from 1 to `folds`.

    Raises:
        InputError: if there are fewer rows, groups or rows of a class than folds, or a fold would be empty.
    """
    units = np.array(units_of(train))
    _check_enough(train, task, units, folds)
    indicators = task.indicators(train.labels, units, folds)
    if indicators is None:
        assigned = _by_stratum(train, task, units, folds, seed)
    else:
        assigned = _iterative(indicators, folds, seed)[units]
    if missing := sorted(set(range(1, folds + 1)) - set(assigned.tolist())):
        raise InputError(
            f"--cv_folds {folds}: fold {missing[0]} would be empty, because the groups are of very different sizes. "
            "Choose fewer folds."
        )
    return assigned


def _by_stratum(train: Split, task: Task, units: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold (N,) of each row."""
    bins = min(BINS, (units.max() + 1) // folds)
    strata = np.array(task.strata(train.labels, bins))
    each_row_is_a_unit = len(set(units)) == len(units)
    kind = StratifiedKFold if each_row_is_a_unit else StratifiedGroupKFold
    splitter = kind(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of bins with fewer units than folds
        return _numbered(splitter.split(strata, strata, units), len(train))


def _iterative(indicators: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold (U,) of each unit, by `indicators` (U, K)."""
    splitter = MultilabelStratifiedKFold(folds, shuffle=True, random_state=seed)
    return _numbered(splitter.split(indicators, indicators), len(indicators))


def _numbered(splits: Iterable[tuple[np.ndarray, np.ndarray]], total: int) -> np.ndarray:
    """From pairs (kept, held out) to the number of the split in which each is held out, from 1; (total,)."""
    numbers = np.zeros(total, dtype=int)
    for number, (_, held) in enumerate(splits, 1):
        numbers[held] = number
    return numbers


def _check_enough(train: Split, task: Task, units: np.ndarray, folds: int) -> None:
    found, merged = units.max() + 1, ""
    if train.groups is not None and found < len(set(train.groups)):
        merged = f" (of {len(set(train.groups))} groups; rows of different ones with the same text join them)"
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
