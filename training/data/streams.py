"""Reads the rows of a table some at a time, so that their number needs no memory.

It reads what `files.read_table` reads, by the same rules: CSV, TSV, JSON, JSON lines and Parquet, plain or gzipped,
and what the library `datasets` has on disk. A broken row is only found where it stands.
"""

import gzip
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import pyarrow
import pyarrow.parquet
from datasets import Dataset, load_from_disk

from lstmpool.training.data.delimited import stream_delimited, tidy_names
from lstmpool.training.data.files import (
    NO_COLUMN,
    PART,
    Wanted,
    check_kind,
    first_that_fails,
    is_folder,
    is_json,
    kind_of_file,
    not_json,
    plain,
    rows_of_lines,
    swells,
    unpacks_to,
    unreadable,
)
from lstmpool.training.errors import InputError, control_in, one_line
from lstmpool.training.flags.documents import each_key_once


Tables = Iterator[pyarrow.Table]

ROWS = 1000  # at a time
CHARACTERS = 1_000_000  # of JSON at a time
LONGEST = 2**26  # characters of a value in a JSON document
START = 2000  # bytes, which show what kind of content a file has
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(object_pairs_hook=each_key_once)


def stream_table(path: Path, wanted: Wanted) -> Tables:
    """The rows of a file, or of a folder that `Dataset.save_to_disk` wrote, as tables of some rows each.

    Args:
        path: of the file or folder.
        wanted: chooses the columns to read by the names of all, before this function returns. It may raise
            `InputError`. A JSON file has the columns of its first thousand rows.

    Raises:
        InputError: if the file is missing, is not what its ending says, or holds no rows; also while rows are read.
    """
    if control_in(str(path)):
        raise InputError(f"{path}: the name of a file of rows holds control characters. Rename it.")
    with _readable(path):
        tables = _of_folder(path, wanted) if is_folder(path) else _of_file(path, wanted)
    return _checked(tables, path)


def stream_dataset(dataset: Dataset, wanted: Wanted) -> Tables:
    """The rows of a data set, which lies on disk. `wanted` is as for `stream_table`."""
    names = wanted(dataset.column_names)
    return dataset.select_columns(names).with_format("arrow").iter(ROWS)


