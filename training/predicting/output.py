"""What is said of each row, and where it goes: to the standard output, or to a file that is whole or absent.

Until a file is whole, its rows lie in a folder beside it, `NAME.part`: a piece for each chunk, and a record of what
was asked for. A piece is written whole, or is not there. So what was cut off goes on after the last piece, and the
finished file is that of a run that nothing stopped.
"""

import csv
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow
import pyarrow.parquet
from filelock import FileLock, Timeout

from lstmpool.training.data.delimited import guard
from lstmpool.training.errors import InputError, one_line
from lstmpool.training.predicting.options import Options, Request
from lstmpool.training.predicting.rows import Chunk, Survey
from lstmpool.training.tasks.task import SCORED, Task
from lstmpool.training.writing import digest_of, write_text, writing


RECORD = "record.json"
LOCK = ".lock"
OF_RUN = re.compile(r"\.?\d{6,}\.(csv|jsonl|parquet)(\.unfinished)?")  # a piece, also one that a kill has left half
KEY = b"lstmpool.predictions"  # in a Parquet file: what it was made of
GROUP_ROWS, GROUP_BYTES = 65_536, 2**24  # of a row group of Parquet, about


# ------------------------------------------------------------------------------------------------- columns and lines
def check_answers(task: Task, options: Options) -> None:
    """Raises InputError for columns that the task does not have."""
    wanted = [f"--{name}" for name in ("top_k", "scores") if getattr(options, name)]
    if wanted and not task.has_probabilities:
        raise InputError(f"{wanted[0]} is about labels, and the model predicts numbers. Leave it out.")
    known = len(task.names)
    if options.top_k is not None and options.top_k > known:
        raise InputError(f"expected --top_k of at most {known}, the model's labels, found {options.top_k}.")
    if options.scores and len(task.names) > SCORED:
        raise InputError(
            f"--scores makes a column for each of up to {SCORED} labels, and the model knows {len(task.names)}. Use "
            "--top_k."
        )


class Answers:
    """Makes the columns of the output.

    `confidence` is the probability of the predicted label. Where a text has any number of labels, it is the
    probability of the decision that is least sure, on one of all labels.
    """

    def __init__(self, task: Task, options: Options, survey: Survey | None):
        self.task = task
        self.options = options
        self.id_type = survey.id_type if survey else pyarrow.int64()
        self.has_pairs = survey is not None and survey.has_pairs

    def table(self, chunk: Chunk, logits: np.ndarray) -> pyarrow.Table:
        """The rows of a chunk, whose logits are (N, C). Numbers are in float32, in which the model gives them."""
        as_texts = pyarrow.types.is_string(self.id_type)
        given = [None if name != name else name for name in chunk.ids]  # NaN, which JSON does not have
        ids = [str(name) if as_texts and name is not None else name for name in given]
        columns = {"id": pyarrow.array(ids, self.id_type)}
        if self.options.with_text:
            columns["text"] = pyarrow.array(chunk.texts)
            if self.has_pairs:
                columns["text_pair"] = pyarrow.array(chunk.pairs)
        for name, values in self._found(logits).items():
            is_number = isinstance(values, np.ndarray)
            columns[name] = pyarrow.array(values.astype(np.float32) if is_number else values)
        return pyarrow.table(columns)

    def empty(self) -> pyarrow.Table:
        """A table of no rows, for its columns."""
        row = Chunk(0, texts=[""], pairs=[""], ids=[None])
        return self.table(row, np.zeros((1, len(self.task.names)))).slice(0, 0)

    def _found(self, logits: np.ndarray) -> dict[str, Any]:
        """The columns that follow from the logits, by name: lists of words and arrays of numbers."""
        columns = self.task.prediction_columns(logits)
        if not self.task.has_probabilities:
            return columns
        scores = self.task.probabilities(logits)
        is_sure = np.maximum(scores, 1 - scores).min(1) if self.task.gives_several_answers else scores.max(1)
        found = {"prediction": columns["prediction"], "confidence": is_sure}
        if self.options.top_k is not None:
            ranked = np.argsort(-scores, axis=1, kind="stable")[:, : self.options.top_k]  # (N, K)
            values = np.take_along_axis(scores, ranked, axis=1)
            for k in range(self.options.top_k):
                found[f"top_{k + 1}"] = [self.task.names[label] for label in ranked[:, k]]
                found[f"top_{k + 1}_score"] = values[:, k]
        if self.options.scores:
            found |= {f"score_{name}": scores[:, i] for i, name in enumerate(self.task.names)}
        return found


