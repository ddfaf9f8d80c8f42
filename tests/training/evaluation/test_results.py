import json
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

from lstmpool.training.data.rows import Split
from lstmpool.training.evaluation.calibration import confidences, probability_metrics
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.tasks.labels import MULTI, REGRESSION, SINGLE, Labels
from lstmpool.training.tasks.metrics import TaskMetrics


NAMES = ["a", "b", "c"]
LOGITS = {"validation": np.array([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), "test": np.array([[1.0, 2.0, 0.0]])}
ONE = {"validation": np.array([0, 1]), "test": np.array([2])}
SEVERAL = {"validation": np.array([[1, 0, 1], [0, 0, 1]]), "test": np.array([[1, 1, 0]])}


def evaluation(task, targets, logits=LOGITS, **learned):
    return Evaluation(TaskMetrics.of(task, 3), Labels(task, NAMES, ""), logits, targets, learned)


def test_every_split_with_labels_is_measured():
    of = evaluation(SINGLE, ONE)
    assert of.results["validation"]["accuracy"] == 1 / 2 and of.results["test"]["accuracy"] == 0
    wanted = probability_metrics(LOGITS["test"], ONE["test"], SINGLE)
    assert {name: of.results["test"][name] for name in wanted} == wanted
    assert "log_loss" not in evaluation(REGRESSION, SEVERAL).results["test"]
    assert set(evaluation(SINGLE, {"validation": ONE["validation"]}).results) == {"validation"}


def test_the_record_holds_results_intervals_and_what_was_learnt():
    record = evaluation(SINGLE, ONE, temperature=2.0).record()
    assert set(record) == {"results", "intervals", "learned_on_validation"}
    assert record["intervals"]["validation"] == {"metric": "accuracy", "low": 0.0, "high": 1.0}
    assert record["learned_on_validation"] == {"temperature": 2.0}
    json.dumps(record)


def test_plots_are_of_test_rows_or_of_validation_where_those_have_no_labels():
    history = [{"loss": 1.0, "epoch": 1.0}]
    for targets, split in ((ONE, "test"), ({"validation": ONE["validation"]}, "validation")):
        plots = evaluation(SINGLE, targets).plots(history)
        assert set(plots) == {"learning_curve.png", "confusion_matrix.png"}
        true, predicted, names = plots["confusion_matrix.png"].args
        assert (true.tolist(), predicted.tolist()) == (ONE[split].tolist(), LOGITS[split].argmax(1).tolist())
        assert names == NAMES
    assert set(evaluation(SINGLE, {}).plots([])) == set()
    true, predicted, _ = evaluation(REGRESSION, SEVERAL).plots([])["predicted_against_true.png"].args
    assert (true == SEVERAL["test"]).all() and (predicted == LOGITS["test"]).all()


@pytest.mark.parametrize("thresholds", [None, [0.5, -1.0, 2.0]])
def test_the_reliability_plot_shows_what_the_temperature_did_and_not_the_thresholds(thresholds):
    folded = {} if thresholds is None else {"folded_thresholds": thresholds}
    raw, shift = LOGITS["test"], np.array(thresholds or 0.0)
    of = evaluation(MULTI, SEVERAL, {"test": raw / 2 - shift}, temperature=2.0, **folded)
    (curves,) = of.plots([])["reliability.png"].args
    for name, logits in (("before", raw), ("after", raw / 2)):
        assert np.allclose(curves[name], confidences(logits, SEVERAL["test"], MULTI)), name


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_table_holds_texts_on_request(tmp_path, ending):
    split, of = Split("test.csv", ["x"], ["y"], None, ["row 7"]), evaluation(SINGLE, {})
    for with_text, columns in ((False, ["id"]), (True, ["id", "text", "text_pair"])):
        args = SimpleNamespace(predictions_with_text=with_text, predictions_format=ending)
        ((name, write),) = of.predictions(split, args).items()
        write(tmp_path / name)
        table = pandas.read_csv(tmp_path / name) if ending == "csv" else pandas.read_parquet(tmp_path / name)
        assert name == f"test_predictions.{ending}"
        assert list(table.columns) == [*columns, "score_a", "score_b", "score_c", "prediction"]
        assert table["id"].tolist() == ["row 7"] and table["prediction"].tolist() == ["b"]
    assert evaluation(SINGLE, ONE, {"validation": LOGITS["validation"]}).predictions(None, args) == {}
