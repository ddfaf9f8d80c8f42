"""The snippets of the README and of docs/ run as written, each in a process of its own, without a network."""

import re
import shutil
import subprocess
import sys

import pytest

from lstmpool.training.model.adapters import AdapterModel, lora_config

from ..conftest import tiny_model, word_tokenizer
from ..training_fixtures import ROOT


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Where a page names a backbone on the Hub, a tiny one stands in for it.
BACKBONE_ON_HUB = re.compile(r"\"[\w.-]+/[\w.-]*(?:MiniLM|bert)[\w.-]*\"")


def snippets_of(page):
    """The page's blocks of Python."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


SNIPPETS = {f"{page.stem}-{i}": snippet for page in PAGES for i, snippet in enumerate(snippets_of(page), start=1)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders that the snippets name: a backbone, a finished model and an adapter."""
    work = tmp_path_factory.mktemp("pages")
    model = tiny_model(id2label={0: "late", 1: "broken", 2: "other"})
    model.lstmpool.backbone.save_pretrained(work / "backbone")
    model.save_pretrained(work / "outputs" / "demo")
    adapted = AdapterModel(model, lora_config(model))
    adapted.backbone_name = "backbone"
    adapted.save_pretrained(work / "outputs" / "adapter")
    for folder in (work / "backbone", work / "outputs" / "demo", work / "outputs" / "adapter"):
        word_tokenizer().save_pretrained(folder)
    return work


def run_snippet(snippet, folders, work):
    """Runs it in a copy of the folders."""
    shutil.copytree(folders, work, dirs_exist_ok=True)
    words = [sys.executable, "-c", BACKBONE_ON_HUB.sub('"backbone"', snippet)]
    options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 240}
    done = subprocess.run(words, cwd=work, **options)
    assert done.returncode == 0, done.stderr[-3000:]


def test_there_is_a_snippet_on_the_first_screen():
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:12]
    assert "```python" in first_screen


@pytest.mark.parametrize("snippet", SNIPPETS.values(), ids=SNIPPETS)
def test_a_snippet_runs_as_written(snippet, folders, tmp_path):
    run_snippet(snippet, folders, tmp_path)


def test_what_trainer_saves_in_a_notebook_carries_its_code(folders, tmp_path):
    run_snippet(next(snippet for snippet in SNIPPETS.values() if "trainer.train()" in snippet), folders, tmp_path)
    saved = {path.name for path in (tmp_path / "outputs" / "notebook").iterdir() if path.is_file()}
    assert {"modeling_lstmpool.py", "configuration_lstmpool.py", "model.safetensors", "tokenizer.json"} <= saved
