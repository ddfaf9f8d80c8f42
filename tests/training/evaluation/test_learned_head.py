"""What was learnt after training lies in the weights: the saved model gives the very logits that were measured."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from lstmpool.training.evaluation.calibration import fit_temperature, probability_metrics, tune_thresholds
from lstmpool.training.evaluation.learned_head import calibrate, find_thresholds, fold_scale
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import task_of


def learn(head, task, logits, targets, scale=None, temperature=False, thresholds=False, skip=None):
    """What a run does after training, in its order."""
    learned = {}
    if scale is not None:
        logits, found = fold_scale(head, scale, logits, skip)
        learned |= found
    if temperature:
        logits, found = calibrate(head, task, logits, targets, skip)
        learned |= found
    if task.has_thresholds:
        logits, found = find_thresholds(head, task, logits, targets, fold=thresholds)
        learned |= found
    return logits, learned


def fold(kind, labels, scale=None, **options):
    torch.manual_seed(0)
    head = torch.nn.Linear(6, 3)
    states = {name: 4 * torch.randn(80, 6) for name in ("validation", "test")}
    if scale is not None:
        scale.switch_on(head, fresh=True)
    logits = {name: head(of).detach().numpy().astype(float) for name, of in states.items()}
    targets = dict.fromkeys(states, np.array(labels))
    folded, learned = learn(head, task_of(kind), logits, targets, scale, **options)
    for name, of in states.items():  # the weights say what the formula says
        np.testing.assert_allclose(head(of).detach().numpy(), folded[name], rtol=1e-4, atol=1e-4)
    return logits, folded, learned


def test_nothing_is_learnt_unasked():
    logits, folded, learned = fold(SingleLabel, [0, 1, 2, 1] * 20)
    assert learned == {}
    assert all((folded[name] == logits[name]).all() for name in logits)


def test_the_scale_of_a_regression():
    targets = [[1.0, 100.0, 5000.0], [3.0, 500.0, 9000.0]] * 40
    scale = TargetScale(targets)
    logits, folded, learned = fold(Regression, targets, scale)
    np.testing.assert_allclose(folded["test"], logits["test"] * scale.scale)
    assert learned == {"target_scale": scale.scale.tolist()}


@pytest.mark.parametrize("kind", [SingleLabel, MultiLabel])
def test_a_temperature(kind):
    task = task_of(kind)
    labels = [0, 1, 2, 1] * 20 if kind is SingleLabel else [[1, 0, 1], [0, 0, 1]] * 40
    logits, folded, learned = fold(kind, labels, temperature=True)
    np.testing.assert_allclose(folded["test"] * learned["temperature"], logits["test"])
    assert learned["temperature"] == fit_temperature(task, logits["validation"], np.array(labels))
    effect = learned["calibration"]["validation"]
    assert effect["before"] == probability_metrics(task, logits["validation"], np.array(labels))
    assert effect["after"]["log_loss"] < effect["before"]["log_loss"]


def test_thresholds_are_measured_always_and_folded_on_request():
    labels = [[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]] * 20
    logits, folded, learned = fold(MultiLabel, labels)
    assert (folded["test"] == logits["test"]).all() and "folded_thresholds" not in learned
    effect = learned["thresholds"]["validation"]
    assert effect["at_thresholds"]["f1_macro"] > effect["at_half"]["f1_macro"]
    logits, folded, learned = fold(MultiLabel, labels, thresholds=True)
    task = task_of(MultiLabel)
    assert task.score(task.decide(folded["validation"]), np.array(labels)) == effect["at_thresholds"]
    np.testing.assert_allclose(folded["test"], logits["test"] - learned["folded_thresholds"])
    assert learned["folded_thresholds"] == tune_thresholds(logits["validation"], np.array(labels)).tolist()
    assert learned["thresholds"]["probabilities"] == pytest.approx(expit(learned["folded_thresholds"]))


def test_thresholds_come_after_the_temperature():
    labels = [[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]] * 20
    logits, folded, learned = fold(MultiLabel, labels, temperature=True, thresholds=True)
    wanted = logits["test"] / learned["temperature"] - learned["folded_thresholds"]
    np.testing.assert_allclose(folded["test"], wanted)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SingleLabel, {"temperature": True}),
        (MultiLabel, {"temperature": True, "thresholds": True}),
        (Regression, {}),
    ],
)
def test_what_stands_beside_the_head_learns_it_too(kind, options):
    torch.manual_seed(0)
    head, skip = torch.nn.Linear(6, 3), torch.nn.Linear(5, 3, bias=False)
    labels = {
        SingleLabel: [0, 1, 2, 1] * 20,
        MultiLabel: [[1, 0, 1], [0, 0, 1]] * 40,
        Regression: [[1.0, 100.0, 5000.0], [3.0, 500.0, 9000.0]] * 40,
    }[kind]
    scale = TargetScale(labels) if kind is Regression else None
    if scale is not None:
        scale.switch_on(head, fresh=True, skip=skip)
    inputs, wide = 4 * torch.randn(80, 6), 4 * torch.randn(80, 5)
    logits = {"validation": (head(inputs) + skip(wide)).detach().numpy().astype(float)}
    targets = {"validation": np.array(labels)}
    folded, _ = learn(head, task_of(kind), logits, targets, scale, skip=skip, **options)
    assert not np.allclose(folded["validation"], logits["validation"])
    given = (head(inputs) + skip(wide)).detach().numpy()
    np.testing.assert_allclose(given, folded["validation"], rtol=1e-4, atol=1e-3)
