"""The study is a room of the checkout: it uses the package, and no part of the package uses it."""

import ast
import subprocess
import sys

import pytest
from setuptools import Distribution

from ..training_fixtures import ROOT


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
