"""When a text may leave at an exit below the highest layer: the rules that choose one threshold on validation rows.

`point` takes the lowest threshold that keeps the metric on these rows, with a margin of one standard error: rows that
are lost and won cancel out in the metric, but each of them makes it less certain. `bounded` takes the lowest one with
which so few rows are lost that a test rules out a larger risk on new rows, but for a chance of `DELTA`. This is
learn-then-test (Angelopoulos et al. 2021, arXiv 2110.01052) with a fixed sequence of thresholds.

N rows, E exits, C outputs. A row's place is the number of the exit where it leaves, the lowest's being 0, or E if it
is read to the end.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import binom


MOST = 400  # thresholds that are tried, at most
DELTA = 0.1  # the chance that `bounded` may be wrong
ROUNDING = 1e-9  # of a metric
# From the surest down, and chosen without a look at any row, as a fixed sequence must be.
SEQUENCE = 1 - np.logspace(-6, 0, MOST)


def places_of(confidences: np.ndarray, threshold: float | None) -> np.ndarray:
    """The place (N,) of each row by the `confidences` (N, E) of the exits. Without a threshold, each is E."""
    rows, exits = confidences.shape
    if threshold is None:
        return np.full(rows, exits)
    leaves = confidences >= threshold
    return np.where(leaves.any(1), leaves.argmax(1), exits)


def mixed(exit_logits: np.ndarray, logits: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The logits (N, C) of each row at its place, of those of the exits (N, E, C) and of the whole model (N, C)."""
    found = np.array(logits)
    early = np.flatnonzero(places < exit_logits.shape[1])
    found[early] = exit_logits[early, places[early]]
    return found


def candidates(confidences: np.ndarray) -> np.ndarray:
    """The distinct confidences, from the surest down; of more than `MOST`, their quantiles."""
    distinct = np.unique(confidences)
    if len(distinct) > MOST:
        distinct = distinct[np.linspace(0, len(distinct) - 1, MOST).round().astype(int)]
    return distinct[::-1]


def choose_point(confidences: np.ndarray, score: Callable[[np.ndarray], float], least: float) -> float | None:
    """The lowest threshold with which, as with all higher ones, the rows have a score of `least` or more.

    Args:
        confidences: of the exits, (N, E).
        score: of the places (N,) of the rows; higher is better.
        least: the score to keep.

    Returns:
        It lies midway to the next lower confidence, so that no rounding decides. None: not even the surest row may
        leave.
    """
    kept = None
    for candidate in candidates(confidences):
        if score(places_of(confidences, candidate)) < least - ROUNDING:
            break
        kept = float(candidate)
    if kept is None:
        return None
    lower = confidences[confidences < kept]
    return (kept + (float(lower.max()) if len(lower) else 0.0)) / 2


def margin(before: np.ndarray, after: np.ndarray) -> float:
    """One standard error of a change of the share of rows that are right, 0 to 1.

    `before` and `after` say whether each row is right, (N,). A row that changes adds or takes 1 / N.
    """
    changed = int((before != after).sum())
    return math.sqrt(changed) / len(before)


def choose_bounded(confidences: np.ndarray, lost: np.ndarray, risk: float, delta: float = DELTA) -> float | None:
    """The lowest threshold of `SEQUENCE` for which, as for all higher ones, "more than `risk` is lost" is rejected.

    Args:
        confidences: of the exits, (N, E).
        lost: whether a row that the whole model gets right is wrong at an exit, (N, E).
        risk: the share of rows that may be lost, above 0.
        delta: the chance that the limit does not hold, which is the level of each test.

    Returns:
        None if there are fewer than `rows_needed` rows, or too many are lost even at the surest threshold.
    """
    kept = None
    never = np.column_stack([lost, np.zeros(len(lost), dtype=bool)])  # a row that is read to the end
    for threshold in SEQUENCE:
        count = int(never[np.arange(len(lost)), places_of(confidences, threshold)].sum())
        if binom.cdf(count, len(lost), risk) > delta:
            break
        kept = float(threshold)
    return kept


def rows_needed(risk: float, delta: float = DELTA) -> int:
    """The validation rows with which `choose_bounded` could choose a threshold if none of them were lost."""
    return math.ceil(math.log(delta) / math.log1p(-risk))


def lowest_within(scores: list[float], whole: float, drop: float) -> int | None:
    """The place of the lowest exit that by itself scores at most `drop` less than the `whole` model, if there is one.

    Higher `scores` are better.
    """
    return next((place for place, score in enumerate(scores) if score >= whole - drop - ROUNDING), None)
