"""One cell of a label column: what it holds, and whether the task can use it."""

import math
from typing import Any

from lstmpool.training.errors import InputError


Columns = dict[str, list[Any]]  # the values of each label column, row by row, by the column's name


def as_number(value: Any) -> float | None:
    """The number that a cell holds, or None if it holds something else."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return value is None or str(value).strip().lower() in ("", "nan")


def are_zeros_and_ones(columns: Columns) -> bool:
    """Whether every cell of every column holds 0 or 1."""
    return all(as_number(value) in (0, 1) for values in columns.values() for value in values)


def numbers_of(values: list[Any], place: str) -> list[float]:
    """The cells as finite numbers.

    Raises:
        InputError: for the first cell that holds no such number. `place` names the file and column in the message.
    """
    numbers = []
    for row, value in enumerate(values, 1):
        number = as_number(value)
        if number is None or not math.isfinite(number):
            found = "nothing" if is_missing(value) else repr(value)
            raise InputError(f"{place}, row {row}: expected a number, found {found}. Fill it in or leave the row out.")
        numbers.append(number)
    return numbers


def check_names(names: list[Any], place: str) -> list[str]:
    """The names of labels as strings, without white space around them.

    Raises:
        InputError: if a name is missing, or is a list or dict.
    """
    for name in names:
        if isinstance(name, (list, dict)):
            raise InputError(f"{place}: expected the name of a label, found {name!r}.")
        if is_missing(name):
            raise InputError(f"{place}: the label is missing. Fill it in or leave the row out.")
    return [str(name).strip() for name in names]


def sorted_names(names: set[str]) -> list[str]:
    """The names in the order of the outputs: whole numbers by size (2 before 10), then the others by the alphabet."""
    return sorted(names, key=_number_then_name)


def _number_then_name(name: str) -> tuple[float, str]:
    is_number = name.removeprefix("-").isdecimal()
    return (float(name) if is_number else math.inf, name)
