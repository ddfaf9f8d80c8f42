"""The rows of the study: any folder with train, validation and test files. Their headers say what they hold."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lstmpool.training.data.files import read_table
from lstmpool.training.data.holdout import hold_out
from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.tasks.inference import infer_task
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.task import Task


SEED = 0  # draws the rows that are kept, the same for all runs of a set
SHARE = 0.1  # of the training rows, for validation if the file of that name has to serve as the test
INPUTS = (("sentence1", "sentence2"), ("text", "aspect"), ("text",))  # a header's first match; two make a pair


@dataclass(frozen=True)
class TextSet:
    """One set's rows, and the task that follows from their labels. Test rows are numbered as in their file, from 0."""

    name: str
    task: Task
    train: Split
    validation: Split
    test: Split
    note: str  # says where validation and test come from


def read_set(data: Path, name: str, train_rows: int | None, validation_rows: int | None) -> TextSet:
    """The set in the folder `name` of `data`.

    About `train_rows` and `validation_rows` are kept, drawn by stratum, and all test rows. Without a test file, the
    validation file is the test, and a tenth of the training rows is validation.

    Raises:
        InputError: if a file is missing, or its columns are none of those known.
    """
    files = find_files(data, name)
    tables = {split: read_table(file) for split, file in files.items()}
    columns = {split: _columns(tables[split], files[split]) for split in tables}
    label = columns["train"][1]
    values = {split: list(table[label]) for split, table in tables.items()}
    # labels come from all files: one that training lacks is never predicted, so its rows count as mistakes
    every = [value for column in values.values() for value in column]
    task = infer_task({label: every}, MultiLabel.problem_type if label == "labels" else None)
    splits = {}
    for split, table in tables.items():
        texts = [list(table[column]) for column in columns[split][0]]
        encoded = task.encode({label: values[split]}, f"{name}, {split}")
        pairs = texts[1] if len(texts) > 1 else None
        splits[split] = Split(split, texts[0], pairs, encoded, list(range(len(table))))
    if "test" in splits:
        train = splits["train"]
        validation = splits["validation"]
        test = splits["test"]
        note = "own test file"
    else:
        train, validation = hold_out(splits["train"], task, SHARE, SEED, validation_rows)
        test = splits["validation"]
        note = "validation file as test, validation held out of train"
    train = _at_most(train, train_rows, task)
    validation = _at_most(validation, validation_rows, task)
    return TextSet(name, task, train, validation, test, note)


def find_files(data: Path, name: str) -> dict[str, Path]:
    """The files of a set's splits.

    Raises:
        InputError: if there is none for train or for validation.
    """
    files = {}
    for split in ("train", "validation", "test"):
        there = [file for end in (".csv", ".csv.gz") if (file := data / name / f"{split}{end}").is_file()]
        if not there and split != "test":
            raise InputError(f"expected {split}.csv or {split}.csv.gz in {data / name}, found neither.")
        files |= {split: there[0]} if there else {}
    return files


def _columns(table: Any, file: Path) -> tuple[tuple[str, ...], str]:
    """The columns of the texts, and the column of the label."""
    found = table.column_names
    texts = next((names for names in INPUTS if set(names) <= set(found)), None)
    label = next((name for name in ("label", "labels") if name in found), None)
    if texts is None or label is None:
        raise InputError(
            f"{file}: expected text, text and aspect, or sentence1 and sentence2, and label or labels, found "
            f"{', '.join(found)}. Rename the columns."
        )
    return texts, label


def _at_most(split: Split, rows: int | None, task: Task) -> Split:
    """About so many rows of `split`, drawn by stratum. The only row of a class is kept."""
    if rows is None or len(split) <= rows:
        return split
    kept, _ = hold_out(split, task, 1 - rows / len(split), SEED)
    return replace(kept, source=split.source)
