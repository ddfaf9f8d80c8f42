"""Rows as tokens, from the longest to the shortest, so that batches need little padding."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset


def token_counts(columns: Mapping[str, Any]) -> list[int]:
    """The tokens of each row that are no padding. Without a mask, every token counts."""
    if "attention_mask" in columns:
        return [sum(mask) for mask in columns["attention_mask"]]
    return [len(ids) for ids in columns["input_ids"]]


def by_length(dataset: Dataset) -> tuple[Dataset, np.ndarray]:
    """The rows from the most tokens to the fewest, and the number that each had before, (N,).

    Rows without tokens, those of cached layer states, stay as they are.
    """
    if "input_ids" not in dataset.column_names:
        return dataset, np.arange(len(dataset))
    lengths = np.array(token_counts(dataset[:]))
    order = np.argsort(-lengths, kind="stable")
    return dataset.select(order), order
