"""The study is a room of the checkout: its pages say what its results say, and its store loses no run."""

import ast
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest
from setuptools import Distribution

from lstmpool.training.errors import InputError
from study.choice import tables_of
from study.records import COLUMNS, KEY
from study.statistics import read_tables
from study.store import Predictions, Runs, rounded
from study.tables import QUESTIONS, all_tables, answer

from ..training_fixtures import ROOT
from .test_tables import keep


def modules_of(path):
    """What a module imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_what_is_built_has_no_study(monkeypatch):
    monkeypatch.chdir(ROOT)
    distribution = Distribution()
    distribution.parse_config_files(["setup.cfg"])
    assert "lstmpool.training" in distribution.packages
    assert not [name for name in distribution.packages if "study" in name.split(".")]


def test_nothing_of_the_package_imports_the_study():
    package = [*ROOT.glob("*.py"), *(ROOT / "training").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert len(package) > 20
    for path in package:
        assert not [name for name in modules_of(path) if "study" in name.split(".")], path


def test_the_study_imports_itself_by_one_name():
    """As lstmpool.study, which an editable install would find, each module would be there twice."""
    for path in [*(ROOT / "study").glob("*.py"), *(ROOT / "tests" / "study").glob("*.py")]:
        assert not [name for name in modules_of(path) if name.startswith("lstmpool.study")], path


@pytest.mark.parametrize("command", ["run", "tables"])
def test_the_commands_start_in_the_checkout(command):
    words = [sys.executable, "-m", f"study.{command}", "--help"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0 and f"usage: python -m study.{command}" in found.stdout
    assert f"python -m study.{command} --output study/results" in found.stdout.replace("--data DIR ", "")


# --------------------------------------------------------------------------------------------------------- pages
def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


def words(text):
    return " ".join(text.split())


@pytest.mark.slow
def test_the_page_shows_the_results_that_are_kept():
    output = ROOT / "study" / "results"
    tables = read_tables(output)
    assert all_tables(tables, "lstm", output).strip() in (output.parent / "TABLES.md").read_text(encoding="utf-8")
    assert answer(tables).strip() in (output.parent / "EVIDENCE.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_of_the_variants_shows_the_results_that_are_kept():
    folders = [ROOT / "study" / name for name in ("results", "variants")]
    assert tables_of(folders).strip() in page("study/VARIANTS.md")


def test_the_page_of_the_variants_claims_no_number_that_its_tables_do_not_show():
    found = page("study/VARIANTS.md").partition("## What was found")[2]
    prose, _, tables = found.partition("<!-- tables: made by --table -->")
    gap = {"1.8", "7.7"}  # between means of the tables; of EVIDENCE.md
    tried = {"0.81", "0.86", "0.92", "0.808", "0.818"}  # once with the command, not in the study
    claimed = set(re.findall(r"\d+\.\d+", prose)) - gap - tried
    assert claimed - set(re.findall(r"\d+\.\d+", tables)) == set() and len(claimed) > 20
    assert all(number in prose for number in ("80.5", "80.2", "74.8")) and "80.5" in page("README.md")


def test_the_readme_quotes_the_verdict():
    verdict = words(page("study/EVIDENCE.md").partition("## Verdict\n")[2].partition("\n## ")[0])
    assert 0 < len(verdict.split()) <= 70
    assert verdict in words(page("README.md")) and "](study/EVIDENCE.md)" in page("README.md")


def test_the_page_claims_no_difference_that_the_tables_do_not_show():
    """Every number with a decimal point is a result, except the settings of the runs."""
    settings = {"0.01"}  # the weight decay
    shown = set(re.findall(r"\d+\.\d+", page("study/TABLES.md")))
    claimed = set(re.findall(r"\d+\.\d+", page("study/EVIDENCE.md")))
    assert claimed - shown - settings == set() and len(claimed) > 20


def test_the_pages_show_all_pictures_that_are_kept_and_the_short_one_shows_one():
    short, full = (
        re.findall(r"\]\((results/[^)]+\.png)\)", page(f"study/{name}.md")) for name in ("EVIDENCE", "TABLES")
    )
    assert len(short) == 1 and set(short) <= set(full)
    assert set(full) == {f"results/{path.name}" for path in (ROOT / "study" / "results").glob("*.png")}


def test_the_page_is_short():
    assert len(page("study/EVIDENCE.md").splitlines()) <= 200


def test_the_answer_has_a_row_for_each_question_that_was_asked_of_the_runs(tmp_path):
    for dataset in ("cr", "mr", "cola", "rte", "mrpc"):
        for pooling, right in (("lstm", 3), ("last", 2)):
            keep(tmp_path, dataset, pooling, [i < right for i in range(4)])
    for pooling in ("lstm", "stock"):
        keep(tmp_path, "cr", pooling, [True] * 4, regime="full", backbone="c")
    rows = [line.split(" | ") for line in answer(read_tables(tmp_path)).splitlines()[2:]]
    assert [row[0].removeprefix("| ") for row in rows] == [QUESTIONS[0].words, QUESTIONS[5].words]
    assert rows[0][1:5] == ["frozen", "mean", "last", "5"] and rows[0][5].startswith("+25.0 (")
    assert rows[0][6] == "+25.0 to +25.0 |"  # all sets have the same difference
    assert rows[1][1:] == ["full", "mean", "stock", "1", "+0.0 (+0.0 to +0.0)", "too few sets |"]


def test_the_page_answers_six_questions():
    assert len(QUESTIONS) == 6


def row(**fields):
    return dict.fromkeys(KEY, "1") | fields


RUNS = {  # one label a row; several labels or none; a number
    "single": (row(dataset="trec6", seed="3"), [[0], [5], [2]], [[0], [4], [2]]),
    "several": (row(dataset="semeval2018_ec"), [[0, 2], [], [1]], [[0], [3, 10], []]),
    "number": (row(dataset="stsb", seed="2"), [[2.5], [0.0], [5.0]], [[2.25], [-0.5], [4.75]]),
}


def test_the_runs_of_all_regimes_are_in_one_file_and_each_regime_sees_its_own(tmp_path):
    places = [("frozen", "mean"), ("frozen", "cls"), ("full", "mean")]
    for regime, token_pooling in places:
        made = dict.fromkeys(COLUMNS, "1") | {"regime": regime, "token_pooling": token_pooling}
        Runs.of(tmp_path, regime, token_pooling).add(made)
    for place in places:
        (found,) = Runs.of(tmp_path, *place).rows
        assert (found["regime"], found["token_pooling"]) == place
    assert [path.name for path in tmp_path.iterdir()] == ["runs.csv"]


@pytest.fixture
def kept(tmp_path):
    predictions = Predictions(tmp_path / "kept" / "predictions.parquet")
    for run, label, prediction in RUNS.values():
        predictions.add(run, label, prediction)
    return predictions


def read_again(kept):
    """By a process that starts now."""
    return Predictions(kept.file)


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("kind", RUNS)
def test_what_is_kept_is_read_again(kind, gathered, kept):
    if gathered:
        kept.gather()
    run, label, prediction = RUNS[kind]
    for predictions in (kept, read_again(kept)):
        assert predictions.read(run) == {"label": label, "prediction": prediction}


def test_gathering_leaves_one_file_that_is_the_same_in_any_order(kept, tmp_path):
    kept.gather()
    assert [path.name for path in kept.file.parent.iterdir()] == ["predictions.parquet"]
    other = Predictions(tmp_path / "again" / "predictions.parquet")
    for run, label, prediction in reversed(RUNS.values()):
        other.add(run, label, prediction)
        other.gather()
    assert other.file.read_bytes() == kept.file.read_bytes()
    assert pyarrow.parquet.read_table(kept.file)["dataset"].to_pylist() == ["semeval2018_ec", "stsb", "trec6"]


def test_without_waiting_files_nothing_is_written(kept):
    kept.gather()
    before = kept.file.stat()
    kept.gather()
    assert (kept.file.stat().st_mtime_ns, kept.file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_run_that_was_made_again_replaces_the_first(kept):
    kept.gather()
    run, label, _ = RUNS["single"]
    kept.add(run, label, [[1], [1], [1]])
    assert kept.read(run)["prediction"] == [[1], [1], [1]]
    kept.gather()
    assert read_again(kept).read(run)["prediction"] == [[1], [1], [1]]
    assert len(pyarrow.parquet.read_table(kept.file)) == 3


@pytest.mark.parametrize("step", ["write", "replace", "unlink"])
def test_a_kill_while_gathering_loses_nothing(step, tmp_path, monkeypatch):
    kept = Predictions(tmp_path / "predictions.parquet")
    first, *others = RUNS.values()
    kept.add(*first)
    kept.gather()
    for run in others:
        kept.add(*run)

    def kill(*args, **kwargs):
        raise KeyboardInterrupt

    target = {"write": "pyarrow.parquet.write_table", "replace": "os.replace", "unlink": "pathlib.Path.unlink"}[step]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(target, kill)
        kept.gather()
    for finished in (False, True):
        for run, label, prediction in RUNS.values():
            assert read_again(kept).read(run) == {"label": label, "prediction": prediction}
        if not finished:
            kept.gather()
    assert len(pyarrow.parquet.read_table(kept.file)) == 3


def test_a_run_without_predictions_is_named_with_the_remedy(kept):
    with pytest.raises(
        InputError, match="expected the predictions of .*cola.* found none. Delete its line in the CSV"
    ):
        kept.read(row(dataset="cola"))


def test_numbers_are_rounded_to_sixteen_binary_digits():
    assert rounded(np.array([1 + 2**-15, 1 + 2**-17, -3.0, 0.0])).tolist() == [1 + 2**-15, 1, -3, 0]
    values = np.random.default_rng(0).normal(scale=1e6, size=1000)
    assert (np.abs(rounded(values) / values - 1) <= 2**-16).all()
