import math

import numpy as np
import pytest
from transformers import EvalPrediction

from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import AUTO
from lstmpool.training.loop.measuring import TrainerMetrics
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import task_of


def test_single_label_by_hand():
    # true 0 0 1 1 2, predicted 0 1 1 1 0: F1 of 0 is 2/4, of 1 is 4/5, of 2 is 0
    logits = np.eye(3)[[0, 1, 1, 1, 0]]
    result = TrainerMetrics(task_of(SingleLabel, 3))(EvalPrediction(logits, np.array([0, 0, 1, 1, 2])))
    # in counts of 3 hits, 2 2 1 true and 2 3 0 predicted: Matthews' (3 * 5 - 10) / sqrt((25 - 9) * (25 - 13))
    wanted = {"accuracy": 3 / 5, "f1_macro": (2 / 4 + 4 / 5 + 0) / 3, "f1_weighted": (2 * 2 / 4 + 2 * 4 / 5 + 0) / 5}
    assert result == pytest.approx(wanted | {"matthews_correlation": 5 / math.sqrt(16 * 12)})


def test_multi_label_by_hand():
    # label 0: 1 hit, 1 false alarm, F1 2/3; label 1: 1 hit, 1 miss, F1 2/3; label 2: 1 miss, F1 0
    logits = np.array([[2.0, 1.0, -1.0], [0.5, -0.5, -0.1]])
    labels = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    result = TrainerMetrics(task_of(MultiLabel, 3))(EvalPrediction(logits, labels))
    wanted = {"f1_micro": 4 / 7, "f1_macro": (2 / 3 + 2 / 3 + 0) / 3, "subset_accuracy": 1 / 2}
    assert result == pytest.approx(wanted)
    assert task_of(MultiLabel, 2).score(np.array([[1, 0]]), np.array([[1, 1]]))["subset_accuracy"] == 0


def test_regression_by_hand():
    # errors 1, 0, 2 in the first target and 0, 0, 3 in the second
    predicted = np.array([[2.0, 1.0], [2.0, 2.0], [5.0, 6.0]])
    true = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    result = TrainerMetrics(task_of(Regression, 2))(EvalPrediction(predicted, true))
    assert result["mse"] == pytest.approx((5 / 3 + 9 / 3) / 2)
    assert result["mae"] == pytest.approx(6 / 6)
    assert result["mcrmse"] == pytest.approx((math.sqrt(5 / 3) + math.sqrt(3)) / 2)
    pearson = (3 / math.sqrt(6 * 2) + 5 / math.sqrt(14 * 2)) / 2
    assert result["pearson"] == pytest.approx(pearson)
    assert result["spearman"] == pytest.approx((math.sqrt(3) / 2 + 1) / 2)  # 2 and 2 share their rank


def test_one_target_may_be_flat_or_a_column():
    task = task_of(Regression, 1)
    flat = task.score(np.array([1.0, 2.0]), np.array([0.0, 2.0]))
    assert flat == task.score(np.array([[1.0], [2.0]]), np.array([0.0, 2.0]))
    assert flat["mse"] == 0.5


def test_a_constant_has_no_correlation():
    result = task_of(Regression, 1).score(np.array([2.0, 2.0]), np.array([1.0, 3.0]))
    assert math.isnan(result["pearson"]) and math.isnan(result["spearman"]) and result["mse"] == 1


@pytest.mark.parametrize(
    ("task", "given", "name", "greater"),
    [
        (SingleLabel, AUTO, "accuracy", True),
        (MultiLabel, AUTO, "f1_micro", True),
        (Regression, AUTO, "mse", False),
        (Regression, "pearson", "pearson", True),
        (Regression, "eval_mae", "mae", False),
        (SingleLabel, "loss", "loss", False),
        (SingleLabel, "matthews_correlation", "matthews_correlation", True),
        (MultiLabel, "subset_accuracy", "subset_accuracy", True),
    ],
)
def test_the_best_epoch_is_chosen_in_the_right_direction(task, given, name, greater):
    assert task_of(task, 1).best_by(given) == (name, greater)


def test_several_targets_are_judged_by_mcrmse():
    assert task_of(Regression, 2).headline == "mcrmse" and task_of(Regression, 1).headline == "mse"


