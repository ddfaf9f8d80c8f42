"""Metrics by task, computed without a network: `evaluate` metrics of the project's own over scikit-learn.

`evaluate.load("accuracy")` would fetch code from the Hub.
"""

from collections.abc import Callable
from dataclasses import dataclass

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score
from transformers import EvalPrediction

from lstmpool.training.arguments import TrainingArguments
from lstmpool.training.errors import InputError
from lstmpool.training.labels import MULTI, SINGLE


AUTO = "auto"  # stands for the headline metric until the task is known
LOWER_IS_BETTER = ("loss", "mse", "mae", "mcrmse")


class _Metric(evaluate.Metric):
    row: datasets.Value | datasets.Sequence

    def __init__(self):
        super().__init__(keep_in_memory=True)  # otherwise a file of the predictions goes to the user's cache

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": self.row, "references": self.row})
        description = self.__doc__ or ""
        return evaluate.MetricInfo(description=description, citation="", inputs_description="", features=features)


class SingleLabelMetric(_Metric):
    """Accuracy, and F1 averaged over the labels that occur; of integers (B,)."""

    row = datasets.Value("int64")

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0)),
        }


class MultiLabelMetric(_Metric):
    """F1 over all decisions (micro) and averaged over labels (macro); of zeros and ones (B, C)."""

    row = datasets.Sequence(datasets.Value("int64"))

    def _compute(self, predictions: list[list[int]], references: list[list[int]]) -> dict[str, float]:
        predicted, true = np.array(predictions), np.array(references)
        return {
            "f1_micro": float(f1_score(true, predicted, average="micro", zero_division=0)),
            "f1_macro": float(f1_score(true, predicted, average="macro", zero_division=0)),
        }


class RegressionMetric(_Metric):
    """Of numbers (B, C): each error and correlation is taken per target, and averaged over the C targets.

    MCRMSE is the mean over targets of the root of the mean squared error. A correlation with constant numbers is NaN.
    """

    row = datasets.Sequence(datasets.Value("float64"))

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


def _correlation(measure: Callable, predicted: np.ndarray, true: np.ndarray) -> float:
    columns = list(zip(predicted.T, true.T, strict=True))
    if any(np.ptp(column) == 0 for pair in columns for column in pair):
        return float("nan")
    return float(np.mean([measure(*pair)[0] for pair in columns]))


@dataclass(frozen=True)
class TaskMetrics:
    """How one task is measured. `headline` chooses the best epoch; `titles` are the metrics that are shown."""

    metric: evaluate.Metric
    decide: Callable[[np.ndarray], np.ndarray]  # from logits (B, C) to what is compared with the labels
    headline: str
    titles: dict[str, str]

    @classmethod
    def of(cls, problem_type: str, num_labels: int) -> "TaskMetrics":
        if problem_type == SINGLE:
            titles = {"accuracy": "accuracy", "f1_macro": "macro F1"}
            return cls(SingleLabelMetric(), lambda logits: logits.argmax(-1), "accuracy", titles)
        if problem_type == MULTI:
            titles = {"f1_micro": "micro F1", "f1_macro": "macro F1"}
            return cls(MultiLabelMetric(), lambda logits: (logits > 0).astype(int), "f1_micro", titles)
        titles = {"mse": "MSE", "mae": "MAE", "pearson": "Pearson", "spearman": "Spearman"}
        titles |= {"mcrmse": "MCRMSE"} if num_labels > 1 else {}
        return cls(RegressionMetric(), lambda logits: logits, "mcrmse" if num_labels > 1 else "mse", titles)

    def choose_best(self, args: TrainingArguments) -> None:
        """Settles by which metric, and in which direction, the best epoch is chosen.

        Raises:
            InputError: if `metric_for_best_model` is none of this task.
        """
        name = args.metric_for_best_model.removeprefix("eval_")
        name = self.headline if name == AUTO else name
        if name not in (*self.titles, "loss"):
            raise InputError(f"--metric_for_best_model must be one of {', '.join(self.titles)}, loss, got {name}.")
        args.metric_for_best_model, args.greater_is_better = name, name not in LOWER_IS_BETTER

    def compute(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The metrics of decisions (B,) or (B, C) against labels of the same kind."""
        predictions, labels = np.asarray(predictions), np.asarray(labels)
        if not isinstance(self.metric, SingleLabelMetric):
            kind = int if isinstance(self.metric, MultiLabelMetric) else float
            predictions, labels = (a.reshape(len(a), -1).astype(kind) for a in (predictions, labels))
        return self.metric.compute(predictions=predictions.tolist(), references=labels.tolist())

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """As `Trainer(compute_metrics=...)` wants it."""
        return self.compute(self.decide(prediction.predictions), prediction.label_ids)
