"""The scale of targets, and where a new classifier starts, with numbers worked out by hand."""

import copy
import math

import numpy as np
import pytest
import torch

from lstmpool.training.model.starts import loss_of_prior, prior, set_prior
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.tasks.multi_label import LabelTable, MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel


TARGETS = [[1.0, -300.0], [2.0, 900.0], [3.0, 0.0], [4.0, 7000.0]]


@pytest.fixture
def head():
    torch.manual_seed(0)
    return torch.nn.Linear(5, 2)


def test_a_scale_is_a_power_of_two_near_the_spread():
    scale = TargetScale(TARGETS)
    spread = np.array(TARGETS).std(0)
    assert np.log2(scale.scale).tolist() == np.round(np.log2(spread)).tolist()
    assert ((spread / scale.scale > 0.7) & (spread / scale.scale < 1.42)).all()
    assert TargetScale([5.0, 5.0, 5.0]).scale.tolist() == TargetScale([0.1] * 3).scale.tolist() == [1.0]
    assert TargetScale([-1e30, 1e30]).scale.tolist() == [2.0**60]  # within what float32 can divide and multiply


def test_targets_are_divided():
    scale = TargetScale([0.0, 8.0])
    assert scale.scale.tolist() == [4.0]
    assert scale.divide([0.0, 8.0]) == [0.0, 2.0]
    both = TargetScale([[0.0, 0.0], [8.0, 64.0]])
    assert both.divide([[8.0, 64.0]]) == [[2.0, 2.0]]


def test_a_fresh_head_starts_at_the_mean(head):
    scale, weights = TargetScale(TARGETS), head.weight.detach().clone()
    scale.switch_on(head, fresh=True)
    assert torch.equal(head.weight, weights)  # made for targets of unit spread
    assert (head.bias.detach().numpy() * scale.scale).tolist() == pytest.approx([2.5, 1900.0])


def test_the_state_dict_is_in_real_units_all_the_while(head):
    original, scale = copy.deepcopy(head.state_dict()), TargetScale(TARGETS)
    scale.switch_on(head, fresh=False)
    assert not torch.equal(head.weight, original["weight"])
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, original[name])  # to the last bit
    states = torch.randn(7, 5)
    real = torch.nn.functional.linear(states, original["weight"], original["bias"])
    torch.testing.assert_close(head(states) * torch.tensor(scale.scale).float(), real)


def test_a_state_in_real_units_is_taken_back_to_the_last_bit(head):
    scale = TargetScale(TARGETS)
    scale.switch_on(head, fresh=False)
    trained = {name: tensor.detach().clone() for name, tensor in head.named_parameters()}
    saved = head.state_dict()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(99.0)
    head.load_state_dict(saved)
    assert all(torch.equal(p, trained[name]) for name, p in head.named_parameters())
    assert torch.equal(saved["weight"], head.state_dict()["weight"])  # the file's tensors are not written over


def test_switching_off_folds_the_scale_into_the_weights(head):
    original, scale = copy.deepcopy(head.state_dict()), TargetScale(TARGETS)
    scale.switch_on(head, fresh=False)
    scale.switch_off(head)
    assert all(torch.equal(p, original[name]) for name, p in head.named_parameters())
    head.load_state_dict({name: 3 * tensor for name, tensor in original.items()})
    assert all(torch.equal(p, 3 * original[name]) for name, p in head.named_parameters())


@pytest.mark.parametrize("fresh", [False, True])
def test_what_is_added_to_the_head_has_its_scale_too(head, fresh):
    skip, scale = torch.nn.Linear(4, 2, bias=False), TargetScale(TARGETS)
    original = skip.weight.detach().clone()
    scale.switch_on(head, fresh, skip)
    by = torch.tensor(scale.scale).float()[:, None]
    assert (by > 1).any() or (by < 1).any()
    assert torch.equal(skip.weight * by, original)
    assert torch.equal(skip.state_dict()["weight"], original)  # in real units
    skip.load_state_dict({"weight": 3 * original})
    assert torch.equal(skip.weight * by, 3 * original)
    scale.switch_off(head, skip)
    assert torch.equal(skip.weight, 3 * original) and torch.equal(skip.state_dict()["weight"], 3 * original)


# ------------------------------------------------------------------------------------------- where a classifier starts
ONE = SingleLabel(["a", "b", "c"])
SEVERAL = MultiLabel(["a", "b", "c"])


def bias_of(labels, task, **options):
    head = torch.nn.Linear(4, len(task.names))
    weight = head.weight.detach().clone()
    drawn = torch.get_rng_state()
    set_prior(head, labels, task, **options)
    assert torch.equal(head.weight, weight) and torch.equal(torch.get_rng_state(), drawn)
    return head.bias.tolist()


def test_one_label_starts_at_the_logarithms_of_the_shares():
    """Rows 3, 1 and 0, half a row more for each: 3.5, 1.5 and 0.5 of 5.5."""
    expected = [math.log(rows / 5.5) for rows in (3.5, 1.5, 0.5)]
    assert bias_of([0, 0, 1, 0], ONE) == pytest.approx(expected)
    assert torch.softmax(torch.tensor(bias_of([0, 0, 1, 0], ONE)), 0).tolist() == pytest.approx(
        [7 / 11, 3 / 11, 1 / 11]
    )


def test_where_the_loss_lets_classes_count_the_same_no_class_is_ahead():
    assert bias_of([0, 0, 1, 0], ONE, balanced=True) == [0, 0, 0]


@pytest.mark.parametrize("of", [list, lambda rows: LabelTable(np.array(rows, dtype=np.uint8))])
def test_several_labels_start_at_their_log_odds(of):
    """Of 4 rows, 1, all and none: 1/4, then 7/8 and 1/8, half a row away from what would be infinite."""
    rows = of([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]])
    assert bias_of(rows, SEVERAL) == pytest.approx([math.log(1 / 3), math.log(7), -math.log(7)])


def test_many_rows_of_a_byte_each_are_counted():
    rows = LabelTable(np.ones((600, 1), dtype=np.uint8))
    assert bias_of(rows, MultiLabel(["a"])) == pytest.approx([math.log(599.5 / 0.5)], rel=1e-5)


def test_numbers_start_at_their_means():
    assert bias_of([1.0, 2.0, 6.0], Regression(["x"])) == [3]
    assert bias_of([[1.0, -2.0], [3.0, 0.0]], Regression(["x", "y"])) == [2, -1]


def test_the_loss_of_one_answer_for_all_rows():
    assert loss_of_prior([0, 1], SingleLabel(["a", "b"])) == pytest.approx(math.log(2))
    assert loss_of_prior([[1.0, 0.0], [0.0, 1.0]], MultiLabel(["a", "b"])) == pytest.approx(math.log(2))
    assert loss_of_prior([1.0, 3.0], Regression(["x"])) == 1
    assert loss_of_prior([0, 0, 1, 0], ONE) == pytest.approx(-0.75 * math.log(7 / 11) - 0.25 * math.log(3 / 11))
    assert prior([0, 0, 1, 0], ONE).argmax() == 0
