"""ONNX Runtime in the place of torch: a graph that answers as a model does, and folders that `export.py` has written.

B batch, T tokens, C labels.
"""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from lstmpool.training.errors import InputError, one_line
from lstmpool.training.model.backbone import DAMAGED
from lstmpool.training.output.found import EXPORT_RECORD, GRAPHS
from lstmpool.training.output.found import FLOAT as FLOAT  # benchmarks/export.py finds both here
from lstmpool.training.output.found import read_export as read_record
from lstmpool.training.predicting.model import Predictor
from lstmpool.training.tasks.inference import TASKS
from lstmpool.training.tasks.task import Task
from lstmpool.training.writing import digests_of


INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # (B, T) each
INSTALL = 'Install it: pip install -c constraints.txt -e ".[onnx]"'
AGAIN = "Export the model again, with --overwrite."


class OnnxModel:
    """A graph in ONNX Runtime, called as a model of the library is. It gives `logits` alone."""

    def __init__(self, path: Path, threads: int = 0):
        """Loads the file at `path`, to run in `threads`; 0: one a core. Raises InputError if the file is broken."""
        with one_line("ONNX Runtime cannot be loaded", ImportError, remedy=INSTALL):
            import onnxruntime
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 3  # errors alone
        with one_line(f"{path} cannot be loaded", Exception, remedy=AGAIN):  # of any kind, from the library's C++
            self.session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        self.names = [one.name for one in self.session.get_inputs()]

    def __call__(self, **batch: torch.Tensor) -> SimpleNamespace:
        """`logits` (B, C) for the columns (B, T) of a tokenizer. Those that the graph does not read are ignored."""
        inputs = {name: batch[name].numpy().astype(np.int64) for name in self.names}
        (logits,) = self.session.run(["logits"], inputs)
        return SimpleNamespace(logits=torch.from_numpy(logits))


@dataclass(frozen=True)
class Exported:
    """A folder that `export.py` has written, as `Finished` is one of training.

    Args:
        title: as the user typed it.
        folder: where it is.
        file: the graph in it.
        task: what the outputs mean.
        settings: what the model was trained with: names of columns and the like.
        reads_pairs: whether a row is a pair of texts; None if that is not known.
    """

    title: str
    folder: Path
    file: str
    task: Task
    settings: dict[str, Any] = field(default_factory=dict)
    reads_pairs: bool | None = None

    @classmethod
    def find(cls, name: str, is_int8: bool) -> "Exported":
        """Finds the folder `name`, and in it the float graph, or the first of int8. Raises InputError without one."""
        folder = Path(name)
        record = read_record(folder)
        if record is None:
            raise InputError(
                "--engine onnx expects a folder that python -m lstmpool.export has written, found no "
                f"{EXPORT_RECORD} in {name}. Export the model first, or leave --engine out."
            )
        with one_line(f"{folder / EXPORT_RECORD} cannot be read", KeyError, TypeError, AttributeError, remedy=AGAIN):
            files = [file["name"] for file in record["files"] if (file["weights"] != "float32") == is_int8]
            task = TASKS[record["problem_type"]](list(record["labels"]), f"{EXPORT_RECORD} says so")
            settings, reads_pairs = dict(record["settings"]), record["reads_pairs"]
        if not files:
            kind = "int8" if is_int8 else "float"
            raise InputError(f"{name} holds no {kind} graph. {AGAIN}")
        return cls(name, folder, f"{GRAPHS}/{files[0]}", task, settings, reads_pairs)

    def digest(self) -> dict[str, str]:
        """What tells this graph from others."""
        with one_line(f"{self.folder} cannot be read"):
            found = digests_of(self.folder, [self.file, "config.json", "tokenizer.json"])
        return {f"{self.folder.name}/{file}": digest for file, digest in found.items()}

    def load(self, use_cpu: bool, bf16: bool) -> Predictor:
        """Loads the graph. It always runs on the CPU. Raises InputError if it cannot be loaded, or with `bf16`."""
        if bf16:
            raise InputError("--bf16 is about torch: a graph computes in the numbers that are in it. Leave it out.")
        with one_line(f"{self.folder} has no tokenizer to load", *DAMAGED, remedy=AGAIN):
            tokenizer = AutoTokenizer.from_pretrained(self.folder)
        model = OnnxModel(self.folder / self.file)
        return Predictor(self.title, [model], tokenizer, self.task, torch.device("cpu"), bf16=False)
