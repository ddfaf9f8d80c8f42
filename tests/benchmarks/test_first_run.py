"""The benchmark of first runs: the rows that all contenders get, that it goes on, and its tables, by hand."""

import csv
import sys

import numpy as np
import pytest

from lstmpool.benchmarks import few_shots, first_run
from lstmpool.benchmarks import first_run_rivals as rivals
from lstmpool.benchmarks.first_run import draw, main, metered
from lstmpool.benchmarks.first_run_tables import Cell, Predictions, _counts, cells_of, goals, means, score_of
from lstmpool.benchmarks.results import marks, read_rows, write_rows
from lstmpool.training.errors import InputError

from ..training_fixtures import save_backbone, write_csv


@pytest.fixture
def data(tmp_path):
    """A set of 40 sorted rows, one of which is in the test, too, and a set of pairs without a test file."""
    texts = [f"text number {i}" for i in range(40)]
    labels = ["good"] * 20 + ["bad"] * 20
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write_csv(tmp_path / "one" / "train.csv", {"text": texts, "label": labels})
    test = ["Text  NUMBER 3", *(f"other {i}" for i in range(7))]
    write_csv(tmp_path / "one" / "test.csv", {"text": test, "label": ["good", "bad"] * 4})
    pairs = {"text": texts, "aspect": texts[::-1], "labels": ["a b", "a", ""] * 13 + ["b"]}
    write_csv(tmp_path / "two" / "train.csv", pairs)
    write_csv(tmp_path / "two" / "validation.csv", {"text": test, "aspect": test, "labels": ["a b", ""] * 4})
    return tmp_path


# --------------------------------------------------------------------------------------------------------------- rows
def test_a_draw_mixes_the_rows_and_takes_none_of_the_test(data):
    first = draw(data, "one", 20, seed=1)
    assert first == draw(data, "one", 20, seed=1)
    assert {row["label"] for row in first.train} == {"good", "bad"}  # the file is sorted
    assert draw(data, "one", 10, seed=1).train == first.train[:10]
    other = draw(data, "one", 20, seed=2)
    assert other.train != first.train and other.test == first.test
    assert len(draw(data, "one", 39, seed=1).train) == 39
    with pytest.raises(
        InputError, match="expected 40 training rows in .*one, found 39"
    ):  # "text number 3" is left out
        draw(data, "one", 40, seed=1)


def test_the_test_rows_are_drawn_by_the_set_alone(data, monkeypatch):
    monkeypatch.setattr(first_run, "TEST_ROWS", 5)
    found = [draw(data, "one", rows, seed).test for rows, seed in ((10, 1), (20, 2))]
    assert found[0] == found[1] and len(found[0]) == 5


def test_what_a_contender_gets_holds_no_label_of_the_test(data, tmp_path):
    drawn = draw(data, "two", 10, seed=1)
    assert (drawn.metric, drawn.kind, drawn.truth()[:2]) == ("f1_micro", "several labels", ["a|b", ""])
    drawn.write(tmp_path)
    with (tmp_path / "train.csv").open() as file:
        assert list(csv.reader(file))[0] == ["sentence1", "sentence2", "labels"]
    with (tmp_path / "test.csv").open() as file:
        assert list(csv.reader(file))[1] == ["Text  NUMBER 3", "Text  NUMBER 3"]


@pytest.mark.parametrize(
    ("texts", "label", "values", "kind"),
    [
        (("text",), "label", ["1", "2"], "few classes"),
        (("text",), "label", ["1.0", "-2.5"], "numbers"),
        (("sentence1", "sentence2"), "label", ["1.0", "2.5"], "numbers"),
        (("sentence1", "sentence2"), "label", ["1.0", "v2.5"], "pairs"),
        (("text",), "label", [str(i) for i in range(20)], "many classes"),
        (("text",), "labels", ["1.0"], "several labels"),
    ],
)
def test_the_kind_of_a_set(texts, label, values, kind):
    assert first_run._kind(texts, label, [{label: value} for value in values]) == kind


