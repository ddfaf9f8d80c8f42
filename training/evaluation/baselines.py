"""Baselines to compare the result with: the most frequent answer, and a linear model on the frozen backbone."""

import numpy as np
import torch
from datasets import Dataset
from sklearn.base import BaseEstimator
from transformers import Trainer

from lstmpool.training.loop.logits import in_given_order
from lstmpool.training.loop.measuring import same_random_numbers
from lstmpool.training.tasks.metrics import LOWER_IS_BETTER
from lstmpool.training.tasks.task import Task


STRENGTHS = (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)  # of the linear model's regularisation: C, or 1 / alpha

Scores = dict[str, dict[str, float]]  # metrics by split


@torch.no_grad()
def top_states(trainer: Trainer, dataset: Dataset) -> np.ndarray:
    """The top layer's vector of each row, (N, H), in the rows' order, from the backbone as it is now."""
    model = trainer.model.eval()
    with in_given_order(trainer):
        batches = trainer.get_test_dataloader(dataset.remove_columns("labels"))
    with same_random_numbers():
        states = [model.base_model(**batch).layer_states[:, -1].float().cpu() for batch in batches]  # (B, H) each
    return torch.cat(states).numpy()


def fit_baselines(states: dict[str, np.ndarray], labels: dict[str, np.ndarray], task: Task) -> dict[str, Scores]:
    """The scores of each baseline, by its title.

    Args:
        states: the frozen vectors (N, H) of each split. The baselines are fitted on "train".
        labels: the labels of each split, (N,) or (N, C).
        task: its headline metric on validation chooses how strongly the linear model is regularised. Without
            validation rows, the strength is 1.
    """
    strengths = STRENGTHS if "validation" in states else (1.0,)
    scores = {strength: _scores_of(task.linear_model(strength), states, labels, task) for strength in strengths}
    best = strengths[0]
    if len(strengths) > 1:
        sign = -1 if task.headline in LOWER_IS_BETTER else 1
        best = max(strengths, key=lambda strength: sign * scores[strength]["validation"][task.headline])
    return {
        task.linear_title(best): scores[best],
        task.simplest_title: _scores_of(task.simplest_model(), states, labels, task),
    }


def _scores_of(
    model: BaseEstimator, states: dict[str, np.ndarray], labels: dict[str, np.ndarray], task: Task
) -> Scores:
    """Fits `model` on the training rows, and scores it on every split."""
    model.fit(states["train"], labels["train"])
    return {split: task.score(model.predict(vectors), labels[split]) for split, vectors in states.items()}
