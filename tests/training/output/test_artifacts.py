"""What a finished folder holds beside the model: the table of predictions, and the plots."""

import csv
from dataclasses import replace

import numpy as np
import pandas
import pytest

from lstmpool.training.data.delimited import unguard
from lstmpool.training.data.files import read_table
from lstmpool.training.data.rows import Split
from lstmpool.training.evaluation.exit_results import Tried
from lstmpool.training.flags.arguments import TrainingFields
from lstmpool.training.output import plots
from lstmpool.training.output.artifacts import plots_of, predictions_of
from lstmpool.training.output.tables import prediction_table, write_table
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import task_of
from ..evaluation.test_calibration import LOGITS, NAMES, ONE, SEVERAL, evaluation
from ..evaluation.test_exits import results as results_with_exits


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


def form(ending, with_text=False, raw_csv=False):
    return TrainingFields(predictions_format=ending, predictions_with_text=with_text, raw_csv=raw_csv)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_table_holds_texts_on_request(tmp_path, ending):
    split, of = Split("test.csv", ["x"], ["y"], None, ["row 7"]), evaluation(SingleLabel, {})
    for with_text, columns in ((False, ["id"]), (True, ["id", "text", "text_pair"])):
        ((name, write),) = predictions_of(of, {"test": split}, form(ending, with_text)).items()
        write(tmp_path / name)
        table = pandas.read_csv(tmp_path / name) if ending == "csv" else pandas.read_parquet(tmp_path / name)
        assert name == f"test_predictions.{ending}"
        assert list(table.columns) == [*columns, "score_a", "score_b", "score_c", "prediction"]
        assert table["id"].tolist() == ["row 7"] and table["prediction"].tolist() == ["b"]
    of = evaluation(SingleLabel, ONE, {"validation": LOGITS["validation"]})
    assert predictions_of(of, {"test": split}, form("csv", False)) == {}
    validation = {"train": split, "validation": rows(range(len(LOGITS["validation"])))}
    assert list(predictions_of(of, validation, form(ending))) == [f"validation_predictions.{ending}"]


def test_a_spreadsheet_runs_no_cell_of_the_table_unless_it_is_raw(tmp_path):
    ids = ['=HYPERLINK("http://x")', "-3.5", "+1", "-a"]
    split = Split("test.csv", ["@SUM(1)", "\tx", "'=1", "it's"], None, None, ids)
    task = SingleLabel(["=cmd|' /C calc'!A0", "+1e3", "no"])
    of = replace(evaluation(SingleLabel, {}), task=task, logits={"test": np.eye(3)[[0, 1, 2, 0]]})
    read = {}
    for name, args in {"safe": form("csv", True), "raw": form("csv", True, True), "p": form("parquet", True)}.items():
        ((of_folder, write),) = predictions_of(of, {"test": split}, args).items()
        write(tmp_path / of_folder)
        if name == "p":
            table = pandas.read_parquet(tmp_path / of_folder)
            read[name] = [list(table.columns), *table.to_numpy().tolist()]
        else:
            with (tmp_path / of_folder).open(encoding="utf-8", newline="") as file:
                read[name] = list(csv.reader(file))
    columns = ["id", "text", *(f"score_{label}" for label in task.names), "prediction"]
    assert read["safe"][0] == read["raw"][0] == read["p"][0] == columns
    assert [(row[0], row[1], row[-1]) for row in read["safe"][1:]] == [
        ('\'=HYPERLINK("http://x")', "'@SUM(1)", "'=cmd|' /C calc'!A0"),
        ("-3.5", "'\tx", "+1e3"),
        ("+1", "''=1", "no"),
        ("'-a", "it's", "'=cmd|' /C calc'!A0"),
    ]
    for row, safe, raw, whole in zip(range(4), read["safe"][1:], read["raw"][1:], read["p"][1:], strict=True):
        assert [unguard(cell) for cell in safe] == raw
        assert raw[:2] == whole[:2] == [ids[row], split.texts[row]] and raw[-1] == whole[-1]