# --------------------------------------------------------------------------------------------------------------- runs
def test_a_run_that_is_there_is_not_made_again(data, monkeypatch, capsys):
    """The small sizes come first, and a changed command is measured anew, without its rivals."""
    seen, output = [], data / "results.csv"

    def stand_in(args, key, drawn, output):
        seen.append(" ".join([key["rows"], key["seed"], key["set"], key["contender"], key["code"]]))
        if key["contender"] == "stock":
            return None  # it failed
        return key | {"metric": drawn.metric, "score": "0.5", "cpu_seconds": "1", "peak_mb": "2"}

    monkeypatch.setattr(first_run, "measure", stand_in)
    words = [
        "--data",
        str(data),
        "--output",
        str(output),
        "--sets",
        "two",
        "one",
        "--rows",
        "10",
        "20",
        "--seeds",
        "1",
    ]
    assert main([*words, "--contenders", "linear", "ours", "--code", "x"]) == 0
    assert seen[:4] == ["10 1 two linear 1", "10 1 two ours x", "10 1 one linear 1", "10 1 one ours x"]
    assert len(seen) == 8 and seen[4].startswith("20 1 two")
    assert main([*words, "--contenders", "linear", "ours", "--code", "x"]) == 0
    assert len(seen) == 8
    assert main([*words, "--contenders", "linear", "ours", "--code", "y"]) == 0
    assert seen[8:] == ["10 1 two ours y", "10 1 one ours y", "20 1 two ours y", "20 1 one ours y"]
    assert main([*words, "--contenders", "stock"]) == 1
    assert len(read_rows(output)) == 12
    with pytest.raises(SystemExit):
        main([*words, "--contenders", "theirs"])
    assert "--contenders are of linear, stock, setfit, ours, ours_last; found theirs" in capsys.readouterr().err


def test_setfit_runs_where_it_can(data, monkeypatch):
    seen = []
    monkeypatch.setattr(first_run, "measure", lambda args, key, drawn, output: seen.append(key["set"]))
    words = ["--data", str(data), "--output", str(data / "r.csv"), "--sets", "two", "one", "--contenders", "setfit"]
    main([*words, "--rows", "10", "--seeds", "1"])
    assert not seen  # without an interpreter
    main([*words, "--rows", "10", "--seeds", "1", "--setfit_python", "python"])
    assert seen == ["one"]  # of one text and one label
    monkeypatch.setattr(first_run, "SETFIT_ROWS", 9)
    main([*words, "--rows", "10", "--seeds", "1", "--setfit_python", "python"])
    assert seen == ["one"]


def test_the_largest_sizes_are_of_few_sets():
    args = first_run.Arguments(sets=["sst2", "cr"], rows=[1000, 4000], seeds=[1], contenders=["linear"])
    assert [(rows, name) for rows, _, name, _ in first_run.planned(args)] == [
        (1000, "sst2"),
        (1000, "cr"),
        (4000, "sst2"),
    ]


def test_what_a_process_took(tmp_path):
    """Memory of this process, which holds torch, does not count as the contender's."""
    program = (
        "import time\nwhile time.process_time() < 0.5: pass\nb'0' * 50_000_000\nprint('said')\nraise SystemExit(3)"
    )
    taken = metered([sys.executable, "-c", program], tmp_path)
    assert taken["status"] == 3 and 0.5 <= taken["cpu_seconds"] < 2 and 55 < taken["peak_mb"] < 150
    assert (tmp_path / "log").read_text() == "said\n"


def test_the_state_of_the_command_is_its_last_commit():
    assert len(first_run.code_of_command().rstrip("+")) >= 7


# ------------------------------------------------------------------------------------------------------------- rivals
def test_labels_as_numbers_and_words():
    several = rivals.Labels("f1_micro", ["b a", "", "b"])
    assert several.numbers.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert several.words(np.array([[1, 1], [0, 0]])) == ["a|b", ""]
    one = rivals.Labels("accuracy", ["z", "y", "z"])
    assert one.numbers.tolist() == [1, 0, 1] and one.words(np.array([0, 1])) == ["y", "z"]
    assert rivals.Labels("pearson", ["1.5", "2"]).words(np.array([0.25])) == ["0.2500"]


def test_a_pair_is_its_vectors_their_distance_and_their_product():
    class Encoder:
        def encode(self, texts, show_progress_bar):
            return np.array([[float(len(text)), 1.0] for text in texts])

    found = rivals.features(Encoder(), {"sentence1": ["ab", ""], "sentence2": ["abc", "a"]})
    assert found.tolist() == [[2, 1, 3, 1, 1, 0, 6, 1], [0, 1, 1, 1, 1, 0, 0, 1]]
    assert rivals.features(Encoder(), {"text": ["ab"]}).tolist() == [[2, 1]]


