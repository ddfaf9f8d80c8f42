"""How good the answers are class by class, and which classes are taken for one another.

The numbers are scikit-learn's. With several labels a text each label is a class, and none is taken for another.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from lstmpool.training.tasks.task import Classification


SHOWN = 20  # classes that a table shows; of more, it shows the worst
WORST = 10
FEW = 12  # classes, whose confusion matrix is read at a glance
CONFUSED = 10  # pairs of classes that a table shows
RECORDED = 100  # pairs of classes in metrics.json


class Confusion(NamedTuple):
    """How many rows of the class `true` were answered with the class `predicted`."""

    true: int
    predicted: int
    rows: int


@dataclass(frozen=True)
class ByClass:
    """The numbers of one split, (C,) each."""

    names: list[str]
    precision: np.ndarray  # of the rows that are given the class, the share that has it; 0 if there are none
    recall: np.ndarray  # of the rows that have the class, the share that is given it; 0 if there are none
    f1: np.ndarray
    support: np.ndarray  # rows that have the class
    average_precision: np.ndarray | None  # of two classes; NaN if all rows have the same one
    confused: list[Confusion]  # the pairs with the most rows first

    @classmethod
    def of(cls, task: Classification, logits: np.ndarray, labels: np.ndarray) -> "ByClass":
        """Counts the answers for `logits` (N, C) against the labels, (N,) or (N, C)."""
        answers = task.decide(logits)
        confused = _confused(answers, labels, len(task.names)) if labels.ndim == 1 else []
        if labels.ndim == 2:  # sparse, or scikit-learn would sort all N x C numbers
            answers, labels = csr_array(answers), csr_array(labels)
        numbers = precision_recall_fscore_support(labels, answers, labels=np.arange(len(task.names)), zero_division=0)
        average = _average_precisions(margins(logits), labels) if task.has_two_classes else None
        return cls(task.names, *numbers, average, confused)

    @property
    def shown(self) -> list[int]:
        """The classes that a table shows: all in their order, or of many those with the lowest F1, the lowest first.

        Of equal ones, those with more rows come first. A class without rows is not shown.
        """
        with_rows = np.flatnonzero(self.support)
        if len(self.names) <= SHOWN:
            return with_rows.tolist()
        order = np.lexsort((-self.support[with_rows], self.f1[with_rows]))
        return with_rows[order][:WORST].tolist()

    @property
    def without_rows(self) -> int:
        """How many classes have no row."""
        return int((self.support == 0).sum())

    def record(self) -> dict[str, Any]:
        """All classes, and the most confused pairs, for metrics.json."""
        columns = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        if self.average_precision is not None:
            columns["average_precision"] = self.average_precision
        columns["support"] = self.support
        table = {title: column.tolist() for title, column in columns.items()}
        classes = {}
        for i, name in enumerate(self.names):
            classes[name] = {title: column[i] for title, column in table.items()}
        pairs = []
        for true, predicted, rows in self.confused[:RECORDED]:
            pairs.append({"true": self.names[true], "predicted": self.names[predicted], "rows": rows})
        return {"classes": classes, "without_rows": self.without_rows, "most_confused": pairs}


def margins(logits: np.ndarray) -> np.ndarray:
    """By how much the second of two classes is ahead, (N,), from `logits` (N, 2)."""
    return logits[:, 1] - logits[:, 0]


def ranking_metrics(task: Classification, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """For two classes the area under the ROC curve, and the average precision of the second class; else none.

    Both are NaN if all rows have the same class.
    """
    if not task.has_two_classes:
        return {}
    ahead = margins(logits)
    area = roc_auc_score(labels, ahead) if _has_both(labels) else np.nan
    return {"roc_auc": float(area), "average_precision": float(_average_precisions(ahead, labels)[1])}


def _average_precisions(ahead: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The average precision of each of two classes, (2,). `ahead`: the margins of the second one."""
    if not _has_both(labels):
        return np.full(2, np.nan)
    return np.array([average_precision_score(labels == 0, -ahead), average_precision_score(labels == 1, ahead)])


def _has_both(labels: np.ndarray) -> bool:
    return labels.min() != labels.max()


def _confused(answers: np.ndarray, labels: np.ndarray, classes: int) -> list[Confusion]:
    """The pairs of a true and another predicted class, the most frequent first. Both arguments are (N,)."""
    wrong = answers != labels
    pairs, rows = np.unique(labels[wrong] * classes + answers[wrong], return_counts=True)
    order = np.argsort(-rows, kind="stable")
    true, predicted = np.divmod(pairs[order], classes)
    return [Confusion(*pair) for pair in zip(true.tolist(), predicted.tolist(), rows[order].tolist(), strict=True)]
