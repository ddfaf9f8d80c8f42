"""One cell of a label column: what it holds, and whether the task can use it.

What people write decides: `1_1`, `infinity` and full-width digits are names, though Python reads them as numbers.
"""

import ast
import json
import math
import re
import warnings
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from lstmpool.training.errors import InputError, control_in
from lstmpool.training.tasks.columns import distinct
from lstmpool.training.tasks.label_names import look_of


LONGEST_NAME = 10_000  # characters of a label
Columns = dict[str, Sequence[Any]]  # the values of each label column, row by row, by the column's name

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_DIGITS = r"(?:[0-9]+|[0-9]{1,3}(?:[ \u00a0\u2009\u202f'’.,][0-9]{3})+)(?:[.,][0-9]+)?"  # 1000, 1 000, 1.000,5
# A number in another form than 1.5: a comma, groups of digits, a percent sign, a currency, another minus.
_OF_PEOPLE = re.compile(rf"[$€£¥]?\s?[+\-−–]?\s?[$€£¥]?\s?{_DIGITS}\s?[%‰$€£¥]?")
_ITEM = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[+-]?[0-9.]+)"""
_ITEMS = rf"\s*(?:{_ITEM}(?:\s*,\s*{_ITEM})*\s*,?\s*)?"
_LIST = re.compile(rf"\[{_ITEMS}\]", re.DOTALL)
_SET = re.compile(rf"""\({_ITEMS}\)|\{{{_ITEMS}\}}""", re.DOTALL)
_NUMBERS = re.compile(r"\[\s*[+-]?[0-9.]+(?:\s+[+-]?[0-9.]+)+\s*\]")  # as numpy prints them


def as_number(value: Any) -> float | None:
    """The number that a cell holds, or None if it holds something else."""
    if isinstance(value, str):
        value = value.strip()
        return float(value) if _NUMBER.fullmatch(value) else None
    if not isinstance(value, (bool, int, float, Decimal)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def is_written_number(value: Any) -> bool:
    """Whether a cell holds a number as people write it, but not in the form 1.5: `1,5`, `1 000`, `50%`."""
    return isinstance(value, str) and as_number(value) is None and bool(_OF_PEOPLE.fullmatch(value.strip()))


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing that one can see. The word nan is a word."""
    if isinstance(value, float):
        return math.isnan(value)
    if not isinstance(value, str):
        return value is None
    bare = value.strip()
    return not bare or not (bare.isascii() or look_of(bare))


def is_nan(value: Any) -> bool:
    """Whether a cell among numbers holds none: nothing, or the word nan."""
    return is_missing(value) or (isinstance(value, str) and value.strip().lower() == "nan")


def are_zeros_and_ones(columns: Columns) -> bool:
    """Whether every cell of every column holds 0 or 1."""
    return all(as_number(value) in (0, 1) for values in columns.values() for value in distinct(values).values)


def numbers_of(values: Sequence[Any], place: str) -> np.ndarray:
    """The cells as finite numbers, (N,).

    Raises:
        InputError: for the first cell that holds no such number. `place` names the file and column in the message.
    """
    found = distinct(values)
    numbers = np.empty(len(found.values))
    for i, (row, value) in enumerate(found.items()):
        number = as_number(value)
        if number is None or not math.isfinite(number):
            found = "nothing" if is_nan(value) else repr(value)
            remedy = "Write it as 1.5 or 1000" if is_written_number(value) else "Fill it in or leave the row out"
            raise InputError(f"{place}, row {row}: expected a number, found {found}. {remedy}.")
        numbers[i] = number
    return numbers[found.places]


def check_names(names: list[Any], place: str) -> list[str]:
    """The names of labels as strings, without white space around them.

    Raises:
        InputError: if a name is missing, too long, no name but a list, dict or bytes, or holds control characters.
    """
    for name in names:
        if isinstance(name, (list, dict, bytes)):
            raise InputError(f"{place}: expected the name of a label, found {name!r}.")
        if is_missing(name):
            raise InputError(f"{place}: the label is missing. Fill it in or leave the row out.")
    stripped = [str(name).strip() for name in names]
    for name in stripped:
        if len(name) > LONGEST_NAME:
            raise InputError(
                f"{place}: the label has {len(name)} characters. Name the column of labels with --label_column_name."
            )
        if control_in(name):
            raise InputError(f"{place}: the label {name!r} holds control characters, such as line ends. Remove them.")
    return stripped


def as_list(value: Any) -> list[Any] | None:
    """The list that a cell holds as text, `['a', 'b']` in the form of Python or JSON; None if it holds none."""
    if not isinstance(value, str):
        return None
    text = value.strip()
    is_set = bool(_SET.fullmatch(text)) and ("'" in text or '"' in text)  # (1) is not a list
    if not is_set and not _LIST.fullmatch(text):
        return None
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of a backslash in a name
            parsed = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return [parsed] if isinstance(parsed, str) else list(parsed)  # ('a') is not a tuple


def lists_of(values: list[Any]) -> list[list[Any]] | None:
    """The lists that the cells hold as text, [] for empty cells; None unless all cells that are not empty hold one."""
    if any(isinstance(value, list) for value in values):
        return None
    lists = [[] if is_missing(value) else as_list(value) for value in values]
    given = [value for value in values if not is_missing(value)]
    return None if not given or any(cell is None for cell in lists) else lists


def looks_like_list(value: Any) -> bool:
    """Whether a cell holds several things in brackets, in a form that `as_list` may not read."""
    if not isinstance(value, str):
        return False
    text = value.strip().removeprefix("array(")
    if _NUMBERS.fullmatch(text):
        return True
    return text[:1] in ("[", "{") and text[-1:] in ("]", "}", ")") and any(mark in text for mark in ",'\"")


def vectors_of(values: list[Any]) -> list[list[str]] | None:
    """The zeros and ones of cells such as `0 1 1` or `0|1|1`; None unless all cells hold as many of them."""
    cells = [value.split("|" if "|" in value else None) if isinstance(value, str) else value for value in values]
    return None if vector_length(cells) is None else cells


def vector_length(values: list[Any]) -> int | None:
    """The length of the cells if all are lists of equally many zeros and ones: one for each label, given or not.

    As names, zeros and ones would not repeat in a list, and [0, 1] in each row would say nothing.
    """
    lengths = {len(value) if isinstance(value, list) else 0 for value in values}
    if len(lengths) != 1 or min(lengths) < 2:
        return None
    return lengths.pop() if all(as_number(item) in (0, 1) for value in values for item in value) else None


def sorted_names(names: set[str]) -> list[str]:
    """The names in the order of the outputs: whole numbers by size (2 before 10), then the others by the alphabet."""
    return sorted(names, key=_number_then_name)


def _number_then_name(name: str) -> tuple[float, str]:
    is_number = name.removeprefix("-").isdecimal()
    return (float(name) if is_number else math.inf, name)
