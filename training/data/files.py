"""Reads one table of rows: CSV, TSV, JSON, JSON lines or Parquet, plain or gzipped, or a folder of `save_to_disk`.

The readers guess no kinds: a cell of a CSV is a string ("None" and "NA" are words, "01" is not 1). A broken line
raises an error that names it. Only the columns that are needed are read. `rows.py` decides what they mean.
"""

import codecs
import gzip
import io
import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict, load_from_disk

from lstmpool.training.data.delimited import read_delimited, tidy_names
from lstmpool.training.errors import InputError, control_in, did_you_mean, one_line
from lstmpool.training.flags.documents import each_key_once
from lstmpool.training.tasks.columns import BLOCK


Wanted = Callable[[list[str]], list[str]]  # from the names of all columns to those that are needed

ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
# What pyarrow raises for values that cannot be one column. Its own errors are of these kinds.
NO_COLUMN = (TypeError, ValueError, OverflowError, RecursionError, NotImplementedError)
FIRST_BYTES = {
    b"\x1f\x8b": "gzip",
    b"PAR1": ".parquet",
    b"PK\x03\x04": "zip or Excel",
    b"%PDF": "PDF",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
BYTES_OF_A_BYTE = 6  # memory that a byte of a file takes: as bytes, as text, as cells and as a table
SWELL = 100  # times its size that a gzip may unpack to; text gives 3 to 20
UNASKED = 2**28  # bytes that any file may unpack to
PART = 2**20  # bytes of a text that are decoded at a time
MEMORY = 8 * 2**30  # bytes, where the system does not say


def every_column(names: list[str]) -> list[str]:
    """All names but empty ones."""
    return [name for name in names if name]


def read_table(path: Path, wanted: Wanted = every_column) -> Dataset:
    """All rows of a file, or of a folder that `Dataset.save_to_disk` wrote.

    Args:
        path: of the file or folder.
        wanted: chooses the columns to read by the names of all. It may raise `InputError`.

    Raises:
        InputError: if the file is missing, is not what its ending says, or holds no rows.
    """
    if control_in(str(path)):
        raise InputError(f"{path}: the name of a file of rows holds control characters. Rename it.")
    with one_line(f"{path} cannot be read"):
        table = _load_folder(path, wanted) if is_folder(path) else _read_file(path, wanted)
    if len(table) == 0:
        raise InputError(f"{path} holds no rows.")
    return table


def is_folder(path: Path) -> bool:
    """Whether there is a folder. Raises InputError for a name that no file can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{reason}: {path}") from None  # the reason comes first, since the name may be long


def is_table(path: Path) -> bool:
    """Whether the name of a file ends like one that `read_table` reads."""
    return _ending(path) in ENDINGS


def memory_left() -> int:
    """The bytes of memory that this process may still take, of the machine and of its container."""
    left = [MEMORY]
    meminfo = _words_of("/proc/meminfo")
    if "MemAvailable:" in meminfo:
        left = [int(meminfo[meminfo.index("MemAvailable:") + 1]) * 1024]
    most, used = _words_of("/sys/fs/cgroup/memory.max"), _words_of("/sys/fs/cgroup/memory.current")
    if most and used and most[0].isdigit():
        left.append(int(most[0]) - int(used[0]))
    return max(min(left), 0)


def _words_of(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="ascii").split()
    except (OSError, UnicodeError):
        return []


def _ending(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def kind_of_file(path: Path) -> tuple[str, bool]:
    """The ending that says how to read a file, and whether it is zipped. Raises InputError if it cannot be read."""
    if not path.exists():
        neighbours = [neighbour.name for neighbour in path.parent.glob("*")]  # none if there is no such folder
        raise InputError(f"expected a file of rows, found nothing at {path}.{did_you_mean(path.name, neighbours)}")
    if not path.is_file():
        raise InputError(f"{path} must be a file, found a device or a pipe. Write the rows to a file.")
    ending = _ending(path)
    if ending not in ENDINGS:
        raise InputError(f"{path} must end in {', '.join(ENDINGS)}, plain or .gz; found {path.suffix or 'none'!r}.")
    return ending, path.suffix == ".gz"


def _read_file(path: Path, wanted: Wanted) -> Dataset:
    ending, zipped = kind_of_file(path)
    limit = memory_left() // BYTES_OF_A_BYTE
    if path.stat().st_size > limit:
        raise InputError(f"{path} has {_megabytes(path.stat().st_size)}, for which there is too little memory.")
    content = path.read_bytes()
    if not content.strip():
        raise InputError(f"{path} holds no rows.")
    check_kind(content, "gzip" if zipped else ending, path)
    limit = min(limit, unpacks_to(len(content)))
    if zipped:
        content = _unzipped(content, limit, path)
        check_kind(content, ending, path)
    if ending == ".parquet":
        return _read_parquet(content, wanted, limit, path)
    _check_text(content, path)
    if ending in (".csv", ".tsv"):
        header, cells = read_delimited(content, "," if ending == ".csv" else "\t", str(path))
        columns = dict(zip(tidy_names(header, str(path)), cells, strict=True))
        columns.pop("", None)  # cells without a header cannot be named
        return _dataset(pyarrow.table({name: columns[name] for name in wanted(list(columns))}))
    return _as_table(_json_rows(content, path), wanted, path)


def unpacks_to(size: int) -> int:
    """The bytes that a file of this many may unpack to."""
    return max(UNASKED, SWELL * size)


def _dataset(table: pyarrow.Table) -> Dataset:
    return Dataset(table, fingerprint=uuid.uuid4().hex)  # else the library makes one of all rows, in memory


def _unzipped(content: bytes, limit: int, path: Path) -> bytes:
    with one_line(f"{path} is cut off or broken", remedy="Fetch it again."):
        with gzip.open(io.BytesIO(content)) as stream:
            unzipped = stream.read(limit + 1)
    if len(unzipped) > limit:
        raise swells(path, limit)
    return unzipped


def swells(path: Path, limit: int) -> InputError:
    return InputError(
        f"{path} unpacks to more than {_megabytes(limit)}. More than {SWELL} times its size, or than the memory "
        "allows, is refused. If it is sound, save its rows as several smaller files."
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _load_folder(path: Path, wanted: Wanted) -> Dataset:
    try:
        table = load_from_disk(str(path), keep_in_memory=True)
        if isinstance(table, Dataset):
            table.data.validate(full=True)
    except Exception as error:  # any kind: the library trusts what it finds in the folder
        reason = str(error) or type(error).__name__
        raise InputError(f"{path} is a folder, but none that Dataset.save_to_disk wrote: {reason}") from None
    if isinstance(table, DatasetDict):
        raise InputError(f"{path} holds several splits. Name it with --dataset_name, or one split's own folder.")
    bare = tidy_names(table.column_names, str(path))
    table = table.rename_columns(dict(zip(table.column_names, bare, strict=True)))
    return table.select_columns(wanted(bare))


def check_kind(content: bytes, ending: str, path: Path) -> None:
    """Refuses a file whose first bytes show another kind of content than its ending."""
    start = content[:2000].lstrip(b"\xef\xbb\xbf \t\r\n")
    found = None
    for magic, kind in FIRST_BYTES.items():
        if content.startswith(magic):
            found = kind
    if found == "UTF-16":
        raise InputError(f"{path} must be UTF-8, found UTF-16. Save it as UTF-8.")
    if found is None and start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the rows themselves. Fetch them with: git lfs pull")
    if found is None and start[:15].lower().startswith((b"<!doctype", b"<html")):
        found = "HTML"
    is_csv = ending in (".csv", ".tsv")
    if found is None and is_csv and (start.startswith(b'{"') or start.startswith((b"[{", b"[\n"))):
        found = ".json"
    if found is None and ending in ("gzip", ".parquet"):
        found = "plain text" if b"\0" not in start else "other"
    if found not in (None, ending):
        raise InputError(f"{path} is not what its ending says: expected {ending}, found {found} content. Rename it.")


def _read_parquet(content: bytes, wanted: Wanted, limit: int, path: Path) -> Dataset:
    broken = f"{path} cannot be read as Parquet"
    with one_line(broken, Exception):  # any kind: the library trusts what it finds in the file
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
        found, rows = file.schema_arrow.names, file.metadata.num_rows
    names = dict(zip(tidy_names(found, str(path)), found, strict=True))
    chosen = wanted(list(names))
    if rows * max(len(chosen), 1) * 64 > limit * BYTES_OF_A_BYTE:  # what a cell takes at the least, as Python has it
        raise swells(path, limit)
    with one_line(broken, Exception):
        batches: list[pyarrow.RecordBatch] = []
        size = 0
        for batch in file.iter_batches(200, columns=[names[name] for name in chosen]):
            batches.append(plain(batch.select([names[name] for name in chosen])))
            size += batches[-1].nbytes
            if size > limit:
                raise swells(path, limit)
        if not batches:
            return Dataset.from_dict({name: [] for name in chosen})
        table = pyarrow.Table.from_batches(batches).rename_columns(chosen).combine_chunks()
        table.validate(full=True)
        return _dataset(table.replace_schema_metadata(file.schema_arrow.metadata))  # such as the names of labels


def plain(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """The batch without dictionaries (the categories of pandas), which `datasets` does not take."""
    columns = [column.dictionary_decode() if hasattr(column, "dictionary_decode") else column for column in batch]
    return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _check_text(content: bytes, path: Path) -> None:
    """Raises InputError unless the content is UTF-8 and more than white space.

    It is decoded a part at a time: as a whole, one emoji lets each character of a file take four bytes.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    is_blank = True
    try:
        for start in range(0, len(content), PART):
            part = decoder.decode(content[start : start + PART], final=start + PART >= len(content))
            is_blank = is_blank and not part.strip()
    except UnicodeDecodeError:
        _decoded(content, path)  # says in which line
    if is_blank:
        raise InputError(f"{path} holds no rows.")


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path} must be UTF-8, found another encoding in line {line}. Save it as UTF-8.") from None


