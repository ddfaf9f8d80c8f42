"""Where a new classifier starts, with numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from lstmpool.training.model.starts import loss_of_prior, prior, set_prior
from lstmpool.training.tasks.multi_label import LabelTable, MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel


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
