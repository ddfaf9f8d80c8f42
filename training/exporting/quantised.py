"""Files of int8, made of the float graph, and what they cost on rows with labels.

Weights are numbers of 8 bits, with a scale for each channel; the embeddings and the LSTM are among them. Activations
are quantised while the graph runs, with one scale for all rows of a batch: so an int8 file's logits depend a little on
the rest of the batch.

N rows, C labels.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lstmpool.training.data.rows import Split, read_splits
from lstmpool.training.errors import InputError, counted, one_line
from lstmpool.training.exporting.graph import Batch, logits_of, relative
from lstmpool.training.exporting.options import VARIANTS
from lstmpool.training.flags.arguments import DataArguments
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.predicting.engine import INSTALL, OnnxModel
from lstmpool.training.predicting.model import Finished, Predictor
from lstmpool.training.predicting.rows import ROWS, Chunk
from lstmpool.training.tasks.metrics import LOWER_IS_BETTER
from lstmpool.training.tasks.task import Task


BATCH = 32  # rows
BATCH_TOKENS = 8192
OF_COLUMNS = ("text_column_names", "text_column_delimiter", "label_column_name", "id_column_name")


@dataclass
class Graph:
    """A file in the folder `onnx`, and what was measured of it.

    Args:
        name: of the file.
        weights: the type of its weights, "float32" or that of a `Variant`.
        bytes: its size.
        for_whom: who reads it.
        same_as: the file whose bytes it shares; empty if there is none.
        difference: the largest difference of a logit from the model's, on the probes.
        agreement: share of the rows' answers that are the model's; None if that was not measured.
        metric: the headline metric on the rows; None likewise.
    """

    name: str
    weights: str
    bytes: int
    for_whom: str
    same_as: str = ""
    difference: float = 0.0
    agreement: float | None = None
    metric: float | None = None


def quantise(source: Path, variant: str, twin: Graph | None = None) -> Graph:
    """Writes the file of `variant` beside the float graph `source`.

    `twin`: a file with weights of the same type, which is copied with all that was measured of it.

    Raises:
        InputError: if ONNX Runtime cannot quantise the graph.
    """
    file, weights, for_whom = VARIANTS[variant]
    path = source.with_name(file)
    if twin is not None:
        shutil.copyfile(source.with_name(twin.name), path)
        return replace(twin, name=file, for_whom=for_whom, same_as=twin.name)
    _quantise(source, path, weights)
    return Graph(file, weights, path.stat().st_size, for_whom)


def _quantise(source: Path, path: Path, weights: str) -> None:
    with one_line("ONNX Runtime cannot quantise", ImportError, remedy=INSTALL):
        from onnxruntime.quantization import QuantType, quantize_dynamic
    with _without_advice(), one_line(f"{path.name} cannot be made", Exception, remedy="Use --quantize none."):
        quantize_dynamic(source, path, weight_type=QuantType[weights], per_channel=True)


def difference_on(graph: OnnxModel, batches: list[Batch], expected: list[np.ndarray], name: str) -> float:
    """The largest difference from the logits `expected`, as `check_graph` counts it. Raises InputError for NaN."""
    worst = 0.0
    for batch, logits in zip(batches, expected, strict=True):
        found = logits_of(graph, batch)
        if not np.isfinite(found).all():
            raise InputError(f"{name}: expected numbers, found NaN or infinity. Use --quantize none.")
        worst = max(worst, relative(found, logits))
    return worst


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silences the library's advice to prepare a graph by another program: nothing in these graphs needs it."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


# ----------------------------------------------------------------------------------------------------------- the rows
@dataclass(frozen=True)
class Rows:
    """Rows with labels, and the answers of the model to them.

    Args:
        split: the rows.
        task: what is predicted.
        logits: the model's, (N, C).
        metric: the model's headline metric.
    """

    split: Split
    task: Task
    logits: np.ndarray
    metric: float

    @classmethod
    def read(cls, file: str, model: Finished, predictor: Predictor) -> "Rows":
        """Reads the rows, and lets the model answer. Raises InputError for rows that do not fit, or have no labels."""
        return cls._answered(*_read(file, model), predictor)

    @classmethod
    def of_run(cls, model: Finished, predictor: Predictor) -> "Rows | None":
        """The validation rows of the model's run; None if their file is not there any more, or holds other rows."""
        record = RunRecord.read(Path(model.title))
        file = record.settings.get("validation_file") if record else None
        if not isinstance(file, str) or not Path(file).is_file():
            return None
        try:
            split, task = _read(file, model)
        except InputError:
            return None  # it has been changed since
        found = RunRecord.of({}, {"validation": split}).rows
        if found["validation"] != record.rows.get("validation"):
            return None
        return cls._answered(split, task, predictor)

    @classmethod
    def _answered(cls, split: Split, task: Task, predictor: Predictor) -> "Rows":
        logits = answers_of(predictor, split)
        return cls(split, task, logits, headline(task, logits, split))

    @property
    def title(self) -> str:
        """What they are, in words."""
        return f"{counted(len(self.split), 'row', ',')} of {self.split.source}"

    def measure(self, graph: Graph, predictor: Predictor) -> None:
        """Fills in what the `graph`, which `predictor` runs, answers to the rows."""
        logits = answers_of(predictor, self.split)
        graph.agreement = agreement(self.task, self.logits, logits)
        graph.metric = headline(self.task, logits, self.split)

    def points_lost(self, graph: Graph) -> float:
        """By how many points the graph's metric is worse than the model's; of a regression, by how many percent."""
        worse = self.metric - graph.metric
        if self.task.headline in LOWER_IS_BETTER:
            worse = -worse / self.metric if self.metric else -worse
        return 100 * worse


def _read(file: str, model: Finished) -> tuple[Split, Task]:
    """The rows of a file, and their task. Raises InputError for rows that do not fit, or have no labels."""
    args = DataArguments(test_file=file)
    for name in OF_COLUMNS:
        setattr(args, name, model.settings.get(name))
    splits, task = read_splits(args, {"test": file}, None, finished=model.config)
    split = splits["test"]
    if split.labels is None:
        raise InputError(f"--test_file {file} has no labels. Name rows with labels, or leave the flag out.")
    if (model.reads_pairs is not None) and model.reads_pairs != (split.pairs is not None):
        expected, found = ("pairs of texts", "one text") if model.reads_pairs else ("one text", "pairs")
        raise InputError(
            f"--test_file {file}: {model.title} reads {expected} a row, found {found}. "
            "Name a file with the columns of training."
        )
    return split, task


def answers_of(predictor: Predictor, split: Split) -> np.ndarray:
    """The logits (N, C) for all rows."""
    texts, pairs = list(split.texts), [] if split.pairs is None else list(split.pairs)
    parts = []
    for start in range(0, len(texts), ROWS):
        rows = slice(start, start + ROWS)
        chunk = Chunk(start + 1, texts[rows], pairs[rows], list(range(start, start + len(texts[rows]))))
        parts.append(predictor.logits(chunk, BATCH, BATCH_TOKENS))
    return np.concatenate(parts)


def headline(task: Task, logits: np.ndarray, split: Split) -> float:
    """The headline metric of these logits (N, C)."""
    return task.score(task.decide(logits), np.asarray(split.labels))[task.headline]


def agreement(task: Task, logits: np.ndarray, others: np.ndarray) -> float | None:
    """The share of rows to which both logits (N, C) give the same answer; None for numbers, of which no two agree."""
    if task.has_numbers:
        return None
    one, other = (np.asarray(task.decide(each)).reshape(len(each), -1) for each in (logits, others))
    return float((one == other).all(1).mean())
