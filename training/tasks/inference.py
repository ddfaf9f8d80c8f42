"""Decides once which task the labels set. The user says it, or a finished model does, or the cells show it."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.errors import InputError
from lstmpool.training.tasks.cells import (
    Columns,
    are_zeros_and_ones,
    as_list,
    as_number,
    check_names,
    is_missing,
    is_nan,
    is_written_number,
    lists_of,
    looks_like_list,
    sorted_names,
    vector_length,
    vectors_of,
)
from lstmpool.training.tasks.columns import Distinct, distinct
from lstmpool.training.tasks.label_names import warnings_of
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel
from lstmpool.training.tasks.task import Task


TASKS = {task.problem_type: task for task in (SingleLabel, MultiLabel, Regression)}
FOR_NOTHING = ("na", "n/a", "nan", "null", "none")  # words that other readers take for missing cells
FEW = 0.2  # the share of cells that are a few beside the others


def infer_task(columns: Columns, problem_type: str | None = None, known: list[str] | None = None) -> Task:
    """Infers the task from the training labels.

    Args:
        columns: several columns are targets of a regression or, if they hold only zeros and ones, labels of which a
            row may have any number.
        problem_type: the task, if the user named it.
        known: the label names that the data set itself declares, in its order.

    Raises:
        InputError: for labels that fit no task, or not the one named.
    """
    if problem_type is None:
        kind, evidence = _look_at(columns, known)
    else:
        kind, evidence = TASKS[problem_type], "--problem_type says so"
    if len(columns) > 1 and kind is not Regression and not (kind is MultiLabel and are_zeros_and_ones(columns)):
        raise InputError(
            f"expected one label column for {kind.problem_type}, or several of zeros and ones for "
            f"{MultiLabel.problem_type}, found {', '.join(columns)}. Join the labels of a row into one column, such "
            "as a|b."
        )
    if kind is Regression or len(columns) > 1:
        return kind(list(columns), evidence)
    column, values = next(iter(columns.items()))
    task = _with_names(kind, column, values, evidence, known)
    fewest = 2 if kind is SingleLabel else 1
    if len(task.names) < fewest:
        raise InputError(f"expected at least two labels in column {column!r}, found only {', '.join(task.names)!r}.")
    return task


def _with_names(kind: type[Task], column: str, values: Sequence[Any], evidence: str, known: list[str] | None) -> Task:
    """The task whose names stand in the cells of one column."""
    different = distinct(values)
    places = [f"column {column!r}, training row {row}" for row in different.rows]
    declared = check_names(known, f"column {column!r}, names that the data set declares") if known else None
    if kind is SingleLabel:
        found = [SingleLabel.names_in(value, place) for value, place in zip(different.values, places, strict=True)]
        return SingleLabel(
            declared or _all_names(found), evidence, warnings=_warnings(found, different, column, known)
        )
    cells = MultiLabel.cells_of(different.values)
    length = vector_length(cells)
    if length is not None:
        return MultiLabel([str(i) for i in range(length)], evidence, vectors=True)
    separator = _separator(columns={column: values})
    found = [MultiLabel.names_in(value, place, separator) for value, place in zip(cells, places, strict=True)]
    return MultiLabel(
        declared or _all_names(found), evidence, separator, warnings=_warnings(found, different, column, known)
    )


def _warnings(found: list[list[str]], cells: Distinct, column: str, known: list[str] | None) -> tuple[str, ...]:
    return () if known else tuple(warnings_of(found, cells, f"column {column!r}"))


def task_of_model(config: LstmPoolConfig, columns: Columns) -> Task:
    """The task of a finished model, for rows with these label columns (none: rows without labels)."""
    names = [config.id2label[i] for i in range(config.num_labels)]
    evidence = "--init_from says so"
    if config.problem_type == MultiLabel.problem_type:
        cells = [MultiLabel.cells_of(distinct(values).values) for values in columns.values()]
        vectors = len(cells) == 1 and vector_length(cells[0]) == len(names)
        return MultiLabel(names, evidence, _separator(columns), vectors)
    return TASKS[config.problem_type](names, evidence)


def _all_names(found: list[list[str]]) -> list[str]:
    return sorted_names({name for names in found for name in names})


def _separator(columns: Columns) -> str | None:
    bars = any("|" in str(value) for values in columns.values() for value in distinct(values).values)
    return "|" if bars else None


def _look_at(columns: Columns, known: list[str] | None) -> tuple[type[Task], str]:
    """The task that the cells suggest, and the evidence for it."""
    if len(columns) > 1:
        if are_zeros_and_ones(columns):
            return MultiLabel, f"there are {len(columns)} label columns of zeros and ones"
        return Regression, f"there are {len(columns)} label columns"
    name, column = next(iter(columns.items()))
    cells = distinct(column)
    values = cells.values
    rows = [(row, value) for row, value in cells.items() if not is_missing(value)]
    present = [value for _, value in rows]
    if any(isinstance(value, list) for value in present):
        length = vector_length(values)
        holds = "lists" if length is None else f"vectors of {length} zeros and ones, named by their places"
        return MultiLabel, f"column {name!r} holds {holds}"
    if lists_of(values):
        return MultiLabel, f"column {name!r} holds lists written as text, such as {present[0]}"
    _refuse_some_lists(name, rows)
    several = next((value for value in present if "|" in str(value)), None)
    if several is not None:
        return MultiLabel, f"column {name!r} holds {_parts_of(values)} separated by |, such as {several}"
    # A class may have a name of several words: only a plural column name says that each word is a label.
    several = next((value for value in present if len(str(value).split()) > 1), None)
    has_words = name.lower().endswith("labels") and several is not None
    if known:
        return SingleLabel, f"column {name!r} holds one of the names that the data set declares"
    regression = _numbers(name, rows, may_be_words=has_words)
    if regression is not None:
        return Regression, regression
    if has_words:
        return MultiLabel, f"column {name!r} holds {_parts_of(values)} separated by spaces, such as {several!r}"
    return SingleLabel, f"column {name!r} holds one name or whole number a row{_but(cells)}"


def _parts_of(values: list[Any]) -> str:
    return "names" if vectors_of(values) is None else "zeros and ones, one for each label,"


def _refuse_some_lists(name: str, rows: list[tuple[int, Any]]) -> None:
    """Raises InputError if cells hold lists as text that cannot be read, or beside cells that hold none."""
    for row, value in rows:
        if as_list(value) is not None or looks_like_list(value):
            raise InputError(
                f"column {name!r}, training row {row}: {value!r} is like a list, but not all rows hold lists such as "
                "['a', 'b']. Write the labels of a row as a|b. If it is the name of a class, say --problem_type "
                f"{SingleLabel.problem_type}."
            )


def _numbers(name: str, rows: list[tuple[int, Any]], may_be_words: bool) -> str | None:
    """The evidence for a regression on the numbers of one column; None if they are whole, or not all are numbers.

    Raises:
        InputError: if all are numbers, but some not in a form that can be read, such as 1,5.
    """
    rows = [(row, value) for row, value in rows if not is_nan(value)]
    numbers = {row: as_number(value) for row, value in rows}
    others = [(row, value) for row, value in rows if numbers[row] is None]
    if others and not may_be_words and all(is_written_number(value) for _, value in others):
        row, value = others[0]
        raise InputError(
            f"column {name!r}, training row {row}: expected a number such as 1.5 or 1000, found {value!r}. Write it "
            f"so for a regression. If it names a class, say --problem_type {SingleLabel.problem_type}. If it is "
            "several labels, write a|b."
        )
    decimal = next((value for _, value in rows if _is_decimal(value)), None)
    if others or decimal is None:
        return None
    evidence = f"column {name!r} holds decimal numbers, such as {decimal}"
    if all(number.is_integer() for number in numbers.values()):
        evidence += f", all of them whole (if they are classes, say --problem_type {SingleLabel.problem_type})"
    return evidence


def _is_decimal(value: Any) -> bool:
    """Whether a number is meant to have decimals, by its kind or its writing. `1e5` may be a code, `1e-05` is not."""
    if isinstance(value, str):
        return "." in value or "e-" in value.lower() or "e+" in value.lower()
    return isinstance(value, (float, Decimal))


def _but(cells: Distinct) -> str:
    """What speaks against names: commas in them, words for nothing, or that nearly all are numbers."""
    but = ""
    rows = [(row, value) for row, value in cells.items() if not is_missing(value)]
    count_of = dict(zip(cells.rows, cells.counts, strict=True))  # by the first row that holds a cell
    commas = [(row, value) for row, value in rows if isinstance(value, str) and re.search("[,;]", value)]
    if commas:
        row, value = commas[0]
        bars = "|".join(part.strip() for part in re.split("[,;]", value))
        marks = "commas" if "," in value else "semicolons"
        count = sum(count_of[row] for row, _ in commas)
        but += f"; {count} with {marks}, such as {value!r} in row {row} (several labels are written {bars})"
    words = [(row, value) for row, value in rows if str(value).strip().lower() in FOR_NOTHING]
    if words:
        row, value = words[0]
        but += f"; {value!r} in row {row} is read as a name, not as a missing label"
    others = [(row, value) for row, value in rows if as_number(value) is None]
    count, total = sum(count_of[row] for row, _ in others), sum(count_of[row] for row, _ in rows)
    if others and count <= FEW * total:
        row, value = others[0]
        but += f"; all but {count} of {total} are numbers, the first other is {value!r} in row {row}"
    return but
