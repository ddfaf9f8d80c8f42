"""What the labels mean: which of the three tasks they are, what they are called, and their form as numbers."""

import math
from dataclasses import dataclass
from typing import Any

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.errors import InputError, did_you_mean


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@dataclass(frozen=True)
class Labels:
    """The task that the training labels set: its `problem_type`, the `names` of its C outputs, and why."""

    problem_type: str
    names: list[str]
    evidence: str
    separator: str | None = None  # of several labels in one string; None: spaces

    @property
    def config_fields(self) -> dict[str, Any]:
        """What `LstmPoolConfig` is told."""
        ids = dict(enumerate(self.names))
        return {
            "problem_type": self.problem_type,
            "num_labels": len(self.names),
            "id2label": ids,
            "label2id": {name: i for i, name in ids.items()},
        }

    @classmethod
    def infer(
        cls, columns: dict[str, list[Any]], problem_type: str | None = None, known: list[str] | None = None
    ) -> "Labels":
        """Reads the task off the training labels.

        Args:
            columns: each label column's values, row by row; several columns are targets of a regression or, where they
                hold zeros and ones alone, labels of which a row may have any number.
            problem_type: the task, if the user named it.
            known: the label names that the data set itself declares, in its order.

        Raises:
            InputError: for labels that fit no task, or not the one named.
        """
        name, values = next(iter(columns.items()))
        found, evidence = _infer(columns, known)
        if problem_type not in (None, found):
            found, evidence = problem_type, "--problem_type says so"
        if len(columns) > 1 and (found == SINGLE or (found == MULTI and not _zeros_and_ones(columns))):
            raise InputError(
                f"expected one label column for {found}, or several of zeros and ones for {MULTI}, found "
                f"{', '.join(columns)}. Join the labels of a row into one column, such as a|b."
            )
        if found == REGRESSION or len(columns) > 1:
            return cls(found, list(columns), evidence)
        separator = "|" if found == MULTI and any("|" in str(value) for value in values) else None
        places = [f"{name!r}, training row {row}" for row in range(1, len(values) + 1)]
        values = _cells(values, found)
        sets = [_names_of(*cell, found, separator) for cell in zip(values, places, strict=True)]
        names = known or sorted({label for labels in sets for label in labels}, key=_by_number)
        if len(names) < (2 if found == SINGLE else 1):
            raise InputError(f"expected at least two labels in column {name!r}, found only {', '.join(names)!r}.")
        return cls(found, names, evidence, separator)

    @classmethod
    def of_model(cls, config: LstmPoolConfig, columns: dict[str, list[Any]]) -> "Labels":
        """The task and the names of a finished model, for rows with these label columns (none: without labels)."""
        names = [config.id2label[i] for i in range(config.num_labels)]
        separator = "|" if any("|" in str(value) for values in columns.values() for value in values) else None
        return cls(config.problem_type, names, "--init_from says so", separator)

    def _in_order(self, columns: dict[str, list[Any]], where: str) -> dict[str, list[Any]]:
        """The columns in the order of the names, which a finished model has settled."""
        if len(self.names) == len(columns) == 1:  # whatever it is called here
            return columns
        if set(columns) != set(self.names):
            raise InputError(
                f"{where}: expected the label columns {', '.join(self.names)}, found {', '.join(columns)}. Name them "
                "with --label_column_name."
            )
        return {name: columns[name] for name in self.names}

    def encode(self, columns: dict[str, list[Any]], where: str) -> list[Any]:
        """The labels as numbers, row by row: an index, a list of C zeros and ones, a number or a list of C numbers.

        Raises:
            InputError: for a missing value, a label that training has not seen, or what is not a number; it names
                `where` (the file or split), the row and the value.
        """
        if self.problem_type == REGRESSION or len(columns) > 1:
            columns = self._in_order(columns, where)
            numbers = {name: _numbers(values, f"{where}, column {name!r}") for name, values in columns.items()}
            if self.problem_type != REGRESSION:
                _check_zeros_and_ones(numbers, where)
            targets = [list(row) for row in zip(*numbers.values(), strict=True)]
            return targets if len(self.names) > 1 else [target[0] for target in targets]
        name, values = next(iter(columns.items()))
        ids, encoded = {label: i for i, label in enumerate(self.names)}, []
        for row, value in enumerate(_cells(values, self.problem_type), 1):
            place = f"{where}, column {name!r}, row {row}"
            labels = _names_of(value, place, self.problem_type, self.separator)
            for label in labels:
                if label not in ids:
                    raise InputError(
                        f"{place}: label {label!r} does not occur in training.{did_you_mean(label, ids)} Training has "
                        f"{len(ids)} labels: {', '.join(self.names[:8])}{' ...' if len(ids) > 8 else ''}"
                    )
            if self.problem_type == SINGLE:
                encoded.append(ids[labels[0]])
            else:  # as floats: the loss is a binary cross-entropy
                encoded.append([float(label in labels) for label in self.names])
        return encoded


