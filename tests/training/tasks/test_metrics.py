import math
from dataclasses import replace
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from lstmpool.training.errors import InputError
from lstmpool.training.evaluation.baselines import fit_baselines, top_states
from lstmpool.training.tasks.labels import MULTI, REGRESSION, SINGLE
from lstmpool.training.tasks.metrics import AUTO, TaskMetrics

from ...conftest import random_inputs, tiny_model


def test_single_label_by_hand():
    # true 0 0 1 1 2, predicted 0 1 1 1 0: F1 of 0 is 2/4, of 1 is 4/5, of 2 is 0
    logits = np.eye(3)[[0, 1, 1, 1, 0]]
    result = TaskMetrics.of(SINGLE, 3)(EvalPrediction(logits, np.array([0, 0, 1, 1, 2])))
    # in counts of 3 hits, 2 2 1 true and 2 3 0 predicted: Matthews' (3 * 5 - 10) / sqrt((25 - 9) * (25 - 13))
    wanted = {"accuracy": 3 / 5, "f1_macro": (2 / 4 + 4 / 5 + 0) / 3, "f1_weighted": (2 * 2 / 4 + 2 * 4 / 5 + 0) / 5}
    assert result == pytest.approx(wanted | {"matthews_correlation": 5 / math.sqrt(16 * 12)})


def test_multi_label_by_hand():
    # label 0: 1 hit, 1 false alarm, F1 2/3; label 1: 1 hit, 1 miss, F1 2/3; label 2: 1 miss, F1 0
    logits = np.array([[2.0, 1.0, -1.0], [0.5, -0.5, -0.1]])
    labels = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    result = TaskMetrics.of(MULTI, 3)(EvalPrediction(logits, labels))
    wanted = {"f1_micro": 4 / 7, "f1_macro": (2 / 3 + 2 / 3 + 0) / 3, "subset_accuracy": 1 / 2}
    assert result == pytest.approx(wanted)
    assert TaskMetrics.of(MULTI, 2).compute(np.array([[1, 0]]), np.array([[1, 1]]))["subset_accuracy"] == 0


def test_regression_by_hand():
    # errors 1, 0, 2 in the first target and 0, 0, 3 in the second
    predicted = np.array([[2.0, 1.0], [2.0, 2.0], [5.0, 6.0]])
    true = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    result = TaskMetrics.of(REGRESSION, 2)(EvalPrediction(predicted, true))
    assert result["mse"] == pytest.approx((5 / 3 + 9 / 3) / 2)
    assert result["mae"] == pytest.approx(6 / 6)
    assert result["mcrmse"] == pytest.approx((math.sqrt(5 / 3) + math.sqrt(3)) / 2)
    pearson = (3 / math.sqrt(6 * 2) + 5 / math.sqrt(14 * 2)) / 2
    assert result["pearson"] == pytest.approx(pearson)
    assert result["spearman"] == pytest.approx((math.sqrt(3) / 2 + 1) / 2)  # 2 and 2 share their rank


def test_one_target_may_be_flat_or_a_column():
    metrics = TaskMetrics.of(REGRESSION, 1)
    flat = metrics.compute(np.array([1.0, 2.0]), np.array([0.0, 2.0]))
    assert flat == metrics.compute(np.array([[1.0], [2.0]]), np.array([0.0, 2.0]))
    assert flat["mse"] == 0.5


def test_a_constant_has_no_correlation():
    result = TaskMetrics.of(REGRESSION, 1).compute(np.array([2.0, 2.0]), np.array([1.0, 3.0]))
    assert math.isnan(result["pearson"]) and math.isnan(result["spearman"]) and result["mse"] == 1


@pytest.mark.parametrize(
    ("task", "given", "name", "greater"),
    [
        (SINGLE, AUTO, "accuracy", True),
        (MULTI, AUTO, "f1_micro", True),
        (REGRESSION, AUTO, "mse", False),
        (REGRESSION, "pearson", "pearson", True),
        (REGRESSION, "eval_mae", "mae", False),
        (SINGLE, "loss", "loss", False),
        (SINGLE, "matthews_correlation", "matthews_correlation", True),
        (MULTI, "subset_accuracy", "subset_accuracy", True),
    ],
)
def test_the_best_epoch_is_chosen_in_the_right_direction(task, given, name, greater):
    args = SimpleNamespace(metric_for_best_model=given)
    TaskMetrics.of(task, 1).choose_best(args)
    assert (args.metric_for_best_model, args.greater_is_better) == (name, greater)


def test_several_targets_are_judged_by_mcrmse():
    assert TaskMetrics.of(REGRESSION, 2).headline == "mcrmse" and TaskMetrics.of(REGRESSION, 1).headline == "mse"


def test_a_metric_of_another_task_is_refused():
    with pytest.raises(InputError, match="must be one of accuracy, f1_macro, .*loss, got mse"):
        TaskMetrics.of(SINGLE, 2).choose_best(SimpleNamespace(metric_for_best_model="mse"))


