"""The command `compare`, on folders made by hand, whose numbers are worked out by hand, and on two trained runs."""

import csv
import json
import re
import shutil

import numpy as np
import pandas
import pytest

from lstmpool.compare import main, parse, run
from lstmpool.train_trainer import main as train

from ..damage import full_disk
from ..training_fixtures import count_outcomes, save_backbone, sentences, write_csv


SINGLE, REGRESSION = "single_label_classification", "regression"
TRUE = ["yes", "yes", "no", "no"]
THREE_RIGHT, TWO_RIGHT = ["yes", "yes", "no", "yes"], ["yes", "no", "no", "yes"]


def finished(
    folder, true=TRUE, predicted=THREE_RIGHT, ids=None, digest="same", task=SINGLE, settings=(), split="test"
):
    """A folder with what the command reads of a finished run."""
    folder.mkdir()
    rows = {"train": "of train", split: digest}
    record = {"settings": dict(settings), "rows": rows, "finished": True, "seconds": 12.4, "kept": "Epoch 2 was kept."}
    names = sorted(set(true)) if task == SINGLE else ["price"]
    right = float(np.mean([a == b for a, b in zip(true, predicted, strict=True)]))
    metrics = {
        "problem_type": task,
        "data": {"train": {"rows": 9, "labels": dict.fromkeys(names, 3)}, split: {"rows": len(true)}},
        "results": {split: {"accuracy": right, "ece": None} if task == SINGLE else {"mse": 1.0}},
        "intervals": {split: {"metric": "accuracy", "low": 0.25, "high": 0.875}} if task == SINGLE else {},
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    ids = [str(row) for row in range(len(true))] if ids is None else ids
    write_csv(folder / f"{split}_predictions.csv", {"id": ids, "prediction": predicted, "label": true})
    return folder


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Two folders, a with 3 of 4 rows right, and b with 2."""
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "a", settings={"seed": 1, "stages": "one", "layers": None})
    finished(tmp_path / "b", predicted=TWO_RIGHT, settings={"seed": 1, "stages": "two", "layers": [1, 2]})
    return tmp_path


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr("lstmpool.training.evaluation.differences.DRAWS", 20)


def compared(capsys, *words):
    """What is printed, as one line for each line of a table, with single spaces."""
    assert main(list(words)) == 0, capsys.readouterr().err
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def refused(capsys, *words):
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


# ---------------------------------------------------------------------------------------------------- numbers by hand
def test_two_runs_by_hand(pair, capsys):
    """One row of four is right in a alone. Of 4 rows drawn, it is there 0 to 3 times in the middle 95 % of draws:
    three times or more with a probability of 5.1 %, and four times with one of 0.4 %."""
    lines = compared(capsys, "a", "b")
    assert "accuracy 0.750 [0.250, 0.875] 0.500 [0.250, 0.875]" in lines  # with the intervals of metrics.json
    assert "b accuracy 0.750 0.500 -0.250 [-0.750, +0.000] not clear" in lines
    assert any(line.startswith("macro F1 0.733 0.500 -0.233 [") for line in lines)  # (4 / 5 + 2 / 3) / 2, and 1 / 2
    assert "calibration error undefined undefined" in lines
    assert {"rows 4 4", "seconds 12 12", "weights, MB none none", "a: Epoch 2 was kept."} <= set(lines)
    assert "Difference from a, on the same 4 rows of test:" in lines


def test_only_settings_that_differ_are_shown(pair, capsys):
    lines = compared(capsys, "a", "b")
    place = lines.index("setting a b")
    assert lines[place + 1 : place + 4] == ["layers unset [1, 2]", "stages one two", ""]
    other = json.loads((pair / "b" / "run.json").read_text())
    other["settings"] = {"seed": 1, "stages": "one", "layers": None}
    (pair / "b" / "run.json").write_text(json.dumps(other))
    assert "No setting differs." in compared(capsys, "a", "b")
    other["rows"]["train"] = "0123456789"
    (pair / "b" / "run.json").write_text(json.dumps(other))
    assert "train rows 9 (of tra) 9 (012345)" in compared(capsys, "a", "b")


def test_what_was_chosen_for_the_layer_pooling_is_named(tmp_path, monkeypatch, capsys, few_draws):
    monkeypatch.chdir(tmp_path)
    choices = {"a": ("last", [3], 0.016), "b": ("lstm", [1, 2, 3], None)}
    for name, (pooling, layers, rate) in choices.items():
        folder = finished(tmp_path / name, settings={"layer_pooling": "auto"})
        choice = {"chosen": pooling, "layers": layers, "head_learning_rate": rate}
        _changed("metrics.json", layer_pooling=choice)(folder)
    finished(tmp_path / "c", settings={"layer_pooling": "gru"})
    finished(tmp_path / "d", settings={"layer_pooling": "auto"})
    (line,) = [line for line in compared(capsys, *"abcd") if line.startswith("layer_pooling ")]
    assert line == "layer_pooling auto: last of layers [3] at the rate 0.016 auto: lstm gru auto: not recorded"


def test_each_run_is_compared_with_the_one_that_is_named(pair, capsys):
    shutil.copytree(pair / "b", pair / "c")
    lines = compared(capsys, "a", "b", "c", "--against", "b")
    assert "a accuracy 0.500 0.750 +0.250 [+0.000, +0.750] not clear" in lines
    assert "c accuracy 0.500 0.500 +0.000 none not clear" in lines
    (note,) = (line for line in lines if "at once" in line)
    assert note.startswith("2 runs were compared with b at once.") and note.endswith("up to 10%.")


def test_what_speaks_in_every_row_is_clear_unless_rows_are_few(tmp_path, capsys, few_draws):
    for rows, better in ((5, "not clear"), (6, "a")):
        true = ["yes", "no", *["yes"] * (rows - 2)]
        wrong = [{"yes": "no", "no": "yes"}[label] for label in true]
        folders = [finished(tmp_path / str(rows), true, true), finished(tmp_path / f"b{rows}", true, wrong)]
        folders[0] = folders[0].rename(tmp_path / "a")
        lines = compared(capsys, *map(str, folders))
        assert f"b{rows} accuracy 1.000 0.000 -1.000 none {better}" in lines
        shutil.rmtree(tmp_path / "a")
    for name, error in (("far", 2), ("near", 1)):
        finished(tmp_path / name, [*range(6)], [number + error for number in range(6)], task=REGRESSION)
    assert "near MSE 4.000 1.000 -3.000 none near" in compared(capsys, str(tmp_path / "far"), str(tmp_path / "near"))


# ------------------------------------------------------------------------------------------------------ the same rows
def test_rows_in_another_order_are_matched_by_their_ids(pair, capsys):
    ids = ["p", "q", "r", "s"]
    finished(pair / "c", ids=ids)
    finished(pair / "d", TRUE[::-1], TWO_RIGHT[::-1], ids[::-1], digest="of another order")
    lines = compared(capsys, "c", "d")
    assert "d accuracy 0.750 0.500 -0.250 [-0.750, +0.000] not clear" in lines
    assert any(
        "not the same in all runs. Rows were matched by their ids; their true labels agree." in x for x in lines
    )


def test_other_rows_are_never_compared_in_silence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    true, ids = ["yes", "no"] * 12, [f"row {i}" for i in range(24)]
    right = [label if i else "no" for i, label in enumerate(true)]  # the first row is wrong
    finished(tmp_path / "a", true, right, ids)
    finished(tmp_path / "b", true[1:22], right[1:22], ids[1:22], digest="21")
    finished(tmp_path / "few", true[:19], right[:19], ids[:19], digest="19")
    finished(tmp_path / "numbers", true[:21], true[:21], digest="numbers")
    finished(tmp_path / "all_numbers", true, right)
    finished(tmp_path / "labels", true[:22] + ["yes", "yes"], right, ids, digest="other")
    finished(tmp_path / "twice", true, right, [*ids[:23], "row 0"], digest="other")
    lines = compared(capsys, "a", "b")
    assert "b accuracy 1.000 1.000 +0.000 none not clear" in lines  # the row that a has wrong is not in b
    assert "Difference from a, on the same 21 rows of test:" in lines
    (note,) = (
        line for line in lines if line.startswith("Not all runs have the same rows of test: a has 24, b has 21.")
    )
    assert "on the 21 rows that all have by their ids" in note
    assert "which all have 19 by their ids, too few" in refused(capsys, "a", "few")
    assert "no ids but their numbers" in refused(capsys, "all_numbers", "numbers")
    assert "found other ones in 1 of 24 rows of a and labels, first in the row 'row 23'" in refused(
        capsys, "a", "labels"
    )
    assert "found 'row 0' twice in twice" in refused(capsys, "a", "twice")


def test_validation_serves_where_no_run_has_test_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        finished(tmp_path / name, split="validation", settings={"load_best_model_at_end": True})
    (tmp_path / "b" / "hp_search.csv").touch()
    finished(tmp_path / "c")
    lines = compared(capsys, "a", "b")
    assert "Difference from a, on the same 4 rows of validation:" in lines
    assert any(line.startswith("Epochs were chosen on these rows, so the numbers") for line in lines)
    assert any(line.startswith("A search has chosen the settings of b") for line in lines)
    assert "measured on test, found a measured on validation. Leave it out." in refused(capsys, "a", "c")
    assert "measured on test, found a measured on validation." in refused(capsys, "a", "b", "--split=test")


def test_folds_are_compared_on_their_rows_out_of_fold(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, predicted in (("a", THREE_RIGHT), ("b", TWO_RIGHT)):
        folder = finished(tmp_path / name, settings={"cv_folds": 2})
        finished(folder / "fold-1", split="validation")
        finished(folder / "fold-2", split="validation")
        metrics = {"problem_type": SINGLE, "results": {"fold 1": {}, "out of fold": {"accuracy": 0.5}}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        table = {"id": [1, 2, 3, 4], "prediction": predicted, "fold": [1, 2, 1, 2], "label": TRUE}
        pandas.DataFrame(table).to_parquet(folder / "oof.parquet")
    lines = compared(capsys, "a", "b", "--split=oof")
    assert "Difference from a, on the same 4 rows of training, out of fold:" in lines
    assert "b accuracy 0.750 0.500 -0.250 [-0.750, +0.000] not clear" in lines
    assert "seconds 25 25" in lines and "rows 13 13" in lines  # of both folds, and 9 that train one beside 4 held out


# ---------------------------------------------------------------------------------------------------- what is refused
def _write(name, text):
    return lambda folder: (folder / name).write_text(text)


def _changed(name, **changes):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


TABLE = "test_predictions.csv"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_changed("run.json", finished=False), "found a run in b that was cut off. Give its command once more"),
        (lambda folder: (folder / "run.json").unlink(), "found no run.json in b"),
        (_write("run.json", "{"), "found in b a run.json that no run has written so"),
        (lambda folder: (folder / "metrics.json").unlink(), "expected b/metrics.json, found nothing there"),
        (_write("metrics.json", '{"results"'), "b/metrics.json cannot be read: Expecting"),
        (_changed("run.json", settings={"cv_folds": 10**9}), "expected the folders of 1000000000 folds in b, found 0"),
        (_changed("metrics.json", problem_type=[]), "it does not hold a problem_type"),
        (_changed("metrics.json", results={"test": {"accuracy": 10**400}}), "it does not hold a problem_type"),
        (_write("metrics.json", "[]"), "it does not hold a problem_type and the results of splits"),
        (_changed("metrics.json", results={"test": {"accuracy": "high"}}), "it does not hold a problem_type"),
        (
            _changed("metrics.json", data={"test": {"labels": None}}),
            "b has no rows with labels, so there is nothing to compare",
        ),
        (_changed("metrics.json", results={}), "found b measured on no split. Leave it out"),
        (_changed("run.json", digests={TABLE: "0"}), f"b is not whole: {TABLE} is not what was written"),
        (lambda folder: (folder / TABLE).unlink(), f"expected b/{TABLE} or .parquet, found neither"),
        (_write(TABLE, "id,prediction\n0,yes\n"), "lacks the column 'label' of true labels, as in earlier releases"),
        (_write(TABLE, "id,label\n0,yes\n"), "lacks the column 'prediction'"),
        (
            _write(TABLE, "id,prediction,label\n0,maybe,yes\n"),
            "row 1, prediction: expected one of no, yes, found 'maybe'",
        ),
        (_write(TABLE, 'id,prediction,label\n0,"yes,yes\n'), "not valid CSV"),
        (_write("model.safetensors", "no weights"), "b/model.safetensors cannot be read"),
        (_changed("metrics.json", problem_type="regression"), f"found {SINGLE} in a and regression in b"),
        (
            _changed("metrics.json", data={"test": {"labels": {"no": 1, "never": 2}}}),
            "found yes only in a and never only in b",
        ),
        (shutil.rmtree, "found nothing at b"),
    ],
)
def test_a_folder_that_does_not_serve_is_one_line(pair, capsys, damage, message):
    damage(pair / "b")
    assert message in refused(capsys, "a", "b")


def test_words_that_cannot_be_right_are_one_line(pair, capsys):
    (pair / "there.md").write_text("of mine")
    (pair / "folder.md").mkdir()
    for words, message in (
        (["a"], "expected two or more folders of finished runs, found 1"),
        (["a", "b", "./a"], "found the folder a twice"),
        (["a", "b", "--against", "bb"], "--against bb: expected one of a, b. Did you mean 'b'?"),
        (["a", "there.md"], "found the file there.md"),
        ([".", "b"], "Did you mean the folders in it, such as a?"),
        (["a", "b", "--agains", "b"], "unknown flag --agains. Did you mean '--against'?"),
        (["a", "b", "--split", "train"], "invalid choice: 'train'"),
        (["a", "b", "--overwrite"], "--overwrite is about a file"),
        (["a", "b", "--output", "x.txt"], "--output x.txt must end in .md, .csv, .json"),
        (["a", "b", "--output", "folder.md"], "is a folder. Name a file in it"),
        (["a", "b", "--output", "no/x.md"], "there is no folder no"),
        (["a", "b", "--output", "a/run.json", "--overwrite"], "a/run.json lies in the folder of a run, which stays"),
        (["a", "b", "--output", "a/new.md"], "a/new.md lies in the folder of a run, which stays as it is"),
        (["a", "b", "--output", "there.md"], "there.md exists already. Choose another name, or add --overwrite."),
        (["a", "b\n"], "expected words without control characters"),
    ):
        assert message in refused(capsys, *words), words
    assert (pair / "there.md").read_text() == "of mine"


def test_damaged_files_are_never_a_traceback(pair, few_draws):
    whole = {path.name: path.read_bytes() for path in (pair / "b").iterdir()}

    def damaged(name, content):
        for each, before in whole.items():
            (pair / "b" / each).write_bytes(before)
        (pair / "b" / name).write_bytes(content)
        run(parse(["a", "b"]))

    cases = []
    for name, content in whole.items():
        contents = [content[:size] for size in range(0, len(content), max(1, len(content) // 8))]
        contents += [content.replace(b"yes", b"\xff"), content.replace(b"3", b"null"), content.replace(b":", b":[")]
        contents += [
            content.replace(b'"test": {', b'"test": [{'),
            content.replace(b"e", b"\0"),
            b"null",
            b"[" * 100_000,
        ]
        cases += [(name, lambda name=name, each=each: damaged(name, each)) for each in contents]
    assert not [name for name in count_outcomes("compare", cases) if "Error" in name]


# ----------------------------------------------------------------------------------------------------------- the file
def test_the_file_holds_what_is_printed(pair, capsys):
    odd = finished(pair / "=1+1 <b>|", predicted=TWO_RIGHT, settings={"stages": "=cmd()"}).name
    for ending in ("md", "csv", "json"):
        compared(capsys, "a", odd, f"--output=x.{ending}")
    page = (pair / "x.md").read_text()
    assert r"| `=1+1 <b>\|` | accuracy | 0.750 | 0.500 | -0.250 | [-0.750, +0.000] | not clear |" in page
    assert "<b>" not in re.sub("`[^`]*`", "", page)
    numbers = json.loads((pair / "x.json").read_text())
    assert list(numbers["differences"][odd]["accuracy"].values()) == [0.75, 0.5, -0.25, -0.75, 0.0]
    assert numbers["runs"]["a"]["interval"] == [0.25, 0.875] and numbers["rows"] == 4
    with (pair / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (row,) = (row for row in rows if row["about"] == "difference from a" and row["name"] == "accuracy")
    assert (row["run"], float(row["value"]), float(row["low"])) == (f"'{odd}", -0.25, -0.75)
    assert "'=cmd()" in [row["value"] for row in rows]  # which no spreadsheet runs
    compared(capsys, "a", "b", "--output=x.md", "--overwrite")
    assert (pair / "x.md").read_text() != page


def test_a_full_disk_leaves_no_half_file(pair, capsys):
    (pair / "x.json").write_text("of before")
    with full_disk(500):
        assert "x.json cannot be written" in refused(capsys, "a", "b", "--output=x.json", "--overwrite")
    assert (pair / "x.json").read_text() == "of before"
    assert not list(pair.glob(".*"))


# --------------------------------------------------------------------------------------------------- two trained runs
def test_two_trained_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_backbone(tmp_path / "backbone")
    for split, n in (("train", 24), ("validation", 12), ("test", 16)):
        write_csv(tmp_path / f"{split}.csv", {"text": sentences(n), "label": [["yes", "no"][i % 2] for i in range(n)]})
    words = [f"--{split}_file={split}.csv" for split in ("train", "validation", "test")]
    words += ["--backbone=backbone", "--lstm_hidden_size=4", "--use_cpu", "--disable_tqdm=True", "--report_to=none"]
    words += ["--max_steps=3", "--stages=one", "--baselines=False", "--show_errors=False"]
    assert train([*words, "--output_dir=a"]) == 0
    assert train([*words, "--output_dir=b", "--seed=7", "--predictions_format=parquet"]) == 0
    capsys.readouterr()
    compared(capsys, "a", "b", "--output=x.json")
    found = json.loads((tmp_path / "x.json").read_text())
    assert set(found["settings"]) == {"seed"} and found["rows"] == 16
    for name in ("a", "b"):
        results = json.loads((tmp_path / name / "metrics.json").read_text())["results"]["test"]
        run = found["runs"][name]
        assert run["results"] == results and run["seconds"] > 0 and "kept" in run["kept"]
        assert run["weights_bytes"] == (tmp_path / name / "model.safetensors").stat().st_size
        assert 4 * run["parameters"] < run["weights_bytes"]
        for metric, numbers in found["differences"]["b"].items():
            assert numbers["other" if name == "a" else "this"] == pytest.approx(results[metric], abs=1e-6), metric
    assert set(found["differences"]["b"]) == set(results) - {"ece", "roc_auc", "average_precision"}
