"""Holds out validation rows for users who have none: a stratified share of the training rows, without leaks.

Rows with the same text, or of the same group, stay on one side. A stratum with a single text stays in training, so
validation asks for nothing that training could not know. Every other stratum, however rare, is in validation with at
least one, as long as fewer strata than texts are wanted there.
"""

import array
import heapq
import random

import numpy as np
import pandas
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.tasks.columns import Cells, places_of
from lstmpool.training.tasks.task import Task


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
