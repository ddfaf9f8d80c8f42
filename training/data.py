"""The rows: read, checked before any model is loaded, and turned into tokens and numeric labels."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from lstmpool.training.arguments import DataArguments
from lstmpool.training.errors import InputError, did_you_mean
from lstmpool.training.files import read_table
from lstmpool.training.labels import Labels


LIMITS = {"train": "max_train_samples", "validation": "max_eval_samples", "test": "max_predict_samples"}


@dataclass(frozen=True)
class Split:
    """The rows of train, validation or test: their texts, or pairs of texts, and their labels as numbers."""

    source: str  # a file's name, without the folders that lead to it
    texts: list[str]
    pairs: list[str] | None
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.texts)

    def tokenize(self, tokenizer: PreTrainedTokenizerBase, pad_to_max_length: bool) -> Dataset:
        """The columns that the tokenizer makes, and `labels`. Texts are cut at the tokenizer's own limit."""
        columns = {"text": self.texts} | ({"pair": self.pairs} if self.pairs else {})
        rows = Dataset.from_dict(columns)

        def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
            # a pair is encoded as one: the backbone sees where the second text begins
            padding = "max_length" if pad_to_max_length else False
            return tokenizer(batch["text"], batch.get("pair"), truncation=True, padding=padding)

        encoded = rows.map(encode, batched=True, remove_columns=list(columns), keep_in_memory=True)
        return encoded.add_column("labels", self.labels)


def read_splits(args: DataArguments, names: list[str], problem_type: str | None) -> tuple[dict[str, Split], Labels]:
    """The splits called `names`, of which the first is train, and the task that its labels set.

    Raises:
        InputError: for whatever in the files a model cannot be trained on, naming the file, the row and the remedy.
    """
    raw = {}
    for name in names:
        raw[name], source = _read(args, name), _source(args, name)
        text_columns = _text_columns(raw[name], args.text_column_names, source)
        label_columns = _label_columns(raw[name], args.label_column_name, source)
        if set(text_columns) & set(label_columns):
            raise InputError(f"{source}: a column cannot be both text and label, got {text_columns}, {label_columns}.")
        texts = [_texts(raw[name][column], column, source) for column in text_columns]
        raw[name] = (source, texts, *_label_values(raw[name], label_columns))

    labels = Labels.infer(raw["train"][2], problem_type, raw["train"][3])
    splits = {}
    for name, (source, texts, values, _) in raw.items():
        encoded = labels.encode(values, source)
        keep = _chosen(len(encoded), getattr(args, LIMITS[name]), args.shuffle_seed, LIMITS[name])
        columns = [[column[i] for i in keep] for column in (*texts, encoded)]
        splits[name] = Split(source, columns[0], columns[1] if len(texts) == 2 else None, columns[-1])
    if len({split.pairs is None for split in splits.values()}) > 1:
        raise InputError("expected all files to have the same text columns. Name them with --text_column_names.")
    return splits, labels


def _source(args: DataArguments, name: str) -> str:
    return name if args.dataset_folder else Path(getattr(args, f"{name}_file")).name


def _read(args: DataArguments, name: str) -> Dataset:
    if args.dataset_folder is None:
        return read_table(Path(getattr(args, f"{name}_file")))
    return read_table(Path(args.dataset_folder, name))  # each split is a saved data set itself


def _text_columns(table: Dataset, named: str | None, source: str) -> list[str]:
    columns = table.column_names
    if named is None:
        if "text" not in columns and {"sentence1", "sentence2"} <= set(columns):
            return ["sentence1", "sentence2"]
        named = "text"
    wanted = [name.strip() for name in named.split(",")]
    if len(wanted) > 2:
        raise InputError(f"--text_column_names takes one column or two, got {len(wanted)}: {named}")
    return [_column(name, columns, source, "text_column_names") for name in wanted]


def _label_columns(table: Dataset, named: str | None, source: str) -> list[str]:
    columns = table.column_names
    if named is None:
        named = "labels" if "label" not in columns and "labels" in columns else "label"
    return [_column(name.strip(), columns, source, "label_column_name") for name in named.split(",")]


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


def _label_values(table: Dataset, names: list[str]) -> tuple[dict[str, list[Any]], list[str] | None]:
    """The label columns' values, and the label names if the data set declares them."""
    values, known = {name: list(table[name]) for name in names}, None
    for name in names:
        feature = table.features[name]
        feature = getattr(feature, "feature", feature)  # of a list of labels, that of one
        if isinstance(feature, ClassLabel):
            known = list(feature.names)
            values[name] = [_declared(value, feature) for value in values[name]]
    return values, known


def _declared(value: Any, feature: ClassLabel) -> Any:
    if isinstance(value, list):
        return [_declared(item, feature) for item in value]
    return None if value is None or value < 0 else feature.int2str(value)  # -1 stands for "not given" on the Hub


def _chosen(total: int, limit: int | None, seed: int, flag: str) -> list[int]:
    """Row numbers in their order; of more rows than `limit`, some at random, since files are often sorted by label."""
    if limit is not None and limit < 1:
        raise InputError(f"--{flag} must be 1 or more, got {limit}.")
    if limit is None or limit >= total:
        return list(range(total))
    return sorted(random.Random(seed).sample(range(total), limit))
