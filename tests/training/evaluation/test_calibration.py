"""Temperature and thresholds, which lie in the weights after training, so that the saved model gives the logits that
were measured; and results."""

import json
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
    tune_two_classes,
)
from lstmpool.training.evaluation.learned_head import calibrate, find_thresholds, fold_scale
from lstmpool.training.evaluation.results import Evaluation, no_label_given, nothing_learnt
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
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


def test_the_threshold_of_two_classes_by_hand():
    # b is ahead by -3, -2, -1, 0.5, where a b a b are true. At 0 one b is found: F1 of b 2/3, of a 4/5. From -2.5 up:
    # b 4/5, a 2/3, which is as good but further away. With a fifth row, b at -1.5, b has 6/7 there, and a 2/3.
    logits = np.array([[3.0, 0.0], [2.0, 0.0], [0.0, -1.0], [0.0, 0.5]])
    assert tune_two_classes(logits, np.array([0, 1, 0, 1])).tolist() == [0, 0]
    logits, labels = np.vstack([logits, [1.5, 0.0]]), np.array([0, 1, 0, 1, 1])
    assert tune_two_classes(logits, labels).tolist() == [0, -2.5]
    assert tune_two_classes(logits, np.zeros(5)).tolist() == [0, 0]  # one class alone teaches nothing
    # a model that has it the wrong way round: to answer the common class always is best
    assert tune_two_classes(np.array([[0.0, 2.0], [0.0, 2.0], [0.0, 1.0]]), np.array([0, 0, 1])).tolist() == [0, 3]


def test_no_other_threshold_of_two_classes_has_a_better_macro_f1():
    generator, task = np.random.default_rng(0), task_of(SingleLabel, 2)
    for _ in range(20):
        logits = generator.normal(size=(60, 2)).round(1)  # with ties
        labels = (generator.random(60) < expit(logits[:, 1] - logits[:, 0] - 1)).astype(int)
        found = task.score(task.decide(logits - tune_two_classes(logits, labels)), labels)["f1_macro"]
        others = [task.score(task.decide(logits - [0, t]), labels)["f1_macro"] for t in np.arange(-8.05, 8, 0.1)]
        assert found == pytest.approx(max(others))


def test_folded_thresholds_are_at_one_half():
    layer, states = head(), torch.randn(50, 4)
    thresholds = np.array([0.4, -0.7, 0.0])
    decided = layer(states).detach().numpy() > thresholds
    fold_thresholds(layer, thresholds)
    assert ((layer(states).sigmoid() > 0.5).numpy() == decided).all()
    assert 0 < decided.mean() < 1


# ------------------------------------------------------------------------------------------------ folded into the head
def learn(head, task, logits, targets, scale=None, temperature=False, thresholds=False, skip=None):
    """What a run does after training, in its order."""
    learned = {}
    if scale is not None:
        logits, found = fold_scale(head, scale, logits, skip)
        learned |= found
    if temperature:
        logits, found = calibrate(head, task, logits, targets, skip)
        learned |= found
    if task.tunes_thresholds:
        logits, found = find_thresholds(head, task, logits, targets, fold=thresholds)
        learned |= found
    return logits, learned


def fold(kind, labels, scale=None, outputs=3, **options):
    torch.manual_seed(0)
    head = torch.nn.Linear(6, outputs)
    states = {name: 4 * torch.randn(80, 6) for name in ("validation", "test")}
    if scale is not None:
        scale.switch_on(head, fresh=True)
    logits = {name: head(of).detach().numpy().astype(float) for name, of in states.items()}
    targets = dict.fromkeys(states, np.array(labels))
    folded, learned = learn(head, task_of(kind, outputs), logits, targets, scale, **options)
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


@pytest.mark.parametrize("temperature", [False, True])
def test_two_classes_have_one_threshold(temperature):
    labels, task = np.array([0, 0, 0, 1] * 20), task_of(SingleLabel, 2)
    options = {"outputs": 2, "temperature": temperature}
    logits, plain, measured = fold(SingleLabel, labels, **options)
    assert "folded_thresholds" not in measured and measured["thresholds"]["validation"]  # measured, and not folded
    logits, folded, learned = fold(SingleLabel, labels, thresholds=True, **options)
    before, after = plain["validation"], folded["validation"]
    assert learned["folded_thresholds"] == tune_two_classes(before, labels).tolist() != [0, 0]
    effect = learned["thresholds"]["validation"]
    assert effect == measured["thresholds"]["validation"]
    assert effect["at_half"] == task.score(task.decide(before), labels)
    assert effect["at_thresholds"] == task.score(task.decide(after), labels)
    assert effect["at_thresholds"]["f1_macro"] > effect["at_half"]["f1_macro"]
    below, above = learned["thresholds"]["probabilities"]  # the scores of each class that became 0.5
    assert below + above == pytest.approx(1)
    given = task.probabilities(before)[:, 1] > above
    assert (given == (task.probabilities(after)[:, 1] > 0.5)).all() and 0 < given.mean() < 1


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


