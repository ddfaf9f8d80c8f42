"""The prediction tables of a finished run: a row for each text, with its id, its scores and the prediction."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas

from lstmpool.training.data.rows import Split
from lstmpool.training.tasks.task import Task
from lstmpool.training.writing import writing


def prediction_table(task: Task, logits: np.ndarray, rows: Split, with_text: bool = False) -> pandas.DataFrame:
    """A row for each text, in the order of `logits` (N, C) and `rows`.

    `score_NAME` is the probability of the label NAME. `prediction` is the likeliest label, or all labels above one
    half, separated by |. Of more than `SCORED` labels, one column `score` has the probabilities of those predicted. In
    a regression it is the number; several numbers are in `prediction_NAME` each.
    """
    columns: dict[str, Any] = {"id": rows.ids}
    if with_text:
        columns["text"] = rows.texts
        if rows.pairs:
            columns["text_pair"] = rows.pairs
    columns |= task.prediction_columns(logits)
    return pandas.DataFrame(columns)


def write_table(table: pandas.DataFrame, path: Path) -> None:
    """Writes CSV or Parquet, as the ending of `path` says, under a temporary name first."""
    with writing(path) as unfinished:
        if path.suffix == ".parquet":
            table.to_parquet(unfinished, index=False)
        else:
            table.to_csv(unfinished, index=False)