def _as_table(rows: Iterable[dict[str, Any]], wanted: Wanted, path: Path) -> Dataset:
    found: dict[str, None] = {}
    blocks: list[dict[str, Any]] = []  # the columns of some rows
    sizes: list[int] = []
    rows = iter(rows)
    while block := list(islice(rows, BLOCK)):
        names = dict.fromkeys(name for row in block for name in row)
        found |= names
        blocks.append({name: _packed([row.get(name) for row in block]) for name in names})
        sizes.append(len(block))
    if not found:
        raise InputError(f"{path} holds no rows.")
    names = dict(zip(tidy_names(list(found), str(path)), found, strict=True))
    columns = {}
    for name in wanted(list(names)):
        parts = [block.get(names[name], pyarrow.nulls(size)) for block, size in zip(blocks, sizes, strict=True)]
        columns[name] = _as_column(parts, name, path)
    return _dataset(pyarrow.table(columns))


def _packed(values: list[Any]) -> pyarrow.Array | list[Any]:
    """The values in Arrow, where they take less memory; as they are if they cannot be a column."""
    try:
        return pyarrow.array(values)
    except NO_COLUMN:
        return values


def _as_column(parts: list[pyarrow.Array | list[Any]], name: str, path: Path) -> pyarrow.ChunkedArray:
    """One column of all parts. Raises InputError if their values are of different kinds."""
    kinds = {getattr(part, "type", None) for part in parts} - {pyarrow.null()} or {pyarrow.null()}
    kind = kinds.pop()
    if not kinds and kind is not None and not _fails(pyarrow.nulls(1, kind)):
        return pyarrow.chunked_array([pyarrow.nulls(len(p), kind) if p.type != kind else p for p in parts], kind)
    values = [value for part in parts for value in (part if isinstance(part, list) else part.to_pylist())]
    error = _fails(values)
    if error:
        row = first_that_fails(values)
        raise InputError(
            f"{path}, column {name!r}, row {row}: a column of mixed kinds, or a value of no use: {error}."
        )
    return pyarrow.chunked_array([pyarrow.array(values)])


