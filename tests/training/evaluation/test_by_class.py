"""Each class by itself, and the differences between runs, by hand."""

import json
import math

import numpy as np
import pytest

from lstmpool.training.evaluation import differences
from lstmpool.training.evaluation.by_class import ByClass, Confusion, ranking_metrics
from lstmpool.training.evaluation.differences import Answers, paired_differences
from lstmpool.training.evaluation.results import Evaluation, nothing_learnt
from lstmpool.training.output.folder import json_writer
from lstmpool.training.output.terminal import about_classes, by_class_lines, class_rows, confused_rows, text_table
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import task_of


def answers(*predicted, classes):
    """Logits of a model that answers `predicted`."""
    logits = np.zeros((len(predicted), classes))
    logits[np.arange(len(predicted)), list(predicted)] = 1
    return logits


def of_classes(true, predicted, classes):
    task = SingleLabel([f"class {i}" for i in range(classes)])
    return ByClass.of(task, answers(*predicted, classes=classes), np.array(true))


def test_one_label_a_text_by_hand():
    # true      a a a b b c   a: 2 of 3 given are right, 2 of 3 found; b: 1 of 2, 1 of 2; c: 0 of 1, 0 of 1; d: no row
    # predicted a a c b a b
    of = ByClass.of(task_of(SingleLabel, 4), answers(0, 0, 2, 1, 0, 1, classes=4), np.array([0, 0, 0, 1, 1, 2]))
    assert of.precision == pytest.approx([2 / 3, 1 / 2, 0, 0])
    assert of.recall == pytest.approx([2 / 3, 1 / 2, 0, 0])
    assert of.f1 == pytest.approx([2 / 3, 1 / 2, 0, 0])
    assert of.support.tolist() == [3, 2, 1, 0] and of.without_rows == 1
    assert of.confused == [Confusion(0, 2, 1), Confusion(1, 0, 1), Confusion(2, 1, 1)]
    assert of.average_precision is None and of.shown == [0, 1, 2]


def test_precision_and_recall_are_not_mixed_up():
    # a is given four times, and right in one; of its two rows, one is found
    of = ByClass.of(task_of(SingleLabel, 2), answers(0, 1, 0, 0, 0, classes=2), np.array([0, 0, 1, 1, 1]))
    assert (of.precision[0], of.recall[0], of.f1[0]) == pytest.approx((1 / 4, 1 / 2, 2 / 6))


@pytest.mark.parametrize("kind", [int, float])
def test_several_labels_a_text_by_hand(kind):
    # a: 1 hit, 1 false alarm; b: 1 hit, 1 miss; c: 1 miss
    logits = np.array([[2.0, 1.0, -1.0], [0.5, -0.5, -0.1]])
    of = ByClass.of(task_of(MultiLabel, 3), logits, np.array([[1, 1, 0], [0, 1, 1]], dtype=kind))
    assert of.precision == pytest.approx([1 / 2, 1, 0]) and of.recall == pytest.approx([1, 1 / 2, 0])
    assert of.f1 == pytest.approx([2 / 3, 2 / 3, 0]) and of.support.tolist() == [1, 2, 1]
    assert of.confused == [] and confused_rows(of, str) == []


# by how much b is ahead: -2, 1, -3, 3, -1, where a a a b b are true
TWO = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 3.0], [1.0, 0.0]]), np.array([0, 0, 0, 1, 1])


def test_two_classes_have_an_area_and_an_average_precision():
    task = task_of(SingleLabel, 2)
    # of the six pairs of a row of b and one of a, all but -1 and 1 are in order. b has ranks 1 and 3, so its average
    # precision is (1/1 + 2/3) / 2; a, from the other end, has ranks 1, 2 and 4, so (1/1 + 2/2 + 3/4) / 3
    found = ranking_metrics(task, *TWO)
    assert found == pytest.approx({"roc_auc": 5 / 6, "average_precision": 5 / 6})
    of = ByClass.of(task, *TWO)
    assert of.average_precision == pytest.approx([11 / 12, 5 / 6])
    evaluation = Evaluation.of(task, {"test": TWO[0]}, {"test": TWO[1]}, {})
    assert found.items() <= evaluation.results["test"].items()
    assert "roc_auc" not in evaluation_of_three().results["test"]


