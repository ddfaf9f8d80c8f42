"""The rows: read, checked before any model is loaded, and turned into tokens and numeric labels."""

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.data.order import token_counts
from lstmpool.training.data.sources import read_rows
from lstmpool.training.errors import InputError, did_you_mean
from lstmpool.training.flags.arguments import DataArguments
from lstmpool.training.tasks.inference import infer_task, task_of_model
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.task import Task


LIMITS = {"train": "max_train_samples", "validation": "max_eval_samples", "test": "max_predict_samples"}
# Without --text_column_names, the first of these that a table has: the names used by GLUE and its like.
TEXT_COLUMNS = (
    ("text",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
)


@dataclass(frozen=True)
class Split:
    """The rows of train, validation or test: their texts, or pairs of texts, and their labels as numbers."""

    source: str  # a file's name, without the folders that lead to it
    texts: list[str]
    pairs: list[str] | None
    labels: list[Any] | None  # None: only predictions are asked for
    ids: list[Any]
    groups: list[Any] | None = None  # of --group_column: rows of a group are kept together

    def __len__(self) -> int:
        return len(self.texts)

    def inputs(self) -> list[tuple[str, ...]]:
        """Each row's text, or pair of texts."""
        return list(zip(self.texts, self.pairs, strict=True)) if self.pairs else [(text,) for text in self.texts]

    def take(self, rows: list[int], source: str | None = None) -> "Split":
        """The rows of these numbers, in that order."""
        columns = (self.texts, self.pairs, self.labels, self.ids, self.groups)
        return Split(source or self.source, *(None if c is None else [c[row] for row in rows] for c in columns))

    def tokenize(
        self, tokenizer: PreTrainedTokenizerBase, pad_to_max_length: bool = False, workers: int | None = None
    ) -> tuple[Dataset, float]:
        """The columns that the tokenizer makes, and the share of rows that its own limit has cut."""
        columns = {"text": self.texts} | ({"pair": self.pairs} if self.pairs else {})

        def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
            # a pair is encoded as one: the backbone sees where the second text begins
            padding = "max_length" if pad_to_max_length else False
            encoded = tokenizer(batch["text"], batch.get("pair"), truncation=True, padding=padding)
            lengths = token_counts(encoded)
            # a tokenizer written in Python does not say what it has cut
            fast = encoded.encodings or [None] * len(lengths)
            limit = tokenizer.model_max_length
            cut = [bool(e.overflowing) if e else n >= limit for e, n in zip(fast, lengths, strict=True)]
            return {**encoded, "was_cut": cut}

        rows = Dataset.from_dict(columns)
        rows = rows.map(encode, batched=True, remove_columns=list(columns), keep_in_memory=True, num_proc=workers)
        cut = float(np.mean(rows["was_cut"]))
        return rows.remove_columns("was_cut"), cut


def read_splits(
    args: DataArguments, places: dict[str, str], problem_type: str | None, finished: LstmPoolConfig | None = None
) -> tuple[dict[str, Split], Task]:
    """The splits in `places` (see `named_splits`), and the task that the labels set.

    Args:
        problem_type: the task, if the user named it.
        finished: config of the model that is trained further or evaluated; its labels are kept if they still fit.

    Raises:
        InputError: for whatever in the rows a model cannot be trained on, naming the file, the row and the remedy.
    """
    raw, groups = {}, None
    for name, place in places.items():
        table, source = read_rows(args, name, place)
        text_columns = _text_columns(table, args.text_column_names, source)
        label_columns = _label_columns(table, args.label_column_name, source, required=name != "test")
        if set(text_columns) & set(label_columns):
            raise InputError(f"{source}: a column cannot be both text and label, got {text_columns}, {label_columns}.")
        texts = _joined([_texts(table[column], column, source) for column in text_columns], args.text_column_delimiter)
        ids = _ids(table, args.id_column_name, source)
        if name == "train" and args.group_column:
            groups = _groups(table, args.group_column, source)
        raw[name] = (source, texts, ids, *_label_values(table, label_columns, may_lack=name == "test"))

    task = _task(raw, problem_type, finished)
    splits = {}
    for name, (source, texts, ids, values, _) in raw.items():
        pairs = texts[1] if len(texts) == 2 else None
        encoded = task.encode(values, source) if values else None
        split = Split(source, texts[0], pairs, encoded, ids, groups if name == "train" else None)
        splits[name] = split.take(_chosen(len(split), getattr(args, LIMITS[name]), args.shuffle_seed, LIMITS[name]))
    if len({split.pairs is None for split in splits.values()}) > 1:
        raise InputError("expected all files to have the same text columns. Name them with --text_column_names.")
    return splits, task


def _task(raw: dict[str, tuple], problem_type: str | None, finished: LstmPoolConfig | None) -> Task:
    if "train" not in raw:
        labelled = (values for _, _, _, values, _ in raw.values() if values)
        return task_of_model(finished, next(labelled, {}))
    values, known = raw["train"][3:]
    if finished is None:
        return infer_task(values, problem_type, known)
    kept = task_of_model(finished, values)
    task = replace(infer_task(values, finished.problem_type, known), evidence=kept.evidence)
    found, there = set(task.names), set(kept.names)
    if isinstance(task, Regression) or len(values) > 1:  # outputs are columns: all of them, or one of any name
        still_fits = found == there or len(found) == len(there) == 1
    else:
        still_fits = found <= there
    return replace(task, names=kept.names) if still_fits else task


def _joined(texts: list[list[str]], delimiter: str | None) -> list[list[str]]:
    """One column of texts, or two that stay a pair."""
    if len(texts) == 1 or (len(texts) == 2 and delimiter is None):
        return texts
    return [[(" " if delimiter is None else delimiter).join(row) for row in zip(*texts, strict=True)]]


def _text_columns(table: Dataset, named: str | None, source: str) -> list[str]:
    columns = table.column_names
    if named is None:
        known = (names for names in TEXT_COLUMNS if set(names) <= set(columns))
        return list(next(known, None) or [_column("text", columns, source, "text_column_names")])
    return [_column(name.strip(), columns, source, "text_column_names") for name in named.split(",")]


def _label_columns(table: Dataset, named: str | None, source: str, required: bool) -> list[str]:
    columns = table.column_names
    if named is None:
        named = "labels" if "label" not in columns and "labels" in columns else "label"
    names = [name.strip() for name in named.split(",")]
    if not required and not any(name in columns or did_you_mean(name, columns) for name in names):
        return []  # test rows without labels: predictions alone
    return [_column(name, columns, source, "label_column_name") for name in names]


def _ids(table: Dataset, named: str | None, source: str) -> list[Any]:
    if named is None:
        return list(table["id"]) if "id" in table.column_names else list(range(len(table)))
    return list(table[_column(named, table.column_names, source, "id_column_name")])


def _groups(table: Dataset, named: str, source: str) -> list[Any]:
    groups = list(table[_column(named, table.column_names, source, "group_column")])
    for row, group in enumerate(groups, 1):
        if group is None or group != group or isinstance(group, (list, dict)) or not str(group).strip():  # or NaN
            found = "nothing" if group is None or group == "" else repr(group)
            raise InputError(
                f"{source}, column {named!r}, row {row}: expected the name or number of a group, found {found}. Give "
                "a row that belongs to no other a group of its own."
            )
    return groups


def _column(name: str, columns: list[str], source: str, flag: str) -> str:
    if name not in columns:
        raise InputError(
            f"{source}: expected a column {name!r}, found {', '.join(columns)}.{did_you_mean(name, columns)} Name the "
            f"column with --{flag}."
        )
    return name


def _texts(column: list[Any], name: str, source: str) -> list[str]:
    texts = list(column)
    for row, text in enumerate(texts, 1):
        if not isinstance(text, str):
            found = "nothing" if text is None else f"the {type(text).__name__} {text!r}"
            raise InputError(f"{source}, column {name!r}, row {row}: expected a text, found {found}.")
        if not text.strip():
            raise InputError(
                f"{source}, column {name!r}, row {row}: the text is empty. Fill it in or leave the row out."
            )
    return texts


def _label_values(table: Dataset, names: list[str], may_lack: bool) -> tuple[dict[str, list[Any]], list[str] | None]:
    """The label columns' values, and the label names if the data set declares them. No columns if labels `may_lack`
    and no row has one."""
    values, known = {name: list(table[name]) for name in names}, None
    for name in names:
        feature = table.features[name]
        feature = getattr(feature, "feature", feature)  # of a list of labels, that of one
        if isinstance(feature, ClassLabel):
            known = list(feature.names)
            values[name] = [_declared(value, feature) for value in values[name]]
    # -1 in every row is how GLUE hides a label, be it a class or a number
    lacking = may_lack and all(value in (None, "", -1) for column in values.values() for value in column)
    return {} if lacking else values, known


def _declared(value: Any, feature: ClassLabel) -> Any:
    if isinstance(value, list):
        return [_declared(item, feature) for item in value]
    return None if value is None or value < 0 else feature.int2str(value)  # -1 stands for "not given" on the Hub


def _chosen(total: int, limit: int | None, seed: int, flag: str) -> list[int]:
    """Row numbers in their order; of more rows than `limit`, some at random, since files are often sorted by label."""
    if limit is None or limit >= total:
        return list(range(total))
    return sorted(random.Random(seed).sample(range(total), limit))
