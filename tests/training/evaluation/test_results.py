import json

import numpy as np

from lstmpool.training.evaluation.calibration import probability_metrics
from lstmpool.training.evaluation.results import Evaluation, no_label_given, nothing_learnt
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel


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
    assert set(record) == {"results", "intervals", "learned_on_validation"}
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