def csv_header(names: list[str], raw: bool) -> bytes:
    """The first line of a CSV."""
    return _csv([names if raw else [guard(name) for name in names]])


def csv_lines(table: pyarrow.Table, raw: bool) -> bytes:
    """The rows as CSV. Unless they stay `raw`, no cell is one that a spreadsheet would run."""
    columns = []
    for column in table.columns:
        cells = _texts(column)
        is_word = pyarrow.types.is_string(column.type)
        columns.append(cells if raw or not is_word else [cell and guard(cell) for cell in cells])
    return _csv(zip(*columns, strict=True))


def _csv(rows: Any) -> bytes:
    """Lines of CSV. A missing cell is empty."""
    lines = io.StringIO(newline="")
    plain = csv.writer(lines, lineterminator="\n")
    # Python's writer leaves a carriage return without quotes before 3.13, and readers take it for a line's end
    quoted = csv.writer(lines, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        returns = any("\r" in cell for cell in row if cell)
        (quoted if returns else plain).writerow(row)
    return lines.getvalue().encode()


def json_lines(table: pyarrow.Table) -> bytes:
    """The rows as one JSON object a line."""
    columns = []
    for column in table.columns:
        # the shortest decimal that float32 reads back, which a float of Python would not show
        is_narrow = pyarrow.types.is_float32(column.type)
        columns.append([float(cell) for cell in _texts(column)] if is_narrow else column.to_pylist())
    rows = (dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True))
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def _texts(column: pyarrow.ChunkedArray) -> list[str | None]:
    return column.cast(pyarrow.string()).to_pylist()


def _encoded(table: pyarrow.Table, request: Request) -> bytes:
    """The rows as lines of CSV or JSON."""
    return json_lines(table) if request.format == "jsonl" else csv_lines(table, request.options.raw_csv)


def _header(names: list[str], request: Request) -> bytes:
    """What comes before the first row."""
    return csv_header(names, request.options.raw_csv) if request.format == "csv" else b""


# ----------------------------------------------------------------------------------------------------- where they go
class ToStdout:
    """The standard output."""

    done = 0  # chunks that are there from before
    is_finished = False
    how_to_go_on = "What was written is whole. To be able to go on, write to a file with --output."

    def __init__(self, request: Request, stream: BinaryIO):
        self.request = request
        self.stream = stream
        self.writer: pyarrow.parquet.ParquetWriter | None = None
        if request.format == "parquet" and stream.isatty():
            raise InputError("Parquet is no text for a terminal. Write it to a file with --output, or to a pipe.")

    @contextmanager
    def opened(self, model: dict[str, str], rows: str) -> Iterator[None]:
        """Within this block, chunks are written. The standard output needs to know of neither."""
        yield

    def write(self, table: pyarrow.Table) -> None:
        """Writes the rows of one chunk."""
        if self.request.format == "parquet":
            self.writer = self.writer or pyarrow.parquet.ParquetWriter(self.stream, table.schema)
            self.writer.write_table(table)
        else:
            first = b"" if self.done else _header(table.column_names, self.request)
            self.stream.write(first + _encoded(table, self.request))
        self.stream.flush()
        self.done += 1

    def finish(self, empty: pyarrow.Table) -> None:
        """Ends the output."""
        if self.writer is not None:
            self.writer.close()
        self.stream.flush()


