"""One number a text, or several. Labels are numbers, (N,), or (N, C) with several targets."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lstmpool.fields_lstmpool import REGRESSION
from lstmpool.training.errors import InputError
from lstmpool.training.tasks.cells import Columns, numbers_of
from lstmpool.training.tasks.columns import Cells, LabelTable
from lstmpool.training.tasks.intervals import bootstrap
from lstmpool.training.tasks.losses import SmoothL1
from lstmpool.training.tasks.metrics import RegressionMetric, SeveralTargetsMetric
from lstmpool.training.tasks.task import BINS, LossSettings, RowLosses, Task


LARGEST = 1e18  # of a target: the square of what float32 holds, since losses are squares
# A spread takes at least so many steps of float32. Rounding then adds less than a hundred-thousandth to the variance.
STEPS = 100

ONE_TARGET = RegressionMetric()
SEVERAL_TARGETS = SeveralTargetsMetric()


class Regression(Task):
    """Numbers. The headline is MCRMSE for several targets, and the mean squared error for one."""

    problem_type = REGRESSION
    title = "regression"
    output_title = "Target"
    hub_tag = "text-regression"
    pictures = ("predicted_against_true",)
    has_probabilities = False
    has_numbers = True
    linear_title = "ridge regression on the frozen backbone"
    simplest_title = "mean of training"

    @property
    def metric(self) -> RegressionMetric:
        return ONE_TARGET if len(self.names) == 1 else SEVERAL_TARGETS

    def encode(self, columns: Columns, where: str) -> Sequence[Any]:
        columns = self.in_columns(columns, where)
        numbers = [numbers_of(values, f"{where}, column {name!r}") for name, values in columns.items()]
        if len(self.names) == 1:
            return Cells(numbers[0])
        return LabelTable(np.column_stack(numbers))

    def check_learnable(self, labels: Sequence[Any], where: str) -> None:
        """Refuses numbers that float32, which models compute in, cannot hold or cannot tell apart."""
        table = self._as_rows(labels)
        for name, column in zip(self.names, table.T, strict=True):
            _check_float32(column, f"{where}, column {name!r}")

    def describe_labels(self, labels: Sequence[Any]) -> dict[str, Any]:
        table = self._as_rows(labels)
        means = table.mean(0).tolist()
        deviations = spread_of(table).tolist()
        columns = zip(self.names, means, deviations, strict=True)
        return {name: {"mean": mean, "std": deviation} for name, mean, deviation in columns}

    def strata(self, labels: Sequence[Any], bins: int = BINS) -> Cells:
        """The bin of the row's level, which is the mean of its standardized targets."""
        table = self._as_rows(labels)
        spread = spread_of(table)
        level = ((table - table.mean(0)) / np.where(spread > 0, spread, 1)).mean(1)  # (N,)
        rank = level.argsort(kind="stable").argsort(kind="stable")
        return Cells(rank * bins // len(labels))

    def indicators(self, labels: Sequence[Any], units: np.ndarray, folds: int) -> np.ndarray | None:
        """The bins of each of several targets, as is usual in competitions with such targets."""
        if len(self.names) == 1:
            return None
        means = pandas.DataFrame(self._as_rows(labels)).groupby(units).mean().to_numpy()  # (U, C)
        bins = min(BINS, len(means) // folds)
        edges = np.quantile(means, np.linspace(0, 1, bins + 1)[1:-1], axis=0)  # (bins - 1, C)
        bin_of = (means[:, :, None] > edges.T[None]).sum(-1)  # (U, C); equal numbers share a bin
        is_in = bin_of[:, :, None] == np.arange(len(edges) + 1)  # (U, C, bins)
        return is_in.reshape(len(means), -1)

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return logits

    def mean_logits(self, logits: np.ndarray) -> np.ndarray:
        return logits.mean(0)

    def prediction_columns(self, logits: np.ndarray) -> dict[str, Any]:
        return self._columns("prediction", logits)

    def label_columns(self, labels: Sequence[Any]) -> dict[str, Any]:
        return self._columns("label", self._as_rows(labels))

    def surest_mistakes(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        labels = self._as_rows(labels)
        spread = spread_of(labels)  # (C,)
        return (np.abs(self._as_rows(logits) - labels) / np.where(spread > 0, spread, 1)).mean(1)

    def _columns(self, title: str, table: np.ndarray) -> dict[str, Any]:
        if len(self.names) == 1:
            return {title: table[:, 0]}
        return {f"{title}_{name}": table[:, i] for i, name in enumerate(self.names)}

    def interval(self, answers: np.ndarray, labels: np.ndarray) -> tuple[float, float] | None:
        return bootstrap(self.headline_of, *self.by_row(answers, labels))

    def by_row(self, answers: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(((self._as_rows(answers) - self._as_rows(labels)) ** 2).T)  # C columns

    @staticmethod
    def headline_of(*by_row: np.ndarray, axis: int = -1) -> np.ndarray:
        return _mse(*by_row, axis=axis) if len(by_row) == 1 else _mcrmse(*by_row, axis=axis)

    def _as_rows(self, values: Any) -> np.ndarray:
        return np.asarray(values, dtype=float).reshape(len(values), len(self.names))  # (N, C)

    def loss(self, settings: LossSettings, labels: Sequence[Any]) -> RowLosses | None:
        return SmoothL1() if settings.regression_loss == "smooth_l1" else None

    def linear_model(self, strength: float) -> BaseEstimator:
        return make_pipeline(StandardScaler(), Ridge(alpha=1 / strength))

    def simplest_model(self) -> BaseEstimator:
        return DummyRegressor(strategy="mean")


def spread_of(table: np.ndarray) -> np.ndarray:
    """The standard deviation of each of C columns of numbers (N, C); 0, to the last bit, if all are the same."""
    return np.where(np.ptp(table, axis=0) == 0, 0.0, table.std(0))


def _check_float32(numbers: np.ndarray, where: str) -> None:
    """Raises InputError if float32 cannot hold `numbers` (N,), or cannot tell them apart."""
    largest = float(np.abs(numbers).max())
    if largest > LARGEST:
        raise InputError(
            f"{where}: expected numbers up to {LARGEST:g}, found {largest:g}, and models compute in float32. Divide "
            "them all by a number before training, and multiply the predictions by it."
        )
    spread = float(spread_of(numbers[:, None])[0])
    if spread == 0:
        return
    if spread < 1 / LARGEST:
        raise InputError(
            f"{where}: expected numbers that differ by more than {1 / LARGEST:g}, found a spread of {spread:g}. "
            "Multiply them all by a number before training, and divide the predictions by it."
        )
    mean = float(numbers.mean())
    step = float(np.spacing(np.float32(abs(mean))))
    if step > spread / STEPS:
        offset = round(mean, -math.ceil(math.log10(spread)))
        raise InputError(
            f"{where}: the numbers lie around {mean:.10g} and differ by {spread:.3g} (standard deviation), and models "
            f"compute in float32, whose numbers lie {step:.2g} apart there. Subtract {offset:.15g} from them all "
            "before training, and add it to the predictions."
        )


def _mse(errors: np.ndarray, axis: int = -1) -> np.ndarray:
    return errors.mean(axis)


def _mcrmse(*errors: np.ndarray, axis: int = -1) -> np.ndarray:
    roots = [np.sqrt(of_target.mean(axis)) for of_target in errors]
    return np.mean(roots, axis=0)
