import datasets
import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from lstmpool.training.evaluation.baselines import fit_baselines, top_states
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...conftest import random_inputs, tiny_model
from ...training_fixtures import task_of


def baselines_of(labels, task):
    """Baselines on states whose first column gives the labels away; labels by split."""
    noise = np.random.default_rng(0).normal(size=(8, 3))
    states = {split: np.c_[np.asarray(y, float).reshape(8, -1)[:, :1] * 5, noise] for split, y in labels.items()}
    arrays = {split: np.array(y) for split, y in labels.items()}
    return fit_baselines(states, arrays, task_of(task, 2))


def test_majority_class_and_linear_model():
    train, test = [0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]
    linear, majority = baselines_of({"train": train, "validation": train, "test": test}, SingleLabel).values()
    assert majority["test"]["accuracy"] == 2 / 8
    assert majority["train"]["accuracy"] == 5 / 8
    assert linear["test"]["accuracy"] == 1


def test_mean_and_ridge():
    train, test = [[0.0, 1.0], [2.0, 3.0]] * 4, [[2.0, 3.0], [0.0, 1.0]] * 4
    results = baselines_of({"train": train, "test": test}, Regression)
    linear, mean = results.values()
    assert mean["test"]["mcrmse"] == pytest.approx(1)  # each target lies 1 away from its mean
    assert linear["test"]["mcrmse"] < 0.5
    assert "mean of training" in results and "ridge" in next(iter(results))


def test_baselines_of_multi_label():
    train = [[1, 1], [0, 0], [1, 1], [1, 0]] * 2
    linear, majority = baselines_of({"train": train, "test": train}, MultiLabel).values()
    assert majority["test"]["f1_micro"] == pytest.approx(2 * 6 / (8 + 10))  # label 0 to all rows, label 1 to none
    assert linear["test"]["f1_micro"] > majority["test"]["f1_micro"]


def test_the_linear_model_is_the_one_that_is_best_on_validation():
    # validation has the opposite signs: the strongest regularisation, nearest to the mean, has the least error there
    train, other = [[-1.0, -1.0], [1.0, 1.0]] * 4, [[1.0, 1.0], [-1.0, -1.0]] * 4
    noise = np.zeros((8, 1))
    states = {"train": np.c_[np.array(train)[:, :1], noise], "validation": np.c_[np.array(train)[:, :1], noise]}
    labels = {"train": np.array(train), "validation": np.array(other)}
    names = list(fit_baselines(states, labels, task_of(Regression, 2)))
    assert "(alpha=100000)" in names[0]
    names = list(fit_baselines(states, {**labels, "validation": labels["train"]}, task_of(Regression, 2)))
    assert "(alpha=0.1)" in names[0]


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_the_frozen_states_are_those_of_the_top_layer(tmp_path, strategy):
    model = tiny_model()
    inputs = random_inputs(5, 7, lengths=[7, 3, 5, 2, 6])
    rows = datasets.Dataset.from_dict({name: value.tolist() for name, value in inputs.items()} | {"labels": [0] * 5})
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, per_device_eval_batch_size=2, train_sampling_strategy=strategy, report_to=[]
    )
    states = top_states(Trainer(model, arguments), rows.with_format("torch"))
    with torch.no_grad():
        wanted = model(**inputs, output_hidden_states=True).hidden_states[-1][:, 0]
    assert states == pytest.approx(wanted.numpy(), abs=1e-5)
