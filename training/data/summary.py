"""Describes the rows: how many, how balanced, how long, and how many of the other splits are also in train."""

from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset

from lstmpool.training.data.order import token_counts
from lstmpool.training.data.rows import Split
from lstmpool.training.tasks.task import Task


SHOWN = 12  # label names that a line shows


def describe_data(
    splits: dict[str, Split], rows: dict[str, Dataset], cut: dict[str, float], task: Task
) -> dict[str, dict[str, Any]]:
    """The numbers of each split, for the report, the model card and metrics.json.

    Args:
        splits: the rows of each split as read.
        rows: the same rows as tokens.
        cut: the share of each split's texts that were cut.
        task: what the labels mean.
    """
    seen = set(splits["train"].inputs()) if "train" in splits else set()
    numbers = {}
    for name, split in splits.items():
        lengths = token_counts(rows[name][:])
        numbers[name] = {
            "source": split.source,
            "rows": len(split),
            "labels": None if split.labels is None else task.describe_labels(split.labels),
            "tokens": {"median": float(np.median(lengths)), "longest": max(lengths)},
            "truncated": cut[name],
        }
        if name != "train" and seen:
            numbers[name]["also_in_train"] = sum(text in seen for text in split.inputs())
    return numbers


def data_lines(numbers: dict[str, dict[str, Any]], limit: int) -> list[str]:
    """The report that is printed before training, one line a split. Texts were cut at `limit` tokens."""
    lines = []
    for name, split in numbers.items():
        cut = f", {split['truncated']:.1%} cut at {limit}" if split["truncated"] else ""
        also = f"; {split['also_in_train']} also in train" if split.get("also_in_train") else ""
        tokens = f"{split['tokens']['median']:g} tokens a text (longest {split['tokens']['longest']}{cut})"
        lines.append(f"  {name}: {split['rows']} rows, {tokens}{also}. {balance_words(split['labels'])}")
    return lines


def balance_words(balance: dict[str, Any] | None, named: Callable[[str], str] = str) -> str:
    """The labels of a split in a line: the rows of each class, or the mean and spread of each target.

    `named` says how a name is written.
    """
    if balance is None:
        return "No labels."
    words = []
    for name, value in balance.items():
        shown = f"{value['mean']:.3g} ± {value['std']:.2g}" if isinstance(value, dict) else value
        words.append(f"{named(name)} {shown}")
    rest = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + f"{rest}."
