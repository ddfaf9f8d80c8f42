"""Finds the rows that all of R runs have answered, and measures by how much their answers differ.

Rows are drawn with replacement, the same draws for all runs, and each metric is measured on each draw. So an interval
says what other rows of the same kind might give. It ignores chance in training. N rows, C outputs, R runs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lstmpool.training.errors import InputError
from lstmpool.training.tasks.intervals import LEVEL, SEED, bootstrap
from lstmpool.training.tasks.metrics import LOWER_IS_BETTER
from lstmpool.training.tasks.task import Classification, Task


DRAWS = 2000
FEWEST = 20  # rows that runs must have in common if they do not have all: fewer say nothing about other rows
OF_SCORES = ("log_loss", "brier")  # means over rows, of the probabilities; lower is better
SMALLEST, LARGEST = np.finfo(float).tiny, 1 - np.finfo(float).epsneg  # of a probability whose logarithm is taken


class Answers(NamedTuple):
    """What a run has answered to N rows."""

    answers: np.ndarray  # as `Task.decide` gives them
    scores: np.ndarray | None = None  # probabilities (N, C), where they are known


class Answered(NamedTuple):
    """The rows of a split, and what a run has answered."""

    ids: list[str]
    labels: np.ndarray  # as the task encodes them
    answers: Answers

    def take(self, rows: np.ndarray) -> "Answered":
        """These rows, in this order."""
        scores = self.answers.scores
        chosen = Answers(self.answers.answers[rows], None if scores is None else scores[rows])
        return Answered([self.ids[row] for row in rows], self.labels[rows], chosen)


class Difference(NamedTuple):
    """A metric of two runs on the same rows. The difference is this run's minus the other's."""

    other: float
    this: float
    interval: tuple[float, float] | None  # None: all draws give the same difference, or none a number

    @property
    def difference(self) -> float:
        """By how much this run's number is higher."""
        return self.this - self.other


def is_lower_better(metric: str) -> bool:
    """Whether a lower number of this metric is the better one."""
    return metric in LOWER_IS_BETTER or metric in (*OF_SCORES, "ece")


# ----------------------------------------------------------------------------------------------------------- the rows
def same_rows(
    answered: dict[str, Answered], digests: dict[str, str | None], split: str, named: Callable[[str], str] = str
) -> tuple[dict[str, Answered], list[str]]:
    """The rows that all runs have answered, in one order, and what must be said of them: a line, or none.

    Rows are the same by the digest of all texts and labels, or else by their ids. Their true labels must agree.

    Args:
        answered: the answers to the rows of `split`, by the name of each run.
        digests: of the texts and labels of these rows in their order, by the same names; None if that is not known.
        split: for messages.
        named: how the name of a run is written in what must be said.

    Raises:
        InputError: if it is not certain which rows are the same, or too few are.
    """
    counts = {name: len(of.ids) for name, of in answered.items()}
    different = set(digests.values())
    if len(different) == 1 and None not in different and len(set(counts.values())) == 1:
        _check_labels(answered, split)
        return answered, []
    are_numbers = all(of.ids == [str(row) for row in range(len(of.ids))] for of in answered.values())
    told = _told(counts)
    if are_numbers and len(set(counts.values())) > 1:
        raise InputError(
            f"expected the same rows of {split} in all runs, found {told}, and no ids but their numbers. Give the "
            "rows ids, with --id_column_name, and train or predict again."
        )
    places = {name: _places(name, of.ids, split) for name, of in answered.items()}
    first = next(iter(answered.values()))
    common = [each for each in first.ids if all(each in of_run for of_run in places.values())]
    if len(common) < max(counts.values()) and len(common) < FEWEST:
        raise InputError(
            f"expected the same rows of {split} in all runs, found {told}, of which all have {len(common)} by their "
            f"ids, too few to compare (fewer than {FEWEST}). Predict the same rows with each."
        )
    chosen = {name: of.take(np.array([places[name][each] for each in common])) for name, of in answered.items()}
    _check_labels(chosen, split)
    by = "numbers" if are_numbers else "ids"
    if len(common) < max(counts.values()):
        return chosen, [_about_some(split, _told(counts, named), len(common), by)]
    return chosen, [_about_all(split, None not in different, by)]


def _about_some(split: str, told: str, rows: int, by: str) -> str:
    """What is said if not all runs have the same rows. `told`: how many each has; `rows`: those that all have."""
    return (
        f"Not all runs have the same rows of {split}: {told}. Differences are on the {rows:,} rows that all have by "
        f"their {by}, with the same true labels. The numbers of each run are on its own rows."
    )


def _about_all(split: str, recorded: bool, by: str) -> str:
    """What is said if rows are the same by their numbers or ids alone. `recorded`: whether all texts were recorded."""
    why = f"No record says which texts {split} had."
    if recorded:
        why = f"The texts of {split}, or their order, are not the same in all runs."
    return f"{why} Rows were matched by their {by}; their true labels agree."


