"""Any number of labels a text. Labels are zeros and ones (N, C); the model gives a label if its logit is above 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, log_expit, logsumexp
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lstmpool.fields_lstmpool import MULTI
from lstmpool.training.errors import InputError
from lstmpool.training.tasks.cells import (
    Columns,
    as_number,
    check_names,
    is_missing,
    lists_of,
    numbers_of,
    vector_length,
    vectors_of,
)
from lstmpool.training.tasks.columns import Cells, LabelTable, distinct
from lstmpool.training.tasks.intervals import among_alike, bootstrap
from lstmpool.training.tasks.metrics import MultiLabelMetric
from lstmpool.training.tasks.single_label import check_known
from lstmpool.training.tasks.task import BINS, ITERATIONS, Classification, blocks


Rows = LabelTable | Sequence[list[float]]


@dataclass(frozen=True)
class MultiLabel(Classification):
    """Any number of labels a text. They share one column, or each has its own column of zeros and ones."""

    separator: str | None = None  # between the labels in one string; None: spaces
    vectors: bool = False  # whether each cell is a list with a zero or a one for each label

    problem_type = MULTI
    title = "any number of labels a text"
    metric = MultiLabelMetric()
    has_thresholds = True

    @staticmethod
    def cells_of(values: list[Any]) -> list[Any]:
        """The cells of the label column. In a column of strings, an empty cell (None) is a row without labels."""
        if any(isinstance(value, list) for value in values):
            return values
        return lists_of(values) or vectors_of(values) or ["" if value is None else value for value in values]

    @staticmethod
    def names_in(value: Any, place: str, separator: str | None) -> list[str]:
        """The label names in one cell, a list or a string. Raises InputError if it holds something else."""
        if isinstance(value, str):
            if value.lstrip().startswith("[") or (separator is None and "," in value):
                raise InputError(
                    f"{place}: expected names separated by spaces or by |, found {value!r}. Write a|b, or lists such "
                    "as ['a', 'b'] in all rows."
                )
            parts = [part.strip() for part in value.split(separator)]
            return check_names([part for part in parts if part], place)
        if not isinstance(value, list):
            raise InputError(f"{place}: expected a list of labels, found {value!r}.")
        _refuse_vectors(value, place)
        return check_names(value, place)

    def encode(self, columns: Columns, where: str) -> LabelTable:
        if len(columns) > 1:
            return self._encode_columns(columns, where)
        name, values = next(iter(columns.items()))
        known = {label: i for i, label in enumerate(self.names)}
        found = distinct(values)
        table = np.zeros((len(found.values), len(known)), dtype=np.uint8)  # of the different cells
        for i, (row, value) in enumerate(zip(found.rows, self.cells_of(found.values), strict=True)):
            place = f"{where}, column {name!r}, row {row}"
            if self.vectors:
                table[i] = self._vector(value, place)
                continue
            labels = self.names_in(value, place, self.separator)
            for label in labels:
                check_known(label, known, place)
                table[i, known[label]] = 1
        return LabelTable(table[found.places])

    def _vector(self, value: Any, place: str) -> list[float]:
        """The zeros and ones of a cell, one for each label."""
        if vector_length([value]) != len(self.names):
            raise InputError(f"{place}: expected {len(self.names)} zeros and ones, as in training, found {value!r}.")
        return [as_number(item) for item in value]

    def _encode_columns(self, columns: Columns, where: str) -> LabelTable:
        columns = self.in_columns(columns, where)
        table = np.zeros((len(next(iter(columns.values()))), len(columns)), dtype=np.uint8)
        for i, (name, values) in enumerate(columns.items()):
            numbers = numbers_of(values, f"{where}, column {name!r}")
            others = np.flatnonzero((numbers != 0) & (numbers != 1))
            if len(others):
                raise InputError(
                    f"{where}, column {name!r}, row {others[0] + 1}: expected 0 or 1, as in training, found "
                    f"{numbers[others[0]]:g}."
                )
            table[:, i] = numbers
        return LabelTable(table)

    def describe_labels(self, labels: Rows) -> dict[str, Any]:
        counts = self._as_rows(labels).sum(0)
        return {name: int(count) for name, count in zip(self.names, counts, strict=True)}

    def strata(self, labels: Rows, bins: int = BINS) -> Cells:
        """The row's rarest label, or -1 for a row without any."""
        table = self._as_rows(labels)  # (N, C)
        counts = table.sum(0).astype(float)
        found = np.empty(len(table), dtype=np.int64)
        for block in blocks(table):
            rarity = np.where(table[block] > 0, counts, np.inf)
            found[block] = np.where(table[block].any(1), rarity.argmin(1), -1)
        return Cells(found)

    def indicators(self, labels: Rows, units: np.ndarray, folds: int) -> np.ndarray:
        """Each label, and the units without any."""
        order = np.argsort(units, kind="stable")
        first_of_unit = np.flatnonzero(np.diff(units[order], prepend=-1))
        has = np.maximum.reduceat(self._as_rows(labels)[order], first_of_unit) > 0  # (U, C)
        return np.column_stack([has, ~has.any(1)])

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return (logits > 0).astype(np.uint8)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return expit(logits)

    def mean_logits(self, logits: np.ndarray) -> np.ndarray:
        """The logits of the mean probabilities."""
        log_sum_yes = logsumexp(log_expit(logits), axis=0)
        log_sum_no = logsumexp(log_expit(-logits), axis=0)
        return log_sum_yes - log_sum_no

    def prediction_columns(self, logits: np.ndarray) -> dict[str, Any]:
        columns = self._score_columns(logits) if self.shows_all_scores else {"score": self._of_given(logits)}
        columns["prediction"] = self._joined(logits)
        return columns

    def label_columns(self, labels: Rows) -> dict[str, Any]:
        return {"label": self._joined(self._as_rows(labels))}

    def surest_mistakes(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Of a label that is given and not true, its score; of a true one that is not given, 1 minus its score."""
        surest = np.zeros(len(logits))
        for block in blocks(logits):
            scores, given = self.probabilities(logits[block]), self.decide(logits[block])  # (N, C)
            surest[block] = np.where(given == labels[block], 0.0, np.maximum(scores, 1 - scores)).max(1)
        return surest

    def _of_given(self, logits: np.ndarray) -> list[str]:
        """For each row of `logits` (N, C), the probabilities of the labels that it is given, joined by |."""
        return ["|".join(f"{score:.6g}" for score in self.probabilities(row[row > 0])) for row in logits]

    def _joined(self, table: np.ndarray) -> list[str]:
        """For each row of `table` (N, C), the names of the outputs above 0, joined by |."""
        names = np.array(self.names, dtype=object)  # else each takes as much room as the longest
        return ["|".join(names[row > 0]) for row in table]

    def interval(self, answers: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        hits, given = self.by_row(answers, labels)
        return bootstrap(_micro_f1, hits, given) or among_alike(float(_micro_f1(hits, given)), len(hits))

    def by_row(self, answers: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
        answers, labels = self._as_rows(answers), self._as_rows(labels)
        return (answers & labels).sum(1), answers.sum(1) + labels.sum(1)

    @staticmethod
    def headline_of(*by_row: np.ndarray, axis: int = -1) -> np.ndarray:
        return _micro_f1(*by_row, axis=axis)

    def _as_rows(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values).reshape(len(values), len(self.names)).astype(np.uint8, copy=False)

    def log_loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        losses = ((np.logaddexp(0, logits[block]) - logits[block] * labels[block]).sum() for block in blocks(logits))
        return float(sum(losses) / logits.size)

    def brier(self, logits: np.ndarray, labels: np.ndarray) -> float:
        distances = (((self.probabilities(logits[block]) - labels[block]) ** 2).sum() for block in blocks(logits))
        return float(sum(distances) / logits.size)

    def confidences(self, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.probabilities(logits).ravel(), np.asarray(labels, dtype=float).ravel()

    def linear_model(self, strength: float) -> BaseEstimator:
        logistic = LogisticRegression(C=strength, max_iter=ITERATIONS)
        return make_pipeline(StandardScaler(), OneVsRestClassifier(logistic))

    def simplest_model(self) -> BaseEstimator:
        return DummyClassifier(strategy="most_frequent")


def _micro_f1(hits: np.ndarray, given: np.ndarray, axis: int = -1) -> np.ndarray:
    total = given.sum(axis)  # labels that the model gave, and true ones
    return np.where(total > 0, 2 * hits.sum(axis) / np.maximum(total, 1), 0.0)


def _refuse_vectors(value: list[Any], place: str) -> None:
    """Raises InputError for zeros and ones, or decimal numbers, in the place of names."""
    vector = all(name in (0, 1) for name in value) and len(set(value)) < len(value)  # labels 0 and 1 would not repeat
    numbers = [name for name in value if isinstance(name, float) and not is_missing(name)]
    decimal = any(not number.is_integer() for number in numbers)
    if vector or decimal:
        raise InputError(
            f"{place}: expected a list of label names, found {'zeros and ones' if vector else 'decimal numbers'}, "
            f"{value!r}. Give each its own column, and name all with --label_column_name a,b."
        )
