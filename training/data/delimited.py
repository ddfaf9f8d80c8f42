"""Reads CSV and TSV text, whose cells are strings. The separator is found in the header; nothing else is guessed."""

import csv
import io
import re
import sys
from collections import Counter

from lstmpool.training.errors import InputError, as_line
from lstmpool.training.spreadsheet import unguard


SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_DECLARED = re.compile(r'"?sep=(.)"?\r?\n')  # a first line that Excel writes and reads


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


def read_delimited(text: str, usual: str, path: str) -> tuple[list[str], list[list[str]]]:
    """The header and the columns, cell by cell.

    Args:
        text: of the file.
        usual: the separator that the file's ending stands for.
        path: for messages.

    Raises:
        InputError: for a line that is broken, or has another number of fields than the header.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than the 128 KiB that csv allows
    separator, text = _separator(text, usual, path)
    # Where the header has a space before names, as in `text, label`, a quote behind a space opens a quoted cell.
    pads = f"{separator} " in text.lstrip()[:100_000].partition("\n")[0] and f'{separator} "' in text
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, strict=True, delimiter=separator, skipinitialspace=pads)
    began = 1  # the line in which the row began
    try:
        header = next(filter(None, reader), [])  # blank lines may come first
        _refuse_nul(header, path)
        columns: list[list[str]] = [[] for _ in header]
        began = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise InputError(
                    f"{path}, line {began}: expected {len(header)} fields ({separator.join(header)}), found "
                    f"{len(row)}. Put texts that hold a {separator!r} between double quotes."
                )
            for column, cell in zip(columns, row, strict=False):  # a blank line, as at the end of many files, has none
                column.append(cell)
            began = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {began}: not valid CSV, {error}. {_remedy(error)}") from None
    if _is_prediction_table(header):
        header = [unguard(name) for name in header]
        columns = [[unguard(cell) for cell in column] for column in columns]
    return header, columns


def _separator(text: str, usual: str, path: str) -> tuple[str, str]:
    """The separator, and the text without a line that declares it."""
    declared = _DECLARED.match(text)
    if declared:
        return declared[1], text[declared.end() :]
    fields = {separator: _fields(text, separator) for separator in (usual, *SEPARATORS)}
    found = usual if fields[usual] > 1 else max(fields, key=fields.get)  # the first of equals: the usual one
    if found != usual:
        say(path, f"its fields are separated by {SEPARATORS[found]}, as the header shows.")
    return found, text


def _fields(text: str, separator: str) -> int:
    """How many fields the header has if `separator` stands between them."""
    try:
        rows = csv.reader(io.StringIO(text[:100_000], newline=""), delimiter=separator)
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
