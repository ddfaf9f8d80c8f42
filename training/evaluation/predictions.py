"""Predictions for many texts, computed from the longest to the shortest, given in the order that was asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from datasets import Dataset
from scipy.special import expit, softmax
from transformers import Trainer

from lstmpool.training.data.rows import token_counts
from lstmpool.training.errors import Diverged
from lstmpool.training.tasks.labels import MULTI, REGRESSION
from lstmpool.training.writing import writing


def by_length(dataset: Dataset) -> tuple[Dataset, np.ndarray]:
    """The rows from the most tokens to the fewest, so that batches need little padding, and their numbers before. Rows
    without tokens, those of a frozen backbone's cache, stay as they are."""
    if "input_ids" not in dataset.column_names:
        return dataset, np.arange(len(dataset))
    lengths = np.array(token_counts(dataset[:]))
    order = np.argsort(-lengths, kind="stable")
    return dataset.select(order), order


@contextmanager
def in_given_order(trainer: Trainer) -> Iterator[None]:
    """Trainer evaluates in the order given, but for one strategy of training, under which it makes an order of its
    own."""
    strategy, trainer.args.train_sampling_strategy = trainer.args.train_sampling_strategy, "random"
    try:
        yield
    finally:
        trainer.args.train_sampling_strategy = strategy


def predict_logits(trainer: Trainer, dataset: Dataset) -> np.ndarray:
    """The logits (N, C) of the rows, in their order; of labels no notice is taken.

    Raises:
        Diverged: if they are no numbers, as after a training that has diverged.
    """
    if "labels" in dataset.column_names:
        dataset = dataset.remove_columns("labels")
    ordered, order = by_length(dataset)
    with in_given_order(trainer):
        found = trainer.predict(ordered).predictions
    if not np.isfinite(found).all():
        raise Diverged(
            "expected numbers from the model, found NaN or infinity: it has diverged, and was not saved. Lower "
            "--learning_rate and --head_learning_rate, or leave out --fp16."
        )
    logits = np.empty_like(found, dtype=np.float64)
    logits[order] = found
    return logits


def prediction_table(
    logits: np.ndarray,
    ids: list[Any],
    names: list[str],
    problem_type: str,
    texts: dict[str, list[str]] | None = None,
) -> pandas.DataFrame:
    """One row a text, in the order of `logits` (N, C): its id, the text if given, the scores and what they come to.

    `score_NAME` is the probability of the label NAME. `prediction` is the likeliest label; or those above one half,
    separated by |; or, in a regression, the number, under `prediction_NAME` if there are several.
    """
    columns: dict[str, Any] = {"id": ids, **(texts or {})}
    if problem_type == REGRESSION:
        several = len(names) > 1
        columns |= {f"prediction_{name}" if several else "prediction": logits[:, i] for i, name in enumerate(names)}
        return pandas.DataFrame(columns)
    scores = expit(logits) if problem_type == MULTI else softmax(logits, axis=1)
    columns |= {f"score_{name}": scores[:, i] for i, name in enumerate(names)}
    if problem_type == MULTI:
        columns["prediction"] = ["|".join(np.array(names)[row > 0]) for row in logits]
    else:
        columns["prediction"] = [names[i] for i in logits.argmax(1)]
    return pandas.DataFrame(columns)


def write_table(table: pandas.DataFrame, path: Path) -> None:
    """Writes CSV or Parquet, by the ending, under a temporary name first."""
    with writing(path) as unfinished:
        if path.suffix == ".parquet":
            table.to_parquet(unfinished, index=False)
        else:
            table.to_csv(unfinished, index=False)
