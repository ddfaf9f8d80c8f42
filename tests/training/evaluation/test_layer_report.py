"""Which layers matter, on layer states of which it is known; what is said of that, in words and in a picture."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binom

from lstmpool.training.evaluation.differences import paired_interval
from lstmpool.training.evaluation.layer_report import LayerReport, LayerSet, report_on, rows_fitted
from lstmpool.training.model.exit_training import Rows
from lstmpool.training.output import plots
from lstmpool.training.output.layers import layer_lines, layer_rows
from lstmpool.training.runs.layer_report import report_layers
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import task_of


TWO = task_of(SingleLabel, 2)


def states_of(*columns):
    """Layer states (N, L, 2) whose first feature is the given column of each layer; the second one never varies."""
    first = np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1)
    return np.stack([first, np.ones_like(first)], axis=2)


def reported(task, make, layers, rows=40, judged=20, flip=False):
    """The report on rows that `make` gives: for the numbers of the rows, the columns of the layers and the labels."""
    columns, labels = make(np.arange(rows))
    judged_columns, judged_labels = make(np.arange(judged))
    if flip:
        judged_labels = 1 - judged_labels
    validation = Rows(states_of(*judged_columns), judged_labels)
    return report_on(task, layers, Rows(states_of(*columns), labels), validation, judged_labels, seed=0)


def scores(sets):
    return [pytest.approx(of.score) for of in sets]


def numbers(sets):
    return [of.layers for of in sets]


# ------------------------------------------------------------------------------------------------------------- reports
def one_layer_knows(row):
    """Of five rows in a row, two have label 1. The middle layer says which."""
    labels = (row % 5 < 2).astype(int)
    return (0 * row, 2 * labels - 1, 0 * row), labels


def test_the_one_layer_that_knows_is_found():
    """The others leave a linear model nothing but the majority's three of five rows."""
    report = reported(TWO, one_layer_knows, [2, 5, 9], judged=200)
    assert report.whole == report.model_score == 1.0
    assert scores(report.up_to) == [0.6, 1.0, 1.0]
    assert scores(report.alone) == [0.6, 1.0, 0.6]
    assert scores(report.without) == [1.0, 0.6, 1.0]
    assert numbers(report.without) == [[5, 9], [2, 9], [2, 5]]
    assert numbers(report.path) == [[2, 5], [5]]  # of equals, the highest goes first
    assert report.shallow.layers == [2, 5] and report.fewest.layers == [5]
    assert [report.loses(of) for of in report.without] == [False, True, False]


def test_the_interval_is_that_of_the_difference_on_the_same_rows():
    """8 of 20 rows are lost, so draws lose as many as a binomial says. Equal answers have no interval."""
    report = reported(TWO, one_layer_knows, [1, 2, 3])
    least, most = binom.ppf([0.025, 0.975], 20, 0.4) / 20
    assert report.difference(report.alone[0]) == pytest.approx(-0.4)
    assert report.alone[0].interval == pytest.approx((-most, -least), abs=0.051)
    assert report.without[0].interval is None


