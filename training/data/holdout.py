"""Validation rows for those who have none: a stratified share of the training rows, without leaks.

Rows with the same text, or of the same group, stay on one side, and a stratum with one text stays in training, so that
validation asks for nothing that training could not know.
"""

import random
from collections import Counter

import numpy as np
import pandas
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.tasks.task import Task


def hold_out(train: Split, task: Task, share: float, seed: int, limit: int | None = None) -> tuple[Split, Split]:
    """`train` without the rows held out, and those: every stratum gives `share` of its units (see `units_of`), to
    within one; about `limit` rows are enough.

    Raises:
        InputError: if `share`, between 0 and 1, leaves no row on one of the sides.
    """
    share = share if limit is None else min(share, limit / len(train))
    rows_of: dict[int, list[int]] = {}
    for row, unit in enumerate(units_of(train)):
        rows_of.setdefault(unit, []).append(row)
    strata = task.strata(train.labels)
    texts_in = Counter(strata[rows[0]] for rows in rows_of.values())
    groups = [rows for rows in rows_of.values() if texts_in[strata[rows[0]]] > 1]
    random.Random(seed).shuffle(groups)
    groups.sort(key=lambda rows: strata[rows[0]])  # stable: within a stratum the order stays random
    # Every k-th group of all, ordered by stratum: as many of each as its share.
    positions = np.arange(0.5 / share, len(groups), 1 / share).astype(int)
    held = sorted(row for position in positions for row in groups[position])
    kept = sorted(set(range(len(train))) - set(held))
    if not held or not kept:
        raise InputError(
            f"{len(train)} training rows are too few to hold out {share:g} of them. Name a --validation_file, or "
            "train without one: --validation_size 0."
        )
    return train.take(kept), train.take(held, source=f"{share:.0%} of {train.source}")


def units_of(rows: Split) -> list[int]:
    """The number (N,) of each row's unit, counted in the order of the rows. Rows with the same text, or of the same
    group, are one unit, and so are those between which others make a chain: if an essay's parts are a group and one
    of them is quoted in another essay, both essays are one."""
    texts = pandas.factorize(np.fromiter(map(repr, rows.inputs()), dtype=object))[0]
    if rows.groups is None:
        return texts.tolist()
    groups = pandas.factorize(np.array(rows.groups, dtype=object))[0] + len(rows)  # nodes after those of the texts
    links = coo_array((np.ones(len(rows)), (texts, groups)), shape=(2 * len(rows), 2 * len(rows)))
    return pandas.factorize(connected_components(links, directed=False)[1][texts])[0].tolist()
