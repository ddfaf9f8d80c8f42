"""One pooling less another: paired differences, and what they say of sets like these.

On one set, an interval comes from the draws of test items and seeds. There are few sets, so an interval over sets is
Student's.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from study.statistics import Table, family_of


FEW = 5  # families; with fewer, ranks and intervals over sets say nothing
ROPE = 0.01  # a difference below one point is no reason to choose
DETECTABLE = (0.975, 0.8)  # quantiles: what a two-sided test at 5 % finds in 80 of 100 studies


@dataclass(frozen=True)
class Difference:
    """One pooling less another, over the sets that have both. Three numbers are an estimate and its interval."""

    pooling: str
    other: str
    by_set: dict[str, tuple[float, float, float]]
    pooled: tuple[float, float, float]  # the mean over families, for exactly these sets
    over_sets: tuple[float, float] | None  # its interval for sets like these; None with a single family
    without_one: tuple[float, float] | None  # its lowest and highest value if one family is left out
    detectable: float | None  # what a study of as many families that differ as much finds in 8 of 10 cases

    @property
    def tally(self) -> tuple[int, int, int]:
        """On how many sets the interval lies above zero, holds zero, lies below it."""
        above = sum(low > 0 for _, low, _ in self.by_set.values())
        below = sum(high < 0 for _, _, high in self.by_set.values())
        return above, len(self.by_set) - above - below, below

    @property
    def enough(self) -> bool:
        """Whether there are sets enough to speak of sets like these."""
        return len({family_of(dataset) for dataset in self.by_set}) >= FEW


def difference(table: Table, pooling: str, other: str) -> Difference | None:
    """`pooling` less `other`; None if no set has both."""
    drawn = {dataset: table.draws(dataset, [pooling, other]) for dataset in table.sets}
    by_set = {dataset: scores[0] - scores[1] for dataset, scores in drawn.items() if scores is not None}  # (R + 1,)
    if not by_set:
        return None
    families = defaultdict(list)
    for dataset, values in by_set.items():
        families[family_of(dataset)].append(values)
    of_family = np.array([np.mean(values, axis=0) for values in families.values()])  # (F, R + 1)
    pooled = of_family.mean(0)
    n = len(of_family)
    over_sets = None
    without_one = None
    detectable = None
    if n > 1:
        # the spread of the families holds what test items and seeds add to it
        error = of_family[:, 0].std(ddof=1) / math.sqrt(n)
        half = student.ppf(0.975, n - 1) * error
        over_sets = float(pooled[0] - half), float(pooled[0] + half)
        others = (pooled[0] * n - of_family[:, 0]) / (n - 1)
        without_one = float(others.min()), float(others.max())
        detectable = float(sum(student.ppf(q, n - 1) for q in DETECTABLE) * error)
    return Difference(
        pooling,
        other,
        {dataset: (float(values[0]), *bounds(values[1:])) for dataset, values in by_set.items()},
        (float(pooled[0]), *bounds(pooled[1:])),
        over_sets,
        without_one,
        detectable,
    )


def bounds(values: np.ndarray) -> tuple[float, float]:
    """The ends of a 95 % interval."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def compared(
    table: Table, pooling: str, others: Iterable[str] | None = None, others_first: bool = False
) -> dict[str, Difference]:
    """`pooling` less each of the others, by the other's name; no entry for one that has no set in common with it.

    Args:
        others: what `pooling` is compared with. Unset: all others of the table.
        others_first: each other less `pooling`, instead.
    """
    if others is None:
        others = [other for other in table.poolings if other != pooling]
    found = {}
    for other in others:
        one = difference(table, other, pooling) if others_first else difference(table, pooling, other)
        if one is not None:
            found[other] = one
    return found


def equivalence(table: Table, found: Difference) -> tuple[float, float, float]:
    """The Bayesian signed-rank test over families: how probable it is that each of three cases is the likeliest.

    The cases for a new set are: the pooling is better, practically equal, or worse (Benavoli et al. 2017,
    https://jmlr.org/papers/v18/16-305.html).
    """
    import baycomp  # no other part of the project needs it

    scores = defaultdict(list)
    for dataset in found.by_set:
        of_set = [table.score(dataset, pooling) for pooling in (found.pooling, found.other)]
        scores[family_of(dataset)].append(of_set)
    mine, its = np.array([np.mean(values, axis=0) for values in scores.values()]).T  # (F,) each
    return baycomp.two_on_multiple(mine, its, rope=ROPE, random_state=0)
