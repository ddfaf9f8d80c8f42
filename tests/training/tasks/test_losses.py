import math

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer import LstmPoolTrainer
from lstmpool.training.tasks.losses import MeanLoss, balanced_weights
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel
from lstmpool.training.tasks.task import LossSettings

from ...conftest import random_inputs, tiny_model
from ...training_fixtures import task_of


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
