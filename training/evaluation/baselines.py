"""What the result should be compared with: the most frequent answer, and a linear model on the frozen backbone."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import Trainer

from lstmpool.training.evaluation.predictions import in_given_order
from lstmpool.training.tasks.labels import MULTI, REGRESSION
from lstmpool.training.tasks.metrics import LOWER_IS_BETTER, TaskMetrics


STRENGTHS = (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)  # of the linear model's regularisation: C, or 1 / alpha


@torch.no_grad()
def top_states(trainer: Trainer, dataset: Dataset) -> np.ndarray:
    """The highest layer's vector of each row, (N, H), in the rows' order, from the backbone as it is at the moment."""
    model = trainer.model.eval()
    with in_given_order(trainer):
        batches = trainer.get_test_dataloader(dataset.remove_columns("labels"))
    states = [model.base_model(**batch).layer_states[:, -1].float().cpu() for batch in batches]  # (B, H) each
    return torch.cat(states).numpy()


def fit_baselines(
    states: dict[str, np.ndarray], labels: dict[str, np.ndarray], problem_type: str, metrics: TaskMetrics
) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics by baseline and split.

    Args:
        states: the frozen vectors (N, H) of each split, of which "train" is fitted on.
        labels: the labels of each split, (N,) or (N, C).
        problem_type: the task.
        metrics: how it is measured; its headline on validation chooses how strongly the linear model is regularised.
    """

    def measure(fitted: Any) -> dict[str, dict[str, float]]:
        return {split: metrics.compute(fitted.predict(states[split]), labels[split]) for split in states}

    def fit(estimator: Any) -> Any:
        return estimator.fit(states["train"], labels["train"])

    sign = -1 if metrics.headline in LOWER_IS_BETTER else 1
    strengths = STRENGTHS if "validation" in states else (1.0,)
    trials = {c: measure(fit(_linear(problem_type, c))) for c in strengths}
    best = max(trials, key=lambda c: sign * trials[c].get("validation", trials[c]["train"])[metrics.headline])
    regression = problem_type == REGRESSION
    simplest = DummyRegressor(strategy="mean") if regression else DummyClassifier(strategy="most_frequent")
    linear = f"ridge regression on the frozen backbone (alpha={1 / best:g})"
    linear = linear if regression else f"logistic regression on the frozen backbone (C={best:g})"
    return {linear: trials[best], "mean of training" if regression else "majority class": measure(fit(simplest))}


def _linear(problem_type: str, strength: float) -> Any:
    if problem_type == REGRESSION:
        return make_pipeline(StandardScaler(), Ridge(alpha=1 / strength))
    logistic = LogisticRegression(C=strength, max_iter=5000)
    return make_pipeline(StandardScaler(), OneVsRestClassifier(logistic) if problem_type == MULTI else logistic)
