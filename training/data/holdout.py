"""Divides the training rows without leaks: holds out validation rows for users who have none, or deals out folds.

Rows with the same text, or of the same group (`--group_column`), form one unit and stay together (see `units_of`). The
same seed divides them the same way.

A stratum with a single text stays in training, so validation asks for nothing that training could not know. Every
other stratum, however rare, is in validation with at least one, as long as fewer strata than texts are wanted there.

Every fold gets about the same share:

    one label a text    of each class
    several labels      of each label, and of the rows without any
    one number          of each bin of the number; bins hold equally many rows
    several numbers     of each bin of each number, as is usual in competitions with such targets

For several labels or numbers, this is iterative stratification (Sechidis et al., On the Stratification of Multi-Label
Data, 2011), which counts each unit once.
"""

import array
import heapq
import random
import warnings
from collections.abc import Iterable

import numpy as np
import pandas
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.tasks.columns import Cells, places_of
from lstmpool.training.tasks.task import BINS, Task


FEWEST = 5  # rows that each class keeps where rows are drawn


def hold_out(train: Split, task: Task, share: float, seed: int, limit: int | None = None) -> tuple[Split, Split]:
    """Splits `train` into the rows that stay and the rows held out.

    Every stratum gives `share` of its units (see `units_of`), to within one. For a rare one, the others give one less.

    Args:
        train: the training rows, with labels.
        task: what the labels mean.
        share: the share to hold out, between 0 and 1.
        seed: of the choice.
        limit: the number of rows, about, that are enough.

    Raises:
        InputError: if one of the two sides would have no rows.
    """
    share = share if limit is None else min(share, limit / len(train))
    unit_of = np.asarray(units_of(train))  # (N,)
    _, first_row = np.unique(unit_of, return_index=True)  # of each unit
    strata = np.asarray(task.strata(train.labels))[first_row]
    _, stratum, units_in = np.unique(strata, return_inverse=True, return_counts=True)
    units = array.array("q", np.flatnonzero(units_in[stratum] > 1))
    random.Random(seed).shuffle(units)
    units = np.array(units)
    units = units[np.argsort(strata[units], kind="stable")]  # within a stratum the order stays random
    # Every k-th unit in the order of strata is held out, so each stratum gives its share.
    positions = np.arange(0.5 / share, len(units), 1 / share).astype(int)
    is_held = np.zeros(len(first_row), dtype=bool)
    is_held[units[_with_rare_ones(positions, strata[units])]] = True
    held_out, kept = np.flatnonzero(is_held[unit_of]), np.flatnonzero(~is_held[unit_of])
    if not len(held_out) or not len(kept):
        raise InputError(
            f"{len(train)} training rows are too few to hold out {share:g} of them. Name a --validation_file, or "
            "train without one: --validation_size 0."
        )
    return train.take(kept), train.take(held_out, source=f"{share:.0%} of {train.source}")


def draw_by_class(codes: np.ndarray, most: int, seed: int) -> np.ndarray:
    """The numbers of at most `most` rows, ascending, drawn in proportion to the classes.

    Every class keeps `FEWEST` rows, or all if it has fewer, even where these are then more than `most`. Rows of
    several labels or of numbers have no class: they are drawn at random.

    Args:
        codes: the class of each row, (N,) of whole numbers; or labels (N, C), or numbers.
        most: the rows that are wanted.
        seed: of the choice.
    """
    codes = np.asarray(codes)
    generator = np.random.default_rng(seed)
    if len(codes) <= most:
        return np.arange(len(codes))
    if codes.ndim > 1 or not np.issubdtype(codes.dtype, np.integer):
        return np.sort(generator.choice(len(codes), most, replace=False))
    _, code_of, rows_in = np.unique(codes, return_inverse=True, return_counts=True)
    wanted = _shares(rows_in, most)
    shuffled = generator.permutation(len(codes))
    by_class = shuffled[np.argsort(code_of[shuffled], kind="stable")]  # within a class the order stays random
    starts = np.cumsum(rows_in) - rows_in
    chosen = [by_class[start : start + count] for start, count in zip(starts, wanted, strict=True)]
    return np.sort(np.concatenate(chosen))


def _shares(rows_in: np.ndarray, most: int) -> np.ndarray:
    """How many rows of each class are drawn, (C,), if it has so many. In all, about `most`."""
    least = np.minimum(rows_in, FEWEST)
    is_free = rows_in > least  # classes that give more than the least
    while is_free.any():  # a share below the least is raised to it, and the others share what is left
        left = most - least[~is_free].sum()
        shares = left * rows_in / rows_in[is_free].sum()
        too_small = is_free & (shares < least)
        if not too_small.any():
            whole = np.floor(shares).astype(int)
            in_order = np.argsort(np.where(is_free, whole - shares, 1), kind="stable")  # the largest remainder first
            whole[in_order[: left - whole[is_free].sum()]] += 1
            return np.where(is_free, whole, least)
        is_free &= ~too_small
    return least


def _with_rare_ones(positions: np.ndarray, strata: np.ndarray) -> list[int]:
    """As many positions, but one in each stratum that had none, in place of one in the stratum that has most.

    `strata` holds the stratum at each position, in order. It stops where no stratum has more than one.
    """
    different, first = np.unique(strata, return_index=True)
    first_of = dict(zip(different.tolist(), first.tolist(), strict=True))
    chosen_in: dict[int, list[int]] = {}
    for position, stratum in zip(positions.tolist(), strata[positions].tolist(), strict=True):
        chosen_in.setdefault(stratum, []).append(position)
    givers = [(-len(chosen), stratum) for stratum, chosen in chosen_in.items()]
    heapq.heapify(givers)
    for stratum in sorted(first_of.keys() - chosen_in.keys()):
        count, giver = givers[0] if givers else (0, None)
        if count >= -1:
            break
        chosen_in[giver].pop()
        heapq.heapreplace(givers, (count + 1, giver))
        chosen_in[stratum] = [first_of[stratum]]
    return [position for chosen in chosen_in.values() for position in chosen]


def units_of(rows: Split) -> Cells:
    """The number of each row's unit, (N,), counted in the order of the rows.

    Rows with the same text, or of the same group, are one unit. So are rows that a chain of others links: if each
    essay is a group and one quotes a part of another, both essays are one unit.
    """
    text_of = places_of(*rows.columns)
    if rows.groups is None:
        return Cells(text_of)
    # A graph whose nodes are the texts, then the groups. Each row links its text to its group.
    group_of, _ = pandas.factorize(np.asarray(rows.groups, dtype=object))
    ends = (text_of, group_of + len(rows))
    links = coo_array((np.ones(len(rows)), ends), shape=(2 * len(rows), 2 * len(rows)))
    _, component_of = connected_components(links, directed=False)
    unit_of, _ = pandas.factorize(component_of[text_of])
    return Cells(unit_of)


# --------------------------------------------------------------------------------------------------------------- folds
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
