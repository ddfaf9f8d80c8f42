"""One label a text. Labels are indices (N,); the answer is the likeliest class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lstmpool.fields_lstmpool import SINGLE
from lstmpool.training.errors import InputError, did_you_mean
from lstmpool.training.tasks.cells import Columns, check_names
from lstmpool.training.tasks.columns import Cells, distinct
from lstmpool.training.tasks.intervals import wilson
from lstmpool.training.tasks.losses import WeightedCrossEntropy, balanced_weights
from lstmpool.training.tasks.metrics import SingleLabelMetric
from lstmpool.training.tasks.task import BINS, ITERATIONS, Classification, LossSettings, RowLosses, blocks


class SingleLabel(Classification):
    """One label a text."""

    problem_type = SINGLE
    title = "one label a text"
    metric = SingleLabelMetric()
    pictures = ("confusion_matrix",)
    gives_several_answers = False

    @property
    def has_two_classes(self) -> bool:
        return len(self.names) == 2

    @staticmethod
    def names_in(value: Any, place: str) -> list[str]:
        """The one name in a cell, as a list. Raises InputError if the cell holds none, or several."""
        if isinstance(value, list):
            raise InputError(
                f"{place}: expected one label, found the list {value!r}. Try --problem_type "
                "multi_label_classification."
            )
        return check_names([value], place)

    def encode(self, columns: Columns, where: str) -> Cells:
        columns = self.in_columns(columns, where) if len(columns) > 1 else columns
        if len(columns) > 1:
            raise InputError(f"{where}: expected one label column, found {', '.join(columns)}. Name one of them.")
        name, values = next(iter(columns.items()))
        ids = {label: i for i, label in enumerate(self.names)}
        found = distinct(values)
        encoded = np.empty(len(found.values), dtype=np.int64)
        for i, (row, value) in enumerate(found.items()):
            place = f"{where}, column {name!r}, row {row}"
            (label,) = self.names_in(value, place)
            check_known(label, ids, place)
            encoded[i] = ids[label]
        return Cells(encoded[found.places])

    def describe_labels(self, labels: Sequence[int]) -> dict[str, Any]:
        counts = np.bincount(np.asarray(labels, dtype=int), minlength=len(self.names)).tolist()
        return dict(zip(self.names, counts, strict=True))

    def strata(self, labels: Sequence[int], bins: int = BINS) -> Sequence[int]:
        return labels

    def rarest_class(self, labels: Sequence[int], units: np.ndarray) -> tuple[str, int]:
        pairs = np.unique(np.column_stack([labels, units]), axis=0)  # each class with each unit that has it
        counts = np.bincount(pairs[:, 0])
        fewest = counts[counts > 0].min()
        rarest = next(label for label in distinct(labels).values if counts[label] == fewest)  # the first in the rows
        return self.names[rarest], int(fewest)

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return logits.argmax(-1)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return softmax(logits, axis=1)

    def mean_logits(self, logits: np.ndarray) -> np.ndarray:
        """The logits of the mean probabilities."""
        return logsumexp(log_softmax(logits, axis=-1), axis=0) - np.log(len(logits))

    def prediction_columns(self, logits: np.ndarray) -> dict[str, Any]:
        columns = self._score_columns(logits) if self.shows_all_scores else {"score": self._likeliest(logits)}
        columns["prediction"] = [self.names[i] for i in self.decide(logits)]
        return columns

    def label_columns(self, labels: Sequence[int]) -> dict[str, Any]:
        return {"label": [self.names[label] for label in labels]}

    def surest_mistakes(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return np.where(self.decide(logits) == labels, 0.0, self._likeliest(logits))

    def interval(self, answers: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        return wilson(self._as_rows(answers) == self._as_rows(labels))

    def by_row(self, answers: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
        return ((self._as_rows(answers) == self._as_rows(labels)).astype(float),)

    @staticmethod
    def headline_of(*by_row: np.ndarray, axis: int = -1) -> np.ndarray:
        (is_right,) = by_row
        return is_right.mean(axis)

    def _as_rows(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values)

    def log_loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        total = 0.0
        for block in blocks(logits):
            log_probabilities = log_softmax(logits[block], axis=1)
            total -= log_probabilities[np.arange(len(log_probabilities)), labels[block]].sum()
        return float(total / len(labels))

    def brier(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """The mean over rows; a row's squared distances are summed over its classes."""
        total = 0.0
        for block in blocks(logits):
            distances = self.probabilities(logits[block])
            distances[np.arange(len(distances)), labels[block]] -= 1
            total += (distances**2).sum()
        return float(total / len(labels))

    def confidences(self, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        correct = self.decide(logits) == labels
        return self._likeliest(logits), correct.astype(float)

    def _likeliest(self, logits: np.ndarray) -> np.ndarray:
        """The probability of each row's likeliest class, (N,)."""
        return np.concatenate([self.probabilities(logits[block]).max(1) for block in blocks(logits)])

    def loss(self, settings: LossSettings, labels: Sequence[int]) -> RowLosses | None:
        if not len(labels) or not (settings.class_weights or settings.label_smoothing_factor):
            return None
        weights = balanced_weights(labels, len(self.names)) if settings.class_weights else None
        return WeightedCrossEntropy(weights, settings.label_smoothing_factor)

    def linear_model(self, strength: float) -> BaseEstimator:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=ITERATIONS))

    def simplest_model(self) -> BaseEstimator:
        return DummyClassifier(strategy="most_frequent")


def check_known(label: str, known: dict[str, int], place: str) -> None:
    """Raises InputError for a label that training does not have."""
    if label not in known:
        names = list(known)
        more = " ..." if len(names) > 8 else ""
        raise InputError(
            f"{place}: label {label!r} does not occur in training.{did_you_mean(label, names)} Training has "
            f"{len(names)} labels: {', '.join(names[:8])}{more}. Leave out the rows with other labels, or add such "
            "rows to training."
        )
