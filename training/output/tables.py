"""The prediction tables of a finished run: a row for each text, with its id, its scores and the prediction."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from lstmpool.training.data.delimited import guard
from lstmpool.training.data.rows import Split
from lstmpool.training.tasks.task import Task
from lstmpool.training.writing import writing


def prediction_table(task: Task, logits: np.ndarray, rows: Split, with_text: bool = False) -> pandas.DataFrame:
    """A row for each text, in the order of `logits` (N, C) and `rows`.

    `score_NAME` is the probability of the label NAME. `prediction` is the likeliest label, or all labels above one
    half, separated by |. Of more than `SCORED` labels, one column `score` has the probabilities of those predicted. In
    a regression it is the number; several numbers are in `prediction_NAME` each.
    """
    columns: dict[str, Any] = {"id": list(rows.ids)}
    if with_text:
        columns |= text_columns(rows)
    columns |= task.prediction_columns(logits)
    return pandas.DataFrame(columns)


def text_columns(rows: Split) -> dict[str, list[str]]:
    """The texts of the rows, or both texts of pairs."""
    return dict(zip(("text", "text_pair"), map(list, rows.columns), strict=False))


def write_table(table: pandas.DataFrame, path: Path, raw: bool = False) -> None:
    """Writes CSV or Parquet, as the ending of `path` says, under a temporary name first.

    A CSV table may be opened in a spreadsheet, so no cell of it, nor its header, is one that a spreadsheet would run.
    With `raw`, all cells stay as they are.
    """
    with writing(path) as unfinished:
        if path.suffix == ".parquet":
            table.to_parquet(unfinished, index=False)
            return
        safe = table if raw else _safe(table)
        # Python's writer leaves a carriage return without quotes before 3.13, and readers take it for a line's end
        returns = any(safe[name].map(str).str.contains("\r").any() for name in safe.select_dtypes(exclude="number"))
        safe.to_csv(unfinished, index=False, quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL)


def _safe(table: pandas.DataFrame) -> pandas.DataFrame:
    """The table with `guard` applied to its texts and its header."""
    texts = {name: table[name].map(_guarded) for name in table.select_dtypes(exclude="number")}
    return table.assign(**texts).rename(columns=_guarded)


def _guarded(cell: Any) -> Any:
    return guard(cell) if isinstance(cell, str) else cell