@pytest.mark.parametrize("metric", ["accuracy", "f1_micro", "pearson"])
def test_the_linear_model_takes_what_its_rows_offer(metric):
    """Also classes of one row, and a label that no row has."""
    vectors = np.random.default_rng(0).normal(size=(12, 3))
    labels = {"accuracy": np.arange(12) % 9, "f1_micro": np.eye(3)[np.arange(12) % 2], "pearson": vectors[:, 0]}
    model = rivals.tuned(metric, labels[metric]).fit(vectors, labels[metric])
    assert len(model.predict(vectors)) == 12
    if metric == "pearson":
        np.testing.assert_allclose(model.predict(vectors), vectors[:, 0], atol=0.01)


def test_the_steps_of_setfit():
    # 10 and 1 pairs are alike, each row with itself among them; 4 are not
    assert rivals.steps_an_epoch(np.array([0, 0, 0, 0, 1])) == 2  # 22 pairs in batches of 16
    assert rivals.steps_an_epoch(np.arange(10)) == 6  # 45 pairs that differ, twice


# ------------------------------------------------------------------------------------------------------------- scores
def test_scores_by_hand():
    assert score_of("accuracy", ["a", "b", "a"], ["a", "a", "a"]) == pytest.approx(2 / 3)
    # 2 hits of 3 true and 3 found labels
    assert score_of("f1_micro", ["a|b", "", "b"], ["a", "a", "b"]) == pytest.approx(4 / 6)
    assert score_of("f1_micro", ["", ""], ["", ""]) == 0
    assert score_of("pearson", ["1", "2", "3"], ["2.0", "4.0", "6.5"]) == pytest.approx(
        np.corrcoef([1, 2, 3], [2, 4, 6.5])[0, 1]
    )
    assert score_of("pearson", ["1", "2", "3"], ["0.1", "0.1", "0.1"]) == 0


def runs(*lines):
    """Rows and predictions of runs on four test rows, from (set, contender, seed, code, what is predicted)."""
    rows, predictions = [], {}
    for name, contender, seed, code, predicted in lines:
        key = (name, "100", seed, contender, code, "b")
        row = dict(zip(("set", "rows", "seed", "contender", "code", "backbone"), key, strict=True))
        more = {"group": "development", "kind": "pairs", "metric": "accuracy", "cpu_seconds": "8", "peak_mb": "9"}
        rows.append(row | more | {"versions": "v", "device": "d"})
        predictions[key] = list("yyyy"), list(predicted)
    return rows, predictions


def test_contenders_are_compared_over_the_seeds_that_they_share():
    lines = [("s", "ours", "1", "c", "yyyy"), ("s", "ours", "2", "c", "yyyn"), ("s", "linear", "1", "1", "yynn")]
    (cell,) = cells_of(*runs(*lines))
    assert (cell.score("ours"), cell.score("linear"), cell.best) == (100, 50, "linear")
    lines += [("s", "linear", "2", "1", "nnnn"), ("s", "setfit", "2", "1", "yyyn")]  # SetFit comes last
    (cell,) = cells_of(*runs(*lines))
    assert (cell.score("ours"), cell.score("linear"), cell.score("setfit")) == (87.5, 25, 75)
    assert (cell.gain("linear").points, cell.gain("setfit").points, cell.best) == (62.5, 0, "setfit")
    with pytest.raises(InputError, match="expected the predictions of s, 100, 1, ours, c, b"):
        cells_of(runs(*lines)[0], {})


def test_only_the_newest_state_of_the_command_counts():
    found = runs(
        ("s", "ours", "1", "old", "yyyy"), ("s", "linear", "1", "1", "yynn"), ("s", "ours", "1", "new", "ynnn")
    )
    assert cells_of(*found)[0].gain("linear").points == -25
    assert cells_of(*found, code="old")[0].gain("linear").points == 50


def test_an_interval_is_of_test_rows_drawn_for_both():
    right, wrong = "y" * 100, "n" * 100
    lines = [("s", "ours", "1", "c", right), ("s", "linear", "1", "1", wrong), ("s", "stock", "1", "1", right)]
    rows, predictions = runs(*lines)
    predictions = {key: (list(right), found) for key, (_, found) in predictions.items()}
    (cell,) = cells_of(rows, predictions)
    assert str(cell.gain("linear")) == "+100.0 [+100.0, +100.0]"
    assert str(cell.gain("stock")) == "+0.0 [+0.0, +0.0]"
    half = list("yn" * 50)
    predictions[tuple(rows[1][name] for name in ("set", "rows", "seed", "contender", "code", "backbone"))] = (
        list(right),
        half,
    )
    gain = cells_of(rows, predictions)[0].gain("linear")
    drawn = _counts("s", 100)
    _counts.cache_clear()
    assert (_counts("s", 100) == drawn).all()  # the draws depend on the set alone
    assert gain.points == 50 and gain.low == pytest.approx(40, abs=1.5) and gain.high == pytest.approx(60, abs=1.5)


