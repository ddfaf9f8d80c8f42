"""95 % intervals over rows: the range of results on other rows of the same kind. They ignore chance in training."""

from collections.abc import Callable

import numpy as np
import scipy.stats


LEVEL = 0.95
RESAMPLES = 1000
BATCH = 100  # resamples in memory at a time
SEED = 0


def wilson(is_right: np.ndarray) -> tuple[float, float]:
    """The interval of a share, from one truth value a row, (N,). For ten right of ten it is not [1, 1].

    Reference: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    test = scipy.stats.binomtest(int(is_right.sum()), len(is_right))
    low, high = test.proportion_ci(LEVEL, method="wilson")
    return float(low), float(high)


def among_alike(share: float, rows: int) -> tuple[float, float]:
    """The interval of a share that is the same in so many `rows`, such as an F1 of 1.

    Rows of another kind may exist, none of which was seen: about 3 in N, by Wilson's bound. They may have 0 or 1.
    """
    seen, _ = wilson(np.ones(rows, dtype=bool))
    return share * seen, share * seen + (1 - seen)


def bootstrap(statistic: Callable[..., np.ndarray], *columns: np.ndarray) -> tuple[float, float] | None:
    """The interval of `statistic(*columns, axis=...)`, by percentiles over rows drawn with replacement.

    None if all draws give the same number, as those of one row do: they say nothing about other rows.

    Args:
        statistic: reduces the columns along `axis`.
        columns: each holds one number a row, (N,); a row's numbers are drawn together.
    """
    if len(columns[0]) == 1:  # the library refuses draws that are all alike
        return None
    found = scipy.stats.bootstrap(
        columns,
        statistic,
        n_resamples=RESAMPLES,
        batch=BATCH,
        vectorized=True,
        paired=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=SEED,
    )
    low, high = found.confidence_interval
    return (float(low), float(high)) if low < high else None