# --------------------------------------------------------------------------------------------------------------- plots
@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Where a plot is written, and the figure that was drawn there."""
    figures, save = [], plots._save

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    yield tmp_path / "plot.png", figures
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (tmp_path / "plot.png").stat().st_size < 200_000


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def test_the_learning_curve_shows_what_was_logged(drawn):
    path, figures = drawn
    history = [
        {"loss": 2.0, "epoch": 1.0},
        {"eval_loss": 1.5, "eval_f1": 0.5, "epoch": 1.0},
        {"loss": 1.0, "epoch": 2.0},
        {"eval_loss": 1.75, "eval_f1": 0.6, "epoch": 2.0},
        {"train_runtime": 3.0, "epoch": 2.0},
    ]
    plots.learning_curve(history, path, metric="f1", title="macro F1")
    losses, headline = figures[0].axes
    assert lines(losses) == {"training": [[1, 2], [2, 1]], "validation": [[1, 1.5], [2, 1.75]]}
    assert lines(headline) == {"validation": [[1, 0.5], [2, 0.6]]}
    assert headline.get_ylabel() == "macro F1"


def test_a_learning_curve_without_validation(drawn):
    path, figures = drawn
    plots.learning_curve([{"loss": 2.0, "epoch": 1.0}], path, metric="f1", title="macro F1")
    assert lines(figures[0].axes[0]) == {"training": [[1, 2]]} and lines(figures[0].axes[1]) == {}


def test_a_confusion_matrix_has_true_classes_in_its_rows(drawn):
    path, figures = drawn
    plots.confusion_matrix(np.array([0, 0, 0, 0, 1]), np.array([0, 1, 1, 0, 1]), ["no", "yes"], path)
    axes = figures[0].axes[0]
    assert axes.images[0].get_array().tolist() == [[0.5, 0.5], [0.0, 1.0]]
    assert [text.get_text() for text in axes.texts] == ["2", "2", "0", "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["no", "yes"]


def test_a_confusion_matrix_of_many_classes(drawn):
    path, figures = drawn
    labels = np.arange(77)
    plots.confusion_matrix(labels, labels, [f"a class with a rather long name {i}" for i in labels], path)
    axes = figures[0].axes[0]
    assert axes.images[0].get_array().shape == (77, 77) and not axes.texts
    assert [len(label.get_text()) for label in axes.get_yticklabels()] == [24] * 77  # each class is named


@pytest.mark.parametrize(("classes", "shown"), [(13, ["1"] * 13), (77, ["1"]), (101, [])])
def test_a_confusion_matrix_of_more_classes_shows_the_counts_that_matter(drawn, classes, shown):
    path, figures = drawn
    labels = np.arange(classes)
    plots.confusion_matrix(labels, np.where(labels == 5, 7, labels), [f"label {i}" for i in labels], path)
    texts = {text.get_position(): text.get_text() for text in figures[0].axes[0].texts}
    assert list(texts.values()) == shown
    assert not shown or texts[(7, 5)] == "1"  # in the column of what was predicted, and the row of what is true


ODD = ["$\\frac{1}$", "$x^2$", "a\nb", "\\$5"]
SHOWN = ["$\\frac{1}$", "$x^2$", "a\\nb", "\\$5"]


def test_names_are_no_formulas(drawn):
    path, figures = drawn
    labels = np.arange(len(ODD))
    plots.confusion_matrix(labels, labels, ODD, path)
    plots.predicted_against_true(np.eye(4), np.eye(4), ODD, path)
    matrix, panels = figures
    texts = [*matrix.axes[0].get_xticklabels(), *matrix.axes[0].get_yticklabels()]
    titles = [panel.title for panel in panels.axes if panel.get_visible()]
    assert [text.get_text() for text in texts] == [*SHOWN, *SHOWN]
    assert [title.get_text() for title in titles] == SHOWN
    assert not any(text.get_parse_math() or text.get_usetex() for text in [*texts, *titles])


@pytest.mark.parametrize("targets", [1, 2, 6])
def test_one_panel_a_target(drawn, targets):
    path, figures = drawn
    true = np.arange(5.0 * targets).reshape(5, targets)
    plots.predicted_against_true(true, true + 1, [f"t{i}" for i in range(targets)], path)
    panels = [axes for axes in figures[0].axes if axes.get_visible()]
    assert [panel.get_title() for panel in panels] == [f"t{i}" for i in range(targets)]
    points = panels[-1].collections[0].get_offsets()
    assert np.allclose(points[:, 0], true[:, -1]) and np.allclose(points[:, 1], true[:, -1] + 1)


def test_reliability_by_hand(drawn):
    path, figures = drawn
    # in the bin of 0.6 to 0.667 two claims, one of them true; a claim of 1 belongs to the last bin
    claims = (np.array([0.61, 0.65, 1.0]), np.array([1.0, 0.0, 1.0]))
    plots.reliability({"before": claims, "after": claims}, path)
    upper, lower = figures[0].axes
    assert np.allclose(lines(upper)["before"], [[0.63, 0.5], [1.0, 1.0]])
    heights = [patch.get_height() for patch in lower.patches[:15]]
    assert heights == pytest.approx([0] * 9 + [2 / 3] + [0] * 4 + [1 / 3])


def test_of_many_targets_the_first_are_drawn(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    numbers = np.random.default_rng(0).normal(size=(2, 40))
    plots.predicted_against_true(numbers, numbers, [f"target {i}" for i in range(40)], tmp_path / "plot.png")
    assert [axes.get_title() for axes in figures[0].axes] == [f"target {i}" for i in range(30)]


def test_the_depth_curve_shows_exits_beside_single_layers(drawn):
    """Layers 2 and 4 have exits; at a threshold of 0.9, half of the rows leave at layer 2."""
    path, figures = drawn
    plots.depth_curve(results_with_exits(), "validation", path, title="accuracy")
    curve, shares = figures[0].axes
    shown = lines(curve)
    assert shown["one layer for all texts"] == [[2, 0.75], [4, 1.0]]
    assert shown["threshold 0.9"] == [[3.5, 1.0]]
    assert shown["with exits"][0] == [2.0, 0.75]
    assert [bar.get_height() for bar in shares.patches] == [0.5, 0.25, 0.25]
    assert shares.get_title() == "Where texts are answered"
    plots.depth_curve(results_with_exits(threshold=None), "validation", path, title="accuracy")
    curve, shares = figures[1].axes
    assert not any(name.startswith("threshold") for name in lines(curve))
    assert [bar.get_height() for bar in shares.patches] == [0, 0, 1]
    assert shares.get_title() == "Where texts are answered (exits are off)"


def test_thresholds_are_named_on_the_curve_where_there_is_room():
    layers = [1.0, 1.1, 1.3, 1.35, 3.0]  # 2 from end to end: the least distance is 0.2
    kept = plots._spread([Tried(0.5, mean, 0.9) for mean in layers])
    assert [tried.mean_layers for tried in kept] == [1.0, 1.3, 3.0]
