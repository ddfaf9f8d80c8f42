"""Reads one table of rows: CSV, JSON, JSON lines or Parquet, plain or gzipped, or a folder of `save_to_disk`.

The readers guess nothing: a cell of a CSV is a string ("None" and "NA" are words, "01" is not 1). A broken line raises
an error that names it. `rows.py` decides what the columns mean.
"""

import csv
import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import Dataset, DatasetDict, load_from_disk

from lstmpool.training.errors import InputError, did_you_mean


ENDINGS = (".csv", ".json", ".jsonl", ".parquet")
FIRST_BYTES = {
    b"\x1f\x8b": "gzip",
    b"PAR1": ".parquet",
    b"PK\x03\x04": "zip or Excel",
    b"%PDF": "PDF",
}


def read_table(path: Path) -> Dataset:
    """All rows of a file, or of a folder that `Dataset.save_to_disk` wrote.

    Raises:
        InputError: if the file is missing, is not what its ending says, or holds no rows.
    """
    table = _load_folder(path) if path.is_dir() else _read_file(path)
    if len(table) == 0:
        raise InputError(f"{path} holds no rows.")
    return table


def _read_file(path: Path) -> Dataset:
    if not path.exists():
        neighbours = [neighbour.name for neighbour in path.parent.glob("*")]  # none if there is no such folder
        raise InputError(f"expected a file of rows, found nothing at {path}.{did_you_mean(path.name, neighbours)}")
    zipped = path.suffix == ".gz"
    ending = (path.with_suffix("") if zipped else path).suffix.lower()
    if ending not in ENDINGS:
        raise InputError(f"{path} must end in {', '.join(ENDINGS)}, plain or .gz; found {path.suffix or 'none'!r}.")
    content = path.read_bytes()
    _check_kind(content, "gzip" if zipped else ending, path)
    if zipped:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise InputError(f"{path} is cut off or broken: {error}. Fetch it again.") from None
        _check_kind(content, ending, path)
    if ending == ".parquet":
        return _read_parquet(content, path)
    columns = _read_text(content, ending, path)
    try:
        return Dataset.from_dict(columns)
    except (TypeError, ValueError, OverflowError) as error:  # pyarrow's errors are of these kinds
        raise InputError(f"{path} holds a column of mixed kinds: {error}") from None


def _load_folder(path: Path) -> Dataset:
    try:
        table = load_from_disk(str(path), keep_in_memory=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is a folder, but none that Dataset.save_to_disk wrote: {error}") from None
    if isinstance(table, DatasetDict):
        raise InputError(f"{path} holds several splits. Name it with --dataset_name, or one split's own folder.")
    return table


def _check_kind(content: bytes, ending: str, path: Path) -> None:
    """Refuses a file whose first bytes show another kind of content than its ending."""
    start = content[:2000].lstrip(b"\xef\xbb\xbf \t\r\n")
    found = None
    for magic, kind in FIRST_BYTES.items():
        if content.startswith(magic):
            found = kind
    if found is None and start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the rows themselves. Fetch them with: git lfs pull")
    if found is None and start[:15].lower().startswith((b"<!doctype", b"<html")):
        found = "HTML"
    if found is None and ending == ".csv" and (start.startswith(b'{"') or start.startswith((b"[{", b"[\n"))):
        found = ".json"
    if found is None and ending in ("gzip", ".parquet"):
        found = "plain text" if b"\0" not in start else "other"
    if found not in (None, ending):
        raise InputError(f"{path} is not what its ending says: expected {ending}, found {found} content. Rename it.")


def _read_parquet(content: bytes, path: Path) -> Dataset:
    try:
        return Dataset(pyarrow.parquet.read_table(io.BytesIO(content)))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from None


def _read_text(content: bytes, ending: str, path: Path) -> dict[str, list[Any]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path} must be UTF-8, found another encoding in line {line}. Save it as UTF-8.") from None
    if ending == ".csv":
        return _read_csv(text, path)
    rows = _read_json(text, path)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _read_csv(text: str, path: Path) -> dict[str, list[str]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than the 128 KiB that csv allows
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise InputError(f"{path} must name each column once, found the header {','.join(header)}")
        columns: list[list[str]] = [[] for _ in header]
        for row in reader:
            if not row:
                continue  # a blank line, as at the end of many files
            if len(row) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: expected {len(header)} fields ({','.join(header)}), found "
                    f"{len(row)}. Put texts that hold a comma between double quotes."
                )
            for column, cell in zip(columns, row, strict=True):
                column.append(cell)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not valid CSV, {error}.") from None
    return dict(zip(header, columns, strict=True))


def _read_json(text: str, path: Path) -> list[dict[str, Any]]:
    """The rows of a list of objects, of one object a line, or of an object that holds the list under `data`."""
    try:
        rows = json.loads(text)
        rows = rows.get("data", [rows]) if isinstance(rows, dict) else rows
    except json.JSONDecodeError as whole:
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                where = f"line {number}: {error.msg}" if rows else f"line {whole.lineno}: {whole.msg}"
                raise InputError(f"{path} is not what its ending says: expected JSON, found in {where}.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} must hold one JSON object a row (a list of them, or one a line).")
    return rows
