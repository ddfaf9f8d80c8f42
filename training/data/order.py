"""Tokenized rows: keeps them on disk, and sorts them from the longest to the shortest, so that batches need little
padding."""

import mmap
import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset

from lstmpool.training.errors import one_line
from lstmpool.training.tasks.columns import BLOCK, Cells, LabelTable


def on_disk(tables: Iterable[pyarrow.Table]) -> Dataset:
    """The rows of all tables, in a temporary file without a name: it is gone with the process, also after a kill.

    Raises:
        InputError: if the disk is full.
    """
    unwritten = f"tokens cannot be written to {tempfile.gettempdir()}"
    on_a_full_disk = partial(one_line, unwritten, remedy="Make room, or set TMPDIR to another folder.")
    with tempfile.TemporaryFile() as file:
        writer = None
        for table in tables:
            with on_a_full_disk():
                writer = writer or pyarrow.ipc.new_stream(file, table.schema)
                writer.write_table(table)
        with on_a_full_disk():
            writer.close()
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    rows = pyarrow.ipc.open_stream(pyarrow.py_buffer(mapped)).read_all()
    return Dataset(rows, fingerprint=uuid.uuid4().hex)  # else the library hashes all rows to make one


def token_counts(columns: Mapping[str, Any]) -> list[int]:
    """The number of each row's tokens that are not padding. Without a mask, every token counts."""
    if "attention_mask" in columns:
        return [sum(mask) for mask in columns["attention_mask"]]
    return [len(ids) for ids in columns["input_ids"]]


def lengths_of(dataset: Dataset) -> np.ndarray:
    """The number of each row's tokens, (N,). Other columns, such as labels of many names, are not read."""
    column = "attention_mask" if "attention_mask" in dataset.column_names else "input_ids"
    tables = dataset.select_columns(column).with_format("arrow").iter(BLOCK)
    lists = [chunk for table in tables for chunk in table[column].chunks]
    counts = [_counts(chunk, is_mask=column == "attention_mask") for chunk in lists]
    return np.concatenate([np.zeros(0, dtype=np.int64), *counts])


def _counts(lists: pyarrow.ListArray, is_mask: bool) -> np.ndarray:
    """The number of tokens in each of B lists: those that a mask does not hide, or all."""
    lengths = pyarrow.compute.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    if not is_mask:
        return lengths
    ends = np.cumsum(lengths)
    masked = np.concatenate([[0], np.cumsum(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.int64)])
    return masked[ends] - masked[ends - lengths]


def by_length(dataset: Dataset) -> tuple[Dataset, np.ndarray]:
    """The rows from the most tokens to the fewest, and the position that each had before, (N,).

    Rows of cached layer states have no tokens and keep their order.
    """
    if "input_ids" not in dataset.column_names:
        return dataset, np.arange(len(dataset))
    order = np.argsort(-lengths_of(dataset), kind="stable")
    return dataset.select(order), order


def as_column(labels: Sequence[Any]) -> Any:
    """What `Dataset.add_column` makes a column of: the labels in Arrow, a row of a table as a list."""
    if isinstance(labels, Cells):
        return labels.array
    if not isinstance(labels, LabelTable):
        return labels
    table = np.asarray(labels)  # (N, C)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(table.ravel()), table.shape[1])


@dataclass(frozen=True)
class Tokens:
    """The tokens of a split. Folds share one `dataset`, and each chooses from it.

    Args:
        dataset: the tokenizer's columns.
        cut: the share of rows that the tokenizer has cut.
        chosen: numbers of the rows that belong to the split; None for all.
    """

    dataset: Dataset
    cut: float
    chosen: list[int] | None = None

    def with_labels(self, labels: Sequence[Any] | None) -> Dataset:
        """The whole dataset with a column of labels. `labels` are those of the chosen rows; others get any."""
        if labels is None:
            return self.dataset
        if self.chosen is not None:
            source = np.zeros(len(self.dataset), dtype=int)
            source[self.chosen] = np.arange(len(labels))
            labels = labels[source] if isinstance(labels, (Cells, LabelTable)) else [labels[row] for row in source]
        return self.dataset.add_column("labels", as_column(labels))

    @property
    def median_length(self) -> float:
        """The number of tokens of the median row."""
        return float(np.median(lengths_of(self.choose(self.dataset))))

    def choose(self, dataset: Dataset) -> Dataset:
        """The chosen rows of `dataset`, which has a row for each row of the tokens."""
        return dataset if self.chosen is None else dataset.select(self.chosen)