def test_predictions_in_other_units_are_measured_in_their_own():
    scaled = replace(TaskMetrics.of(REGRESSION, 2), scale=np.array([2.0, 10.0]))
    logits, labels = np.array([[1.0, 1.0], [0.0, 2.0]]), np.array([[0.0, 1.0], [0.0, 0.0]])
    result = scaled(EvalPrediction(logits, labels))
    assert result["mse"] == pytest.approx((2**2 / 2 + 20**2 / 2) / 2)
    one = replace(TaskMetrics.of(REGRESSION, 1), scale=np.array([2.0]))
    assert one(EvalPrediction(logits[:, :1], labels[:, 0]))["mse"] == pytest.approx(2**2 / 2)


def headline_by_library(task, predictions, labels, rows):
    """The headline metric of some rows, as it is computed everywhere else."""
    metrics = TaskMetrics.of(task, 2)
    return metrics.compute(predictions[rows], labels[rows])[metrics.headline]


@pytest.mark.parametrize("task", [SINGLE, MULTI, REGRESSION])
def test_the_interval_is_a_bootstrap_of_the_headline(task):
    generator = np.random.default_rng(1)
    if task == SINGLE:
        labels, predictions = generator.integers(2, size=(2, 200))
    elif task == MULTI:
        labels, predictions = generator.integers(2, size=(2, 200, 2))
    else:
        labels, predictions = generator.normal(size=(2, 200, 2))
    low, high = TaskMetrics.of(task, 2).interval(predictions, labels)
    draws = [generator.integers(200, size=200) for _ in range(400)]
    by_hand = np.percentile([headline_by_library(task, predictions, labels, rows) for rows in draws], [2.5, 97.5])
    assert (low, high) == pytest.approx(tuple(by_hand), abs=0.02 if task != REGRESSION else 0.05)
    assert TaskMetrics.of(task, 2).interval(predictions, labels) == (low, high)  # the same every time


def test_the_interval_of_an_accuracy_is_known():
    labels = np.zeros(400, dtype=int)
    predictions = (np.arange(400) < 100).astype(int)  # right in 300 of 400
    low, high = TaskMetrics.of(SINGLE, 2).interval(predictions, labels)
    assert (low, high) == pytest.approx((0.75 - 1.96 * 0.02165, 0.75 + 1.96 * 0.02165), abs=0.006)


def test_the_interval_of_one_target_and_of_rows_without_labels():
    labels = np.arange(9.0)
    assert TaskMetrics.of(REGRESSION, 1).interval(labels[:, None] + 1, labels) == (1, 1)  # always 1 off
    assert TaskMetrics.of(MULTI, 2).interval(np.zeros((9, 2)), np.zeros((9, 2))) == (0, 0)


def baselines_of(labels, problem_type):
    """Baselines on states whose first column gives the labels away; labels by split."""
    noise = np.random.default_rng(0).normal(size=(8, 3))
    states = {split: np.c_[np.asarray(y, float).reshape(8, -1)[:, :1] * 5, noise] for split, y in labels.items()}
    arrays = {split: np.array(y) for split, y in labels.items()}
    return fit_baselines(states, arrays, problem_type, TaskMetrics.of(problem_type, 2))


def test_majority_class_and_linear_model():
    train, test = [0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]
    linear, majority = baselines_of({"train": train, "validation": train, "test": test}, SINGLE).values()
    assert majority["test"]["accuracy"] == 2 / 8
    assert majority["train"]["accuracy"] == 5 / 8
    assert linear["test"]["accuracy"] == 1


def test_mean_and_ridge():
    train, test = [[0.0, 1.0], [2.0, 3.0]] * 4, [[2.0, 3.0], [0.0, 1.0]] * 4
    results = baselines_of({"train": train, "test": test}, REGRESSION)
    linear, mean = results.values()
    assert mean["test"]["mcrmse"] == pytest.approx(1)  # each target lies 1 away from its mean
    assert linear["test"]["mcrmse"] < 0.5
    assert "mean of training" in results and "ridge" in next(iter(results))


def test_baselines_of_multi_label():
    train = [[1, 1], [0, 0], [1, 1], [1, 0]] * 2
    linear, majority = baselines_of({"train": train, "test": train}, MULTI).values()
    assert majority["test"]["f1_micro"] == pytest.approx(2 * 6 / (8 + 10))  # label 0 to all rows, label 1 to none
    assert linear["test"]["f1_micro"] > majority["test"]["f1_micro"]


def test_the_linear_model_is_the_one_that_is_best_on_validation():
    # validation has the opposite signs: the strongest regularisation, nearest to the mean, has the least error there
    train, other = [[-1.0, -1.0], [1.0, 1.0]] * 4, [[1.0, 1.0], [-1.0, -1.0]] * 4
    noise = np.zeros((8, 1))
    states = {"train": np.c_[np.array(train)[:, :1], noise], "validation": np.c_[np.array(train)[:, :1], noise]}
    labels = {"train": np.array(train), "validation": np.array(other)}
    names = list(fit_baselines(states, labels, REGRESSION, TaskMetrics.of(REGRESSION, 2)))
    assert "(alpha=100000)" in names[0]
    names = list(
        fit_baselines(states, {**labels, "validation": labels["train"]}, REGRESSION, TaskMetrics.of(REGRESSION, 2))
    )
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