def _infer(columns: dict[str, list[Any]], known: list[str] | None) -> tuple[str, str]:
    name, values = next(iter(columns.items()))
    if len(columns) > 1:
        if _zeros_and_ones(columns):
            return MULTI, f"there are {len(columns)} label columns of zeros and ones"
        return REGRESSION, f"there are {len(columns)} label columns"
    present = [value for value in values if not _is_missing(value)]
    if any(isinstance(value, list) for value in present):
        return MULTI, f"column {name!r} holds lists"
    if several := next((value for value in present if "|" in str(value)), None):
        return MULTI, f"column {name!r} holds names separated by |, such as {several}"
    numbers = [_as_number(value) for value in present]
    if not known and present and None not in numbers:
        decimal = next((value for value in present if not str(value).strip().lstrip("+-").isdigit()), None)
        if decimal is not None and not isinstance(decimal, bool):
            return REGRESSION, f"column {name!r} holds decimal numbers, such as {decimal}"
    # a class may have a name of several words: only a plural says that the words are labels
    several = next((value for value in present if len(str(value).split()) > 1), None)
    if name.lower().endswith("labels") and several is not None:
        return MULTI, f"column {name!r} holds names separated by spaces, such as {several!r}"
    return SINGLE, f"column {name!r} holds one name or whole number a row"


def _cells(values: list[Any], problem_type: str) -> list[Any]:
    """Among strings of several labels, what some readers give for an empty cell is a row without a label."""
    if problem_type != MULTI or any(isinstance(value, list) for value in values):
        return values
    return ["" if value is None else value for value in values]


def _names_of(value: Any, place: str, problem_type: str, separator: str | None) -> list[str]:
    """The label names in one cell. In multi label, a string may hold several, or none."""
    if problem_type == MULTI and isinstance(value, str):
        if value.lstrip().startswith("[") or (separator is None and "," in value):
            raise InputError(f"{place}: expected names separated by spaces or by |, found {value!r}.")
        return [part.strip() for part in value.split(separator) if part.strip()]
    if problem_type == MULTI and not isinstance(value, list):
        raise InputError(f"{place}: expected a list of labels, found {value!r}.")
    if problem_type == SINGLE and isinstance(value, list):
        raise InputError(f"{place}: expected one label, found the list {value!r}. Try --problem_type {MULTI}.")
    names = value if isinstance(value, list) else [value]
    if isinstance(value, list):
        vector = all(name in (0, 1) for name in value) and len(set(value)) < len(value)  # no set of labels 0 and 1
        if vector or any(isinstance(name, float) and not name.is_integer() for name in value if not _is_missing(name)):
            raise InputError(
                f"{place}: expected a list of label names, found {'zeros and ones' if vector else 'decimal numbers'}, "
                f"{value!r}. Give each its own column, and name all with --label_column_name a,b."
            )
    if any(isinstance(name, (list, dict)) for name in names):
        raise InputError(f"{place}: expected the name of a label, found {value!r}.")
    if any(_is_missing(name) for name in names):
        raise InputError(f"{place}: the label is missing. Fill it in or leave the row out.")
    return [str(name).strip() for name in names]


def _zeros_and_ones(columns: dict[str, list[Any]]) -> bool:
    return all(_as_number(value) in (0, 1) for values in columns.values() for value in values)


def _check_zeros_and_ones(columns: dict[str, list[float]], where: str) -> None:
    for name, numbers in columns.items():
        wrong = next((row for row, number in enumerate(numbers, 1) if number not in (0, 1)), None)
        if wrong is not None:
            found = f"{numbers[wrong - 1]:g}"
            raise InputError(f"{where}, column {name!r}, row {wrong}: expected 0 or 1, as in training, found {found}.")


def _numbers(values: list[Any], place: str) -> list[float]:
    numbers = []
    for row, value in enumerate(values, 1):
        number = _as_number(value)
        if number is None or not math.isfinite(number):
            found = "nothing" if _is_missing(value) else repr(value)
            raise InputError(f"{place}, row {row}: expected a number, found {found}. Fill it in or leave the row out.")
        numbers.append(number)
    return numbers


def _as_number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _is_missing(value: Any) -> bool:
    return value is None or str(value).strip().lower() in ("", "nan")


def _by_number(name: str) -> tuple[float, str]:
    """Sorts 2 before 10, and names that are not whole numbers by the alphabet."""
    return (float(name), name) if name.removeprefix("-").isdecimal() else (math.inf, name)
