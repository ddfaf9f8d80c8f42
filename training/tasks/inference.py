"""Decides once which task the labels set. The user says it, or a finished model does, or the cells show it."""

from typing import Any

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.errors import InputError
from lstmpool.training.tasks.cells import Columns, are_zeros_and_ones, as_number, is_missing, sorted_names
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel
from lstmpool.training.tasks.task import Task


TASKS = {task.problem_type: task for task in (SingleLabel, MultiLabel, Regression)}


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
    kind, evidence = _look_at(columns, known)
    if problem_type not in (None, kind.problem_type):
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
    places = [f"{column!r}, training row {row}" for row in range(1, len(values) + 1)]
    if kind is SingleLabel:
        found = [SingleLabel.names_in(value, place) for value, place in zip(values, places, strict=True)]
        task = SingleLabel(known or _all_names(found), evidence)
    else:
        separator = _separator(columns)
        cells = zip(MultiLabel.cells_of(values), places, strict=True)
        found = [MultiLabel.names_in(value, place, separator) for value, place in cells]
        task = MultiLabel(known or _all_names(found), evidence, separator)
    fewest = 2 if kind is SingleLabel else 1
    if len(task.names) < fewest:
        raise InputError(f"expected at least two labels in column {column!r}, found only {', '.join(task.names)!r}.")
    return task


def task_of_model(config: LstmPoolConfig, columns: Columns) -> Task:
    """The task of a finished model, for rows with these label columns (none: rows without labels)."""
    names = [config.id2label[i] for i in range(config.num_labels)]
    evidence = "--init_from says so"
    if config.problem_type == MultiLabel.problem_type:
        return MultiLabel(names, evidence, _separator(columns))
    return TASKS[config.problem_type](names, evidence)


def _all_names(found: list[list[str]]) -> list[str]:
    return sorted_names({name for names in found for name in names})


def _separator(columns: Columns) -> str | None:
    bars = any("|" in str(value) for values in columns.values() for value in values)
    return "|" if bars else None


def _look_at(columns: Columns, known: list[str] | None) -> tuple[type[Task], str]:
    """The task that the cells suggest, and the evidence for it."""
    if len(columns) > 1:
        if are_zeros_and_ones(columns):
            return MultiLabel, f"there are {len(columns)} label columns of zeros and ones"
        return Regression, f"there are {len(columns)} label columns"
    name, values = next(iter(columns.items()))
    present = [value for value in values if not is_missing(value)]
    if any(isinstance(value, list) for value in present):
        return MultiLabel, f"column {name!r} holds lists"
    several = next((value for value in present if "|" in str(value)), None)
    if several is not None:
        return MultiLabel, f"column {name!r} holds names separated by |, such as {several}"
    decimal = None if known else _first_decimal(present)
    if decimal is not None:
        return Regression, f"column {name!r} holds decimal numbers, such as {decimal}"
    # A class may have a name of several words: only a plural column name says that each word is a label.
    several = next((value for value in present if len(str(value).split()) > 1), None)
    if name.lower().endswith("labels") and several is not None:
        return MultiLabel, f"column {name!r} holds names separated by spaces, such as {several!r}"
    return SingleLabel, f"column {name!r} holds one name or whole number a row"


def _first_decimal(values: list[Any]) -> Any:
    """The first value that is no whole number, if all are numbers; else None."""
    if any(as_number(value) is None for value in values):
        return None
    decimal = next((value for value in values if not str(value).strip().lstrip("+-").isdigit()), None)
    return None if isinstance(decimal, bool) else decimal