def two_layers_know(row):
    """Four classes: the lowest layer says whether it is one of the first two, the highest which of these."""
    return (row % 4 // 2, 0 * row, row % 2), row % 4


def test_layers_that_are_needed_together_stay():
    """Without one of them, a row is one of two classes. The layers below the highest save no time."""
    report = reported(task_of(SingleLabel, 4), two_layers_know, [1, 2, 3], judged=200)
    assert scores(report.without) == [0.5, 1.0, 0.5]
    assert scores(report.up_to) == [0.5, 0.5, 1.0]
    assert numbers(report.path)[0] == [1, 3] and len(report.path) == 2 and not report.will_do(report.path[1])
    assert report.shallow is None and report.fewest.layers == [1, 3]


def two_targets(row):
    """A target in thousands from the lower layer, and a small one from the higher."""
    signs = 1 - 2 * (row % 2), 1 - 2 * (row // 2 % 2)
    return signs, np.column_stack([1000.0 * signs[0] + 5000, 2.0 * signs[1]])


def test_errors_of_several_targets_are_in_their_own_units_and_lower_is_better():
    """A ridge regression of strength 0.1 shrinks what it finds in 40 rows by 40 / (40 + 1 / 0.2)."""
    report = reported(task_of(Regression, 2), two_targets, [3, 6], judged=200)
    missed = 1 - 40 / 45
    assert report.whole == pytest.approx((1000 + 2) / 2 * missed, rel=1e-3)
    assert report.without[0].score == pytest.approx((1000 + 2 * missed) / 2, rel=1e-3)  # the first target's mean
    assert report.without[1].score == pytest.approx((1000 * missed + 2) / 2, rel=1e-3)
    assert report.difference(report.without[0]) > 0 and not report.will_do(report.without[0])
    assert report.tolerance == pytest.approx(0.005 * report.whole) and report.model_score == 0
    assert report.shallow is None and report.fewest is None


def two_labels(row):
    labels = np.column_stack([row % 2 == 0, row % 4 == 1]).astype(np.uint8)
    return (2.0 * labels[:, 0] - 1, 2.0 * labels[:, 1] - 1), labels


def test_several_labels():
    """Without the higher layer, the rarer label is never given: of 8 rows, 4 hits, 4 given and 6 true."""
    report = reported(task_of(MultiLabel, 2), two_labels, [1, 2], judged=8)
    assert report.whole == 1.0 and report.up_to[0].score == pytest.approx(2 * 4 / (4 + 6))
    assert json.loads(json.dumps(report.record()))["up_to"][0]["layers"] == [1]


def test_labels_of_validation_rows_choose_neither_the_fit_nor_which_layer_goes():
    """With all labels wrong, all answers are wrong, and stay the same."""
    right = reported(TWO, one_layer_knows, [1, 2, 3])
    wrong = reported(TWO, one_layer_knows, [1, 2, 3], flip=True)
    assert scores(wrong.alone) == [1 - of.score for of in right.alone]
    assert wrong.path[0].layers == right.path[0].layers == [1, 2]


def test_the_fit_is_bounded():
    """Twenty billion rows x features x outputs: of all sets, 384 * (7.5 * 36 + 72) features."""
    assert rows_fitted(6, 384, 2) == 2000
    assert rows_fitted(24, 1024, 2) == int(2e10 / (1024 * (7.5 * 576 + 4608) * 2)) == 1093
    assert rows_fitted(24, 1024, 1000) == 500
    report = reported(TWO, one_layer_knows, [1, 2, 3], rows=2100)
    assert report.rows == 2000 and report.validation_rows == 20


@pytest.mark.parametrize(("layers", "rows", "why"), [([2], 9, "a single layer"), ([1, 2], 1, "2 training rows or m")])
def test_what_gives_no_report_is_said(capsys, layers, rows, why):
    model = SimpleNamespace(config=SimpleNamespace(layers=layers))
    job = SimpleNamespace(splits={"train": range(rows)})
    assert report_layers(SimpleNamespace(model=model, job=job)) is None
    said = capsys.readouterr().out
    assert said.startswith("No layer report: ") and why in said


# -------------------------------------------------------------------------------------------------- what is told of it
def made(task=TWO, whole=0.9, **sets):
    """A report on layers 2, 4 and 6 of 200 validation rows."""
    every = LayerSet([2, 4, 6], whole)
    found = {"up_to": [LayerSet([2], 0.8, (-0.15, -0.05)), LayerSet([2, 4], 0.89, (-0.02, 0.01)), every]}
    found["alone"] = [LayerSet([layer], 0.7, (-0.3, -0.1)) for layer in (2, 4, 6)]
    found["without"] = [LayerSet(layers, 0.895, (-0.02, 0.01)) for layers in ([4, 6], [2, 6], [2, 4])]
    found["path"] = [LayerSet([2, 6], 0.895, (-0.02, 0.01)), LayerSet([6], 0.7, (-0.3, -0.1))]
    settings = {"layers": [2, 4, 6], "rows": 300, "validation_rows": 200, "model_score": 0.91, "seconds": 4.2}
    return LayerReport(task, whole=whole, **(settings | found | sets))


@pytest.mark.parametrize(
    ("score", "interval", "loses", "will_do"),
    [
        (0.895, (-0.02, 0.01), False, True),  # one row of 200, which is the tolerance
        (0.89, (-0.02, 0.01), False, False),
        (0.896, (-0.006, -0.001), True, False),
        (0.95, (0.01, 0.09), False, True),
        (0.9, None, False, True),
    ],
)
def test_what_is_a_loss(score, interval, loses, will_do):
    report, of = made(), LayerSet([2, 4], score, interval)
    assert (report.loses(of), report.will_do(of)) == (loses, will_do)


def test_an_error_loses_where_it_rises():
    report = made(task_of(Regression, 1), whole=2.0)
    assert report.loses(LayerSet([2], 2.5, (0.1, 0.9))) and not report.loses(LayerSet([2], 1.5, (-0.9, -0.1)))
    assert report.will_do(LayerSet([2], 2.01, (-0.1, 0.2))) and not report.will_do(LayerSet([2], 2.02, (-0.1, 0.2)))
    assert report.most_lost(LayerSet([2], 2.01, (-0.1, 0.2))) == 0.2


def test_fewer_layers_will_do_only_if_more_of_them_do():
    """By luck, layer 2 alone is as good; layers 2 and 4 are not."""
    lucky = [LayerSet([2], 0.9, (-0.1, 0.1)), LayerSet([2, 4], 0.8, (-0.2, 0.0)), LayerSet([2, 4, 6], 0.9)]
    assert made(up_to=lucky).shallow is None


def test_the_words_say_what_the_interval_allows():
    together, cost = layer_lines(made())
    assert together == (
        "A linear model without layer 4 has accuracy 0.895 on 200 validation rows, that of all 3 0.900. No loss "
        "shows; the 95% interval of the difference, -0.020 to 0.010, allows a loss of up to 0.020. `--layers 2 6` "
        "would save no time, since the layers below 6 still run."
    )
    assert cost == (
        "All this was fitted to 300 training rows, in 4 s; train with --layers to see how good such a model is."
    )
    up_to = [LayerSet([2], 0.8, (-0.15, -0.05)), LayerSet([2, 4], 0.9), LayerSet([2, 4, 6], 0.9)]
    shallow, _, _ = layer_lines(made(up_to=up_to))
    assert shallow == (
        "A linear model of layers 2, 4 has accuracy 0.900 on 200 validation rows, that of all 3 0.900. Every row "
        "gives the same difference. `--layers 2 4` would save about 33% of the time."
    )


def test_where_every_layer_is_needed_that_is_said():
    none, cost = layer_lines(made(path=[LayerSet([2, 6], 0.8, (-0.2, -0.05))]))
    assert none.startswith("A linear model without layer 4, which training rows miss the least, has accuracy 0.800")
    assert none.endswith(
        "A loss shows; the 95% interval of the difference, -0.200 to -0.050, allows a loss of up to 0.200."
    )
    assert "--layers" not in none + cost
    none, _ = layer_lines(made(path=[LayerSet([2, 6], 0.88, (-0.04, 0.01))]))
    assert none.endswith("allows a loss of up to 0.040, and on these rows it is more than 0.005.")


def test_few_validation_rows_name_no_layers():
    """Of 199 rows, a single one is more than the tolerance of 0.005."""
    few, enough = made(validation_rows=199), made(validation_rows=200)
    assert enough.fewest.layers == [2, 6] and few.fewest is None
    same = LayerSet([2, 4], 0.9)
    few = made(validation_rows=50, up_to=[LayerSet([2], 0.8, (-0.15, -0.05)), same, LayerSet([2, 4, 6], 0.9)])
    assert few.shallow is None and few.will_do(same)
    record = few.record()
    assert (record["shallow"], record["fewest"], record["validation_rows"]) == (None, None, 50)
    assert record["least_validation_rows"] == 200 and record["without"][1]["score"] == 0.895
    why, numbers, cost = layer_lines(few)
    assert why == (
        "50 validation rows cannot say that a layer can go: one of them counts 2.0 points, and at most 0.5 may be "
        "lost. So none is named; it takes 200 or more."
    )
    assert numbers == (
        "A linear model without layer 4, which training rows miss the least, has accuracy 0.895 on 50 validation "
        "rows, that of all 3 0.900. No loss shows; the 95% interval of the difference, -0.020 to 0.010, allows a loss "
        "of up to 0.020."
    )
    assert "--layers" not in why + numbers + cost and len(layer_rows(few)) == 4
    assert "the interval over them is too wide" in layer_lines(made(task_of(Regression, 1), validation_rows=50))[0]


@pytest.mark.parametrize(("lost", "shows"), [(3, False), (4, True)])
def test_four_rows_are_the_least_loss_that_an_interval_shows(lost, shows):
    labels = np.zeros(200, dtype=int)
    answers = (np.arange(200) < lost).astype(int)
    report = made(whole=1.0)
    of = LayerSet([2, 4], 1 - lost / 200, paired_interval(TWO, answers, labels, labels))
    assert report.loses(of) is shows


def test_the_table_has_a_row_for_each_layer():
    head, *rows = layer_rows(made())
    assert head == ["layer", "accuracy, up to it", "difference to all", "accuracy, it alone", "difference without it"]
    assert rows[0] == ["2", "0.800", "-0.100 [-0.150, -0.050]", "0.700", "-0.005 [-0.020, 0.010]"]
    assert rows[2] == ["6", "0.900", "0.000", "0.700", "-0.005 [-0.020, 0.010]"]


def test_the_record_names_all_sets():
    record = made().record()
    assert record["without"][1] == {
        "layers": [2, 6],
        "score": 0.895,
        "interval": (-0.02, 0.01),
        "difference": pytest.approx(-0.005),
    }
    assert record["fewest"] == [2, 6] and record["shallow"] is None
    assert (record["metric"], record["all_layers"], record["model"]) == ("accuracy", 0.9, 0.91)


def test_the_picture_shows_depth_and_what_each_layer_is_worth(monkeypatch, tmp_path):
    figures, save = [], plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: (figures.append(figure), save(figure, path)))
    without = [LayerSet([4, 6], 0.7, (-0.3, -0.1)), LayerSet([2, 6], 0.91, (-0.01, 0.03)), LayerSet([2, 4], 0.9)]
    plots.which_layers_matter(made(without=without), tmp_path / "plot.png", title="accuracy")
    depth, worth = figures[0].axes
    shown = {line.get_label(): list(line.get_ydata()) for line in depth.get_lines()}
    assert shown["layers up to this one"] == [0.8, 0.89, 0.9] and shown["this layer alone"] == [0.7, 0.7, 0.7]
    assert set(shown["all layers"]) == {0.9} and set(shown["the trained model"]) == {0.91}
    band = depth.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.75) and [0.0, 0.85] in band.round(9).tolist()
    bars = {round(bar.get_x() + bar.get_width() / 2): bar for bar in worth.patches}
    assert [bars[place].get_height() for place in range(3)] == pytest.approx([-0.2, 0.01, 0.0])
    assert [bars[place].get_hatch() for place in range(3)] == ["//", None, None]
    assert [label.get_text() for label in worth.get_xticklabels()] == ["2", "4", "6"]
    assert (tmp_path / "plot.png").stat().st_size < 200_000
