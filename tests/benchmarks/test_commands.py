"""The benchmarks: what a round is, that they go on where they stopped, and what their tables say."""

import pkgutil
from types import SimpleNamespace

import pytest
import torch

from lstmpool.benchmarks import export, flops, label_issues, loading, many_rows, memory, prediction, speed, summary
from lstmpool.benchmarks.first_run import Draw
from lstmpool.benchmarks.loading import COMPARED as LOADING
from lstmpool.benchmarks.prediction import COMPARED as PREDICTION
from lstmpool.benchmarks.results import HERE, marks, read_rows, write_rows
from lstmpool.benchmarks.rounds import Arguments, Comparison

from ..training_fixtures import save_backbone, sentences, write_csv


SECONDS = {("a", "ours"): 1.0, ("a", "theirs"): 4.0, ("b", "ours"): 3.0, ("b", "theirs"): 2.0}


def test_rounds_take_turns_and_are_not_repeated(tmp_path, capsys):
    seen, output = [], tmp_path / "results.csv"

    def measure(args, subject, variant):
        seen.append((subject, variant))
        return SECONDS[subject, variant]

    pair = Comparison("pair", ("a", "b"), ("ours", "theirs"))
    for rounds in (1, 2):
        assert pair.main(Arguments, measure, "", [f"--rounds={rounds}", f"--output={output}"]) == 0
    first = [("a", "ours"), ("a", "theirs"), ("b", "ours"), ("b", "theirs")]
    assert seen == first + [first[1], first[0], first[3], first[2]]
    out = capsys.readouterr().out
    assert "| a | ours | 2 | 1 | 0.250 [0.250, 0.250] |\n| a | theirs | 2 | 4 |  |" in out
    assert pair.over_base(read_rows(output), "b", "ours") == (1.5, 1.5, 1.5)
    assert pair.over_base([], "b", "ours") is None


def test_a_command_on_data_asks_for_it(tmp_path, capsys):
    with pytest.raises(SystemExit):
        prediction.main([f"--output={tmp_path / 'results.csv'}"])
    assert "expected --data" in capsys.readouterr().err


@pytest.fixture
def data(tmp_path):
    for name in ("movie_reviews", "cr"):
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name / "test.csv", {"text": sentences(12), "label": [i % 2 for i in range(12)]})
    save_backbone(tmp_path / "backbone")
    return tmp_path


def test_all_predict_the_same_texts(data):
    texts = prediction.mixed_texts(data, 20)
    assert len(texts) == 20 and texts == prediction.mixed_texts(data, 20)
    found = {}
    for variant in prediction.COMPARED.variants:
        torch.manual_seed(0)  # the same new layers
        found[variant] = prediction.predictor(variant, str(data / "backbone"))(texts)
    scores = torch.tensor(found["predict"]).softmax(-1).amax(-1)
    torch.testing.assert_close(scores.float(), torch.tensor([row["score"] for row in found["pipeline, lstmpool"]]))
    assert len(found["pipeline, stock class"]) == 20


@pytest.mark.slow
@pytest.mark.parametrize("command", [prediction, loading])
def test_a_command_runs_on_small_data(command, data):
    words = [] if command is loading else [f"--data={data}", f"--backbone={data / 'backbone'}"]
    output = data / "results.csv"
    assert command.main([*words, "--rounds=1", f"--output={output}"]) == 0
    rows = read_rows(output)
    assert len(rows) == len(command.COMPARED.subjects) * len(command.COMPARED.variants)
    assert all(float(row["seconds"]) > 0 for row in rows)


PRINTED = "Task: ...\nPHASE,tokens,1.50,700\nPHASE,all before the first step,4.25,900\n"


