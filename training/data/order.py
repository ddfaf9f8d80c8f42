"""Sorts tokenized rows from the longest to the shortest, so that batches need little padding."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset


def token_counts(columns: Mapping[str, Any]) -> list[int]:
    """The number of each row's tokens that are not padding. Without a mask, every token counts."""
    if "attention_mask" in columns:
        return [sum(mask) for mask in columns["attention_mask"]]
    return [len(ids) for ids in columns["input_ids"]]


def lengths_of(dataset: Dataset) -> list[int]:
    """The number of each row's tokens. Other columns are not read: labels of many names would fill the memory."""
    column = "attention_mask" if "attention_mask" in dataset.column_names else "input_ids"
    return token_counts({column: dataset[column]})


def by_length(dataset: Dataset) -> tuple[Dataset, np.ndarray]:
    """The rows from the most tokens to the fewest, and the position that each had before, (N,).

    Rows of cached layer states have no tokens and keep their order.
    """
    if "input_ids" not in dataset.column_names:
        return dataset, np.arange(len(dataset))
    lengths = np.array(lengths_of(dataset))
    order = np.argsort(-lengths, kind="stable")
    return dataset.select(order), order
