"""The README's snippets run as written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lstmpool.training.model.adapters import AdapterModel, lora_config

from ..conftest import tiny_model


README = Path(__file__).parents[2] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_there_is_a_snippet_on_the_first_screen():
    assert "```python" in "".join(README.read_text().splitlines(keepends=True)[:12])


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs_as_written(snippet, tmp_path, tokenizer):
    model = tiny_model(id2label={0: "late", 1: "broken", 2: "other"})
    for folder in (tmp_path / "outputs" / "demo", tmp_path / "backbone"):
        (model if folder.name == "demo" else model.lstmpool.backbone).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    adapter = tmp_path / "outputs" / "adapter"
    adapted = AdapterModel(model, lora_config(model))
    adapted.backbone_name = "backbone"
    adapted.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    # where the README names a backbone on the Hub, a tiny one stands in for it
    snippet = re.sub(r"\"[\w.-]+/[\w.-]*(?:MiniLM|bert)[\w.-]*\"", '"backbone"', snippet)
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
