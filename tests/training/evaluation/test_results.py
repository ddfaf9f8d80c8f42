import json

import numpy as np

from lstmpool.training.evaluation.calibration import probability_metrics
from lstmpool.training.evaluation.results import Evaluation
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
