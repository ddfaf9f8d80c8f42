"""Metrics by task, computed without a network: `evaluate` metrics of the project's own over scikit-learn.

`evaluate.load("accuracy")` would fetch code from the Hub.
"""

from collections.abc import Callable
from dataclasses import dataclass

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import EvalPrediction

from lstmpool.training.arguments import AUTO
from lstmpool.training.flag_rules import WITH_METRICS, Flags, check
from lstmpool.training.tasks.labels import MULTI, SINGLE
from lstmpool.training.training_arguments import TrainingArguments


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
    """Of integers (B,): accuracy, F1 averaged over the labels that occur (macro) and over rows (weighted), and
    Matthews correlation, which is 0 for a guess however unbalanced the labels are."""

    row = datasets.Value("int64")

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0)),
            "f1_weighted": float(f1_score(references, predictions, average="weighted", zero_division=0)),
            "matthews_correlation": float(matthews_corrcoef(references, predictions)),
        }


class MultiLabelMetric(_Metric):
    """Of zeros and ones (B, C): F1 over all decisions (micro) and averaged over labels (macro), and the share of rows
    with no label wrong (subset accuracy)."""

    row = datasets.Sequence(datasets.Value("int64"))

    def _compute(self, predictions: list[list[int]], references: list[list[int]]) -> dict[str, float]:
        predicted, true = np.array(predictions), np.array(references)
        return {
            "f1_micro": float(f1_score(true, predicted, average="micro", zero_division=0)),
            "f1_macro": float(f1_score(true, predicted, average="macro", zero_division=0)),
            "subset_accuracy": float((true == predicted).all(1).mean()),
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
    resample: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # see `interval`
    others: tuple[str, ...] = ()  # computed, but not shown
    scale: np.ndarray | None = None  # (C,): what Trainer's predictions and labels must be multiplied by

    @classmethod
    def of(cls, problem_type: str, num_labels: int) -> "TaskMetrics":
        if problem_type == SINGLE:
            titles, others = {"accuracy": "accuracy", "f1_macro": "macro F1"}, ("f1_weighted", "matthews_correlation")
            return cls(SingleLabelMetric(), lambda logits: logits.argmax(-1), "accuracy", titles, _accuracies, others)
        if problem_type == MULTI:
            titles, others = {"f1_micro": "micro F1", "f1_macro": "macro F1"}, ("subset_accuracy",)
            return cls(MultiLabelMetric(), _above_zero, "f1_micro", titles, _micro_f1s, others)
        titles = {"mse": "MSE", "mae": "MAE", "pearson": "Pearson", "spearman": "Spearman"}
        titles |= {"mcrmse": "MCRMSE"} if num_labels > 1 else {}
        others = () if num_labels > 1 else ("mcrmse",)
        headline, resample = ("mcrmse", _mcrmses) if num_labels > 1 else ("mse", _mses)
        return cls(RegressionMetric(), lambda logits: logits, headline, titles, resample, others)

    def choose_best(self, args: TrainingArguments) -> None:
        """Settles by which metric, and in which direction, the best epoch is chosen.

        Raises:
            InputError: if `metric_for_best_model` is none of this task.
        """
        name = args.metric_for_best_model.removeprefix("eval_")
        name = self.headline if name == AUTO else name
        known = (*self.titles, *self.others, "loss")
        check(WITH_METRICS, Flags(training={"metric_for_best_model": name}, metrics=known))
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
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        if self.scale is not None:  # one value for labels (B,) of a single target
            logits, labels = logits * self.scale, labels * self.scale
        return self.compute(self.decide(logits), labels)

    def interval(
        self, predictions: np.ndarray, labels: np.ndarray, resamples: int = 1000, seed: int = 0
    ) -> tuple[float, float]:
        """Bounds of the headline metric's 95% interval: of `resamples` draws of as many rows, with replacement, the
        percentiles 2.5 and 97.5. It tells of the rows, not of the training's own chance."""
        predictions, labels = np.asarray(predictions), np.asarray(labels)
        generator, n, values = np.random.default_rng(seed), len(labels), []
        for start in range(0, resamples, 100):  # some at a time, for the sake of memory
            rows = generator.integers(n, size=(min(100, resamples - start), n))  # (R, N)
            weights = np.apply_along_axis(np.bincount, 1, rows, minlength=n)  # (R, N): how often each row was drawn
            values.append(self.resample(predictions, labels, weights))
        low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
        return float(low), float(high)


def _above_zero(logits: np.ndarray) -> np.ndarray:
    return (logits > 0).astype(int)


def _accuracies(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ (predictions == labels) / len(labels)


def _micro_f1s(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    hits = weights @ (predictions * labels).sum(1)
    total = weights @ (predictions + labels).sum(1)
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), 0.0)


def _squared_means(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    errors = (predictions.reshape(len(labels), -1) - labels.reshape(len(labels), -1)) ** 2  # (N, C)
    return weights @ errors / len(labels)  # (R, C)


def _mses(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _squared_means(predictions, labels, weights).mean(1)


def _mcrmses(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.sqrt(_squared_means(predictions, labels, weights)).mean(1)
