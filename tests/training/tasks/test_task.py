"""What differs between the tasks, and their losses, by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from scipy.special import softmax

from lstmpool.training.errors import InputError
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer import LstmPoolTrainer
from lstmpool.training.tasks.inference import TASKS
from lstmpool.training.tasks.losses import MeanLoss, balanced_weights
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel
from lstmpool.training.tasks.task import LossSettings

from ...conftest import random_inputs, tiny_model
from ...training_fixtures import task_of


def test_probabilities_are_averaged_not_logits():
    logits = np.log([[[1.0, 3.0]], [[1.0, 1.0]]])  # of 2 folds: 1/4 and 3/4, 1/2 and 1/2
    mean = task_of(SingleLabel, 2).mean_logits(logits)
    assert softmax(mean, axis=1) == pytest.approx(np.array([[3 / 8, 5 / 8]]))
    # 3/4 and 1/2 of one label; two folds that are as sure as can be, of opposite things, and of the same
    logits = np.array([[[np.log(3.0), 800.0, 800.0]], [[0.0, -800.0, 800.0]]])
    assert task_of(MultiLabel).mean_logits(logits) == pytest.approx(np.array([[np.log(5 / 3), 0.0, 800.0]]))
    assert task_of(Regression, 1).mean_logits(np.array([[[1.0]], [[4.0]]])) == pytest.approx(np.array([[2.5]]))


def test_labels_are_told_as_they_were_read():
    assert SingleLabel(["no", "yes"]).label_columns([1, 0]) == {"label": ["yes", "no"]}
    assert MultiLabel(["a", "b"]).label_columns([[1.0, 1.0], [0.0, 0.0]]) == {"label": ["a|b", ""]}
    assert Regression(["score"]).label_columns([0.5, 2.0])["label"].tolist() == [0.5, 2.0]
    several = Regression(["x", "y"]).label_columns([[0.5, 1.0], [2.0, 3.0]])
    assert {name: of.tolist() for name, of in several.items()} == {"label_x": [0.5, 2.0], "label_y": [1.0, 3.0]}


@pytest.mark.parametrize("kind", TASKS.values())
def test_every_task_settles_its_fields_of_the_config(kind):
    assert kind(["x", "y"]).config_fields == {
        "problem_type": kind.problem_type,
        "num_labels": 2,
        "id2label": {0: "x", 1: "y"},
        "label2id": {"x": 0, "y": 1},
    }


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([1.7e9 - 17, 1.7e9 + 17], r"x\.csv, column 'a': .*around 1700000000 and differ by 17 .*lie 1\.3e\+02 apart"),
        ([1712345661.0, 1712345695.0], r"Subtract 1712345700 from them"),
        ([-1e6, -1e6 + 1], r"differ by 0\.5 .*Subtract -1000000 from"),
        ([0.1, 0.1 + 1e-9], r"differ by 5e-10"),
        ([1e19, 0.0], r"up to 1e\+18, found 1e\+19.*Divide"),
        ([-1e38, 1e38], r"found 1e\+38"),
        ([1e300, 0.0], r"found 1e\+300"),
        ([1e-20, 0.0], r"spread of 5e-21.*Multiply"),
    ],
)
def test_numbers_that_float32_cannot_tell_apart_are_refused(numbers, message):
    with pytest.raises(InputError, match=message):
        task_of(Regression, 1).check_learnable(numbers, "x.csv")
    with pytest.raises(InputError, match="column 'b'"):
        task_of(Regression, 2).check_learnable([[1.0, numbers[0]], [2.0, numbers[1]]], "x.csv")


@pytest.mark.parametrize(
    "numbers",
    [[2015.0, 2025.0], [1e5, 1e5 + 2], [-1e17, 1e17], [1e-9, 0.0], [1.7e9] * 3, [0.1] * 3, [0.0, 0.0], [1e9, 1e6, 0]],
)
def test_other_numbers_are_not(numbers):
    task_of(Regression, 1).check_learnable(numbers, "x.csv")
    task_of(SingleLabel).check_learnable([0, 1], "x.csv")


def test_a_text_has_one_answer_or_several():
    assert not SingleLabel(["a", "b"]).gives_several_answers
    assert MultiLabel(["a", "b"]).gives_several_answers and not MultiLabel(["a"]).gives_several_answers
    assert Regression(["a", "b"]).gives_several_answers and not Regression(["a"]).gives_several_answers


def test_the_rarest_class_is_counted_in_units():
    # three rows of a, of two texts; two rows of b, of one
    assert task_of(SingleLabel, 2).rarest_class([0, 0, 0, 1, 1], np.array([0, 0, 1, 2, 2])) == ("b", 1)
    assert task_of(Regression, 1).rarest_class([0.5, 1.5], np.array([0, 1])) is None


# -------------------------------------------------------------------------------------------------------------- losses
def loss_for(kind=SingleLabel, labels=(0, 0, 0, 1), num_labels=2, **options):
    loss = task_of(kind, num_labels).loss(LossSettings(**options), list(labels))
    return MeanLoss(loss) if loss else None


def call(loss, logits, labels, **options):
    return loss({"logits": torch.tensor(logits)}, torch.tensor(labels), **options).item()


def test_plain_losses_are_the_models_own():
    assert loss_for(labels=(), class_weights="balanced") is None  # without training rows there is nothing to weigh
    assert loss_for() is None and loss_for(MultiLabel) is None and loss_for(Regression) is None


def test_balanced_weights_by_hand():
    assert balanced_weights([0, 0, 0, 1], 2).tolist() == pytest.approx([4 / 3 / 2, 4 / 1 / 2])
    assert balanced_weights([0, 0, 2], 3).tolist() == pytest.approx([3 / 2 / 2, 0, 3 / 1 / 2])
    labels = [0, 0, 0, 1, 1, 2]
    assert balanced_weights(labels, 3)[labels].mean() == pytest.approx(1)


def test_rare_classes_count_as_much_as_frequent_ones():
    loss = loss_for(class_weights="balanced")
    expected = (4 / 6) * -math.log(0.8) + 2 * -math.log(0.4)
    assert call(loss, [[math.log(0.8), math.log(0.2)], [math.log(0.6), math.log(0.4)]], [0, 1]) == pytest.approx(
        expected / 2
    )


def test_smoothing_is_that_of_torch():
    loss, logits, labels = loss_for(label_smoothing_factor=0.2), torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    wanted = F.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(loss({"logits": logits}, labels), wanted)


def test_smooth_l1():
    loss = loss_for(Regression, regression_loss="smooth_l1")
    assert call(loss, [[0.5], [3.0]], [0.0, 0.0]) == pytest.approx((0.5 * 0.5**2 + (3 - 0.5)) / 2)
    assert call(loss, [[0.5, 3.0]], [[0.0, 0.0]]) == pytest.approx((0.5 * 0.5**2 + (3 - 0.5)) / 2)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(SingleLabel, {"class_weights": "balanced"}), (Regression, {"regression_loss": "smooth_l1"})],
)
def test_accumulated_batches_give_the_loss_and_step_of_one(tmp_path, kind, options):
    """Of unequal batches, too: eight rows in one, or in three, three and two."""
    inputs = {name: value.tolist() for name, value in random_inputs(8).items()}
    labels = [0, 0, 0, 0, 1, 1, 2, 2] if kind is SingleLabel else [0.0, 1, 2, 3, 4, 5, 6, 70]
    rows, steps = Dataset.from_dict({**inputs, "labels": labels}).with_format("torch"), []
    for batch, accumulated in ((8, 1), (3, 3)):
        model = tiny_model(num_labels=3 if kind is SingleLabel else 1, problem_type=kind.problem_type)
        args = TrainingArguments(
            str(tmp_path),
            use_cpu=True,
            optim="sgd",
            learning_rate=1.0,
            head_learning_rate=None,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            report_to=[],
            disable_tqdm=True,
            **options,
        )
        loss = loss_for(kind, labels, 3, **options)
        trainer = LstmPoolTrainer(model, args, train_dataset=rows, compute_loss_func=loss)
        before = model.classifier.weight.detach().clone()
        steps.append((trainer.train().training_loss, model.classifier.weight.detach() - before))
    assert steps[0][0] == pytest.approx(steps[1][0], rel=1e-5)
    torch.testing.assert_close(steps[0][1], steps[1][1], atol=1e-5, rtol=1e-4)
