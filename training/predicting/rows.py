"""The rows to predict, in chunks: read twice, first to check and count them all, then to predict them.

Reading costs little beside a model. So a broken row in the last file is found before any weights are loaded, and the
time that is left can be told. Only the lines of the standard input are read once.
"""

import hashlib
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from datasets import load_dataset
from tqdm.auto import tqdm

from lstmpool.training.data.files import Wanted
from lstmpool.training.data.rows import TEXT_COLUMNS, check_ids, check_texts, column_in, joined, text_columns
from lstmpool.training.data.sources import files_in, saved_splits, split_names
from lstmpool.training.data.streams import Tables, stream_dataset, stream_table
from lstmpool.training.errors import InputError, did_you_mean, one_line, rows_counted_from_1
from lstmpool.training.flags.arguments import DataArguments
from lstmpool.training.predicting.options import Options, Request, Shard
from lstmpool.training.tasks.columns import Cells


ROWS = 2048  # of a chunk at most
CHARACTERS = 1_000_000  # of a chunk, about: a signal waits for its end
SHARES = 4  # chunks of each shard at least, if there are rows enough, so that the shards are of one size
LINES = 256  # of the standard input at a time
KINDS = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}  # of ids; others are written as texts


class Source(NamedTuple):
    """A place of rows: what messages call it, and what reads it, as `stream_table` does."""

    title: str
    read: Callable[[Wanted], Tables]


@dataclass(frozen=True)
class Columns:
    """Which columns are read: those that flags name, else those of training, else those that are known.

    Args:
        model: what messages call the model.
        reads_pairs: whether it reads pairs of texts; None if that is not known.
        texts: names of the text columns, joined by commas, if they are given.
        delimiter: joins them.
        id_column: the column of ids, if a flag names it.
        id_of_training: the one that training had.
    """

    model: str
    reads_pairs: bool | None = None
    texts: str | None = None
    delimiter: str | None = None
    id_column: str | None = None
    id_of_training: str | None = None

    @classmethod
    def of(cls, request: Request, model: str, reads_pairs: bool | None, settings: dict[str, Any]) -> "Columns":
        """The columns that the request names, else those in the `settings` of the model's training."""
        if request.reads_stdin:
            return cls(model, reads_pairs)
        options = request.options
        return cls(
            model,
            reads_pairs,
            options.text_column_names or settings.get("text_column_names"),
            options.text_column_delimiter or settings.get("text_column_delimiter"),
            options.id_column_name,
            settings.get("id_column_name"),
        )

    def text_columns(self, names: list[str], source: str) -> list[str]:
        """The text columns of a table. Raises InputError if they are missing, or not what the model reads."""
        texts = text_columns(_fitting(names, self.reads_pairs) if self.texts is None else names, self.texts, source)
        is_pair = len(texts) == 2 and self.delimiter is None
        if self.reads_pairs and not is_pair:
            raise InputError(
                f"{source}: {self.model} reads pairs of texts, found one text a row ({', '.join(texts)}). Name the "
                "columns of both, as in --text_column_names sentence1,sentence2."
            )
        if self.reads_pairs is False and is_pair:
            raise InputError(
                f"{source}: {self.model} reads one text a row, found pairs ({', '.join(texts)}). Name one column with "
                "--text_column_names, or join both with --text_column_delimiter."
            )
        return texts

    def id(self, names: list[str], source: str) -> str | None:
        """The column of ids; None if there is none."""
        if self.id_column is not None:
            return column_in(self.id_column.strip(), names, source, "id_column_name")
        return next((name for name in (self.id_of_training, "id") if name in names), None)

    def wanted(self, names: list[str], source: str) -> list[str]:
        """All columns that are read."""
        found = self.id(names, source)
        return list(dict.fromkeys([*self.text_columns(names, source), *([] if found is None else [found])]))


