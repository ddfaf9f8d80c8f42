"""The metrics of each task, as `evaluate` metrics of our own over scikit-learn. They need no network.

`evaluate.load("accuracy")` would fetch code from the Hub. To add a metric, compute it in `_compute` and name it in
`shown` or `hidden`. If lower is better, add it to `LOWER_IS_BETTER`; if the Hub knows it, to `HUB_METRICS`.
"""

from collections.abc import Callable

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


LOWER_IS_BETTER = ("loss", "mse", "mae", "mcrmse")
# Our metrics by the names they have on the Hub, and what sets them apart there. A metric that the Hub does not know,
# such as MCRMSE, stays out of the header of a model card.
HUB_METRICS: dict[str, tuple[str, dict[str, str] | None]] = {
    "accuracy": ("accuracy", None),
    "f1_macro": ("f1", {"average": "macro"}),
    "f1_micro": ("f1", {"average": "micro"}),
    "f1_weighted": ("f1", {"average": "weighted"}),
    "matthews_correlation": ("matthews_correlation", None),
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

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0)),
            "f1_weighted": float(f1_score(references, predictions, average="weighted", zero_division=0)),
            "matthews_correlation": float(matthews_corrcoef(references, predictions)),
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

    def _compute(self, predictions: list[list[int]], references: list[list[int]]) -> dict[str, float]:
        predicted, true = np.array(predictions), np.array(references)
        return {
            "f1_micro": float(f1_score(true, predicted, average="micro", zero_division=0)),
            "f1_macro": float(f1_score(true, predicted, average="macro", zero_division=0)),
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

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        predicted, true = np.array(predictions), np.array(references)
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


def _correlation(measure: Callable, predicted: np.ndarray, true: np.ndarray) -> float:
    columns = list(zip(predicted.T, true.T, strict=True))
    if any(np.ptp(column) == 0 for pair in columns for column in pair):
        return float("nan")
    return float(np.mean([measure(*pair)[0] for pair in columns]))
