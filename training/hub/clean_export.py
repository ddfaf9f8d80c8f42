"""Answers probe texts by the graphs of an exported folder, as a stranger does who has no torch.

ONNX Runtime, tokenizers, numpy and, for a folder on the Hub, huggingface_hub are all that runs. This file is the
program of a fresh isolated process, so it imports nothing of the project, and is imported by nothing.
"""

import json
import sys
from pathlib import Path
from typing import Any


BLOCKED = ("torch", "transformers", "lstmpool")


def logits_of(path: Path, tokenizer: Any, batches: list[list[Any]], threads: int) -> list[list[float]]:
    """The logits (rows, C) of the graph at `path` for each batch of texts, or of pairs of texts."""
    import numpy
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads  # the order of a sum, and so its rounding, depends on it
    settings.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    found = []
    for batch in batches:
        rows = tokenizer.encode_batch([tuple(row) if isinstance(row, list) else row for row in batch])
        columns = {
            "input_ids": [row.ids for row in rows],
            "attention_mask": [row.attention_mask for row in rows],
            "token_type_ids": [row.type_ids for row in rows],
        }
        inputs = {name: numpy.array(columns[name], dtype=numpy.int64) for name in names}
        (logits,) = session.run(["logits"], inputs)  # (B, C)
        found += logits.astype(float).tolist()
    return found


def _main(answer: str, source: str, revision: str, threads: str, wanted: str) -> None:
    for name in BLOCKED:  # cannot be imported, installed or not
        sys.modules[name] = None
    from huggingface_hub import snapshot_download
    from tokenizers import Tokenizer

    folder = Path(snapshot_download(source, revision=revision) if revision else source)
    asked = json.loads(wanted)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cutting = tokenizer.truncation
    cutting["max_length"] = min(cutting["max_length"], asked["tokens"])
    tokenizer.enable_truncation(**cutting)
    logits = {file: logits_of(folder / file, tokenizer, asked["batches"], int(threads)) for file in asked["files"]}
    labels = list(json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"].values())
    Path(answer).write_text(json.dumps({"logits": logits, "labels": labels}), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