def _fitting(names: list[str], reads_pairs: bool | None) -> list[str]:
    """The names without those of known text columns that the model does not read, if it reads others."""
    if reads_pairs is None:
        return names
    known = [set(columns) for columns in TEXT_COLUMNS if (len(columns) == 2) == reads_pairs]
    fits = next((columns for columns in known if columns <= set(names)), None)
    others = {name for columns in TEXT_COLUMNS for name in columns} - (fits or set())
    return names if fits is None else [name for name in names if name not in others]


@dataclass
class Chunk:
    """Rows that are predicted together."""

    first: int  # the number of its first row, of all rows, from 1
    texts: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)  # the second texts; empty if rows are no pairs
    ids: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def where(self) -> str:
        """Which rows they are, for messages."""
        return f"rows {self.first} to {self.first + len(self) - 1} of all"


@dataclass(frozen=True)
class Survey:
    """What the first reading has found.

    Args:
        sizes: the number of rows of each chunk.
        digest: of all texts and ids.
        id_type: of the column of ids.
        has_pairs: whether a row is a pair of texts.
    """

    sizes: list[int]
    digest: str
    id_type: pyarrow.DataType
    has_pairs: bool

    def of_shard(self, shard: Shard) -> list[int]:
        """The number of rows in each of a shard's chunks."""
        return self.sizes[shard.index - 1 :: shard.count]


