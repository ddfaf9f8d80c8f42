"""What the rows are like: how many, how balanced, how long, and whether training has seen some of the others."""

from typing import Any

import numpy as np
from datasets import Dataset

from lstmpool.training.data.order import token_counts
from lstmpool.training.data.rows import Split
from lstmpool.training.tasks.task import Task


SHOWN = 12  # label names in a line


def describe_data(
    splits: dict[str, Split], rows: dict[str, Dataset], cut: dict[str, float], task: Task
) -> dict[str, dict[str, Any]]:
    """The numbers of each split, for the report, the model card and metrics.json.

    Args:
        splits: the rows as read.
        rows: the same as tokens.
        cut: the share of texts in each that were cut.
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
    """The report that is printed before training, one line a split."""
    lines = []
    for name, of in numbers.items():
        cut = f", {of['truncated']:.1%} cut at {limit}" if of["truncated"] else ""
        also = f"; {of['also_in_train']} also in train" if of.get("also_in_train") else ""
        tokens = f"{of['tokens']['median']:g} tokens a text (longest {of['tokens']['longest']}{cut})"
        lines.append(f"  {name}: {of['rows']} rows, {tokens}{also}. {balance_words(of['labels'])}")
    return lines


def balance_words(balance: dict[str, Any] | None) -> str:
    """The labels of a split in a line: the rows of each class, or the mean and spread of each target."""
    if balance is None:
        return "No labels."
    words = [
        f"{name} {of['mean']:.3g} ± {of['std']:.2g}" if isinstance(of, dict) else f"{name} {of}"
        for name, of in balance.items()
    ]
    return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN} more." if len(words) > SHOWN else ".")
