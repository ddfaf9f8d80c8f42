"""Reads CSV and TSV text, whose cells are strings. The separator is found in the header; nothing else is guessed.

A spreadsheet takes a cell that begins with `=`, `+`, `-`, `@`, a tab or a carriage return for a formula. An apostrophe
before it makes it text, as OWASP advises (https://owasp.org/www-community/attacks/CSV_Injection). Numbers stay. The
project's writers put it there with `guard`, and its readers take it off with `unguard`.
"""

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import pyarrow

from lstmpool.training.errors import InputError, as_line


SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
START = 100_000  # characters in which the header is looked for
BLOCK = 20_000  # cells that are Python strings at a time
CHARACTERS = 4_000_000  # in them
_DECLARED = re.compile(r'"?sep=(.)"?\r?\n')  # a first line that Excel writes and reads
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def say(source: str, what: str) -> None:
    """Prints a line about how a file was read."""
    print(as_line(f"{source}: {what}"), flush=True)


def tidy_names(names: list[str], source: str) -> list[str]:
    """The names of the columns without white space around them.

    Raises:
        InputError: if two are then the same. Columns without a name do not count.
    """
    tidy = [name.strip() for name in names]
    twice = [name for name, count in Counter(tidy).items() if count > 1 and name]
    if twice:
        raise InputError(f"{source} must name each column once, found {twice[0]!r} twice in {','.join(tidy)}")
    padded = [name for name, bare in zip(names, tidy, strict=True) if name != bare]
    if padded:
        say(source, f"white space around the names of columns is left out, as in {padded[0]!r}.")
    return tidy


def read_delimited(content: bytes, usual: str, path: str) -> tuple[list[str], list[pyarrow.ChunkedArray]]:
    """The header and the columns of strings of a whole file, whose `content` is UTF-8. See `stream_delimited`."""

    def opened() -> TextIO:
        return io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="")

    header, blocks = stream_delimited(opened, usual, path)
    return header, [pyarrow.chunked_array(column) for column in zip(*blocks, strict=True)]


def stream_delimited(
    opened: Callable[[], TextIO], usual: str, path: str
) -> tuple[list[str], Iterator[list[pyarrow.Array]]]:
    """The header, and the columns of strings of some rows at a time; the first of these has no rows.

    Args:
        opened: opens the text, with its line ends as they are.
        usual: the separator that the file's ending stands for.
        path: for messages.

    Raises:
        InputError: for a line that is broken, or has another number of fields than the header; also while the rows
            are read.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than the 128 KiB that csv allows
    lines = opened()
    start = lines.read(START)
    separator, declared = _separator(start, usual, path)
    # Where the header has a space before names, as in `text, label`, a quote behind a space opens a quoted cell.
    pads = f"{separator} " in start[declared:].lstrip()[:START].partition("\n")[0]
    if pads:
        with opened() as again:
            pads = any(f'{separator} "' in line for line in again)
    lines.seek(0)
    lines.read(declared)
    reader = csv.reader(lines, strict=True, delimiter=separator, skipinitialspace=pads)
    try:
        header = next(filter(None, reader), [])  # blank lines may come first
    except csv.Error as error:
        raise _not_csv(path, 1, error) from None
    _refuse_nul(header, path)
    unguards = _is_prediction_table(header)
    blocks = _blocks(reader, header, unguards, path)
    return [unguard(name) for name in header] if unguards else header, blocks


def _blocks(reader: Any, header: list[str], unguards: bool, path: str) -> Iterator[list[pyarrow.Array]]:
    """The columns of the rows that the `reader` of csv gives, some rows at a time."""
    cells: list[str] = []  # row after row
    size = 0  # characters in them
    yield _columns_of(cells, header, unguards)
    began = reader.line_num + 1  # the line in which the row began
    try:
        for row in reader:
            if row and len(row) != len(header):
                separator = reader.dialect.delimiter
                raise InputError(
                    f"{path}, line {began}: expected {len(header)} fields ({separator.join(header)}), found "
                    f"{len(row)}. Put texts that hold a {separator!r} between double quotes."
                )
            cells += row  # a blank line, as at the end of many files, has none
            size += sum(map(len, row))
            if len(cells) >= BLOCK or size >= CHARACTERS:
                yield _columns_of(cells, header, unguards)
                cells, size = [], 0
            began = reader.line_num + 1
    except csv.Error as error:
        raise _not_csv(path, began, error) from None
    yield _columns_of(cells, header, unguards)


def _not_csv(path: str, line: int, error: csv.Error) -> InputError:
    return InputError(f"{path}, line {line}: not valid CSV, {error}. {_remedy(error)}")


def _columns_of(cells: list[str], header: list[str], unguards: bool) -> list[pyarrow.Array]:
    """The columns of cells that are given row after row. Of a table of predictions, they lose their guards."""
    columns = [cells[place :: len(header)] for place in range(len(header))]
    if unguards:
        columns = [[unguard(cell) for cell in column] for column in columns]
    return [pyarrow.array(column, pyarrow.large_string()) for column in columns]


def _separator(text: str, usual: str, path: str) -> tuple[str, int]:
    """The separator, and the length of a line that declares it."""
    declared = _DECLARED.match(text)
    if declared:
        return declared[1], declared.end()
    fields = {separator: _fields(text, separator) for separator in (usual, *SEPARATORS)}
    found = usual if fields[usual] > 1 else max(fields, key=fields.get)  # the first of equals: the usual one
    if found != usual:
        say(path, f"its fields are separated by {SEPARATORS[found]}, as the header shows.")
    return found, 0


def _fields(text: str, separator: str) -> int:
    """How many fields the header has if `separator` stands between them."""
    try:
        rows = csv.reader(io.StringIO(text[:START], newline=""), delimiter=separator)
        return len(next(filter(None, rows), []))
    except csv.Error:
        return 0


def _refuse_nul(header: list[str], path: str) -> None:
    if any("\0" in name for name in header):
        raise InputError(f"{path} must be UTF-8, found NUL characters in its header, as UTF-16 has. Save it as UTF-8.")


def _remedy(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "A quote that is opened in that row is never closed. Close it, or write it twice if it is text."
    return "Write a double quote inside a quoted text twice."


def _is_prediction_table(header: list[str]) -> bool:
    """Whether the columns are those of a table that a run has written, whose cells are guarded from spreadsheets."""
    return "id" in header and any(name == "prediction" or name.startswith("prediction_") for name in header)


# ------------------------------------------------------------------------------------------------------------ formulas
def guard(cell: str) -> str:
    """The cell with an apostrophe before it if a spreadsheet would run it, or if `unguard` would change it."""
    return f"'{cell}" if _is_risky(cell) else cell


def unguard(cell: str) -> str:
    """The cell that `guard` was given."""
    return cell[1:] if cell.startswith("'") and _is_risky(cell[1:]) else cell


def _is_risky(cell: str) -> bool:
    return bool(_FORMULA.match(cell)) and not _NUMBER.fullmatch(cell)
