"""What a model is asked for, and all that follows from it.

There are three tasks: one label a text, any number of labels a text, and numbers. Which one a run has is decided once
(`inference.py`); from then on the `Task` is asked for whatever differs between them. N rows, C outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator
from torch import Tensor

from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import AUTO
from lstmpool.training.flags.conditions import Flags
from lstmpool.training.flags.rules import WITH_METRICS, check
from lstmpool.training.tasks.cells import Columns
from lstmpool.training.tasks.metrics import LOWER_IS_BETTER, TaskMetric


BINS = 10  # of numbers, with equally many rows each: what splits spread alike

RowLosses = Callable[[Tensor, Tensor], Tensor]  # logits (B, C) and labels to the sum of the rows' losses


class BestBy(NamedTuple):
    """The metric by which the best epoch is chosen."""

    metric: str
    greater_is_better: bool


class LossSettings(NamedTuple):
    """The flags that change a loss."""

    class_weights: str | None = None
    label_smoothing_factor: float = 0.0
    regression_loss: str = "mse"


@dataclass(frozen=True)
class Task(ABC):
    """A task: the `names` of its C outputs, and the `evidence` by which it was taken for this one."""

    names: list[str]
    evidence: str = ""

    problem_type: ClassVar[str]  # as `LstmPoolConfig` has it
    title: ClassVar[str]  # in a sentence
    output_title: ClassVar[str]  # what one output is called
    hub_tag: ClassVar[str]
    pictures: ClassVar[tuple[str, ...]] = ()  # what is drawn of it, see `output/plots.py`
    has_probabilities: ClassVar[bool] = True
    has_thresholds: ClassVar[bool] = False  # each output has its own, above which it is given
    has_numbers: ClassVar[bool] = False  # outputs, whose spread training should not depend on
    simplest_title: ClassVar[str]  # of `simplest_model`

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

    @abstractmethod
    def encode(self, columns: Columns, where: str) -> list[Any]:
        """The labels as the model is trained on them, row by row.

        Args:
            columns: the label columns.
            where: the file or split, for messages.

        Raises:
            InputError: for a missing value, a label that training does not have, or what is not a number; it names
                `where`, the row and the value.
        """

    @abstractmethod
    def describe_labels(self, labels: list[Any]) -> dict[str, Any]:
        """By output, how many rows have it; or the mean and the standard deviation ("mean", "std") of its numbers."""

    @abstractmethod
    def strata(self, labels: list[Any], bins: int = BINS) -> list[int]:
        """The stratum of each row, for splits that keep the balance. `bins`: of numbers."""

    def indicators(self, labels: list[Any], units: np.ndarray, folds: int) -> np.ndarray | None:
        """What folds must spread alike, (U, K) of zeros and ones for U units; None where one stratum a row is enough.

        Args:
            labels: of the rows.
            units: the number of each row's unit, (N,).
            folds: how many there will be.
        """
        return None

    def rarest_class(self, labels: list[Any], units: np.ndarray) -> tuple[str, int] | None:
        """The class that the fewest units have, and how many; None where labels are no classes."""
        return None

    def in_columns(self, columns: Columns, where: str) -> Columns:
        """The columns in the order of the outputs. Raises InputError if they are not those of the outputs."""
        if len(self.names) == len(columns) == 1:  # whatever it is called here
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
        """The answers to `logits` (N, C), of the same kind as encoded labels."""

    @abstractmethod
    def mean_logits(self, logits: np.ndarray) -> np.ndarray:
        """The logits (N, C) of what K models, of `logits` (K, N, C), say together."""

    @abstractmethod
    def prediction_columns(self, logits: np.ndarray) -> dict[str, Any]:
        """The columns of a table of predictions, by name, for `logits` (N, C)."""

    @abstractmethod
    def label_columns(self, labels: list[Any]) -> dict[str, Any]:
        """The columns of the same table that hold the true labels."""

    # ------------------------------------------------------------------------------------------------ measuring
    @property
    @abstractmethod
    def metric(self) -> TaskMetric:
        """All metrics of the task, in one."""

    @property
    def titles(self) -> dict[str, str]:
        """The metrics that are shown, with their titles."""
        return self.metric.shown

    @property
    def headline(self) -> str:
        """The metric by which results are compared, and the best epoch is chosen unless the user names another."""
        return self.metric.headline

    def best_by(self, named: str) -> BestBy:
        """What `--metric_for_best_model` comes to. Raises InputError if this task has no such metric."""
        metric = named.removeprefix("eval_")
        if metric == AUTO:
            metric = self.headline
        known = (*self.metric.shown, *self.metric.hidden, "loss")
        check(WITH_METRICS, Flags(training={"metric_for_best_model": metric}, metrics=known))
        return BestBy(metric, metric not in LOWER_IS_BETTER)

    def score(self, answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """All metrics of `answers` against `labels`, both as `decide` gives them."""
        answers, labels = self._as_rows(answers), self._as_rows(labels)
        return self.metric.compute(predictions=answers.tolist(), references=labels.tolist())

    @abstractmethod
    def interval(self, answers: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        """The bounds of a 95 % interval of the headline metric over rows like these, see `intervals.py`."""

    @abstractmethod
    def _as_rows(self, values: np.ndarray) -> np.ndarray:
        """Answers or labels as the metric wants them."""

    # ------------------------------------------------------------------------------------------------ learning
    def loss(self, settings: LossSettings, labels: list[Any]) -> RowLosses | None:
        """A loss other than the model's own, or None where that one is meant. `labels`: those of the training rows."""
        return None

    @abstractmethod
    def linear_model(self, strength: float) -> BaseEstimator:
        """A linear model to compare with, for vectors (N, H). `strength`: C, or 1 / alpha, of its regularisation."""

    @abstractmethod
    def linear_title(self, strength: float) -> str:
        """What that one is called."""

    @abstractmethod
    def simplest_model(self) -> BaseEstimator:
        """A model that looks at no text."""


class Classification(Task):
    """A task whose outputs are labels with a probability each."""

    hub_tag = "text-classification"
    output_title = "Label"
    simplest_title = "majority class"

    @abstractmethod
    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(N, C), from `logits` of that shape."""

    @abstractmethod
    def log_loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """The mean of -log p of what is true: over rows, or over all N x C decisions where labels are several."""

    @abstractmethod
    def brier(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """The mean squared distance of the probabilities from what is true, over the same."""

    @abstractmethod
    def confidences(self, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The probability (M,) of each claim, and whether it is true: of a row's likeliest class, or every label."""

    def linear_title(self, strength: float) -> str:
        return f"logistic regression on the frozen backbone (C={strength:g})"

    def _score_columns(self, logits: np.ndarray) -> dict[str, Any]:
        probabilities = self.probabilities(logits)
        return {f"score_{name}": probabilities[:, i] for i, name in enumerate(self.names)}
