import numpy as np
import pytest

from lstmpool.training.output import plots


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
    assert max(len(label.get_text()) for label in axes.get_yticklabels()) == 24


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
