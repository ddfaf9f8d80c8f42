"""When a text may leave at an exit, by hand; what the exits are fitted to, and what is folded into them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import binom
from transformers import BatchEncoding

from lstmpool.exits_lstmpool import LayerExits
from lstmpool.fields_lstmpool import MULTI, SINGLE
from lstmpool.training.evaluation.exit_results import (
    ExitResults,
    ExitSettings,
    are_right,
    curve_of,
    results_of,
    scores_alone,
)
from lstmpool.training.evaluation.exit_rules import (
    SEQUENCE,
    candidates,
    choose_bounded,
    choose_point,
    lowest_within,
    margin,
    mixed,
    places_of,
    rows_needed,
)
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.loop import time_gain
from lstmpool.training.model.exit_training import Rows, confidences_of, fit_heads, logits_of_exits
from lstmpool.training.output.exits import depth_rows, exit_lines
from lstmpool.training.runs.exits import _threshold
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.single_label import SingleLabel

from ...conftest import tiny_config
from ...training_fixtures import task_of


# Of four rows at two exits. The first leaves early however sure it must be, the last one never.
SURE = np.array([[0.99, 0.5], [0.6, 0.95], [0.9, 0.99], [0.55, 0.58]])
TWO = task_of(SingleLabel, 2)


# ---------------------------------------------------------------------------------------------------- one threshold
@pytest.mark.parametrize(
    ("threshold", "places"),
    [
        (None, [2, 2, 2, 2]),
        (1.01, [2, 2, 2, 2]),
        (0.99, [0, 2, 1, 2]),  # as sure as the threshold is enough
        (0.95, [0, 1, 1, 2]),
        (0.9, [0, 1, 0, 2]),  # the lowest exit that is sure enough
        (0.0, [0, 0, 0, 0]),
    ],
)
def test_a_row_leaves_at_the_lowest_exit_that_is_sure_enough(threshold, places):
    assert places_of(SURE, threshold).tolist() == places


def test_each_row_has_the_logits_of_its_place():
    of_exits = np.arange(12.0).reshape(3, 2, 2)
    logits = np.array([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]])
    found = mixed(of_exits, logits, np.array([1, 2, 0]))
    assert found.tolist() == [[2.0, 3.0], [-3.0, -4.0], [8.0, 9.0]]
    assert logits[0, 0] == -1.0


def test_candidates_are_distinct_the_surest_first_and_not_too_many():
    assert candidates(np.array([[0.5, 0.9], [0.9, 0.7]])).tolist() == [0.9, 0.7, 0.5]
    many = candidates(np.linspace(0.5, 1, 2000).reshape(-1, 2))
    assert len(many) == 400 and (many[0], many[-1]) == (1.0, 0.5) and (np.diff(many) < 0).all()


# ---------------------------------------------------------------------------------------------------- point
def accuracy(*wrong):
    """A score of places: the share of four rows of which those in `wrong`, (row, place), are wrong."""
    return lambda places: np.mean([(row, place) not in wrong for row, place in enumerate(places)])


@pytest.mark.parametrize(
    ("wrong", "least", "threshold"),
    [
        ((), 1.0, (0.5 + 0) / 2),  # nothing is lost: the lowest there is
        (((3, 1),), 1.0, (0.6 + 0.58) / 2),  # the last row, as soon as it leaves
        (((3, 1), (1, 0)), 0.75, (0.6 + 0.58) / 2),  # one in four may be lost, but not two
        (((1, 0),), 1.0, (0.9 + 0.6) / 2),  # row 1 must not leave at the first exit; at 0.6 it would
        (((0, 0),), 1.0, None),  # the surest row
        (((0, 0),), 0.75, 0.25),
    ],
)
def test_the_lowest_threshold_that_keeps_the_score(wrong, least, threshold):
    found = choose_point(SURE, accuracy(*wrong), least)
    assert found == (None if threshold is None else pytest.approx(threshold))


def test_a_threshold_below_one_that_loses_is_not_taken_even_if_it_wins_again():
    sure = np.array([[0.9], [0.8], [0.7]])
    scores = {3: 1.0, 2: 1.0, 1: 0.5, 0: 1.0}  # by the number of rows that stay
    assert choose_point(sure, lambda places: scores[int((places == 1).sum())], 1.0) == pytest.approx(0.85)


# ---------------------------------------------------------------------------------------------------- bounded
def test_how_many_rows_the_bounded_rule_needs():
    assert rows_needed(0.005) == 460  # 0.995 ** 459 = 0.1002, 0.995 ** 460 = 0.0997
    assert rows_needed(0.1, delta=0.05) == 29  # 0.9 ** 28 = 0.0523, 0.9 ** 29 = 0.0471


def test_the_sequence_of_thresholds_goes_down_and_knows_no_row():
    assert SEQUENCE[0] == pytest.approx(1 - 1e-6) and SEQUENCE[-1] == 0 and (np.diff(SEQUENCE) < 0).all()


@pytest.mark.parametrize(("rows", "found"), [(459, False), (460, True)])
def test_too_few_rows_bound_nothing(rows, found):
    threshold = choose_bounded(np.full((rows, 1), 0.9), np.zeros((rows, 1), dtype=bool), 0.005)
    assert (threshold == 0) if found else threshold is None


def test_the_bounded_rule_stops_at_the_first_row_too_many():
    """Of 1,000 rows, one may be lost at 0.5 points: P(1 or fewer of 1,000 | 0.005) = 0.040, P(2 or fewer) = 0.124."""
    assert binom.cdf(1, 1000, 0.005) == pytest.approx(0.0401, abs=1e-4)
    assert binom.cdf(2, 1000, 0.005) == pytest.approx(0.1240, abs=1e-4)
    sure = np.full((1000, 2), 0.3)
    sure[:4, 0] = [0.95, 0.9, 0.7, 0.6]
    lost = np.zeros((1000, 2), dtype=bool)
    lost[[0, 2], 0] = True
    threshold = choose_bounded(sure, lost, 0.005)
    assert threshold > 0.7  # row 0 is lost, row 2 would be the second
    assert threshold == SEQUENCE[SEQUENCE > 0.7].min()
    lost[0] = False
    assert choose_bounded(sure, lost, 0.005) == 0


@pytest.mark.parametrize(
    ("rule", "whole_is_right", "found"),
    [
        ("bounded", True, None),  # three of 500 rows are lost where they leave, P(3 or fewer | 0.005) = 0.76
        ("bounded", False, 0.0),  # the model is wrong in them, too
        ("point", True, None),  # 0.6 points
        ("point", False, 0.45),  # midway from 0.9 to 0
        (None, True, 0.8),  # named
    ],
)
def test_a_rule_looks_at_what_the_whole_model_gets_right(rule, whole_is_right, found):
    """One exit is wrong in the three rows in which it is the surest."""
    labels = np.arange(500) % 2
    whole = np.eye(2)[labels]
    of_exits = np.eye(2)[labels][:, None]  # (N, E, C)
    of_exits[:3] = of_exits[:3, :, ::-1]
    if not whole_is_right:
        whole[:3] = whole[:3, ::-1]
    sure = np.full((500, 1), 0.9)
    sure[:3] = 0.95
    evaluation = SimpleNamespace(logits={"validation": whole}, targets={"validation": labels})
    job = SimpleNamespace(task=TWO, model_args=SimpleNamespace(exit_threshold=0.8))
    state = SimpleNamespace(job=job, evaluation=evaluation)
    assert _threshold(state, ExitSettings(rule, 0.5), sure, of_exits) == found


@pytest.mark.parametrize(("each", "found"), [(3, 0.45), (4, None)])
def test_rows_that_are_won_make_up_for_lost_ones_but_not_for_what_they_leave_uncertain(each, found):
    """Of 500 rows the exit loses and wins the surest. The margin is 0.49 points for 6 rows, and 0.57 for 8."""
    labels = np.arange(500) % 2
    whole, of_exits = np.eye(2)[labels], np.eye(2)[labels][:, None]
    of_exits[:each] = of_exits[:each, :, ::-1]
    whole[each : 2 * each] = whole[each : 2 * each, ::-1]
    sure = np.full((500, 1), 0.9)
    sure[: 2 * each] = 0.95
    evaluation = SimpleNamespace(logits={"validation": whole}, targets={"validation": labels})
    state = SimpleNamespace(job=SimpleNamespace(task=TWO), evaluation=evaluation)
    assert _threshold(state, ExitSettings("point", 0.5), sure, of_exits) == found
    before, after = (np.arange(4) < many for many in (1, 3))
    assert margin(before, after) == pytest.approx(2**0.5 / 4) and margin(after, after) == 0


def test_the_bounded_rule_does_not_go_on_after_it_has_stopped():
    """Two rows are lost at the second exit; where they leave at the first, lower thresholds would lose none."""
    sure = np.full((1000, 2), 0.3)
    sure[:2] = [0.5, 0.9]
    lost = np.zeros((1000, 2), dtype=bool)
    lost[:2, 1] = True
    assert choose_bounded(sure, lost, 0.005) == SEQUENCE[SEQUENCE > 0.9].min()


# ---------------------------------------------------------------------------------------------------- their numbers
def test_the_lowest_layer_within_the_drop():
    assert lowest_within([0.80, 0.895, 0.94], 0.9, 0.005) == 1
    assert lowest_within([0.80, 0.894, 0.894], 0.9, 0.005) is None


def test_a_row_of_several_labels_is_right_if_all_are():
    task = task_of(MultiLabel, 2)
    logits, labels = np.array([[1.0, -1.0], [1.0, 1.0]]), np.array([[1, 0], [1, 0]])
    assert are_right(task, logits, labels).tolist() == [True, False]
    assert are_right(TWO, logits, np.array([0, 1])).tolist() == [True, False]


def results(threshold=0.9, rule="point", gains=None, validation_rows=4):
    """Four rows of class 0 and 1 in turn, at two exits and at the top: exit 1 errs in one row, exit 2 in none."""
    labels = np.array([0, 1, 0, 1])
    right = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    of_exits = np.stack([right, right], axis=1)
    of_exits[1, 0] = [1.0, 0.0]
    places = {"validation": places_of(SURE, threshold), "test": places_of(SURE, threshold)}
    answers = {name: mixed(of_exits, right, places[name]) for name in places}
    targets = {"validation": labels}
    return ExitResults(
        ExitSettings(rule, 0.5),
        [2, 4, 6],
        rows=8,
        fitted_to_validation=False,
        seconds=1.0,
        temperatures=[1.0, 1.0],
        folded_thresholds=[0.0, 0.0],
        threshold=threshold,
        places=places,
        alone={"validation": scores_alone(TWO, of_exits, right, labels)},
        curve={"validation": curve_of(TWO, SURE, of_exits, right, labels, [2, 4, 6])},
        answers=Evaluation.of(TWO, answers, targets, {}),
        validation_rows=validation_rows,
        gains=gains or {},
    )


def test_the_numbers_of_exits_by_hand():
    found = results()  # at 0.9, the rows leave at places 0, 1, 0 and 2
    assert found.mean_layers("test") == (2 + 4 + 2 + 6) / 4
    assert found.shares("test") == [0.5, 0.25, 0.25]
    assert found.alone == {"validation": [0.75, 1.0, 1.0]}
    assert found.shallower == [2, 4]
    lowest = found.curve["validation"][-1]  # row 1 leaves at exit 1 and is wrong, row 0 too, and is right
    assert (lowest.threshold, lowest.mean_layers, lowest.score) == (0.5, 2.0, 0.75)
    record = found.record()
    assert record["splits"]["validation"]["with_exits"] == 1.0 and record["splits"]["validation"]["whole_model"] == 1.0
    assert record["splits"]["test"] == {"mean_layers": 3.5, "share_at_layer": [0.5, 0.25, 0.25]}
    assert record["results"]["validation"]["accuracy"] == 1.0


def test_what_is_told_of_exits():
    first, second, hint = exit_lines(results(gains={1: 2.0, 32: 1.5}))
    assert first.startswith("Exits: linear heads on layers 2, 4, fitted to 8 training rows in 1 s. A text leaves wi")
    assert "of 0.9 or more, chosen on 4 validation rows by the rule point, for a drop of 0.5 points at most." in first
    assert second.startswith("On test, 3.50 of 6 layers run for a text on average; times as fast as without exits")
    assert second.endswith(": 2.00 with batches of 1 and 1.50 with batches of 32.")
    assert hint.startswith("Layer 4 alone is within 0.5 points of the whole model") and "--layers 2 4," in hint
    assert "about 33% of the time" in hint
    assert "as --exit_threshold says." in exit_lines(results(rule=None))[0]
    assert "a confidence of 0.999985 or more" in exit_lines(results(threshold=0.999985))[0]  # which is not 1
    table = depth_rows(results(), "accuracy")
    assert table[1] == ["2", "0.750", "", "50.0%", "50.0%"] and table[3][0] == "6, the whole model"


def test_exits_that_are_off_say_why():
    few = results(threshold=None, rule="bounded")
    assert few.why_off == (
        "the rule bounded needs 460 validation rows for a drop of 0.5 points if none of them is lost, found 4"
    )
    assert "They are off: the rule bounded needs 460" in exit_lines(few)[0]
    none = "none keeps the drop on validation rows within 0.5 points and saves a layer"
    assert results(threshold=None).why_off == none
    assert results(threshold=None, rule="bounded", validation_rows=460).why_off == none


def test_a_folder_is_compared_by_what_its_model_answers():
    whole, early = {"test": {"accuracy": 0.9}}, {"test": {"accuracy": 0.8}}
    metrics = {"results": whole, "early_exit": {"threshold": 0.9, "results": early, "intervals": {}}}
    assert results_of(metrics, "results") == early and results_of(metrics, "intervals") == {}
    assert results_of(metrics | {"early_exit": {"threshold": None, "results": early}}, "results") == whole
    assert results_of({"results": whole}, "results") == whole and results_of({"results": whole}, "intervals") == {}


# ---------------------------------------------------------------------------------------------------- their fit
def exits_of(classes=2, problem_type=SINGLE):
    config = tiny_config(early_exit=True, num_labels=classes, problem_type=problem_type)
    return LayerExits(config), config


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_exits_learn_what_their_layer_shows(problem_type):
    """Only the second layer tells the two labels apart, whatever its scale and its mean."""
    exits, config = exits_of(2, problem_type)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    states = rng.normal(size=(200, len(config.layers), config.state_size)).astype(np.float32)
    states[:, 1, 3] = 100 + 50 * labels
    targets = np.stack([1 - labels, labels], axis=1).astype(np.uint8) if problem_type == MULTI else labels
    rows = Rows(states, targets)
    fit_heads(exits, rows, Rows(states[:50], targets[:50]), problem_type, to_both=False)
    logits = logits_of_exits(exits, iter([states[:150], states[150:]]))
    assert logits.shape == (200, len(config.layers) - 1, 2)
    right = (logits.argmax(-1) == labels[:, None]).mean(0)
    assert right[1] == 1.0 and right[0] < 0.8
    sure = confidences_of(logits, problem_type)
    assert sure[:, 1].min() > 0.8
    assert not any(parameter.requires_grad for parameter in exits.parameters())
    with torch.no_grad():
        again = exits.at(1, torch.from_numpy(states[:, 1])).numpy()
    np.testing.assert_allclose(again, logits[:, 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("to_both", [False, True])
def test_heads_that_validation_rows_are_fitted_to_do_not_judge_them(to_both):
    rng = np.random.default_rng(0)
    exits = exits_of()[0]
    shape = (len(exits.heads) + 1, exits.heads[0].in_features)
    train = Rows(rng.normal(size=(10, *shape)).astype(np.float32), np.arange(10) % 2)
    validation = Rows(rng.normal(size=(20, *shape)).astype(np.float32), np.arange(20) % 2)
    held_out = fit_heads(exits, train, validation, SINGLE, to_both)
    final = logits_of_exits(exits, iter([validation.states]))
    assert held_out.shape == final.shape == (20, len(exits.heads), 2)
    assert np.allclose(held_out, final, atol=1e-5) is not to_both


def test_each_validation_row_is_left_out_of_the_fit_that_judges_it():
    """Two validation rows that are alike to the last bit but for their labels: each is judged by the other's."""
    rng = np.random.default_rng(1)
    exits = exits_of()[0]
    shape = (len(exits.heads) + 1, exits.heads[0].in_features)
    train = Rows(rng.normal(size=(10, *shape)).astype(np.float32), np.arange(10) % 2)
    alike = np.repeat(5 * rng.normal(size=(1, *shape)), 2, axis=0).astype(np.float32)
    held_out = fit_heads(exits, train, Rows(alike, np.array([0, 1])), SINGLE, to_both=True)
    assert (held_out.argmax(-1) == [[1], [0]]).all()


