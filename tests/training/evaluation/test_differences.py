"""Differences between runs on the same rows, against numbers worked out by hand."""

import numpy as np
import pytest

from lstmpool.training.evaluation import differences
from lstmpool.training.evaluation.differences import Answers, paired_differences
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import task_of


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(differences, "DRAWS", 20)


def by_hand(task, labels, first, second):
    return paired_differences(task, np.array(labels), [first, second], against=0)[1]


def test_probabilities_by_hand(few_draws):
    """Each row adds -ln 0.8 to the one's log-loss and 2 x 0.2^2 to its Brier score; -ln 0.5 and 0.5 to the other's."""
    sure = Answers(np.array([0, 1]), np.array([[0.8, 0.2], [0.2, 0.8]]))
    unsure = Answers(np.array([0, 1]), np.full((2, 2), 0.5))
    found = by_hand(task_of(SingleLabel, 2), [0, 1], sure, unsure)
    assert found["log_loss"].difference == pytest.approx(np.log(0.8) - np.log(0.5))
    assert found["brier"][:2] == pytest.approx((0.08, 0.5)) and found["brier"].interval is None
    several = by_hand(
        task_of(MultiLabel, 2),
        np.eye(2, dtype=np.uint8),
        *(Answers(np.eye(2, dtype=np.uint8), of.scores) for of in (sure, unsure)),
    )
    assert several["log_loss"].this == pytest.approx(np.log(2))
    assert several["brier"][:2] == pytest.approx((0.04, 0.25))  # of each decision
    certain = Answers(np.array([0, 1]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert np.isfinite(by_hand(task_of(SingleLabel, 2), [0, 1], sure, certain)["log_loss"].this)
    assert "log_loss" not in by_hand(task_of(SingleLabel, 2), [0, 1], sure, Answers(np.array([0, 1])))


def test_several_labels_by_hand():
    """Of 3 true labels in 2 rows, the first run gives 2 and no other: 2 x 2 / (2 + 3). The second gives all 3."""
    labels = np.array([[1, 1], [1, 0]], dtype=np.uint8)
    found = by_hand(
        task_of(MultiLabel, 2), labels, Answers(np.array([[1, 0], [1, 0]], dtype=np.uint8)), Answers(labels)
    )
    assert found["f1_micro"][:2] == (pytest.approx(0.8), 1.0)
    assert found["f1_macro"][:2] == (0.5, 1.0) and found["subset_accuracy"][:2] == (0.5, 1.0)


def test_numbers_by_hand(few_draws):
    labels = np.array([[1.0, 10.0], [2.0, 40.0], [3.0, 20.0], [4.0, 30.0]])
    found = by_hand(Regression(["a", "b"]), labels, Answers(labels + [1, 3]), Answers(-labels))
    assert found["mcrmse"].other == pytest.approx(2)  # (1 + 3) / 2
    assert found["mse"].other == pytest.approx(5)  # (1 + 9) / 2
    assert found["pearson"][:2] == (pytest.approx(1), pytest.approx(-1))
    assert found["spearman"][:2] == (pytest.approx(1), pytest.approx(-1))
    constant = by_hand(Regression(["a"]), labels[:, 0], Answers(labels[:, :1]), Answers(np.ones((4, 1))))["pearson"]
    assert np.isnan(constant.this) and constant.interval is None


def test_the_interval_holds_the_true_difference_and_draws_are_the_same_for_all_runs():
    generator, task, held = np.random.default_rng(1), task_of(SingleLabel, 2), 0
    for _ in range(10):
        wrong = generator.random((2, 60)) < [[0.3], [0.2]]
        first, second = (Answers(of.astype(int)) for of in wrong)
        found = paired_differences(task, np.zeros(60, dtype=int), [first, second, second], against=0)
        assert found[0] == {} and found[1] == found[2]
        low, high = found[1]["accuracy"].interval
        held += low <= 0.1 <= high
    assert held >= 8  # of 10 intervals at 95 %