def test_what_many_rows_take_is_read_from_the_lines_of_a_run_and_not_measured_again(tmp_path, monkeypatch, capsys):
    assert all(pkgutil.resolve_name(place) for place in many_rows.PHASES)
    runs, output = [], tmp_path / "results.csv"

    def stand_in(words, **options):
        (file,) = [word.partition("=")[2] for word in words if word.startswith("--train_file=")]
        with open(file, encoding="utf-8") as lines:
            runs.append(sum(1 for _ in lines) - 1)
        return SimpleNamespace(stdout=PRINTED if runs[-1] > 3 else "no rows", stderr="broken", returncode=0)

    monkeypatch.setattr(many_rows.subprocess, "run", stand_in)
    for rows in (5, 7, 5):
        assert many_rows.main([f"--rows={rows}", f"--output={output}"]) == 0
    assert runs == [5, 7]
    assert "| 7 | tokens | 1.50 | 700 |\n| 7 | all before the first step | 4.25 | 900 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no rows\nbroken\nthe command ended with status 0"):
        many_rows.main(["--rows=2", f"--output={output}"])


@pytest.mark.slow
def test_many_rows_are_measured_up_to_the_first_step(data):
    output = data / "results.csv"
    assert many_rows.main(["--rows=600", f"--backbone={data / 'backbone'}", f"--output={output}"]) == 0
    rows = read_rows(output)
    assert [row["phase"] for row in rows] == [*many_rows.PHASES.values(), many_rows.WHOLE]
    seconds = [float(row["seconds"]) for row in rows]
    assert min(seconds) >= 0 and sum(seconds[:-1]) <= seconds[-1]
    assert all(float(row["megabytes"]) > 50 for row in rows)


def test_the_table_of_graphs_has_a_line_a_cell_and_what_int8_loses(monkeypatch):
    monkeypatch.setattr(export, "versions", lambda *packages: "1")  # those of an extra may not be installed
    times = {"torch": 8, "onnx": 4, "onnx int8": 2, "stock torch": 8, "stock onnx": 5, "stock onnx int8": 1}
    timed = [("1x64", variant, seconds) for variant, seconds in times.items()]
    timed += [("1x16", "torch", 3), ("1x16", "optimum onnx", 2)]  # of another run, and a smaller cell
    rows = [
        export.row_of(cell, variant, threads="1", round=str(number), seconds=str(seconds))
        for number in (1, 2)
        for cell, variant, seconds in timed
    ]
    files = [{"bytes": 10e6, "agreement": 1.0, "metric": 0.9}, {"bytes": 2.5e6, "agreement": 0.98, "metric": 0.887}]
    rows += export.rows_of("trec6", {"rows": {"title": "5 rows", "accuracy": 0.9}, "files": files})
    text = export.table(rows)
    one, four = "1.00 [1.00, 1.00]", "4.00 [4.00, 4.00]"
    eight = "8.00 [8.00, 8.00]"
    lines = [
        "| 1x16 | 3000.0 | – | – | – | – | – | 1.50 [1.50, 1.50] |",
        f"| 1x64 | 8000.0 | 2.00 [2.00, 2.00] | {four} | {one} | 1.60 [1.60, 1.60] | {eight} | – |",
    ]
    assert "\n".join(lines) in text
    assert "| trec6 | 90.00 | 90.00 | 88.70 | 98.00 | 0.250 |" in text
    assert "On average int8 loses 1.30 points, at most 1.30." in text


@pytest.mark.slow
def test_graphs_are_timed_once_a_cell(data):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    output = data / "results.csv"
    words = [f"--backbone={data / 'backbone'}", "--cells", "2x8", "--threads", "1", "--rounds=2", f"--output={output}"]
    for _ in range(2):
        assert export.main(words) == 0
    rows = read_rows(output)
    made = [name for name in export.VARIANTS if name != export.OPTIMUM]
    assert sorted(row["variant"] for row in rows) == sorted(made * 2)
    words = [word.replace("2x8", "1x8") for word in words]
    graphs = export.write_graphs(export.models_of(str(data / "backbone")), data)
    assert export.main([*words, f"--optimum={graphs['stock onnx']}"]) == 0
    assert {row["variant"] for row in read_rows(output) if row["subject"] == "1x8"} == {*export.VARIANTS}