# ------------------------------------------------------------------------------------------------------------- results
NAMES = ["a", "b", "c"]
LOGITS = {"validation": np.array([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), "test": np.array([[1.0, 2.0, 0.0]])}
ONE = {"validation": np.array([0, 1]), "test": np.array([2])}
SEVERAL = {"validation": np.array([[1, 0, 1], [0, 0, 1]]), "test": np.array([[1, 1, 0]])}


def evaluation(task, targets, logits=LOGITS, **learned):
    return Evaluation.of(task(NAMES), logits, targets, learned)


def test_every_split_with_labels_is_measured():
    of = evaluation(SingleLabel, ONE)
    assert of.results["validation"]["accuracy"] == 1 / 2 and of.results["test"]["accuracy"] == 0
    wanted = probability_metrics(SingleLabel(NAMES), LOGITS["test"], ONE["test"])
    assert {name: of.results["test"][name] for name in wanted} == wanted
    assert "log_loss" not in evaluation(Regression, SEVERAL).results["test"]
    assert set(evaluation(SingleLabel, {"validation": ONE["validation"]}).results) == {"validation"}


def test_there_may_be_no_interval():
    same = {"validation": np.ones((2, 3))}  # each row has the same error
    found = evaluation(Regression, {"validation": same["validation"] + 1}, same)
    assert found.results["validation"]["mse"] == 1 and found.intervals == {}
    assert found.record()["intervals"] == {}


def test_the_record_holds_results_intervals_and_what_was_learnt():
    record = evaluation(SingleLabel, ONE, temperature=2.0).record()
    low, high = SingleLabel(NAMES).interval(np.array([0, 2]), ONE["validation"])
    assert set(record) == {"results", "intervals", "by_class", "learned_on_validation"}
    assert record["intervals"]["validation"] == {"metric": "accuracy", "low": low, "high": high}
    assert record["learned_on_validation"] == {"temperature": 2.0}
    json.dumps(record)


# ------------------------------------------------------------------------------------------------------------ warnings
REMEDY = (
    "Train for more steps (--num_train_epochs), at higher rates (--learning_rate, --head_learning_rate) or on more"
)


def judged(task, logits, targets):
    return Evaluation.of(task, {"validation": np.array(logits)}, {"validation": np.array(targets)}, {})


def test_a_run_that_is_no_better_than_the_most_frequent_label_has_learnt_nothing():
    """In training, a is the most frequent one; of the validation rows, two in four have it."""
    task, train, targets = SingleLabel(["a", "b"]), [0, 0, 1], [0, 0, 1, 1]
    (line,) = nothing_learnt(judged(task, [[1.0, 0.0]] * 4, targets), train)
    assert line.startswith(
        "this run has learnt nothing: its validation accuracy, 0.5, is no better than the 0.5 of one answer for all "
        f"rows (majority class). {REMEDY}"
    )
    right = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    assert nothing_learnt(judged(task, right, targets), train) == []
    assert nothing_learnt(judged(task, [[1.0, 0.0]] * 4, [0, 0, 0, 0]), train) == []  # nothing could be better


def test_a_run_that_is_no_better_than_the_mean_or_no_label_has_learnt_nothing():
    task, targets = Regression(["stars"]), [1.0, 3.0]
    (line,) = nothing_learnt(judged(task, [[0.0], [2.0]], targets), [2.0, 2.0, 2.0])
    assert "its validation MSE, 1, is no better than the 1 of one answer for all rows (mean of training)" in line
    assert nothing_learnt(judged(task, [[0.5], [2.5]], targets), [2.0, 2.0]) == []
    several = MultiLabel(["a", "b", "c"])
    (line,) = nothing_learnt(judged(several, -np.ones((2, 3)), [[1, 0, 1], [0, 0, 1]]), [[1, 0, 0], [0, 0, 0]])
    assert "its validation micro F1, 0, is no better than the 0 of one answer" in line


def test_without_validation_rows_the_training_loss_is_compared():
    of = Evaluation.of(SingleLabel(["a", "b"]), {}, {}, {})
    (line,) = nothing_learnt(of, [0, 1], (0.7, 0.6931))
    assert "its training loss, 0.7, is no better than the 0.6931 of one answer" in line
    assert nothing_learnt(of, [0, 1], (0.69, 0.6931)) == nothing_learnt(of, [0, 1]) == []


def test_where_no_score_has_passed_a_half_the_remedy_is_named():
    targets, task = [[1, 0], [0, 1]], MultiLabel(["a", "b"])
    (line,) = no_label_given(judged(task, [[-1.0, -2.0], [0.0, -1.0]], targets), tuned=False)
    assert line.startswith("no score has passed 0.5,") and "--tune_thresholds moves" in line
    (line,) = no_label_given(judged(task, [[-1.0, -2.0], [0.0, -1.0]], targets), tuned=True)
    assert "tune_thresholds" not in line
    assert no_label_given(judged(task, [[-1.0, -2.0], [0.1, -1.0]], targets), tuned=False) == []
    assert no_label_given(judged(SingleLabel(["a", "b"]), [[-1.0, -2.0]], [0]), tuned=False) == []
