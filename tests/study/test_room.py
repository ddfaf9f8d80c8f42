"""The study is a room of the checkout, which the package does not use; its pages say what its results say."""

import ast
import re
import subprocess
import sys

import pytest
from setuptools import Distribution

from study.statistics import read_tables
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