# --------------------------------------------------------------------------------------- rows that look mislabelled
def drawn_rows(labels, column="label"):
    rows = [{"text": text, column: label} for text, label in zip(sentences(len(labels)), labels, strict=True)]
    return Draw(rows, [], ("text",), column, "few classes")


def test_one_label_in_twenty_is_changed_to_another_one():
    drawn = drawn_rows(["a", "b", "c", "d"] * 10)
    changed = label_issues.change_labels(drawn, seed=1)
    other = {i for i, row in enumerate(drawn.train) if row["label"] != "abcd"[i % 4]}
    assert other == changed.keys() and len(changed) == 2
    again = drawn_rows(["a", "b", "c", "d"] * 10)
    assert label_issues.change_labels(again, seed=1) == changed and again.train == drawn.train


def test_of_several_labels_one_is_changed_added_or_left_out():
    drawn = drawn_rows(["a b", "c", ""] * 100, "labels")
    more = {"another": 0, "added": 1, "missing": -1}
    slips = set()
    for number, slip in label_issues.change_labels(drawn, seed=1).items():
        before, after = ({"a", "b"}, {"c"}, set())[number % 3], set(drawn.train[number]["labels"].split())
        slips.add((len(before), slip))
        assert len(after) == len(before) + more[slip] and len(after - before) == (slip != "missing")
    assert slips == {(2, "another"), (2, "added"), (2, "missing"), (1, "another"), (1, "added"), (0, "added")}


def test_slips_are_counted_over_all_seeds():
    assert label_issues.by_slip([7, 1, 2], {1: "added", 2: "added", 3: "another"}) == (
        "another 0/1 added 2/2 missing 0/0"
    )
    key = {"set": "s", "contender": "plain"}
    rows = [
        key | {"by_slip": cell} for cell in ("another 1/2 added 2/2 missing 0/1", "another 2/2 added 1/2 missing 0/2")
    ]
    line = "| s | cleanlab on a logistic regression | 0.750 of 4 | 0.750 of 4 | 0.000 of 3 |"
    assert line in label_issues.slips_table([*rows, key | {"by_slip": ""}])
    assert label_issues.slips_table([key | {"by_slip": ""}]) == ""


def test_a_list_is_scored_by_the_changed_rows_in_it():
    found = label_issues.scores([4, 9, 7, 1], {4, 7, 5})
    assert found == {"precision": "0.5000", "recall": "0.6667", "average_precision": "0.5556"}  # (1 + 2 / 3 + 0) / 3
    assert set(label_issues.scores([], {1}).values()) == {"0.0000"}


def test_contenders_look_once_and_their_means_are_shown(tmp_path, monkeypatch, capsys):
    seen, output = [], tmp_path / "label_issues.csv"

    def stand_in(contender, backbone, drawn):
        seen.append(contender)
        return None if contender == "folds" else ([0, 1], 3.0)

    monkeypatch.setattr(label_issues, "draw", lambda data, name, rows, seed: drawn_rows(["a", "b"] * 20))
    monkeypatch.setattr(label_issues, "change_labels", lambda drawn, seed: {0, 1} if seed == 1 else {1, 2})
    monkeypatch.setattr(label_issues, "look", stand_in)
    monkeypatch.setattr(label_issues, "versions", lambda *packages: "1")  # cleanlab may not be installed
    words = ["--data=d", "--sets", "trec6", "--rows=40", f"--output={output}"]
    assert [label_issues.main(words) for _ in range(2)] == [1, 1]
    assert seen == [*label_issues.CONTENDERS] * 2 + ["folds"] * 2  # what failed is tried again
    with pytest.raises(SystemExit):
        label_issues.main([*words, "--contenders", "fold"])
    assert "invalid choice: 'fold'" in capsys.readouterr().err
    (tmp_path / "LABELS.md").write_text("".join(marks("label_issues")))
    assert label_issues.main(["--table", f"--output={output}"]) == 0
    line = "| trec6, few classes | `--find_label_issues` | 2 | 2 | 0.750 | 0.750 | 0.625 | 3 |"  # (1 + 1 / 4) / 2
    assert line in capsys.readouterr().out and line in (tmp_path / "LABELS.md").read_text()


