"""What a model predicts, and everything that differs between one kind of prediction and another.

There are three tasks: one label a text, any number of labels a text, and numbers. `inference.py` decides once which
one a run has; after that, the code asks the `Task` for whatever differs. N rows, C outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator
from torch import Tensor

from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import AUTO
from lstmpool.training.flags.conditions import Flags
from lstmpool.training.flags.later_rules import WITH_METRICS
from lstmpool.training.flags.rules import check
from lstmpool.training.tasks.cells import Columns
from lstmpool.training.tasks.metrics import LOWER_IS_BETTER, TaskMetric


BINS = 10  # splits of numbers are balanced over this many bins, each with equally many rows

SCORED = 1000  # outputs: with more, there is no table of predictions with a column each, nor a linear baseline
ITERATIONS = 200  # of a logistic regression at most; on vectors of unit spread, more gain nothing
BLOCK = 2**22  # numbers that are computed at a time: with many labels, whole tables (N, C) would fill the memory

RowLosses = Callable[[Tensor, Tensor], Tensor]  # from logits (B, C) and labels to the sum of the rows' losses


class BestBy(NamedTuple):
    """The metric by which the best epoch is chosen."""

    metric: str
    greater_is_better: bool


class LossSettings(NamedTuple):
    """The flags that change a loss."""

    class_weights: str | None = None
    label_smoothing_factor: float = 0.0
    regression_loss: str = "mse"


def blocks(table: np.ndarray) -> Iterator[slice]:
    """Slices of the rows of `table` (N, C), of about `BLOCK` numbers each."""
    rows = max(1, BLOCK // table.shape[1])
    for start in range(0, len(table), rows):
        yield slice(start, start + rows)


@dataclass(frozen=True)
class Task(ABC):
    """A task: the `names` of its C outputs, the `evidence` for which it was chosen, and `warnings` of names."""

    names: list[str]
    evidence: str = ""
    warnings: tuple[str, ...] = field(default=(), kw_only=True, compare=False)

    problem_type: ClassVar[str]  # as `LstmPoolConfig` has it
    title: ClassVar[str]  # what a sentence calls it
    output_title: ClassVar[str]  # what a table calls one output
    hub_tag: ClassVar[str]
    pictures: ClassVar[tuple[str, ...]] = ()  # names of its plots, see `output/plots.py`
    has_probabilities: ClassVar[bool] = True
    has_thresholds: ClassVar[bool] = False  # each output is given above a threshold of its own
    has_numbers: ClassVar[bool] = False  # outputs are numbers, whose spread training should not depend on
    linear_title: ClassVar[str]  # what a table calls `linear_model`
    simplest_title: ClassVar[str]  # what a table calls `simplest_model`

    # ------------------------------------------------------------------------------------------------ labels
    @property
    def config_fields(self) -> dict[str, Any]:
        """The fields of `LstmPoolConfig` that the task settles."""
        id2label = dict(enumerate(self.names))
        return {
            "problem_type": self.problem_type,
            "num_labels": len(self.names),
            "id2label": id2label,
            "label2id": {name: i for i, name in id2label.items()},
        }

    @property
    def gives_several_answers(self) -> bool:
        """Whether a text has more than one answer."""
        return len(self.names) > 1

    @property
    def has_two_classes(self) -> bool:
        """Whether a text has one of two classes. The second one, as in scikit-learn, is the one that is looked for."""
        return False

    @property
    def tunes_thresholds(self) -> bool:
        """Whether `--tune_thresholds` has something to move."""
        return self.has_thresholds or self.has_two_classes

    @abstractmethod
    def encode(self, columns: Columns, where: str) -> Sequence[Any]:
        """The labels as the model is trained on them, row by row.

        Args:
            columns: the label columns.
            where: the file or split, for messages.

        Raises:
            InputError: for a missing value, a label that training does not have, or, in a regression, a value that is
                no number. The message names `where`, the row and the value.
        """

    def check_learnable(self, labels: Sequence[Any], where: str) -> None:  # noqa: B027
        """Raises InputError, which begins with `where`, if no model in float32 can give the training rows' labels."""

    @abstractmethod
    def describe_labels(self, labels: Sequence[Any]) -> dict[str, Any]:
        """By name of each output, how many rows have it, or the mean ("mean") and spread ("std") of its numbers."""

    @abstractmethod
    def strata(self, labels: Sequence[Any], bins: int = BINS) -> Sequence[int]:
        """The stratum of each row, (N,), for splits that keep the balance. Numbers go into so many `bins`."""

    def indicators(self, labels: Sequence[Any], units: np.ndarray, folds: int) -> np.ndarray | None:
        """K features that every fold should hold equally often, (U, K) of zeros and ones for U units.

        None if one stratum a row is enough.

        Args:
            labels: the encoded labels of the rows.
            units: the number of each row's unit, (N,).
            folds: the number of folds.
        """
        return None

    def rarest_class(self, labels: Sequence[Any], units: np.ndarray) -> tuple[str, int] | None:
        """The class that the fewest units have, and how many have it; None if labels are not classes."""
        return None

    def in_columns(self, columns: Columns, where: str) -> Columns:
        """The columns in the order of the outputs. Raises InputError if they are not named like the outputs."""
        if len(self.names) == len(columns) == 1:  # a single column may have any name
            return columns
        if set(columns) != set(self.names):
            raise InputError(
                f"{where}: expected the label columns {', '.join(self.names)}, found {', '.join(columns)}. Name them "
                "with --label_column_name."
            )
        return {name: columns[name] for name in self.names}

    # ------------------------------------------------------------------------------------------------ answers
    @abstractmethod
    def decide(self, logits: np.ndarray) -> np.ndarray:
        """The answers for `logits` (N, C), in the form of encoded labels."""

    @abstractmethod
    def mean_logits(self, logits: np.ndarray) -> np.ndarray:
        """The logits (N, C) of an ensemble of K models, whose own are `logits` (K, N, C)."""

    @abstractmethod
    def prediction_columns(self, logits: np.ndarray) -> dict[str, Any]:
        """The columns of the prediction table, by name, for `logits` (N, C)."""

    @abstractmethod
    def label_columns(self, labels: Sequence[Any]) -> dict[str, Any]:
        """The columns of the prediction table that hold the true labels, by name."""

    @abstractmethod
    def surest_mistakes(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """How sure the model was of the surest of a row's wrong answers, (N,); 0 if there is none.

        In a regression, the mean over its targets of the absolute error, in standard deviations of these labels.
        """

    # ------------------------------------------------------------------------------------------------ measuring
    @property
    @abstractmethod
    def metric(self) -> TaskMetric:
        """All metrics of the task, in one object."""

    @property
    def titles(self) -> dict[str, str]:
        """The metrics that are shown, with their titles."""
        return self.metric.shown

    @property
    def headline(self) -> str:
        """The metric by which results are compared and, unless the user names another, the best epoch is chosen."""
        return self.metric.headline

    def best_by(self, named: str) -> BestBy:
        """What `--metric_for_best_model` means for this task. Raises InputError if the task has no such metric."""
        metric = named.removeprefix("eval_")
        if metric == AUTO:
            metric = self.headline
        known = (*self.metric.shown, *self.metric.hidden, "loss")
        check(WITH_METRICS, Flags(training={"metric_for_best_model": metric}, metrics=known))
        return BestBy(metric, metric not in LOWER_IS_BETTER)

    def score(self, answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """All metrics of `answers` against `labels`, both as `decide` gives them."""
        return self.metric.measure(self._as_rows(answers), self._as_rows(labels))

    @abstractmethod
    def interval(self, answers: np.ndarray, labels: np.ndarray) -> tuple[float, float] | None:
        """The bounds of a 95 % interval of the headline metric over such rows, see `intervals.py`.

        None if all rows are alike, since they say nothing about others.
        """

    @abstractmethod
    def by_row(self, answers: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
        """What each row adds to the headline metric, in one or more numbers, (N,) each."""

    @staticmethod
    @abstractmethod
    def headline_of(*by_row: np.ndarray, axis: int = -1) -> np.ndarray:
        """The headline metric of rows, along `axis` of what `by_row` gives."""

    @abstractmethod
    def _as_rows(self, values: np.ndarray) -> np.ndarray:
        """Answers or labels in the shape that the metric needs."""

    # ------------------------------------------------------------------------------------------------ learning
    def loss(self, settings: LossSettings, labels: Sequence[Any]) -> RowLosses | None:
        """The loss to train with, from the `labels` of the training rows; None for the model's own loss."""
        return None

    @abstractmethod
    def linear_model(self, strength: float) -> BaseEstimator:
        """A linear baseline on features (N, F). Its regularisation has C, or 1 / alpha, equal to `strength`."""

    @abstractmethod
    def simplest_model(self) -> BaseEstimator:
        """A baseline that ignores the text."""


class Classification(Task):
    """A task whose outputs are labels, each with a probability."""

    hub_tag = "text-classification"
    output_title = "Label"
    linear_title = "logistic regression on the frozen backbone"
    simplest_title = "majority class"

    @abstractmethod
    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities (N, C) from `logits` of the same shape."""

    @abstractmethod
    def log_loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """The mean of -log p of the truth: over rows or, with several labels a text, over all N x C decisions."""

    @abstractmethod
    def brier(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """The mean squared distance between probabilities and truth, over the same rows or decisions."""

    @abstractmethod
    def confidences(self, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The probability of each of M claims, (M,), and whether it is true, (M,), as 0 or 1.

        A claim is a row's likeliest class or, with several labels a text, each label of each row.
        """

    @property
    def shows_all_scores(self) -> bool:
        """Whether the table of predictions has a column for each label; else one, `score`, of the labels given."""
        return len(self.names) <= SCORED

    def _score_columns(self, logits: np.ndarray) -> dict[str, Any]:
        probabilities = self.probabilities(logits)
        return {f"score_{name}": probabilities[:, i] for i, name in enumerate(self.names)}