# -------------------------------------------------------------------------------------------------------------- goals
def cell(name, rows, group, ours, linear, stock, seconds=(10.0, 10.0), kind="pairs"):
    """A cell whose interval of ours is one point to either side. The others have none."""
    scores = {
        "ours": {"1": np.array([ours, *[ours - 1, ours + 1] * 500])},
        "linear": {"1": np.full(1001, linear)},
        "stock": {"1": np.full(1001, stock)},
    }
    cpu = {"ours": seconds[0], "stock": seconds[1]}
    return Cell(name, rows, group, kind, scores, cpu, cpu, "c")


CELLS = [
    cell("one", 100, "development", 80.0, 79.0, 50.0, seconds=(121.0, 9.0)),
    cell("two", 1000, "development", 80.0, 70.0, 83.5, seconds=(14.0, 10.0)),
    cell("three", 100, "confirmation", 60.0, 59.5, 60.5),
    cell("three", 1000, "confirmation", 70.0, 68.5, 60.0, seconds=(5.0, 10.0)),
]


def test_the_goals():
    found = [[part.strip() for part in line.split("|")[1:-1]] for line in goals(CELLS).splitlines()[2:]]
    assert found[0][2:] == ["**not met**: 75.0% (3 of 4)", "**not met**: 50.0% (1 of 2)", "**met**: 100.0% (2 of 2)"]
    assert found[1][2:] == [
        "**not met**: -2.50 (two, 1,000)",
        "**not met**: -2.50 (two, 1,000)",
        "**met**: +0.50 (three, 100)",
    ]
    # linear is best on average: 1, 10, 0.5 and 1.5 below ours; stock 30, -3.5, -0.5 and 10
    assert found[2][2:] == [
        "**met**: +3.25 (over linear)",
        "**met**: +5.50 (over linear)",
        "**met**: +1.00 (over linear)",
    ]
    assert found[3][2] == "**not met**: 0.95 in all, highest 1.40 (two, 1,000)"
    assert found[3][4] == "**met**: 0.50 in all, highest 0.50 (three, 1,000)"
    assert found[4][2:] == ["**not met**: highest 121 (one, 100)"] * 2 + ["**met**: highest 10 (three, 100)"]
    assert goals([]).count("–") == 15


def test_means_are_over_the_cells_that_all_have():
    partial = cell("four", 100, "development", 10.0, 10.0, 10.0)
    del partial.scores["stock"]
    partial.scores["setfit"] = {"1": np.full(1001, 8.0)}
    text = means({"all": [*CELLS, partial]})
    assert "| linear | stock | ours | ours − linear | ours − stock | ours − setfit | ours − best |" in text
    assert "| all | 4 | 69.2 | 63.5 | 72.5 | +2.6 | +9.0 | +2.0 (1) | -0.3 |" in text


def test_the_page_is_made_of_the_files_alone(tmp_path, capsys):
    rows, predictions = runs(
        ("s", "ours", "1", "c", "yyyy"), ("s", "linear", "1", "1", "yynn"), ("s", "stock", "1", "1", "ynnn")
    )
    output, page = tmp_path / "first_run.csv", tmp_path / "FIRST_RUN.md"
    write_rows(output, rows)
    for row, (label, found) in zip(rows, predictions.values(), strict=True):
        Predictions(output).add(row, label, found)
    page.write_text("before\n" + "".join(marks("tables")) + "after\n")
    words = ["--table", "--output", str(output), "--backbone", "folder/b"]
    assert main(words) == 0
    assert not list((tmp_path / "first_run_waiting").iterdir()) and Predictions(output).read() == predictions
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert (
        "| s | development | 100 | 100.0 | +50.0 [+0.0, +100.0] | +75.0 [+25.0, +100.0] | – | – | linear 50.0 |"
        in text
    )
    assert (tmp_path / "first_run.png").stat().st_size > 5000
    first = (tmp_path / "first_run.png").read_bytes()
    assert main(words) == 0
    assert page.read_text() == text and (tmp_path / "first_run.png").read_bytes() == first
    with pytest.raises(SystemExit):
        main([*words[:-1], "another"])
    assert "expected results with another" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- few shots