def _fails(values: list[Any] | pyarrow.Array) -> str | None:
    """Why the values cannot be a column; None if they can."""
    try:
        Dataset.from_dict({"column": values})
    except UnicodeError:
        return "it holds half of a character, as a cut emoji does"
    except NO_COLUMN as error:
        return str(error) or type(error).__name__
    return None


def first_that_fails(values: list[Any]) -> int:
    """The number, from 1, of the first row with which the rows before it make no column."""
    sound, broken = 0, len(values)
    while broken - sound > 1:
        middle = (sound + broken) // 2
        if _fails(values[:middle]):
            broken = middle
        else:
            sound = middle
    return broken


def _json_rows(content: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one object a line, of a list of objects, or of an object that holds the list under `data`."""
    lines = enumerate(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="\n"), start=1)
    given = ((number, line.removesuffix("\n")) for number, line in lines if line.strip())
    start = list(islice(given, 2))
    is_one_a_line = len(start) == 2 and is_json(start[0][1])
    for row in rows_of_lines(chain(start, given), path) if is_one_a_line else _rows_of_all(content, path):
        if not isinstance(row, dict):
            raise InputError(f"{path} must hold one JSON object a row (a list of them, or one a line).")
        yield row


def is_json(line: str) -> bool:
    try:
        parsed(line)
    except (ValueError, RecursionError):
        return False
    return True


def rows_of_lines(lines: Iterable[tuple[int, str]], path: Path) -> Iterator[Any]:
    """What each line holds."""
    for number, line in lines:
        try:
            yield parsed(line)
        except json.JSONDecodeError as error:
            raise not_json(path, number, error) from None
        except (ValueError, RecursionError) as error:
            raise unreadable(path, f", line {number}", error) from None


def _rows_of_all(content: bytes, path: Path) -> Iterable[Any]:
    """The rows of content that is one JSON value."""
    try:
        rows = parsed(_decoded(content, path))
    except json.JSONDecodeError as error:
        raise not_json(path, error.lineno, error) from None
    except (ValueError, RecursionError) as error:
        raise unreadable(path, "", error) from None
    rows = rows.get("data", [rows]) if isinstance(rows, dict) else rows
    return rows if isinstance(rows, list) else [rows]


def not_json(path: Path, line: int, error: json.JSONDecodeError) -> InputError:
    return InputError(f"{path} is not what its ending says: expected JSON, found in line {line}: {error.msg}.")


def parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=each_key_once)


def unreadable(path: Path, where: str, error: Exception) -> InputError:
    reason = str(error).partition(";")[0]
    if isinstance(error, RecursionError):
        reason = "lists or objects lie too deep in one another"
    return InputError(f"{path}{where} cannot be read as JSON: {reason}.")