class ToFile:
    """A file, and the pieces of it that are done."""

    def __init__(self, request: Request, inputs: list[str]):
        """Checks what is there already. Raises InputError if the file may not be written. `inputs`: where rows are."""
        self.request = request
        self.path = request.output
        # Engines that read a folder as one table pass over names that begin with a line.
        mark = "_" if request.in_parts else ""
        self.parts = self.path.with_name(f"{mark}{self.path.name}.part")
        self.how_to_go_on = "The same command with --resume goes on from there."
        if request.reads_stdin:
            self.how_to_go_on = "Begin anew with --overwrite: the standard input has no rows twice."
        self.done = 0  # pieces
        self.is_finished = False  # from before
        self.record: dict[str, Any] = {}
        with one_line(f"--output {request.options.output} cannot be written"):
            self._check_place(inputs)

    def _check_place(self, inputs: list[str]) -> None:
        """Raises InputError for what is there and may not be replaced."""
        options = self.request.options
        has_record = (self.parts / RECORD).is_file()
        may_be_finished = options.resume and (has_record or self.request.format == "parquet")
        if self.path.is_dir():
            raise InputError(f"--output {self.path} is a folder. Name a file in it.")
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"--output {self.path} is a device or a pipe. Leave --output out, and redirect the rows.")
        if self.path.exists() and any(self.path.samefile(file) for file in inputs if Path(file).exists()):
            raise InputError(f"--output {self.path} is one of the files to read. Choose another name.")
        if self.path.exists() and not options.overwrite and not may_be_finished:
            raise InputError(f"--output {self.path} exists already. Choose another name, or add --overwrite.")
        if has_record and not (options.resume or options.overwrite):
            found = f"{self.parts} holds {len(self._pieces())} chunks of predictions that were cut off."
            choice = "Begin" if self.request.reads_stdin else "Go on with --resume, or begin"
            raise InputError(f"{found} {choice} anew with --overwrite.")
        if self.request.in_parts:
            self._check_other_shards()

    def _check_other_shards(self) -> None:
        own = self.path.name.partition("-of-")[2]
        for other in sorted(self.path.parent.glob("part-*-of-*.parquet")):
            if other.name.partition("-of-")[2] != own:
                raise InputError(
                    f"--output {self.path.parent} holds {other.name}, of another number of shards: both would be read "
                    "as one table. Remove it, or choose another folder."
                )

    @contextmanager
    def opened(self, model: dict[str, str], rows: str) -> Iterator[None]:
        """Within this block, chunks are written. No other process does so.

        Args:
            model: digests of the model.
            rows: a digest of all rows.

        Raises:
            InputError: if another process writes this file, or what was cut off was of another model, other rows or
                other settings.
        """
        self.record = {"model": model, "rows": rows, "settings": self.request.settings()}
        with one_line(f"{self.parts} cannot be written"):
            self.parts.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.parts / LOCK, timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise InputError(f"another process writes {self.path} already. Wait for its end.") from None
        try:
            with one_line(f"{self.parts} cannot be read", pyarrow.ArrowException):
                self._look_back()
            yield
        finally:
            if all(path.name == LOCK for path in self.parts.iterdir()):
                shutil.rmtree(self.parts, ignore_errors=True)
            lock.release()  # after that: it may be another process's lock that would be removed

    def _look_back(self) -> None:
        """Goes on after the pieces that are there, or removes them."""
        options = self.request.options
        if options.resume and self._is_whole():
            self._remove_pieces()  # if a kill came before that was done
            self.is_finished = True
            return
        if self.path.exists() and not options.overwrite:
            raise InputError(f"{self.path} holds other predictions. Choose another name, or add --overwrite.")
        if options.resume and (self.parts / RECORD).is_file():
            self._check_record()
            self.done = len(self._pieces())
            return
        self._remove_pieces()
        self._write_record(self.record)

    def _write_record(self, record: dict[str, Any]) -> None:
        write_text(self.parts / RECORD, json.dumps(record, indent=1) + "\n")

    def _is_whole(self) -> bool:
        """Whether the file is there, and is what is asked for. Parquet says so itself, and else the record does."""
        if not self.path.exists():
            return False
        if (self.parts / RECORD).is_file() and self._earlier() == self._record_of(self.path):
            return True
        if self.request.format != "parquet" or self.request.options.overwrite:
            return False
        return (pyarrow.parquet.read_schema(self.path).metadata or {}).get(KEY) == self._digest()

    def _record_of(self, file: Path) -> dict[str, Any]:
        """The record, with the digest of the whole file."""
        return self.record | {"whole": digest_of(file)}

    def _earlier(self) -> dict[str, Any]:
        """The record that is there."""
        with one_line(f"{self.parts / RECORD} cannot be read", ValueError, remedy="Begin anew with --overwrite."):
            return dict(json.loads((self.parts / RECORD).read_text(encoding="utf-8")))

    def _check_record(self) -> None:
        """Raises InputError if what was cut off was of another model, other rows or other settings."""
        earlier = self._earlier()
        differs = [name for name in ("model", "rows") if earlier.get(name) != self.record[name]]
        settings = earlier.get("settings", {})
        for name, value in self.record["settings"].items():
            if settings.get(name) != value:
                differs.append(f"{name} ({settings.get(name)} there, {value} here)")
        if differs:
            raise InputError(
                f"{self.parts} was begun with other {', other '.join(differs)}. Give the same once more, or begin "
                "anew with --overwrite."
            )

    def _digest(self) -> bytes:
        content = json.dumps(self.record, sort_keys=True).encode()
        return hashlib.blake2b(content, digest_size=16).hexdigest().encode()

    def _pieces(self) -> list[Path]:
        """The pieces from the first on, without a gap."""
        found: list[Path] = []
        while (piece := self._piece(len(found))).is_file():
            found.append(piece)
        return found

    def _piece(self, number: int) -> Path:
        return self.parts / f"{number:06d}.{self.request.format}"

    def _remove_pieces(self) -> None:
        """Removes what a run has left in the folder, and nothing else. Its record is the last."""
        for path in sorted(self.parts.iterdir()):
            if path.name == RECORD or OF_RUN.fullmatch(path.name):
                path.unlink()

    def write(self, table: pyarrow.Table) -> None:
        """Writes the rows of one chunk. Raises InputError if the disk is full."""
        remedy = f"Make room. {self.how_to_go_on}"
        with one_line(f"{self.parts} cannot be written", remedy=remedy), writing(self._piece(self.done)) as unfinished:
            if self.request.format == "parquet":
                pyarrow.parquet.write_table(table, unfinished)
            else:
                unfinished.write_bytes(_encoded(table, self.request))
        self.done += 1

    def finish(self, empty: pyarrow.Table) -> None:
        """Makes the file of its pieces, and removes them. `empty`: a table without rows, for its columns."""
        remedy = f"Make room. {self.how_to_go_on}"
        with one_line(f"{self.path} cannot be written", remedy=remedy), writing(self.path) as unfinished:
            if self.request.format == "parquet":
                self._join_parquet(unfinished, empty.schema)
            else:
                self._join_lines(unfinished, empty.column_names)
            self._write_record(self._record_of(unfinished))
        self._remove_pieces()

    def _join_lines(self, path: Path, names: list[str]) -> None:
        with path.open("wb") as file:
            file.write(_header(names, self.request))
            for piece in self._pieces():
                with piece.open("rb") as lines:
                    shutil.copyfileobj(lines, file)

    def _join_parquet(self, path: Path, schema: pyarrow.Schema) -> None:
        schema = schema.with_metadata({KEY: self._digest()})
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for tables in self._groups():
                writer.write_table(pyarrow.concat_tables(tables).replace_schema_metadata(schema.metadata))

    def _groups(self) -> Iterator[list[pyarrow.Table]]:
        """The tables of the pieces, as many as make a row group."""
        group: list[pyarrow.Table] = []
        for piece in self._pieces():
            group.append(pyarrow.parquet.read_table(piece))
            is_large = sum(table.nbytes for table in group) >= GROUP_BYTES
            if is_large or sum(map(len, group)) >= GROUP_ROWS:
                yield group
                group = []
        if group:
            yield group