def _told(counts: dict[str, int], named: Callable[[str], str] = str) -> str:
    return ", ".join(f"{named(name)} has {count:,}" for name, count in counts.items())


def _places(name: str, ids: list[str], split: str) -> dict[str, int]:
    """The row of each id. Raises InputError if one repeats."""
    places = {each: row for row, each in enumerate(ids)}
    if len(places) < len(ids):
        twice = next(each for row, each in enumerate(ids) if places[each] != row)
        raise InputError(
            f"expected ids that tell the rows of {split} apart, since not all runs have the same rows, found "
            f"{twice!r} twice in {name}. Name another column with --id_column_name, and train or predict again."
        )
    return places


def _check_labels(answered: dict[str, Answered], split: str) -> None:
    """Raises InputError if rows that should be the same have other true labels."""
    (first, of_first), *others = answered.items()
    for name, of in others:
        differ = of.labels != of_first.labels
        rows = np.flatnonzero(differ.reshape(len(differ), -1).any(1))
        if len(rows):
            raise InputError(
                f"expected the same true labels in {split}, found other ones in {len(rows):,} of {len(differ):,} rows "
                f"of {first} and {name}, first in the row {of.ids[rows[0]]!r}. Were they other rows? Predict the same "
                "rows with each."
            )


# ---------------------------------------------------------------------------------------------------- the differences
def paired_differences(
    task: Task, labels: np.ndarray, runs: Sequence[Answers], against: int
) -> list[dict[str, Difference]]:
    """For each run its difference from the run number `against`, by metric. That run's own are empty.

    Args:
        task: measures the answers.
        labels: of the N rows, as the task encodes them.
        runs: the answers of each of R runs to these rows, in the order of the labels.
        against: the place of the run that the others are compared with.
    """
    if any(run.scores is None for run in runs):
        runs = [Answers(run.answers) for run in runs]
    by_row = [_scores_by_row(task, run, labels) for run in runs]
    every = np.arange(len(labels))
    observed = [_measured(task, run, of_scores, labels, every) for run, of_scores in zip(runs, by_row, strict=True)]
    metrics = list(observed[0])
    drawn = np.empty((DRAWS, len(runs), len(metrics)))
    generator = np.random.default_rng(SEED)
    for draw in range(DRAWS):
        rows = generator.integers(len(labels), size=len(labels))
        for i, (run, of_scores) in enumerate(zip(runs, by_row, strict=True)):
            drawn[draw, i] = list(_measured(task, run, of_scores, labels, rows).values())
    found: list[dict[str, Difference]] = []
    for i, own in enumerate(observed):
        differences = drawn[:, i] - drawn[:, against]  # (DRAWS, metrics)
        of_run = {}
        for metric, column in zip(metrics, differences.T, strict=True):
            of_run[metric] = Difference(observed[against][metric], own[metric], _interval(column))
        found.append({} if i == against else of_run)
    return found


def paired_interval(
    task: Task, answers: np.ndarray, others: np.ndarray, labels: np.ndarray
) -> tuple[float, float] | None:
    """The interval of the headline metric of `answers` less that of `others`, to the same rows; see `bootstrap`."""
    columns = task.by_row(answers, labels)

    def difference(*by_row: np.ndarray, axis: int = -1) -> np.ndarray:
        own, other = by_row[: len(columns)], by_row[len(columns) :]
        return task.headline_of(*own, axis=axis) - task.headline_of(*other, axis=axis)

    return bootstrap(difference, *columns, *task.by_row(others, labels))


def _measured(
    task: Task, run: Answers, of_scores: dict[str, np.ndarray], labels: np.ndarray, rows: np.ndarray
) -> dict[str, float]:
    """All metrics on these `rows`, which may repeat."""
    found = task.score(run.answers[rows], labels[rows])
    for metric, values in of_scores.items():
        found[metric] = float(values[rows].mean())
    return found


def _scores_by_row(task: Task, run: Answers, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What each row adds to the metrics of the probabilities, (N,) each; none where no probabilities are known."""
    if run.scores is None or not isinstance(task, Classification):
        return {}
    logits = _logits(task, run.scores)
    rows = [slice(i, i + 1) for i in range(len(labels))]
    return {
        "log_loss": np.array([task.log_loss(logits[row], labels[row]) for row in rows]),
        "brier": np.array([task.brier(logits[row], labels[row]) for row in rows]),
    }


def _logits(task: Task, scores: np.ndarray) -> np.ndarray:
    """Logits (N, C) that have these probabilities."""
    inside = np.clip(scores, SMALLEST, LARGEST)
    return np.log(inside) - np.log1p(-inside) if task.has_thresholds else np.log(inside)


def _interval(differences: np.ndarray) -> tuple[float, float] | None:
    """The range of the middle 95 % of the draws. A correlation has no number in a draw of equal labels."""
    numbers = differences[np.isfinite(differences)]
    if not len(numbers) or np.ptp(numbers) == 0:
        return None
    low, high = np.quantile(numbers, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