def test_a_fit_is_repeated_bit_for_bit():
    rng = np.random.default_rng(0)
    first, second = exits_of()[0], exits_of()[0]
    states = rng.normal(size=(40, len(first.heads) + 1, first.heads[0].in_features)).astype(np.float32)
    for exits in (first, second):
        rows = Rows(states, np.arange(40) % 2)
        fit_heads(exits, rows, Rows(states[:9], np.arange(9) % 2), SINGLE, to_both=True)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_confidences_by_hand():
    one = confidences_of(np.array([[np.log(3.0), 0.0]]), SINGLE)
    several = confidences_of(
        np.array([[np.log(3.0), -np.log(9.0)]]), MULTI
    )  # 0.75 for the first, 0.9 against the second
    assert one == pytest.approx([0.75]) and several == pytest.approx([0.75])


# ---------------------------------------------------------------------------------------------------------- their time
class Timed(torch.nn.Module):
    """Takes 4 s a batch, or 1 s where its exits are on, by its own clock. It notes what it reads."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(exit_threshold=0.9)
        self.device = torch.device("cpu")
        self.clock, self.seen, self.warm = 0.0, [], set()

    def forward(self, rows):
        early = self.config.exit_threshold is not None
        self.seen.append((early, rows.tolist()))
        self.clock += 1.0 if early else 4.0
        self.clock += 50.0 if len(rows) not in self.warm else 0.0  # the first batch of a size takes longer
        self.warm.add(len(rows))
        return SimpleNamespace(logits=torch.zeros(len(rows), 2))


def test_both_ways_are_timed_in_turn_on_the_same_batches(monkeypatch):
    model = Timed()
    monkeypatch.setattr(time_gain, "time", SimpleNamespace(perf_counter=lambda: model.clock))
    rows = Dataset.from_dict({"rows": list(range(40))})

    def collate(chosen):
        return BatchEncoding({"rows": torch.tensor([row["rows"] for row in chosen])})

    assert time_gain.time_gains(model, rows, collate, seconds=1000) == {1: 4.0, 32: 4.0}
    with_exits = [seen for early, seen in model.seen if early]
    assert with_exits == [seen for early, seen in model.seen if not early]
    assert [early for early, _ in model.seen[:4]] == [True, False, True, False]
    assert sorted(sum(with_exits[1:41], [])) == list(range(40)) and len(with_exits[-1]) == 32
    assert model.config.exit_threshold == 0.9
    model.seen.clear()
    assert list(time_gain.time_gains(model, rows.select(range(5)), collate, seconds=9)) == [1]  # no batch of 32
    assert len(model.seen) == 4  # one batch to warm up, and then as many as fit
