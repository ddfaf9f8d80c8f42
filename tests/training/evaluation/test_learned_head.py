"""What was learnt after training lies in the weights: the saved model gives the very logits that were measured."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit

from lstmpool.training.evaluation.calibration import fit_temperature, probability_metrics, tune_thresholds
from lstmpool.training.evaluation.learned_head import fold_into
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.tasks.labels import MULTI, REGRESSION, SINGLE
from lstmpool.training.tasks.metrics import TaskMetrics


def fold(task, labels, scale=None, **options):
    torch.manual_seed(0)
    head = torch.nn.Linear(6, 3)
    states = {name: 4 * torch.randn(80, 6) for name in ("validation", "test")}
    if scale is not None:
        scale.switch_on(head, fresh=True)
    logits = {name: head(of).detach().numpy().astype(float) for name, of in states.items()}
    args = SimpleNamespace(**({"calibrate": None, "tune_thresholds": False} | options))
    targets = dict.fromkeys(states, np.array(labels))
    folded, learned = fold_into(head, args, task, logits, targets, TaskMetrics.of(task, 3), scale)
    for name, of in states.items():  # the weights say what the formula says
        np.testing.assert_allclose(head(of).detach().numpy(), folded[name], rtol=1e-4, atol=1e-4)
    return logits, folded, learned


def test_nothing_is_learnt_unasked():
    logits, folded, learned = fold(SINGLE, [0, 1, 2, 1] * 20)
    assert learned == {}
    assert all((folded[name] == logits[name]).all() for name in logits)


def test_the_scale_of_a_regression():
    targets = [[1.0, 100.0, 5000.0], [3.0, 500.0, 9000.0]] * 40
    scale = TargetScale(targets)
    logits, folded, learned = fold(REGRESSION, targets, scale)
    np.testing.assert_allclose(folded["test"], logits["test"] * scale.scale)
    assert learned == {"target_scale": scale.scale.tolist()}


@pytest.mark.parametrize("task", [SINGLE, MULTI])
def test_a_temperature(task):
    labels = [0, 1, 2, 1] * 20 if task == SINGLE else [[1, 0, 1], [0, 0, 1]] * 40
    logits, folded, learned = fold(task, labels, calibrate="temperature")
    np.testing.assert_allclose(folded["test"] * learned["temperature"], logits["test"])
    assert learned["temperature"] == fit_temperature(logits["validation"], np.array(labels), task)
    effect = learned["calibration"]["validation"]
    assert effect["before"] == probability_metrics(logits["validation"], np.array(labels), task)
    assert effect["after"]["log_loss"] < effect["before"]["log_loss"]


def test_thresholds_are_measured_always_and_folded_on_request():
    labels = [[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]] * 20
    logits, folded, learned = fold(MULTI, labels)
    assert (folded["test"] == logits["test"]).all() and "folded_thresholds" not in learned
    effect = learned["thresholds"]["validation"]
    assert effect["at_thresholds"]["f1_macro"] > effect["at_half"]["f1_macro"]
    logits, folded, learned = fold(MULTI, labels, tune_thresholds=True)
    metrics = TaskMetrics.of(MULTI, 3)
    assert metrics.compute(metrics.decide(folded["validation"]), np.array(labels)) == effect["at_thresholds"]
    np.testing.assert_allclose(folded["test"], logits["test"] - learned["folded_thresholds"])
    assert learned["folded_thresholds"] == tune_thresholds(logits["validation"], np.array(labels)).tolist()
    assert learned["thresholds"]["probabilities"] == pytest.approx(expit(learned["folded_thresholds"]))


def test_without_validation_rows_there_are_no_thresholds():
    args = SimpleNamespace(calibrate=None, tune_thresholds=False)
    logits, metrics = {"test": np.zeros((2, 3))}, TaskMetrics.of(MULTI, 3)
    targets = {"test": np.array([[1, 0, 0], [0, 1, 0]])}
    assert fold_into(torch.nn.Linear(6, 3), args, MULTI, logits, targets, metrics, None) == (logits, {})


def test_thresholds_come_after_the_temperature():
    labels = [[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]] * 20
    logits, folded, learned = fold(MULTI, labels, calibrate="temperature", tune_thresholds=True)
    wanted = logits["test"] / learned["temperature"] - learned["folded_thresholds"]
    np.testing.assert_allclose(folded["test"], wanted)