@pytest.mark.slow
def test_rows_that_look_mislabelled_are_listed_by_the_command(data):
    pytest.importorskip("cleanlab", reason="the extra cleanlab is not installed")
    drawn = drawn_rows(["a" if i % 16 < 8 else "b" for i in range(48)])
    for contender in label_issues.FLAGS:
        listed, seconds = label_issues.look(contender, str(data / "backbone"), drawn)
        assert len(set(listed)) == len(listed) and set(listed) <= set(range(48)) and seconds > 0


def test_the_page_of_labels_shows_the_results_that_are_kept():
    page, rows = (HERE / "LABELS.md").read_text(encoding="utf-8"), read_rows(HERE / "label_issues.csv")
    assert "python -m lstmpool.benchmarks.label_issues" in page
    assert label_issues.table(rows).strip() in page


TABLES = {
    "memory": memory.MEMORY.table,
    "flops": flops.FLOPS.table,
    "speed": speed.table,
    "prediction": PREDICTION.table,
    "loading": LOADING.table,
    "many_rows": many_rows.table,
    "export": export.table,
}


def test_the_verdict_on_a_bound():
    fine, close, noisy, slow = (
        (0.9, 0.8, 1.0, "a"),
        (1.03, 1.01, 1.05, "b"),
        (1.02, 1.0, 1.3, "c"),
        (1.1, 1.04, 1.2, "d"),
    )
    assert summary.line("time", 1.02, [fine])[0][-2:] == ["0.900 [0.800, 1.000]", "met"]
    assert summary.line("time", 1.02, [fine, close])[0][1:] == ["b", "1.02", "1.030 [1.010, 1.050]", "within noise"]
    assert summary.line("time", 1.02, [noisy])[0][-1] == "met"
    assert summary.line("time", 1.02, [close, slow, fine])[0][1:] == ["d", "1.02", "1.100 [1.040, 1.200]", "missed"]
    above = (1.05, 1.01, 1.09, "f")  # a higher number, which noise explains
    slower = (1.04, 1.03, 1.05, "g")
    assert summary.line("time", 1.02, [above, slower])[0][1:] == ["g", "1.02", "1.040 [1.030, 1.050]", "missed"]
    assert summary.line("bytes", 1.02, [(1.001, 1.001, 1.001, "e")])[0][-2:] == ["1.001", "met"]
    assert summary.line("time", 1.02, []) == []


