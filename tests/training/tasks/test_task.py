"""The three tasks, their losses and their metrics, by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from scipy.special import softmax
from transformers import EvalPrediction

from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import AUTO
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.measuring import TrainerMetrics
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


def test_single_label_by_hand():
    # true 0 0 1 1 2, predicted 0 1 1 1 0: F1 of 0 is 2/4, of 1 is 4/5, of 2 is 0
    logits = np.eye(3)[[0, 1, 1, 1, 0]]
    result = TrainerMetrics(task_of(SingleLabel, 3))(EvalPrediction(logits, np.array([0, 0, 1, 1, 2])))
    # in counts of 3 hits, 2 2 1 true and 2 3 0 predicted: Matthews' (3 * 5 - 10) / sqrt((25 - 9) * (25 - 13))
    wanted = {"accuracy": 3 / 5, "f1_macro": (2 / 4 + 4 / 5 + 0) / 3, "f1_weighted": (2 * 2 / 4 + 2 * 4 / 5 + 0) / 5}
    assert result == pytest.approx(wanted | {"matthews_correlation": 5 / math.sqrt(16 * 12)})


def test_multi_label_by_hand():
    # label 0: 1 hit, 1 false alarm, F1 2/3; label 1: 1 hit, 1 miss, F1 2/3; label 2: 1 miss, F1 0
    logits = np.array([[2.0, 1.0, -1.0], [0.5, -0.5, -0.1]])
    labels = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    result = TrainerMetrics(task_of(MultiLabel, 3))(EvalPrediction(logits, labels))
    wanted = {"f1_micro": 4 / 7, "f1_macro": (2 / 3 + 2 / 3 + 0) / 3, "subset_accuracy": 1 / 2}
    assert result == pytest.approx(wanted)
    assert task_of(MultiLabel, 2).score(np.array([[1, 0]]), np.array([[1, 1]]))["subset_accuracy"] == 0


def test_regression_by_hand():
    # errors 1, 0, 2 in the first target and 0, 0, 3 in the second
    predicted = np.array([[2.0, 1.0], [2.0, 2.0], [5.0, 6.0]])
    true = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    result = TrainerMetrics(task_of(Regression, 2))(EvalPrediction(predicted, true))
    assert result["mse"] == pytest.approx((5 / 3 + 9 / 3) / 2)
    assert result["mae"] == pytest.approx(6 / 6)
    assert result["mcrmse"] == pytest.approx((math.sqrt(5 / 3) + math.sqrt(3)) / 2)
    pearson = (3 / math.sqrt(6 * 2) + 5 / math.sqrt(14 * 2)) / 2
    assert result["pearson"] == pytest.approx(pearson)
    assert result["spearman"] == pytest.approx((math.sqrt(3) / 2 + 1) / 2)  # 2 and 2 share their rank


def test_one_target_may_be_flat_or_a_column():
    task = task_of(Regression, 1)
    flat = task.score(np.array([1.0, 2.0]), np.array([0.0, 2.0]))
    assert flat == task.score(np.array([[1.0], [2.0]]), np.array([0.0, 2.0]))
    assert flat["mse"] == 0.5


def test_a_constant_has_no_correlation():
    result = task_of(Regression, 1).score(np.array([2.0, 2.0]), np.array([1.0, 3.0]))
    assert math.isnan(result["pearson"]) and math.isnan(result["spearman"]) and result["mse"] == 1


@pytest.mark.parametrize(
    ("task", "given", "name", "greater"),
    [
        (SingleLabel, AUTO, "accuracy", True),
        (MultiLabel, AUTO, "f1_micro", True),
        (Regression, AUTO, "mse", False),
        (Regression, "pearson", "pearson", True),
        (Regression, "eval_mae", "mae", False),
        (SingleLabel, "loss", "loss", False),
        (SingleLabel, "matthews_correlation", "matthews_correlation", True),
        (MultiLabel, "subset_accuracy", "subset_accuracy", True),
    ],
)
def test_the_best_epoch_is_chosen_in_the_right_direction(task, given, name, greater):
    assert task_of(task, 1).best_by(given) == (name, greater)


def test_several_targets_are_judged_by_mcrmse():
    assert task_of(Regression, 2).headline == "mcrmse" and task_of(Regression, 1).headline == "mse"


def test_a_metric_of_another_task_is_refused():
    with pytest.raises(InputError, match="must be one of accuracy, f1_macro, .*loss, got mse"):
        task_of(SingleLabel, 2).best_by("mse")


def test_predictions_in_other_units_are_measured_in_their_own():
    scaled = TrainerMetrics(task_of(Regression, 2), np.array([2.0, 10.0]))
    logits, labels = np.array([[1.0, 1.0], [0.0, 2.0]]), np.array([[0.0, 1.0], [0.0, 0.0]])
    result = scaled(EvalPrediction(logits, labels))
    assert result["mse"] == pytest.approx((2**2 / 2 + 20**2 / 2) / 2)
    one = TrainerMetrics(task_of(Regression, 1), np.array([2.0]))
    assert one(EvalPrediction(logits[:, :1], labels[:, 0]))["mse"] == pytest.approx(2**2 / 2)


def headline_by_library(task, predictions, labels, rows):
    """The headline metric of some rows, as it is computed everywhere else."""
    of = task_of(task, 2)
    return of.score(predictions[rows], labels[rows])[of.headline]


@pytest.mark.parametrize("task", [SingleLabel, MultiLabel, Regression])
def test_the_interval_is_that_of_a_bootstrap_of_the_headline(task):
    generator = np.random.default_rng(1)
    if task is SingleLabel:
        labels, predictions = generator.integers(2, size=(2, 200))
    elif task is MultiLabel:
        labels, predictions = generator.integers(2, size=(2, 200, 2))
    else:
        labels, predictions = generator.normal(size=(2, 200, 2))
    low, high = task_of(task, 2).interval(predictions, labels)
    draws = [generator.integers(200, size=200) for _ in range(400)]
    by_hand = np.percentile([headline_by_library(task, predictions, labels, rows) for rows in draws], [2.5, 97.5])
    assert (low, high) == pytest.approx(tuple(by_hand), abs=0.02 if task is not Regression else 0.05)
    assert task_of(task, 2).interval(predictions, labels) == (low, high)  # the same every time


def test_the_interval_of_an_accuracy_is_known():
    labels = np.zeros(400, dtype=int)
    predictions = (np.arange(400) < 100).astype(int)  # right in 300 of 400
    low, high = task_of(SingleLabel, 2).interval(predictions, labels)
    assert (low, high) == pytest.approx((0.75 - 1.96 * 0.02165, 0.75 + 1.96 * 0.02165), abs=0.006)


def test_ten_right_of_ten_may_be_chance():
    low, high = task_of(SingleLabel, 2).interval(np.zeros(10), np.zeros(10))
    assert (low, high) == pytest.approx((10 / (10 + 1.95996**2), 1), abs=1e-4)  # Wilson's bounds, by hand
    low, high = task_of(SingleLabel, 2).interval(np.ones(10), np.zeros(10))
    assert (low, high) == pytest.approx((0, 1.95996**2 / (10 + 1.95996**2)), abs=1e-4)


def test_rows_that_are_all_alike_do_not_make_an_interval_of_one_point():
    """A draw of such rows is the same every time, and other rows need not be like them."""
    seen = 10 / (10 + 1.95996**2)  # Wilson's lower bound for ten of ten, by hand
    task, perfect = task_of(MultiLabel, 2), np.array([[1, 0]] * 6 + [[1, 1]] * 4)
    assert task.interval(perfect, perfect) == pytest.approx((seen, 1), abs=1e-4)
    assert task.interval(1 - perfect, perfect) == pytest.approx((0, 1 - seen), abs=1e-4)
    both = np.ones((10, 2), dtype=int)  # one label of two, in every row: F1 2/3
    assert task.interval(both, np.array([[1, 0]] * 10)) == pytest.approx((2 / 3 * seen, 1 - seen / 3), abs=1e-4)
    assert task.interval(np.array([[1, 0]]), np.array([[1, 0]])) == pytest.approx((1 / (1 + 1.95996**2), 1), abs=1e-4)
    assert task.interval(np.zeros((9, 2)), np.zeros((9, 2)))[0] == 0 < task.interval(np.zeros((9, 2)), perfect[1:])[1]
    labels = np.arange(9.0)
    assert task_of(Regression, 1).interval(labels[:, None] + 1, labels) is None  # always 1 off
    assert task_of(Regression, 1).interval(np.array([[2.0]]), np.array([1.0])) is None