def evaluation_of_three():
    return Evaluation.of(task_of(SingleLabel, 3), {"test": np.eye(3)}, {"test": np.array([0, 1, 1])}, {})


@pytest.mark.filterwarnings("error")
def test_where_all_rows_have_one_class_both_are_undefined():
    task, logits = task_of(SingleLabel, 2), TWO[0]
    for label in (0, 1):
        found = ranking_metrics(task, logits, np.full(5, label))
        assert all(math.isnan(value) for value in found.values()) and len(found) == 2
        of = ByClass.of(task, logits, np.full(5, label))
        assert np.isnan(of.average_precision).all() and of.shown == [label]
        assert "ROC AUC: undefined." in about_classes(of, "test", found)


def test_up_to_twenty_classes_are_all_shown_and_of_more_the_ten_worst():
    of = of_classes(range(20), [1, *range(1, 20)], classes=20)
    assert of.shown == list(range(20))
    assert [row[0] for row in class_rows(of, str)][1:] == of.names
    # of 23, two have no row; class 9 is never found in 2 rows, class 5 in 1; class 3 has false alarms
    true = [*range(21), 9]
    predicted = [3 if label in (5, 9) else label for label in true]
    of = of_classes(true, predicted, classes=23)
    assert of.shown == [9, 5, 3, 0, 1, 2, 4, 6, 7, 8] and of.without_rows == 2


def test_the_terminal_shows_the_classes():
    of = ByClass.of(SingleLabel(["yes", "a\x1b[31m\nname", "c" * 50]), np.eye(3), np.array([0, 1, 1]))
    assert by_class_lines(of, "test", {}) == [
        "By class, on test:",
        "",
        "class            precision  recall     F1  rows",
        "yes                  1.000   1.000  1.000     1",
        "a\\x1b[31m\\nname      1.000   0.500  0.667     2",
        "",
        "Classes without a row in test, which are left out here: 1.",
    ]
    of = ByClass.of(SingleLabel(["no", "c" * 50]), *TWO)
    assert by_class_lines(of, "validation", {"roc_auc": 0.5})[2:] == [
        "class                                     precision  recall     F1  average precision  rows",
        "no                                            0.667   0.667  0.667              0.917     3",
        f"{'c' * 39}…      0.500   0.500  0.500              0.833     2",
        "",
        "ROC AUC: 0.500.",
    ]


def test_the_terminal_shows_the_pairs_that_are_confused_most():
    # class 12 is taken for 0 in 2 of 3 rows, class 1 for 12 in one of one, class 3 for 2 in one of one
    true, predicted = [*range(13), 12, 12], [0, 12, 2, 2, *range(4, 12), 0, 0, 12]
    lines = by_class_lines(of_classes(true, predicted, classes=13), "test", {})
    assert lines[-6:] == [
        "Most often confused, on test:",
        "",
        "true      predicted  rows  of",
        "class 12  class 0       2   3",
        "class 1   class 12      1   1",
        "class 3   class 2       1   1",
    ]
    right = by_class_lines(of_classes(range(13), range(13), classes=13), "test", {})
    assert not any("confused" in line for line in right)  # no empty table
    few = by_class_lines(of_classes(range(12), [1, *range(1, 12)], classes=12), "test", {})
    assert not any("confused" in line for line in few)  # the picture shows them


def test_no_more_than_ten_pairs_are_shown_and_a_hundred_recorded():
    classes = 130
    of = of_classes(range(classes), [0] * classes, classes=classes)
    assert len(confused_rows(of, str)) == 1 + 10
    assert len(of.record()["most_confused"]) == 100 and len(of.record()["classes"]) == classes
    title = by_class_lines(of, "test", {})[0]
    assert title == "By class, on test: 10 of 130 classes, those with the lowest F1:"


