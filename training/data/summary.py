"""Describes the rows: how many, how balanced, how long, and how many of the other splits are also in train."""

from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset

from lstmpool.training.data.order import lengths_of
from lstmpool.training.data.rows import Split
from lstmpool.training.errors import counted
from lstmpool.training.tasks.columns import are_in
from lstmpool.training.tasks.task import Task


SHOWN = 12  # label names that a line shows
FEW = 5  # rows of a class
FEW_SHOWN = 5  # names of such classes
UNEVEN = 10  # a class has so many times the rows of another
UNEVEN_IF_FEW = 3  # the same, where the other has few


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
    numbers = {}
    for name, split in splits.items():
        lengths = lengths_of(rows[name])
        numbers[name] = {
            "source": split.source,
            "rows": len(split),
            "texts_a_row": len(split.columns),
            "labels": None if split.labels is None else task.describe_labels(split.labels),
            "tokens": {"median": float(np.median(lengths)), "longest": int(lengths.max())},
            "truncated": cut[name],
        }
        if name != "train" and "train" in splits:
            numbers[name]["also_in_train"] = int(are_in(split.columns, splits["train"].columns).sum())
    return numbers


def data_lines(numbers: dict[str, dict[str, Any]], limit: int) -> list[str]:
    """The report that is printed before training, one line a split. Texts were cut at `limit` tokens."""
    lines = []
    for name, split in numbers.items():
        cut = f", {split['truncated']:.1%} cut at {limit}" if split["truncated"] else ""
        also = f"; {split['also_in_train']} also in train" if split.get("also_in_train") else ""
        tokens = f"{split['tokens']['median']:g} tokens a text (longest {split['tokens']['longest']}{cut})"
        lines.append(f"  {name}: {counted(split['rows'], 'row')}, {tokens}{also}. {balance_words(split['labels'])}")
    return lines


def remarks(splits: dict[str, Split], task: Task, weighted: bool, named: Callable[[str], str] = str) -> list[str]:
    """Warnings about the labels before training, a line each.

    Args:
        splits: the rows as read, those of train among them.
        task: what the labels mean.
        weighted: whether the loss weighs classes by their rarity.
        named: says how a name is written.
    """
    counts = task.describe_labels(splits["train"].labels)
    if task.has_numbers:
        constant = [f"{named(name)} {value['mean']:g}" for name, value in counts.items() if value["std"] == 0]
        said = f"every training row has {_listed(constant)}, from which nothing can be learnt."
        return [said] if constant else []
    lines = [] if weighted or task.gives_several_answers else _uneven(counts, named)
    lines += _rare(counts, named)
    if "validation" in splits:
        in_validation = task.describe_labels(splits["validation"].labels)
        lacking = [f"{named(name)} ({count})" for name, count in counts.items() if count and not in_validation[name]]
        if lacking:
            lines.append(
                f"validation has no row of {_listed(lacking)}, with the rows of each in training: its "
                "results say nothing about that. Add rows, or raise --validation_size."
            )
    return lines


def _rare(counts: dict[str, int], named: Callable[[str], str]) -> list[str]:
    """A line that names the classes, or labels, with few rows, the rarest first."""
    rare = [name for name in sorted(counts, key=counts.get) if 0 < counts[name] < FEW]
    if not rare:
        return []
    listed = _listed([f"{named(name)} ({counts[name]})" for name in rare], FEW_SHOWN)
    return [f"fewer than {FEW} training rows have {listed}, which is too few to learn from. Add rows, or join labels."]


def _uneven(counts: dict[str, int], named: Callable[[str], str]) -> list[str]:
    """A line that says so if some class has many times the rows of another."""
    present = {name: count for name, count in counts.items() if count}
    rarest, commonest = min(present, key=present.get), max(present, key=present.get)
    fewest, most = present[rarest], present[commonest]
    if most < (UNEVEN if fewest >= FEW else UNEVEN_IF_FEW) * fewest:
        return []
    return [
        f"the classes are uneven, {named(commonest)} {most} and {named(rarest)} {fewest} training rows. "
        "--class_weights balanced lets each class count the same."
    ]


def _listed(names: list[str], shown: int = SHOWN) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


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
    return f"{_listed(words)}."
