"""Reads the rows, checks them before any model is loaded, and turns them into tokens and numeric labels."""

import gc
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.data.order import on_disk, token_counts
from lstmpool.training.data.sources import read_rows, title_of
from lstmpool.training.errors import InputError, control_in, did_you_mean, rows_counted_from_1
from lstmpool.training.flags.arguments import LIMITS, DataArguments
from lstmpool.training.tasks.cells import Columns
from lstmpool.training.tasks.columns import Cells, LabelTable, distinct, each_distinct
from lstmpool.training.tasks.inference import infer_task, task_of_model
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.task import Task


# Without --text_column_names, the first of these that a table has. GLUE and its like use these names.
TEXT_COLUMNS = (
    ("text",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
)

ROWS = 1000  # that are tokenized at a time
NARROW = {  # types of the tokenizer's usual columns
    "input_ids": pyarrow.list_(pyarrow.int32()),
    "token_type_ids": pyarrow.list_(pyarrow.int8()),
    "attention_mask": pyarrow.list_(pyarrow.int8()),
}


@dataclass(frozen=True)
class Split:
    """The rows of train, validation or test: their texts, or pairs of texts, and their labels as numbers."""

    source: str  # for messages: a file's name without its folders, or a data set and its split
    texts: Sequence[str]  # a list becomes `Cells`
    pairs: Sequence[str] | None  # the second text of each pair
    labels: Sequence[Any] | None  # encoded by the task; None: only predictions are made
    ids: Sequence[Any]
    groups: Sequence[Any] | None = None  # the values of --group_column

    def __post_init__(self) -> None:
        for name in ("texts", "pairs"):
            column = getattr(self, name)
            if column is not None and not isinstance(column, Cells):
                object.__setattr__(self, name, Cells(pyarrow.array(column, pyarrow.large_string())))

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def columns(self) -> list[Cells]:
        """The texts, or the first and the second texts of pairs."""
        return [self.texts] if self.pairs is None else [self.texts, self.pairs]

    def inputs(self) -> Iterator[tuple[str, ...]]:
        """Each row's text, or pair of texts."""
        return zip(*self.columns, strict=True)

    def take(self, rows: Sequence[int], source: str | None = None) -> "Split":
        """The rows of these numbers, in that order. `source`, if given, replaces their source."""
        return Split(
            source or self.source,
            texts=_taken(self.texts, rows),
            pairs=_taken(self.pairs, rows),
            labels=_taken(self.labels, rows),
            ids=_taken(self.ids, rows),
            groups=_taken(self.groups, rows),
        )

    def tokenize(
        self, tokenizer: PreTrainedTokenizerBase, pad_to_max_length: bool = False, workers: int | None = None
    ) -> tuple[Dataset, float]:
        """The columns that the tokenizer makes, and the share of rows that its length limit has cut.

        Args:
            tokenizer: that of the backbone.
            pad_to_max_length: whether every row is padded to the limit.
            workers: processes that share the work; None: this one alone.
        """
        encode = partial(encode_rows, tokenizer=tokenizer, pads=pad_to_max_length)
        names = ["text", "pair"][: len(self.columns)]
        table = pyarrow.table([column.array for column in self.columns], names)
        if workers is None or workers == 1:
            tables = map(encode, table.to_batches(max_chunksize=ROWS))
        else:
            rows = Dataset(table).with_format("arrow")
            rows = rows.map(encode, batched=True, remove_columns=names, keep_in_memory=True, num_proc=workers)
            tables = [rows.data.table]
        tokens = on_disk(tables)
        cut = pyarrow.compute.mean(tokens.data.column("was_cut")).as_py()
        return tokens.remove_columns("was_cut"), cut


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Within this block, Python does not look for garbage. The lists of a thousand rows would set it off each time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_no_search_for_cycles()
def encode_rows(rows: pyarrow.RecordBatch, tokenizer: PreTrainedTokenizerBase, pads: bool) -> pyarrow.Table:
    """The tokenizer's columns for some rows, and whether it has cut each (`was_cut`)."""
    texts, *pairs = [column.to_pylist() for column in rows.columns]
    # Without padding a mask is all ones, which are made quicker here than there.
    makes_mask = tokenizer.is_fast and not pads and "attention_mask" in tokenizer.model_input_names
    # A pair is encoded as one, so the backbone sees where the second text begins.
    encoded = tokenizer(
        texts,
        *pairs,
        truncation=True,
        padding="max_length" if pads else False,
        return_attention_mask=False if makes_mask else None,
    )
    columns = {name: _as_column(values, name) for name, values in encoded.items()}
    if makes_mask:
        ids = columns["input_ids"]
        ones = pyarrow.array(np.ones(len(ids.values), dtype=np.int8))
        columns["attention_mask"] = pyarrow.ListArray.from_arrays(ids.offsets, ones)
    if encoded.encodings:
        was_cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
    else:  # a tokenizer written in Python does not say what it has cut
        was_cut = [length >= tokenizer.model_max_length for length in token_counts(encoded)]
    return pyarrow.table(columns | {"was_cut": was_cut})


def _as_column(values: list[Any], name: str) -> pyarrow.Array:
    """The values in the narrow type that suits a column of this name, if they fit."""
    try:
        return pyarrow.array(values, NARROW.get(name))
    except (pyarrow.ArrowException, OverflowError):
        return pyarrow.array(values)


def _taken(column: Any, rows: Sequence[int]) -> Any:
    if column is None:
        return None
    return column[rows] if isinstance(column, (Cells, LabelTable)) else [column[row] for row in rows]


def read_splits(
    args: DataArguments, places: dict[str, str], problem_type: str | None, finished: LstmPoolConfig | None = None
) -> tuple[dict[str, Split], Task]:
    """The splits at `places`, by name, and the task that the labels set.

    Args:
        args: which columns and how many rows are read.
        places: where the rows of each split are, see `named_splits`.
        problem_type: the task, if the user named it.
        finished: config of the model that is trained further or evaluated; its labels are kept if they still fit.

    Raises:
        InputError: for rows that no model can be trained on. It names the file, the row and the remedy.
    """
    with rows_counted_from_1():
        return _read_splits(args, places, problem_type, finished)


def _read_splits(
    args: DataArguments, places: dict[str, str], problem_type: str | None, finished: LstmPoolConfig | None
) -> tuple[dict[str, Split], Task]:
    tables = {name: _read_table(args, name, place) for name, place in places.items()}
    task = _task(tables, problem_type, finished)
    splits = {}
    for name, table in tables.items():
        split = table.encoded(task)
        limit = getattr(args, LIMITS[name])
        if limit is not None and limit < len(split):
            split = split.take(_chosen(len(split), limit, args.shuffle_seed))
        splits[name] = split
    if len({split.pairs is None for split in splits.values()}) > 1:
        raise InputError("expected all files to have the same text columns. Name them with --text_column_names.")
    return splits, task


@dataclass(frozen=True)
class _Table:
    """What is read of a split before the task is known."""

    source: str
    texts: list[Cells]  # one column, or the two of pairs
    ids: Cells
    groups: Cells | None
    values: Columns  # of the label columns; empty: no row has a label
    known: list[str] | None  # the label names that the data set declares

    def encoded(self, task: Task) -> Split:
        """The rows, with their labels as numbers."""
        pairs = self.texts[1] if len(self.texts) == 2 else None
        labels = task.encode(self.values, self.source) if self.values else None
        return Split(self.source, self.texts[0], pairs, labels, self.ids, self.groups)


class _Columns(NamedTuple):
    """The names of the columns that a split needs."""

    texts: list[str]
    labels: list[str]
    ids: str | None
    groups: str | None

    def names(self) -> list[str]:
        """All of them, once each."""
        others = [name for name in (self.ids, self.groups) if name is not None]
        return list(dict.fromkeys([*self.texts, *self.labels, *others]))


def _read_table(args: DataArguments, name: str, place: str) -> _Table:
    title = title_of(args, place)
    table, source = read_rows(args, place, lambda columns: _columns(args, name, columns, title).names())
    needed = _columns(args, name, table.column_names, source)
    texts = [check_texts(_cells(table, column), column, source) for column in needed.texts]
    ids = _ids(table, needed.ids, source)
    groups = None if needed.groups is None else _groups(table, needed.groups, source)
    values, known = _label_values(table, needed.labels, source, may_lack=name == "test")
    return _Table(source, joined(texts, args.text_column_delimiter), ids, groups, values, known)


def _columns(args: DataArguments, split: str, columns: list[str], source: str) -> _Columns:
    """The columns that `split` needs, of those that its table has. Raises InputError if one is not there."""
    texts = text_columns(columns, args.text_column_names, source)
    labels = _label_columns(columns, args.label_column_name, source, required=split != "test")
    if set(texts) & set(labels):
        raise InputError(f"{source}: a column cannot be both text and label, got {texts}, {labels}.")
    ids = "id" if "id" in columns else None
    if args.id_column_name is not None:
        ids = column_in(args.id_column_name.strip(), columns, source, "id_column_name")
    groups = None
    if split == "train" and args.group_column:
        groups = column_in(args.group_column.strip(), columns, source, "group_column")
    needed = _Columns(texts, labels, ids, groups)
    for name in needed.names():
        if control_in(name):
            raise InputError(f"{source}: the name of column {name!r} holds control characters. Rename it.")
    return needed


def _task(tables: dict[str, _Table], problem_type: str | None, finished: LstmPoolConfig | None) -> Task:
    if "train" not in tables:
        labelled = [table.values for table in tables.values() if table.values]
        return task_of_model(finished, labelled[0] if labelled else {})
    values = tables["train"].values
    known = tables["train"].known
    try:
        task = infer_task(values, finished.problem_type if finished else problem_type, known)
    except InputError as error:
        raise InputError(f"{tables['train'].source}: {error}") from None
    if finished is None:
        return task
    kept = task_of_model(finished, values)
    task = replace(task, evidence=kept.evidence)
    found = set(task.names)
    wanted = set(kept.names)
    if isinstance(task, Regression) or len(values) > 1:  # outputs are columns: the same ones, or one of any name
        still_fits = found == wanted or len(found) == len(wanted) == 1
    else:
        still_fits = found <= wanted
    return replace(task, names=kept.names) if still_fits else task


def _cells(table: Dataset, column: str) -> Cells:
    return Cells(table.select_columns(column).with_format("arrow")[:][column])


def joined(texts: list[Cells], delimiter: str | None) -> list[Cells]:
    """One column of texts, or two that stay a pair."""
    if len(texts) == 1 or (len(texts) == 2 and delimiter is None):
        return texts
    between = " " if delimiter is None else delimiter
    columns = [column.array for column in texts]
    return [Cells(pyarrow.compute.binary_join_element_wise(*columns, pyarrow.scalar(between, columns[0].type)))]


def text_columns(columns: list[str], named: str | None, source: str) -> list[str]:
    if named is None:
        for known in TEXT_COLUMNS:
            if set(known) <= set(columns):
                return list(known)
        named = "text"  # whose absence `column_in` reports
    return [column_in(name.strip(), columns, source, "text_column_names") for name in named.split(",")]


def _label_columns(columns: list[str], named: str | None, source: str, required: bool) -> list[str]:
    if named is None:
        named = "labels" if "label" not in columns and "labels" in columns else "label"
    names = [name.strip() for name in named.split(",")]
    if not required and not any(name in columns or did_you_mean(name, columns) for name in names):
        return []  # test rows without labels only get predictions
    return [column_in(name, columns, source, "label_column_name") for name in names]


def _ids(table: Dataset, column: str | None, source: str) -> Cells:
    return Cells(np.arange(len(table))) if column is None else check_ids(_cells(table, column), column, source)


def check_ids(ids: Cells, column: str, source: str, before: int = 0) -> Cells:
    """The ids of a column, of which so many rows came `before`. Raises InputError for control characters."""
    if pyarrow.types.is_large_string(ids.array.type):
        for row, name in enumerate(ids, before + 1):
            if name is not None and control_in(name):
                raise InputError(f"{source}, column {column!r}, row {row}: the id {name!r} holds control characters.")
    return ids


def _groups(table: Dataset, column: str, source: str) -> Cells:
    groups = _cells(table, column)
    for row, group in distinct(groups).items():
        is_nan = group != group
        if group is None or is_nan or isinstance(group, (list, dict)) or not str(group).strip():
            found = "nothing" if group is None or group == "" else repr(group)
            raise InputError(
                f"{source}, column {column!r}, row {row}: expected the name or number of a group, found {found}. Give "
                "a row that belongs to no other a group of its own."
            )
    return groups


def column_in(name: str, columns: list[str], source: str, flag: str) -> str:
    if name not in columns:
        same = next((column for column in columns if column.lower() == name.lower()), None)
        hint = f" Did you mean {same!r}?" if same else did_you_mean(name, columns)
        raise InputError(
            f"{source}: expected a column {name!r}, found {', '.join(columns)}.{hint} Name the column with --{flag}."
        )
    return name


def check_texts(texts: Cells, name: str, source: str, before: int = 0) -> Cells:
    """The texts of a column, of which so many rows came `before`. Raises InputError for a row without one."""
    for row, text in enumerate(texts, before + 1):
        if not isinstance(text, str):
            found = "nothing" if text is None else f"the {type(text).__name__} {text!r}"
            raise InputError(f"{source}, column {name!r}, row {row}: expected a text, found {found}.")
        if not text.strip():
            raise InputError(
                f"{source}, column {name!r}, row {row}: the text is empty. Fill it in or leave the row out."
            )
    return texts


def _label_values(table: Dataset, names: list[str], source: str, may_lack: bool) -> tuple[Columns, list[str] | None]:
    """The values of the label columns, and the label names if the data set declares them.

    If labels `may_lack` and no row has one, there are no columns.
    """
    values = {name: _cells(table, name) for name in names}
    known = None
    for name in names:
        feature = table.features[name]
        feature = getattr(feature, "feature", feature)  # if a cell is a list of labels, what one of them is
        if isinstance(feature, ClassLabel):
            known = list(feature.names)
            try:
                values[name] = each_distinct(values[name], partial(_declared, feature=feature))
            except ValueError as error:
                raise InputError(f"{source}, column {name!r}, whose names of labels are declared: {error}.") from None
    # GLUE hides labels, be they classes or numbers, by writing -1 in every row.
    different = [value for column in values.values() for value in distinct(column).values]
    lacking = may_lack and all(value in (None, "", -1) for value in different)
    return {} if lacking else values, known


def _declared(value: Any, feature: ClassLabel) -> Any:
    if isinstance(value, list):
        return [_declared(item, feature) for item in value]
    is_given = value is not None and value >= 0  # data sets on the Hub write -1 for a label that is not given
    return feature.int2str(value) if is_given else None


def _chosen(total: int, limit: int, seed: int) -> list[int]:
    """The numbers of the rows to use, ascending. They are drawn, as files are often sorted by label."""
    return sorted(random.Random(seed).sample(range(total), limit))