def test_each_line_reads_the_cells_that_it_is_about(tmp_path):
    place = {"shape": "12x768", "batch": "8", "tokens": "512", "mode": "inference"}
    counts = [("backbone", 100), ("stock", 50), ("lstmpool", 101)]
    short = [
        {**place, "tokens": "32", "variant": v, "peak_bytes": str(n)} for v, n in (("backbone", 1), ("lstmpool", 9))
    ]
    rows = [{**place, "variant": variant, "peak_bytes": str(count)} for variant, count in counts]
    trained = [
        {**place, "mode": "training", "variant": v, "peak_bytes": n} for v, n in (("stock", "50"), ("lstmpool", "49"))
    ]
    write_rows(tmp_path / "memory.csv", [*rows, *short, *trained])
    counted = [(6, "inference", 91), (6, "training", 103), (12, "inference", 102), (12, "training", 100)]
    write_rows(
        tmp_path / "flops.csv",
        [
            {**place, "shape": f"{layers}x8", "mode": mode, "variant": v, "flops": str(n)}
            for layers, mode, count in counted
            for v, n in (("stock", 100), ("lstmpool", count), ("backbone", 1), ("lstmpool, two thirds", 200))
        ],
    )
    times = [("lstmpool", 1.5, "32", "inference"), ("lstmpool", 0.95, "128", "inference")]
    times += [("lstmpool, two thirds", 0.8, "128", "inference"), ("lstmpool", 1.02, "128", "training")]
    write_rows(
        tmp_path / "speed.csv",
        [
            {**place, "variant": name, "tokens": tokens, "ratio": str(r), "low": str(r - 0.01), "high": str(r + 0.01)}
            | {"mode": mode}
            for name, r, tokens, mode in times
        ],
    )
    runs = {
        "prediction": [
            ("movie_reviews with cr", "predict", 1),
            ("movie_reviews with cr", "pipeline, lstmpool", 2),
        ],
        "loading": [
            ("load", "lstmpool", 3),
            ("load", "stock", 2),
            ("load again", "lstmpool", 1),
            ("load again", "stock", 1),
        ],
    }
    for name, found in runs.items():
        write_rows(
            tmp_path / f"{name}.csv",
            [{"subject": subject, "variant": v, "round": "1", "seconds": str(s)} for subject, v, s in found],
        )
    assert summary.table(tmp_path).splitlines()[2:] == [
        "| inference of 512 tokens, 12 layers, peak memory over the bare backbone | 12x768, 8 x 512 | 1.02 | 1.010 "
        "| met |",
        "| inference, FLOPs over the stock class, 6 layers | 6x8, 8 x 512 | 1.01 | 0.910 | met |",
        "| inference, FLOPs over the stock class, 12 layers | 12x8, 8 x 512 | 1.01 | 1.020 | missed |",
        "| training step, FLOPs over the stock class, 6 layers | 6x8, 8 x 512 | 1.01 | 1.030 | missed |",
        "| training step, FLOPs over the stock class, 12 layers | 12x8, 8 x 512 | 1.01 | 1.000 | met |",
        "| inference, time over the stock class | 12x768, 8 x 128 | 1.02 | 0.950 [0.940, 0.960] | met |",
        "| training step, time over the stock class | 12x768, 8 x 128 | 1.03 | 1.020 [1.010, 1.030] | met |",
        "| training step, peak memory over the stock class | 12x768, 8 x 512 | 1.03 | 0.980 | met |",
        "| inference with two thirds of the layers, time over the whole stock class | 12x768, 8 x 128 | 0.70 | "
        "0.800 [0.790, 0.810] | missed |",
        "| prediction over `pipeline(batch_size=32)` | movie_reviews with cr | 0.50 | 0.500 | met |",
        "| loading a folder over the stock class | load | 1.10 | 1.500 | missed |",
        "| the same once more, in the same process | load again | 1.10 | 1.000 | met |",
    ]


@pytest.mark.parametrize("name", TABLES)
def test_the_page_shows_the_results_that_are_kept(name):
    page, rows = (HERE / "SPEED.md").read_text(encoding="utf-8"), read_rows(HERE / f"{name}.csv")
    assert f"python -m lstmpool.benchmarks.{name}" in page
    if rows:
        assert f"\n{TABLES[name](rows).strip()}\n" in page
    else:
        assert f"<!-- {name}: made by --table -->\n\nNot measured yet.\n" in page


def test_the_page_shows_the_bounds():
    assert f"\n{summary.table().strip()}\n" in (HERE / "SPEED.md").read_text(encoding="utf-8")


def test_the_readme_shows_three_lines_of_them():
    assert f"\n{summary.short_table().strip()}\n" in summary.README.read_text(encoding="utf-8")
    assert len(summary.short_table().splitlines()) == 2 + 3


def test_a_line_of_the_readme_is_the_worst_of_its_cells(tmp_path):
    place = {"shape": "6x384", "batch": "1", "mode": "inference", "variant": "lstmpool"}
    times = [("128", "1.01"), ("512", "1.25"), ("256", "1.10")]
    rows = [{**place, "tokens": tokens, "ratio": r, "low": r, "high": r} for tokens, r in times]
    write_rows(tmp_path / "speed.csv", rows)
    assert summary.short_table(tmp_path).splitlines()[2:] == [
        "| inference, time over the stock class | 6x384, 1 x 512 | 1.250 |"
    ]