def test_metrics_json_holds_every_class_of_every_split(tmp_path):
    logits = {"validation": TWO[0], "test": TWO[0][:2]}
    targets = {"validation": TWO[1], "test": TWO[1][:2]}
    record = Evaluation.of(SingleLabel(["no", "yes"]), logits, targets, {}).record()
    half, more = (dict.fromkeys(["precision", "recall", "f1"], pytest.approx(share)) for share in (1 / 2, 2 / 3))
    assert record["by_class"]["validation"] == {
        "classes": {
            "no": more | {"average_precision": pytest.approx(11 / 12), "support": 3},
            "yes": half | {"average_precision": pytest.approx(5 / 6), "support": 2},
        },
        "without_rows": 0,
        "most_confused": [
            {"true": "no", "predicted": "yes", "rows": 1},
            {"true": "yes", "predicted": "no", "rows": 1},
        ],
    }
    json_writer(record)(tmp_path / "metrics.json")
    of_test = json.loads((tmp_path / "metrics.json").read_text())["by_class"]["test"]
    assert of_test["without_rows"] == 1
    assert of_test["classes"]["no"] | {"f1": None} == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": None,
        "average_precision": None,  # undefined
        "support": 2,
    }


def test_numbers_have_no_classes():
    of = Evaluation.of(Regression(["stars"]), {"test": np.ones((2, 1))}, {"test": np.array([1.0, 2.0])}, {})
    assert of.by_class == {} and of.record()["by_class"] == {} and of.judged_on == "test"


def test_classes_are_told_of_test_or_of_validation_where_test_has_no_labels():
    logits = {"validation": TWO[0], "test": TWO[0]}
    task = task_of(SingleLabel, 2)
    assert Evaluation.of(task, logits, {"validation": TWO[1], "test": TWO[1]}, {}).judged_on == "test"
    assert Evaluation.of(task, logits, {"validation": TWO[1]}, {}).judged_on == "validation"
    assert Evaluation.of(task, logits, {}, {}).judged_on is None


def test_a_moved_threshold_of_two_classes_is_no_reason_for_a_warning():
    # five rows of a, one of b: at 0 all but one are right. Moved by 2.5, all of b is found, and only three are right.
    ahead, labels = np.array([-3.0, -3.0, -2.0, -2.0, 1.0, 2.0]), np.array([0, 0, 0, 0, 0, 1])
    task, logits = task_of(SingleLabel, 2), np.column_stack([np.zeros(6), ahead])
    learned = {"folded_thresholds": [0.0, -2.5]}
    of = Evaluation.of(task, {"validation": logits + [0, 2.5]}, {"validation": labels}, learned)
    assert of.results["validation"]["accuracy"] == pytest.approx(3 / 6)
    assert of.compared("validation").tolist() == [0, 0, 0, 0, 1, 1]
    others = np.array([-3.0, -3.0, -2.0, -2.0, -1.0, 2.0])
    of = Evaluation.of(
        task, {"validation": np.column_stack([np.zeros(6), others + 2.5])}, {"validation": labels}, learned
    )
    assert of.results["validation"]["accuracy"] < 5 / 6 and nothing_learnt(of, [0, 0, 1]) == []
    several = MultiLabel(["a", "b"])  # whose thresholds serve the metric that is compared
    of = Evaluation.of(several, {"test": logits}, {"test": np.eye(2)[labels]}, learned)
    assert (of.compared("test") == several.decide(logits)).all()


@pytest.mark.parametrize("several", [False, True])
def test_thousands_of_labels_are_counted_without_a_table_of_pairs(several):
    classes = 30_000  # a table of all pairs would take 7 GB
    labels, task = np.arange(40), task_of(SingleLabel)
    logits = answers(*np.where(labels < 20, labels, 0), classes=classes)
    if several:
        task, labels, logits = task_of(MultiLabel), answers(*labels, classes=classes), logits - 0.5
    task.names[:] = [f"label {i}" for i in range(classes)]
    of = ByClass.of(task, logits, labels)
    assert of.without_rows == classes - 40 and of.shown == list(range(20, 30))
    assert len(of.record()["classes"]) == classes


