"""Has the page of a Space read probe texts, as it will on the Hub, where nothing of this project is but its files.

The page itself is not opened, so gradio need not be there. This file is the program of a fresh isolated process, so it
imports nothing of the project, and is imported by nothing.
"""

import importlib
import json
import sys
from pathlib import Path


def _main(answer: str, source: str, revision: str, threads: str, asked: str) -> None:
    sys.modules["lstmpool"] = None  # cannot be imported, installed or not
    import torch
    from huggingface_hub import snapshot_download

    folder = source if not revision else snapshot_download(source, repo_type="space", revision=revision)
    torch.set_num_threads(int(threads))  # the order of a sum, and so its rounding, depends on it
    sys.path.insert(0, folder)
    app = importlib.import_module("app")
    reader = app.load([])  # what space.json names
    readings = [reader.read(*texts) for texts in json.loads(asked)]
    logits = [reading.logits[reading.stop].double().tolist() for reading in readings]
    Path(answer).write_text(json.dumps({"logits": logits, "labels": reader.labels}), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
