"""Columns of many rows. They stay in Arrow and read like lists: as lists, a million short texts took over 1 GB.

What is said of a cell depends on what it holds, not on its row. So a column of labels is looked at once for each
different cell (`distinct`), of which classes have few.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas
import pyarrow


BLOCK = 10_000  # cells that are Python objects at a time
PRIME = 1_099_511_628_211  # by which the hash of a first text is multiplied before that of the second is added


class Distinct(NamedTuple):
    """The K different cells of a column of N, in the order of their first rows."""

    values: list[Any]  # (K,)
    rows: list[int]  # (K,), the first row that holds each, counted from 1
    counts: list[int]  # (K,), how many rows hold each
    places: np.ndarray  # (N,), for each row the place of its cell in `values`

    def items(self) -> Iterator[tuple[int, Any]]:
        """The first row and the cell itself, for each different cell."""
        return zip(self.rows, self.values, strict=True)


class Cells(Sequence):
    """A column in Arrow that reads like a list of Python values. `numpy.asarray` gives an array, mostly of no copy."""

    def __init__(self, cells: Any):
        """`cells`: an array of Arrow or numpy, or a list of values of one kind."""
        array = cells if isinstance(cells, (pyarrow.Array, pyarrow.ChunkedArray)) else pyarrow.array(cells)
        if pyarrow.types.is_string(array.type) or pyarrow.types.is_string_view(array.type):
            array = array.cast(pyarrow.large_string())  # of the other kind, an array ends at 2 GB
        if isinstance(array, pyarrow.ChunkedArray):
            array = array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()
        self.array: pyarrow.Array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: Any) -> Any:
        """The value of one row, or the cells of a slice or of the rows of these numbers."""
        if isinstance(rows, (int, np.integer)):
            return self.array[rows].as_py()
        if isinstance(rows, slice):
            return Cells(self.array[rows])
        return Cells(self.array.take(pyarrow.array(rows, pyarrow.int64())))

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), BLOCK):
            yield from self.array.slice(start, BLOCK).to_pylist()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    def __repr__(self) -> str:
        return f"Cells({list(self[:5])}{', ...' if len(self) > 5 else ''})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        nested = pyarrow.types.is_nested(self.array.type)
        values = list(self) if nested else self.array.to_numpy(zero_copy_only=False)
        return np.array(values, dtype=dtype, copy=None if nested else copy)

    def __arrow_array__(self, type: pyarrow.DataType | None = None) -> pyarrow.Array:  # noqa: A002 - pyarrow's name
        return self.array if type is None else self.array.cast(type)

    @cached_property
    def distinct(self) -> Distinct:
        """The different cells."""
        if pyarrow.types.is_nested(self.array.type):
            return _distinct_of_list(self)
        encoded = self.array.dictionary_encode(null_encoding="encode")
        return _distinct(encoded.dictionary.to_pylist(), encoded.indices.to_numpy())


class LabelTable(Sequence):
    """C numbers a row: which labels it has, a byte each, or its targets. It reads like a list of lists of floats.

    As lists, 3,000 labels took 170 kB a row. `numpy.asarray` gives the table, (N, C).
    """

    def __init__(self, table: np.ndarray):
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, rows: Any) -> Any:
        """One row as a list, or a table of several rows."""
        chosen = self._table[rows]
        return chosen.astype(float).tolist() if chosen.ndim == 1 else LabelTable(chosen)

    def __eq__(self, other: object) -> bool:
        return len(self) == len(other) and all(map(operator.eq, self, other))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._table, dtype=dtype, copy=copy)


def distinct(cells: Sequence[Any]) -> Distinct:
    """The different cells of a column."""
    return cells.distinct if isinstance(cells, Cells) else _distinct_of_list(cells)


def _distinct_of_list(cells: Sequence[Any]) -> Distinct:
    """The same of any values. They may not be hashable, and 1, 1.0 and True are three."""
    place_of: dict[str, int] = {}
    places = np.fromiter((place_of.setdefault(repr(cell), len(place_of)) for cell in cells), int, len(cells))
    _, first = np.unique(places, return_index=True)
    return _distinct([cells[int(row)] for row in first], places)


def _distinct(values: list[Any], places: np.ndarray) -> Distinct:
    _, first, counts = np.unique(places, return_index=True, return_counts=True)
    return Distinct(values, (first + 1).tolist(), counts.tolist(), places)


def each_distinct(cells: Sequence[Any], made_of: Callable[[Any], Any]) -> Cells:
    """`made_of` each cell, which is called once for each different one."""
    found = distinct(cells)
    return Cells(pyarrow.array([made_of(value) for value in found.values]).take(pyarrow.array(found.places)))


def places_of(*columns: Cells) -> np.ndarray:
    """A number for each row, (N,), counted from 0 in the order of the rows. Rows that are equal share it."""
    return pyarrow.array(_hashes(columns)).dictionary_encode().indices.to_numpy().astype(np.int64)


def are_in(rows: Sequence[Cells], others: Sequence[Cells]) -> np.ndarray:
    """Whether each of N rows, which may have several columns, is also one of the others, (N,)."""
    return np.isin(_hashes(rows), _hashes(others))


def _hashes(columns: Sequence[Cells]) -> np.ndarray:
    """A hash of each row of texts, (N,) of 64 bits: a million rows share one by chance once in 10 million times."""
    hashes = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        for start in range(0, len(column), BLOCK):
            texts = np.asarray(column[start : start + BLOCK])
            block = hashes[start : start + BLOCK]
            block *= np.uint64(PRIME)
            block += pandas.util.hash_array(texts, categorize=False)
    return hashes