def test_a_table_names_each_split_once():
    rows = [["split", "model", "F1"], ["a", "x", "1"], ["a", "yy", "0.5"], ["b", "x", "0"]]
    assert text_table(rows) == "split  model   F1\n\na      x        1\n       yy     0.5\n\nb      x        0"


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(differences, "DRAWS", 20)


def by_hand(task, labels, first, second):
    return paired_differences(task, np.array(labels), [first, second], against=0)[1]


def test_probabilities_by_hand(few_draws):
    """Each row adds -ln 0.8 to the one's log-loss and 2 x 0.2^2 to its Brier score; -ln 0.5 and 0.5 to the other's."""
    sure = Answers(np.array([0, 1]), np.array([[0.8, 0.2], [0.2, 0.8]]))
    unsure = Answers(np.array([0, 1]), np.full((2, 2), 0.5))
    found = by_hand(task_of(SingleLabel, 2), [0, 1], sure, unsure)
    assert found["log_loss"].difference == pytest.approx(np.log(0.8) - np.log(0.5))
    assert found["brier"][:2] == pytest.approx((0.08, 0.5)) and found["brier"].interval is None
    several = by_hand(
        task_of(MultiLabel, 2),
        np.eye(2, dtype=np.uint8),
        *(Answers(np.eye(2, dtype=np.uint8), of.scores) for of in (sure, unsure)),
    )
    assert several["log_loss"].this == pytest.approx(np.log(2))
    assert several["brier"][:2] == pytest.approx((0.04, 0.25))  # of each decision
    certain = Answers(np.array([0, 1]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert np.isfinite(by_hand(task_of(SingleLabel, 2), [0, 1], sure, certain)["log_loss"].this)
    assert "log_loss" not in by_hand(task_of(SingleLabel, 2), [0, 1], sure, Answers(np.array([0, 1])))


def test_several_labels_by_hand():
    """Of 3 true labels in 2 rows, the first run gives 2 and no other: 2 x 2 / (2 + 3). The second gives all 3."""
    labels = np.array([[1, 1], [1, 0]], dtype=np.uint8)
    found = by_hand(
        task_of(MultiLabel, 2), labels, Answers(np.array([[1, 0], [1, 0]], dtype=np.uint8)), Answers(labels)
    )
    assert found["f1_micro"][:2] == (pytest.approx(0.8), 1.0)
    assert found["f1_macro"][:2] == (0.5, 1.0) and found["subset_accuracy"][:2] == (0.5, 1.0)


def test_numbers_by_hand(few_draws):
    labels = np.array([[1.0, 10.0], [2.0, 40.0], [3.0, 20.0], [4.0, 30.0]])
    found = by_hand(Regression(["a", "b"]), labels, Answers(labels + [1, 3]), Answers(-labels))
    assert found["mcrmse"].other == pytest.approx(2)  # (1 + 3) / 2
    assert found["mse"].other == pytest.approx(5)  # (1 + 9) / 2
    assert found["pearson"][:2] == (pytest.approx(1), pytest.approx(-1))
    assert found["spearman"][:2] == (pytest.approx(1), pytest.approx(-1))
    constant = by_hand(Regression(["a"]), labels[:, 0], Answers(labels[:, :1]), Answers(np.ones((4, 1))))["pearson"]
    assert np.isnan(constant.this) and constant.interval is None


def test_the_interval_holds_the_true_difference_and_draws_are_the_same_for_all_runs():
    generator, task, held = np.random.default_rng(1), task_of(SingleLabel, 2), 0
    for _ in range(10):
        wrong = generator.random((2, 60)) < [[0.3], [0.2]]
        first, second = (Answers(of.astype(int)) for of in wrong)
        found = paired_differences(task, np.zeros(60, dtype=int), [first, second, second], against=0)
        assert found[0] == {} and found[1] == found[2]
        low, high = found[1]["accuracy"].interval
        held += low <= 0.1 <= high
    assert held >= 8  # of 10 intervals at 95 %
