import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from lstmpool.training.evaluation.calibration import (
    fit_temperature,
    fold_temperature,
    fold_thresholds,
    probability_metrics,
    tune_thresholds,
)
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import task_of


def head(c=3):
    torch.manual_seed(0)
    return torch.nn.Linear(4, c)


def logit(p):
    return math.log(p / (1 - p))


def test_probabilities_of_one_label_by_hand():
    # row 0: (0.8, 0.2), right; row 1: (0.6, 0.4), wrong
    logits = np.log([[0.8, 0.2], [0.6, 0.4]])
    measured = probability_metrics(task_of(SingleLabel), logits, np.array([0, 1]))
    assert measured["log_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)
    assert measured["brier"] == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)
    assert measured["ece"] == pytest.approx((abs(0.8 - 1) + abs(0.6 - 0)) / 2)  # each is alone in its bin


def test_probabilities_of_several_labels_by_hand():
    logits = np.array([[logit(0.9), logit(0.3)]])
    measured = probability_metrics(task_of(MultiLabel), logits, np.array([[1.0, 1.0]]))
    assert measured["log_loss"] == pytest.approx(-(math.log(0.9) + math.log(0.3)) / 2)
    assert measured["brier"] == pytest.approx((0.1**2 + 0.7**2) / 2)
    assert measured["ece"] == pytest.approx((0.1 + 0.7) / 2)


def test_claims_in_one_bin_may_make_up_for_one_another():
    # four claims of 0.75, three of them true
    logits = np.log([[0.75, 0.25]] * 4)
    assert probability_metrics(task_of(SingleLabel), logits, np.array([0, 0, 1, 0]))["ece"] == pytest.approx(0)
    assert (
        probability_metrics(task_of(SingleLabel), np.array([[200.0, -200.0]]), np.array([0]))["ece"] == 0
    )  # a confidence of 1
    assert probability_metrics(task_of(SingleLabel), np.array([[200.0, -200.0]]), np.array([1]))["ece"] == 1


def test_confidences():
    of, correct = task_of(SingleLabel).confidences(np.log([[0.8, 0.2], [0.4, 0.6]]), np.array([1, 1]))
    assert of == pytest.approx([0.8, 0.6]) and correct.tolist() == [0, 1]
    of, correct = task_of(MultiLabel).confidences(np.array([[0.0, logit(0.9)]]), np.array([[0.0, 1.0]]))
    assert of == pytest.approx([0.5, 0.9]) and correct.tolist() == [0, 1]


@pytest.mark.parametrize("task", [task_of(SingleLabel), task_of(MultiLabel)])
@pytest.mark.parametrize("too_sure", [3.0, 0.5])
def test_the_temperature_is_found(task, too_sure):
    generator = np.random.default_rng(0)
    honest = generator.normal(size=(20_000, 3)) * 2
    if isinstance(task, MultiLabel):
        labels = (generator.random(honest.shape) < expit(honest)).astype(float)
    else:  # the label with the highest of logit + Gumbel noise has the softmax's probabilities
        labels = (honest + generator.gumbel(size=honest.shape)).argmax(1)
    temperature = fit_temperature(task, honest * too_sure, labels)
    assert temperature == pytest.approx(too_sure, rel=0.05)
    before = probability_metrics(task, honest * too_sure, labels)
    after = probability_metrics(task, honest * too_sure / temperature, labels)
    assert all(after[name] < before[name] for name in ("log_loss", "brier", "ece"))


def test_a_folded_temperature_divides_the_logits():
    layer, states = head(), torch.randn(5, 4)
    before = layer(states).detach()
    fold_temperature(layer, 2.7)
    torch.testing.assert_close(layer(states), before / 2.7)


def best_f1(logits, labels):
    def f1(threshold):
        given = logits > threshold
        return 2 * (given & (labels > 0)).sum() / (given.sum() + labels.sum())

    candidates = [0, logits.min() - 1, *((np.sort(logits)[1:] + np.sort(logits)[:-1]) / 2)]
    return f1, max(f1(t) for t in candidates)


def test_thresholds_by_hand():
    # label 0: only -1.0 and up are right, so midway to -2; label 1: 0 is as good as any; label 2: never given
    logits = np.array([[-2.0, 3.0, 1.0], [-1.0, -3.0, 2.0], [-0.5, 1.0, -1.0]])
    labels = np.array([[0, 1, 0], [1, 0, 0], [1, 1, 0]])
    assert tune_thresholds(logits, labels) == pytest.approx([-1.5, 0, 0])
    # the first is best given to all, 1 below the lowest; every row has the second, of which nothing can be learnt
    logits, labels = np.array([[-2.0, -2.0], [-1.0, 3.0], [-0.5, 1.0]]), np.array([[1, 1], [0, 1], [1, 1]])
    assert tune_thresholds(logits, labels) == pytest.approx([-3, 0])


def test_no_other_threshold_is_better():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(60, 8)).round(1)  # with ties
    labels = (generator.random((60, 8)) < expit(logits - 1)).astype(int)
    for column, threshold in enumerate(tune_thresholds(logits, labels)):
        f1, best = best_f1(logits[:, column], labels[:, column])
        assert f1(threshold) == pytest.approx(best)


def test_folded_thresholds_are_at_one_half():
    layer, states = head(), torch.randn(50, 4)
    thresholds = np.array([0.4, -0.7, 0.0])
    decided = layer(states).detach().numpy() > thresholds
    fold_thresholds(layer, thresholds)
    assert ((layer(states).sigmoid() > 0.5).numpy() == decided).all()
    assert 0 < decided.mean() < 1
