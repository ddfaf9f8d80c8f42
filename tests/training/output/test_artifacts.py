import numpy as np
import pandas
import pytest

from lstmpool.training.data.rows import Split
from lstmpool.training.output.artifacts import plots_of, predictions_of
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ..evaluation.test_results import LOGITS, NAMES, ONE, SEVERAL, evaluation


def test_plots_are_of_test_rows_or_of_validation_where_those_have_no_labels():
    history = [{"loss": 1.0, "epoch": 1.0}]
    for targets, split in ((ONE, "test"), ({"validation": ONE["validation"]}, "validation")):
        plots = plots_of(evaluation(SingleLabel, targets), history)
        assert set(plots) == {"learning_curve.png", "confusion_matrix.png"}
        true, predicted, names = plots["confusion_matrix.png"].args
        assert (true.tolist(), predicted.tolist()) == (ONE[split].tolist(), LOGITS[split].argmax(1).tolist())
        assert names == NAMES
    assert set(plots_of(evaluation(SingleLabel, {}), [])) == set()
    true, predicted, _ = plots_of(evaluation(Regression, SEVERAL), [])["predicted_against_true.png"].args
    assert (true == SEVERAL["test"]).all() and (predicted == LOGITS["test"]).all()


@pytest.mark.parametrize("thresholds", [None, [0.5, -1.0, 2.0]])
def test_the_reliability_plot_shows_what_the_temperature_did_and_not_the_thresholds(thresholds):
    folded = {} if thresholds is None else {"folded_thresholds": thresholds}
    raw, shift = LOGITS["test"], np.array(thresholds or 0.0)
    of = evaluation(MultiLabel, SEVERAL, {"test": raw / 2 - shift}, temperature=2.0, **folded)
    (curves,) = plots_of(of, [])["reliability.png"].args
    for name, logits in (("before", raw), ("after", raw / 2)):
        assert np.allclose(curves[name], of.task.confidences(logits, SEVERAL["test"])), name


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_table_holds_texts_on_request(tmp_path, ending):
    split, of = Split("test.csv", ["x"], ["y"], None, ["row 7"]), evaluation(SingleLabel, {})
    for with_text, columns in ((False, ["id"]), (True, ["id", "text", "text_pair"])):
        ((name, write),) = predictions_of(of, split, ending, with_text).items()
        write(tmp_path / name)
        table = pandas.read_csv(tmp_path / name) if ending == "csv" else pandas.read_parquet(tmp_path / name)
        assert name == f"test_predictions.{ending}"
        assert list(table.columns) == [*columns, "score_a", "score_b", "score_c", "prediction"]
        assert table["id"].tolist() == ["row 7"] and table["prediction"].tolist() == ["b"]
    of = evaluation(SingleLabel, ONE, {"validation": LOGITS["validation"]})
    assert predictions_of(of, None, "csv", False) == {}