def test_so_many_rows_of_each_class_in_the_order_of_the_draw(data):
    found = few_shots.draw(data, "one", 3, seed=1)
    assert sorted(row["label"] for row in found.train) == ["bad"] * 3 + ["good"] * 3
    whole = draw(data, "one", 39, seed=1).train
    assert found.train == [row for row in whole if row in found.train]
    assert found.test == draw(data, "one", 10, seed=2).test
    with pytest.raises(InputError, match="expected 20 rows of each class in .*one, found 19 of good"):
        few_shots.draw(data, "one", 20, seed=1)  # "text number 3" is a row of the test
    with pytest.raises(InputError, match="expected one class a row in .*two, found several labels"):
        few_shots.draw(data, "two", 3, seed=1)


def test_few_shots_go_on_and_are_shown_by_rows_a_class(data, tmp_path, monkeypatch, capsys):
    seen = []
    predicted = {"linear": ["good", "good", "good", "bad"] * 2, "setfit": ["bad"] * 8, "ours": ["good", "bad"] * 4}

    def stand_in(args, key, drawn, output):
        seen.append((key["contender"], len(drawn.train)))
        Predictions(output).add(key, drawn.truth(), predicted[key["contender"]])
        more = {"group": "development", "kind": "few classes", "metric": "accuracy", "score": "0.5"}
        return key | more | {"cpu_seconds": "3", "peak_mb": "2", "versions": "v", "device": "d"}

    monkeypatch.setattr(few_shots, "measure", stand_in)
    output, page = tmp_path / "few_shots.csv", tmp_path / "FIRST_RUN.md"
    page.write_text("before\n" + "".join(marks("few shots")) + "after\n")
    words = [f"--data={data}", f"--output={output}", "--sets", "one", "--seeds", "1", "--shots", "2", "3", "--code=c"]
    assert few_shots.main(words) == 0  # without SetFit's interpreter
    assert few_shots.main([*words, "--setfit_python=python"]) == 0
    assert seen == [("linear", 4), ("ours", 4), ("linear", 6), ("ours", 6), ("setfit", 4), ("setfit", 6)]
    assert few_shots.main(["--table", f"--output={output}"]) == 0
    text = page.read_text()
    # of the test rows, good and bad in turn, linear has three of four, setfit a half, ours all
    assert "| 2 | 1 | 75.0 | 50.0 | 100.0 | +25.0 | +50.0 | 3 | 3 | 3 |" in text
    assert "| one | 3 | 1 | 75.0 | 50.0 | 100.0 | +25.0 [" in text
    with pytest.raises(SystemExit):
        few_shots.main(["--table", f"--output={tmp_path / 'other.csv'}"])
    assert "expected results in" in capsys.readouterr().err


def test_a_mean_gain_has_an_interval_over_sets():
    cells = [cell(str(i), 100, "development", 80.0, 80.0 - gain, 50.0) for i, gain in enumerate((1.0, 2.0, 3.0))]
    # t of 2 degrees of freedom 4.303, times 1 / sqrt(3)
    assert few_shots.mean_gain(cells, "linear") == "+2.0 [-0.5, +4.5]"
    assert few_shots.mean_gain(cells[:1], "linear") == "+1.0"


@pytest.mark.slow
def test_the_contenders_run_on_small_data(data, monkeypatch):
    """Of the others, a stranger's environment is needed only for SetFit."""
    save_backbone(data / "backbone")
    monkeypatch.setattr(rivals, "TOKENS", 32)  # the most that it reads
    output = data / "first_run.csv"
    words = ["--data", str(data), "--output", str(output), "--backbone", str(data / "backbone"), "--seeds", "1"]
    contenders = ["--contenders", "linear", "stock", "ours", "ours_last", "--code", "now"]
    assert main([*words, "--sets", "one", "two", "--rows", "30", *contenders]) == 0
    rows = read_rows(output)
    assert len(rows) == 8 and {row["test_rows"] for row in rows} == {"8"}
    assert all(0 <= float(row["score"]) <= 1 and float(row["peak_mb"]) > 100 for row in rows)
    assert main(["--table", "--output", str(output), "--backbone", "backbone"]) == 0