def test_a_metric_of_another_task_is_refused():
    with pytest.raises(InputError, match="must be one of accuracy, f1_macro, .*loss, got mse"):
        task_of(SingleLabel, 2).best_by("mse")


def test_predictions_in_other_units_are_measured_in_their_own():
    scaled = TrainerMetrics(task_of(Regression, 2), np.array([2.0, 10.0]))
    logits, labels = np.array([[1.0, 1.0], [0.0, 2.0]]), np.array([[0.0, 1.0], [0.0, 0.0]])
    result = scaled(EvalPrediction(logits, labels))
    assert result["mse"] == pytest.approx((2**2 / 2 + 20**2 / 2) / 2)
    one = TrainerMetrics(task_of(Regression, 1), np.array([2.0]))
    assert one(EvalPrediction(logits[:, :1], labels[:, 0]))["mse"] == pytest.approx(2**2 / 2)


def headline_by_library(task, predictions, labels, rows):
    """The headline metric of some rows, as it is computed everywhere else."""
    of = task_of(task, 2)
    return of.score(predictions[rows], labels[rows])[of.headline]


@pytest.mark.parametrize("task", [SingleLabel, MultiLabel, Regression])
def test_the_interval_is_that_of_a_bootstrap_of_the_headline(task):
    generator = np.random.default_rng(1)
    if task is SingleLabel:
        labels, predictions = generator.integers(2, size=(2, 200))
    elif task is MultiLabel:
        labels, predictions = generator.integers(2, size=(2, 200, 2))
    else:
        labels, predictions = generator.normal(size=(2, 200, 2))
    low, high = task_of(task, 2).interval(predictions, labels)
    draws = [generator.integers(200, size=200) for _ in range(400)]
    by_hand = np.percentile([headline_by_library(task, predictions, labels, rows) for rows in draws], [2.5, 97.5])
    assert (low, high) == pytest.approx(tuple(by_hand), abs=0.02 if task is not Regression else 0.05)
    assert task_of(task, 2).interval(predictions, labels) == (low, high)  # the same every time


def test_the_interval_of_an_accuracy_is_known():
    labels = np.zeros(400, dtype=int)
    predictions = (np.arange(400) < 100).astype(int)  # right in 300 of 400
    low, high = task_of(SingleLabel, 2).interval(predictions, labels)
    assert (low, high) == pytest.approx((0.75 - 1.96 * 0.02165, 0.75 + 1.96 * 0.02165), abs=0.006)


def test_ten_right_of_ten_may_be_chance():
    low, high = task_of(SingleLabel, 2).interval(np.zeros(10), np.zeros(10))
    assert (low, high) == pytest.approx((10 / (10 + 1.95996**2), 1), abs=1e-4)  # Wilson's bounds, by hand
    low, high = task_of(SingleLabel, 2).interval(np.ones(10), np.zeros(10))
    assert (low, high) == pytest.approx((0, 1.95996**2 / (10 + 1.95996**2)), abs=1e-4)


def test_rows_that_are_all_alike_do_not_make_an_interval_of_one_point():
    """A draw of such rows is the same every time, and other rows need not be like them."""
    seen = 10 / (10 + 1.95996**2)  # Wilson's lower bound for ten of ten, by hand
    task, perfect = task_of(MultiLabel, 2), np.array([[1, 0]] * 6 + [[1, 1]] * 4)
    assert task.interval(perfect, perfect) == pytest.approx((seen, 1), abs=1e-4)
    assert task.interval(1 - perfect, perfect) == pytest.approx((0, 1 - seen), abs=1e-4)
    both = np.ones((10, 2), dtype=int)  # one label of two, in every row: F1 2/3
    assert task.interval(both, np.array([[1, 0]] * 10)) == pytest.approx((2 / 3 * seen, 1 - seen / 3), abs=1e-4)
    assert task.interval(np.array([[1, 0]]), np.array([[1, 0]])) == pytest.approx((1 / (1 + 1.95996**2), 1), abs=1e-4)
    assert task.interval(np.zeros((9, 2)), np.zeros((9, 2)))[0] == 0 < task.interval(np.zeros((9, 2)), perfect[1:])[1]
    labels = np.arange(9.0)
    assert task_of(Regression, 1).interval(labels[:, None] + 1, labels) is None  # always 1 off
    assert task_of(Regression, 1).interval(np.array([[2.0]]), np.array([1.0])) is None