class Rows:
    """The rows of all sources, one after the other, in chunks of at most `chunk_rows`."""

    def __init__(self, sources: list[Source], columns: Columns):
        self.sources = sources
        self.columns = columns
        self.chunk_rows = ROWS

    def survey(self, shard: Shard, hides_bar: bool) -> Survey:
        """Reads and checks all rows, and settles how large a chunk is.

        Raises:
            InputError: for the first row that cannot be predicted. It names the source and the row.
        """
        if shard.count > 1:
            total = sum(1 for _ in _with_bar(self._rows(), "counting", hides_bar))
            self.chunk_rows = min(ROWS, -(-total // (SHARES * shard.count)))
        digest = hashlib.blake2b(digest_size=16)
        sizes: list[int] = []
        kinds: set[type] = set()
        has_pairs = False
        rows = _with_bar(self._rows(is_second=shard.count > 1), "checking", hides_bar)
        for chunk in self._chunks(rows):
            digest.update(repr((chunk.texts, chunk.pairs, chunk.ids)).encode())
            sizes.append(len(chunk))
            kinds |= set(map(_kind, chunk.ids))
            has_pairs = bool(chunk.pairs)
        kinds.discard(type(None))
        id_type = KINDS.get(kinds.pop(), pyarrow.string()) if len(kinds) == 1 else pyarrow.string()
        return Survey(sizes, digest.hexdigest(), id_type, has_pairs)

    def chunks(self, is_second: bool = True) -> Iterator[Chunk]:
        """The chunks. What there is to say of the files is said unless they are read for the second time.

        Raises:
            InputError: for a row that cannot be predicted. It names the source and the row.
        """
        return self._chunks(self._rows(is_second))

    def _chunks(self, rows: Iterator[tuple[Any, list[str]]]) -> Iterator[Chunk]:
        chunk = Chunk(1)
        size = 0
        for name, texts in rows:
            chunk.ids.append(name)
            chunk.texts.append(texts[0])
            chunk.pairs += texts[1:]
            size += sum(map(len, texts))
            if len(chunk) == self.chunk_rows or size >= CHARACTERS:
                yield chunk
                chunk = Chunk(chunk.first + len(chunk))
                size = 0
        if len(chunk):
            yield chunk

    def _rows(self, is_second: bool = False) -> Iterator[tuple[Any, list[str]]]:
        """The id of each row, and its text or pair of texts."""
        number = 0
        first_id: str | None = None
        for source in self.sources:
            before = 0
            with redirect_stdout(io.StringIO()) if is_second else nullcontext():
                tables = source.read(partial(self.columns.wanted, source=source.title))
            for table in tables:
                names = table.column_names
                found = self.columns.id(names, source.title)
                if number and (found is None) != (first_id is None):
                    there, not_there = (source, self.sources[0]) if first_id is None else (self.sources[0], source)
                    raise InputError(f"{there.title} has a column of ids, {not_there.title} has none. Add it there.")
                first_id = found
                with rows_counted_from_1():
                    texts = [
                        check_texts(Cells(table[name]), name, source.title, before)
                        for name in self.columns.text_columns(names, source.title)
                    ]
                    ids = range(number, number + len(table))
                    if found is not None:
                        ids = check_ids(Cells(table[found]), found, source.title, before)
                columns = joined(texts, self.columns.delimiter)
                yield from zip(ids, map(list, zip(*columns, strict=True)), strict=True)
                number += len(table)
                before += len(table)


def _kind(name: Any) -> type:
    """The type of an id. A number that a column of numbers cannot hold is written as a text."""
    is_large = isinstance(name, int) and not -(2**63) <= name < 2**63
    return str if is_large else type(name)


def _with_bar(rows: Iterator[Any], title: str, hides_bar: bool) -> Iterator[Any]:
    """The rows, with a progress bar if that takes long."""
    return iter(tqdm(rows, title, unit=" rows", unit_scale=True, delay=3, disable=hides_bar, leave=False))


# ---------------------------------------------------------------------------------------------------- where rows are
def sources_of(request: Request) -> list[Source]:
    """Where the rows are. Raises InputError if a data set cannot be found."""
    if request.reads_stdin:
        return [Source("the standard input", _lines)]
    if request.files:
        return [_of_path(Path(file)) for file in request.files]
    return _of_data_set(request.options)


def _of_path(path: Path) -> Source:
    return Source(str(path), partial(stream_table, path))


def _lines(wanted: Wanted) -> Tables:
    """One text a line."""
    (name,) = wanted(["text"])
    return _tables_of_lines(name)


def _tables_of_lines(name: str) -> Tables:
    lines: list[str] = []
    number = 0
    for number, line in enumerate(sys.stdin.buffer, start=1):
        with one_line(f"the standard input, line {number}, must be UTF-8"):
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"))
        if len(lines) == LINES:
            yield pyarrow.table({name: lines})
            lines = []
    if lines:
        yield pyarrow.table({name: lines})
    if not number:
        raise InputError("the standard input holds no rows.")


def _of_data_set(options: Options) -> list[Source]:
    name = options.dataset_name
    if (Path(name) / "state.json").is_file():  # one split that `save_to_disk` wrote
        return [_of_path(Path(name))]
    args = DataArguments(
        dataset_name=name,
        dataset_config_name=options.dataset_config_name,
        dataset_revision=options.dataset_revision,
    )
    is_saved = saved_splits(name) is not None
    files = {} if is_saved else files_in(args)
    split = _split(options, split_names(args), has_parts=not is_saved and not files)
    if is_saved:
        return [_of_path(Path(name, split))]
    if files:
        return [_of_path(Path(file)) for file in files[split]]
    with one_line(f"--dataset_name {name} cannot be loaded", Exception):  # of the library, or of the Hub's client
        dataset = load_dataset(name, options.dataset_config_name, split=split, revision=options.dataset_revision)
    if not len(dataset):
        raise InputError(f"--dataset_name {name}: its split {split} holds no rows.")
    return [Source(f"{name} {split}", partial(stream_dataset, dataset))]


def _split(options: Options, there: list[str], has_parts: bool) -> str:
    """The split to read, which is one of those that are `there`."""
    named = options.split_name
    if named is None:
        if "test" in there or len(there) == 1:
            return "test" if "test" in there else there[0]
        raise InputError(f"{options.dataset_name} has {', '.join(there)}. Choose one with --split_name.")
    if (named.partition("[")[0] if has_parts else named) not in there:
        hint = did_you_mean(named, there)
        raise InputError(f"--split_name {named}: {options.dataset_name} has {', '.join(there)}.{hint}")
    return named
