"""The metrics of each task, as `evaluate` metrics of our own. They need no network, and no memory for pairs of labels.

`evaluate.load("accuracy")` would fetch code from the Hub. To add a metric, compute it in `measure` and name it in
`shown` or `hidden`. If lower is better, add it to `LOWER_IS_BETTER`; if the Hub knows it, to `HUB_METRICS`.
"""

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr


LOWER_IS_BETTER = ("loss", "mse", "mae", "mcrmse")
# Our metrics by the names they have on the Hub, and what sets them apart there. A metric that the Hub does not know,
# such as MCRMSE, stays out of the header of a model card.
HUB_METRICS: dict[str, tuple[str, dict[str, str] | None]] = {
    "accuracy": ("accuracy", None),
    "f1_macro": ("f1", {"average": "macro"}),
    "f1_micro": ("f1", {"average": "micro"}),
    "f1_weighted": ("f1", {"average": "weighted"}),
    "matthews_correlation": ("matthews_correlation", None),
    "roc_auc": ("roc_auc", None),  # measured by `evaluation/by_class.py`, as it needs more than answers
    "mse": ("mse", None),
    "mae": ("mae", None),
    "pearson": ("pearsonr", None),
    "spearman": ("spearmanr", None),
}


class TaskMetric(evaluate.Metric):
    """All metrics of a task."""

    row: datasets.Value | datasets.Sequence  # the answer, or the label, of one row
    headline: str  # the metric by which results are compared
    shown: dict[str, str]  # name -> title, of the metrics that are shown
    hidden: tuple[str, ...] = ()  # names of the metrics that only metrics.json holds

    def __init__(self):
        super().__init__(keep_in_memory=True)  # otherwise it writes the predictions to the user's cache

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": self.row, "references": self.row})
        description = self.__doc__ or ""
        return evaluate.MetricInfo(description=description, citation="", inputs_description="", features=features)

    def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        """What the library's `compute` calls. It passes lists, which take several times as much memory as arrays."""
        return self.measure(np.array(predictions), np.array(references))

    def measure(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
        """All metrics of the answers against the labels."""
        raise NotImplementedError


class SingleLabelMetric(TaskMetric):
    """For integers (B,): accuracy, F1 averaged over the labels that occur (macro) and over rows (weighted), and
    Matthews correlation, which is 0 for a guess however unbalanced the labels are."""

    row = datasets.Value("int64")
    headline = "accuracy"
    shown = {
        "accuracy": "accuracy",
        "f1_macro": "macro F1",
    }
    hidden = ("f1_weighted", "matthews_correlation")

    def measure(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
        classes = 1 + int(max(predicted.max(), true.max()))
        of_true = np.bincount(true, minlength=classes).astype(float)  # (C,) each
        of_predicted = np.bincount(predicted, minlength=classes).astype(float)
        hits = np.bincount(true[true == predicted], minlength=classes).astype(float)
        f1 = _f1(hits, of_predicted + of_true)
        occurs = of_predicted + of_true > 0
        return {
            "accuracy": float(hits.sum() / len(true)),
            "f1_macro": float(f1[occurs].mean()),
            "f1_weighted": float(f1 @ of_true / len(true)),
            "matthews_correlation": _matthews(hits.sum(), of_predicted, of_true),
        }


class MultiLabelMetric(TaskMetric):
    """For zeros and ones (B, C): F1 over all decisions (micro) and averaged over labels (macro), and the share of rows
    with every label right (subset accuracy)."""

    row = datasets.Sequence(datasets.Value("int64"))
    headline = "f1_micro"
    shown = {
        "f1_micro": "micro F1",
        "f1_macro": "macro F1",
    }
    hidden = ("subset_accuracy",)

    def measure(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
        hits = (predicted & true).sum(0, dtype=float)  # (C,)
        given = predicted.sum(0, dtype=float) + true.sum(0, dtype=float)
        return {
            "f1_micro": float(_f1(hits.sum(), given.sum())),
            "f1_macro": float(_f1(hits, given).mean()),
            "subset_accuracy": float((true == predicted).all(1).mean()),
        }


class RegressionMetric(TaskMetric):
    """For numbers (B, C): each error and correlation is computed per target, then averaged over the C targets.

    MCRMSE is the mean over targets of the root of the mean squared error. A correlation with constant numbers is NaN.
    """

    row = datasets.Sequence(datasets.Value("float64"))
    headline = "mse"
    shown = {
        "mse": "MSE",
        "mae": "MAE",
        "pearson": "Pearson",
        "spearman": "Spearman",
    }
    hidden = ("mcrmse",)

    def measure(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
        squared = ((predicted - true) ** 2).mean(0)  # (C,)
        return {
            "mse": float(squared.mean()),
            "mae": float(np.abs(predicted - true).mean()),
            "mcrmse": float(np.sqrt(squared).mean()),
            "pearson": _correlation(pearsonr, predicted, true),
            "spearman": _correlation(spearmanr, predicted, true),
        }


class SeveralTargetsMetric(RegressionMetric):
    """The same metrics for several targets, with MCRMSE as the headline."""

    headline = "mcrmse"
    shown = RegressionMetric.shown | {"mcrmse": "MCRMSE"}
    hidden = ()


def _f1(hits: np.ndarray, given: np.ndarray) -> np.ndarray:
    """F1 from the number of hits, and that of answers and true labels together; 0 where there is neither."""
    return np.where(given > 0, 2 * hits / np.maximum(given, 1), 0.0)


def _matthews(hits: float, predicted: np.ndarray, true: np.ndarray) -> float:
    """Matthews correlation from the number of hits, and of each class's predictions and rows, (C,). 0 for one class.

    Reference: Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004.
    """
    rows = true.sum()
    norm = (rows**2 - predicted @ predicted) * (rows**2 - true @ true)
    return float((hits * rows - predicted @ true) / np.sqrt(norm)) if norm > 0 else 0.0


def _correlation(measure: Callable, predicted: np.ndarray, true: np.ndarray) -> float:
    columns = list(zip(predicted.T, true.T, strict=True))
    if any(np.ptp(column) == 0 for pair in columns for column in pair):
        return float("nan")
    return float(np.mean([measure(*pair)[0] for pair in columns]))