def _checked(tables: Tables, path: Path) -> Tables:
    """The tables that have rows. Raises InputError if there are none."""
    rows = 0
    with _readable(path):
        for table in tables:
            rows += len(table)
            if len(table):
                yield table
    if not rows:
        raise InputError(f"{path} holds no rows.")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what a broken file raises into one line."""
    with one_line(f"{path} is cut off or broken", remedy="Fetch it again."):
        try:
            yield
        except UnicodeDecodeError:
            line = _first_line_of_another_encoding(path)
            raise InputError(
                f"{path} must be UTF-8, found another encoding in line {line}. Save it as UTF-8."
            ) from None


def _of_folder(path: Path, wanted: Wanted) -> Tables:
    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # any kind: the library trusts what it finds in the folder
        reason = str(error) or type(error).__name__
        raise InputError(f"{path} is a folder, but none that Dataset.save_to_disk wrote: {reason}") from None
    if not isinstance(dataset, Dataset):
        raise InputError(f"{path} holds several splits. Name it with --dataset_name, or one split's own folder.")
    bare = tidy_names(dataset.column_names, str(path))
    return stream_dataset(dataset.rename_columns(dict(zip(dataset.column_names, bare, strict=True))), wanted)


def _of_file(path: Path, wanted: Wanted) -> Tables:
    ending, zipped = kind_of_file(path)
    with path.open("rb") as file:
        check_kind(file.read(START), "gzip" if zipped else ending, path)
    if zipped:
        with _opened(path) as file:
            check_kind(file.read(START), ending, path)
    if ending == ".parquet":
        return _of_parquet(path, zipped, wanted)
    if ending in (".csv", ".tsv"):
        return _of_delimited(path, "," if ending == ".csv" else "\t", wanted)
    return _of_json(path, wanted)


class _Unzipped(gzip.GzipFile):
    """Raises InputError once it has unpacked more than the file may hold."""

    def read1(self, size: int = -1) -> bytes:
        content = super().read1(size)
        limit = unpacks_to(Path(self.name).stat().st_size)
        if self.tell() > limit:
            raise swells(Path(self.name), limit)
        return content


def _opened(path: Path) -> BinaryIO:
    return _Unzipped(path) if path.suffix == ".gz" else path.open("rb")


def _text(path: Path, newline: str = "") -> TextIO:
    return io.TextIOWrapper(_opened(path), "utf-8-sig", newline=newline)


def _first_line_of_another_encoding(path: Path) -> int:
    number = 0
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return number


# --------------------------------------------------------------------------------------------------------- CSV and TSV
def _of_delimited(path: Path, usual: str, wanted: Wanted) -> Tables:
    header, blocks = stream_delimited(partial(_text, path), usual, str(path))
    if not header:
        raise InputError(f"{path} holds no rows.")
    names = tidy_names(header, str(path))
    chosen = wanted([name for name in names if name])  # cells without a header cannot be named
    return (pyarrow.table({name: columns[names.index(name)] for name in chosen}) for columns in blocks)


# ------------------------------------------------------------------------------------------------------------- Parquet
def _of_parquet(path: Path, zipped: bool, wanted: Wanted) -> Tables:
    source: Any = path
    if zipped:
        source = tempfile.TemporaryFile()  # noqa: SIM115 -- it is gone with its last reader
        with _opened(path) as file:
            shutil.copyfileobj(io.BufferedReader(file, PART), source)
    broken = f"{path} cannot be read as Parquet"
    with one_line(broken, Exception):  # any kind: the library trusts what it finds in the file
        file = pyarrow.parquet.ParquetFile(source, page_checksum_verification=True)
        found = file.schema_arrow.names
    names = dict(zip(tidy_names(found, str(path)), found, strict=True))
    chosen = wanted(list(names))
    return _tables_of_parquet(file, {name: names[name] for name in chosen}, broken)


def _tables_of_parquet(file: pyarrow.parquet.ParquetFile, chosen: dict[str, str], broken: str) -> Tables:
    with one_line(broken, Exception):
        for batch in file.iter_batches(ROWS, columns=list(chosen.values())):
            rows = plain(batch.select(list(chosen.values())))
            table = pyarrow.Table.from_batches([rows]).rename_columns(list(chosen))
            table.validate(full=True)
            yield table


# ---------------------------------------------------------------------------------------------------------------- JSON
def _of_json(path: Path, wanted: Wanted) -> Tables:
    rows = _json_rows(path)
    first = list(islice(rows, ROWS))
    found = list(dict.fromkeys(name for row in first for name in row))
    if not found:
        raise InputError(f"{path} holds no rows.")
    names = dict(zip(tidy_names(found, str(path)), found, strict=True))
    chosen = wanted(list(names))
    return _tables_of_json(chain(first, rows), {name: names[name] for name in chosen}, path)


def _tables_of_json(rows: Iterable[dict[str, Any]], chosen: dict[str, str], path: Path) -> Tables:
    done = 0
    for block in _blocks(rows):
        columns = {}
        for name, found in chosen.items():
            values = [row.get(found) for row in block]
            try:
                columns[name] = pyarrow.array(values)
            except NO_COLUMN as error:
                row = done + first_that_fails(values)
                raise InputError(
                    f"{path}, column {name!r}, row {row}: a column of mixed kinds, or a value of no use: {error}."
                ) from None
        done += len(block)
        yield pyarrow.table(columns)


def _blocks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Lists of at most `ROWS` rows, and of about `CHARACTERS`."""
    block: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        block.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(block) == ROWS or size > CHARACTERS:
            yield block
            block, size = [], 0
    yield block


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one object a line, of a list of objects, or of an object that holds the list under `data`."""
    with _text(path, newline="\n") as lines:
        given = ((number, line.removesuffix("\n")) for number, line in enumerate(lines, start=1) if line.strip())
        start = list(islice(given, 2))
        is_one_a_line = len(start) == 2 and is_json(start[0][1])
        if is_one_a_line:
            yield from _objects(rows_of_lines(chain(start, given), path), path)
            return
    with _text(path, newline="\n") as lines:
        yield from _objects(_Document(lines, path).rows(), path)


def _objects(rows: Iterable[Any], path: Path) -> Iterator[dict[str, Any]]:
    for row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{path} must hold one JSON object a row (a list of them, or one a line).")
        yield row


class _Document:
    """A text that is one JSON value, of which a part is in memory."""

    def __init__(self, text: TextIO, path: Path):
        self.text = text
        self.path = path
        self.part = ""  # of the text
        self.at = 0  # in that part: the character that is due
        self.lines = 0  # before that part
        self.is_whole = False  # whether the part ends where the text ends

    def rows(self) -> Iterator[Any]:
        """The items of a list, or of the list under `data` of an object; else the value itself."""
        start = self._next_character()
        if not start:
            return
        if start == "[":
            yield from self._items()
        elif start == "{":
            yield from self._rows_of_object()
        else:
            yield self._value()
        if self._next_character():
            raise self._wrong(json.JSONDecodeError("Extra data", self.part, self.at))

    def _rows_of_object(self) -> Iterator[Any]:
        entries: list[tuple[str, Any]] = []
        has_rows = False
        for _ in self._parts_between("{", "}"):
            name = self._value()
            self._take(":")
            if name == "data" and self._next_character() == "[":
                has_rows = True
                yield from self._items()
            else:
                entries.append((name, self._value()))
        if has_rows:
            return
        try:
            yield each_key_once(entries)
        except ValueError as error:
            raise unreadable(self.path, "", error) from None

    def _items(self) -> Iterator[Any]:
        for _ in self._parts_between("[", "]"):
            yield self._value()

    def _parts_between(self, first: str, last: str) -> Iterator[None]:
        """Stops at each part of a list or an object; what asks for the next one has read it."""
        self._take(first)
        if self._next_character() != last:
            yield
            while self._next_character() != last:
                self._take(",")
                yield
        self._take(last)

    def _next_character(self) -> str:
        """The next one that is not white space; empty at the end."""
        while True:
            self.at = _SPACE.match(self.part, self.at).end()
            if self.at < len(self.part) or self.is_whole:
                return self.part[self.at : self.at + 1]
            self._read()

    def _take(self, character: str) -> None:
        if self._next_character() != character:
            raise self._wrong(json.JSONDecodeError(f"Expecting {character!r}", self.part, self.at))
        self.at += 1

    def _value(self) -> Any:
        self._next_character()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.part, self.at)
                if end < len(self.part) or self.is_whole:  # else a number may go on
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if self.is_whole or len(self.part) - self.at > LONGEST:
                    raise self._wrong(error) from None
            except (ValueError, RecursionError) as error:
                raise unreadable(self.path, "", error) from None
            self._read()

    def _read(self) -> None:
        """Lets go what was taken, and reads as much again as is left, so that a long value is not tried too often."""
        self.lines += self.part.count("\n", 0, self.at)
        left = self.part[self.at :]
        more = self.text.read(max(PART, len(left)))
        self.is_whole = not more
        self.part = left + more
        self.at = 0

    def _wrong(self, error: json.JSONDecodeError) -> InputError:
        return not_json(self.path, self.lines + error.lineno, error)
