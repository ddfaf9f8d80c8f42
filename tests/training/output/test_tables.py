import numpy as np
import pandas
import pytest

from lstmpool.training.data.files import read_table
from lstmpool.training.data.rows import Split
from lstmpool.training.output.tables import prediction_table, write_table
from lstmpool.training.spreadsheet import unguard
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import task_of


def rows(ids, texts=None):
    return Split("test.csv", texts or ["a text"] * len(ids), None, None, ids)


def test_one_label_a_text():
    table = prediction_table(SingleLabel(["no", "yes"]), np.log([[0.9, 0.1], [0.3, 0.7]]), rows(["p", "q"]))
    assert list(table.columns) == ["id", "score_no", "score_yes", "prediction"]
    assert table["id"].tolist() == ["p", "q"] and table["prediction"].tolist() == ["no", "yes"]
    assert table["score_yes"].tolist() == pytest.approx([0.1, 0.7])


def test_several_labels_a_text():
    logits = np.array([[np.log(3), -1.0, 0.2], [-1.0, -1.0, -1.0]])
    table = prediction_table(task_of(MultiLabel), logits, rows([0, 1], ["x", "y"]), with_text=True)
    assert list(table.columns) == ["id", "text", "score_a", "score_b", "score_c", "prediction"]
    assert table["prediction"].tolist() == ["a|c", ""]
    assert table["score_a"][0] == pytest.approx(0.75)


def test_numbers():
    assert prediction_table(Regression(["stars"]), np.array([[1.5]]), rows([7])).to_dict("list") == {
        "id": [7],
        "prediction": [1.5],
    }
    several = prediction_table(Regression(["grammar", "tone"]), np.array([[1.0, 2.0]]), rows([7]))
    assert several.to_dict("list") == {"id": [7], "prediction_grammar": [1.0], "prediction_tone": [2.0]}


@pytest.mark.parametrize("text", ["\r=1", "one\rtwo", "one\r\ntwo", "one\ntwo", "\t=1", "'=1", "=\r"])
@pytest.mark.parametrize("raw", [False, True])
def test_a_table_is_read_again_as_it_was(tmp_path, text, raw):
    path = tmp_path / "table.csv"
    write_table(pandas.DataFrame({"id": [1, 2], "text": ["a", text]}), path, raw)
    cells = read_table(path)["text"][:]
    assert [cell if raw else unguard(cell) for cell in cells] == ["a", text]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_is_written_whole(tmp_path, ending):
    of = rows(["a,b"], ['say "no"\nor not'])
    table = prediction_table(SingleLabel(["no", "yes"]), np.array([[0.0, 1.0]]), of, with_text=True)
    path = tmp_path / f"table.{ending}"
    write_table(table, path)
    again = pandas.read_csv(path) if ending == "csv" else pandas.read_parquet(path)
    pandas.testing.assert_frame_equal(again, table)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
