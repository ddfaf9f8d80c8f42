"""Reads the folders of finished runs: records, metrics and answers, and what is common to all.

Nothing is written, and no weights are loaded: of their files only the headers and the sizes are read. N rows.
"""

import json
import math
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from safetensors import SafetensorError, safe_open

from lstmpool.training.data.files import read_table
from lstmpool.training.errors import InputError, did_you_mean, one_line
from lstmpool.training.evaluation.differences import Answered, Answers
from lstmpool.training.evaluation.exit_results import results_of
from lstmpool.training.flags.arguments import AUTO
from lstmpool.training.output.found import FOLD, SEED, WEIGHTS, Members
from lstmpool.training.output.run_record import NAME as RECORD
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.tasks.inference import TASKS
from lstmpool.training.tasks.task import Task
from lstmpool.training.writing import changed_since


METRICS = "metrics.json"
OUT_OF_FOLD = "out of fold"
TABLES = {"test": "test_predictions", "validation": "validation_predictions", OUT_OF_FOLD: "oof"}  # by split
ENDINGS = ("csv", "parquet")
ENDS = ("low", "high")  # of an interval
CHOICE = "layer_pooling"  # the setting, and the entry in metrics.json
NOT_KNOWN = "not recorded"
AGAIN = "Give its command once more, or leave it out."


class Weights(NamedTuple):
    """What the files of weights in a folder hold."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Args:
        folder: as it was typed.
        record: its `run.json`.
        metrics: its `metrics.json`.
        data: what metrics.json says of the rows of each split; of folds or seeds, those of the first.
        task: what was predicted.
        members: the folders of folds or seeds; empty for a single run.
    """

    folder: Path
    record: RunRecord
    metrics: dict[str, Any]
    data: dict[str, dict[str, Any]]
    task: Task
    members: tuple[Path, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "FinishedRun":
        """Reads the folder, without its tables. Raises InputError if it holds no finished run, or damaged files."""
        with one_line(f"{folder} cannot be read"):
            record = _record_of(folder)
            _check_whole(folder, record)
            metrics = _json_of(folder / METRICS)
            members = _members_of(folder, record)
            described = _json_of(members[0] / METRICS) if members else metrics
        data = described.get("data")
        splits = data.items() if isinstance(data, dict) else ()
        data = {name: of_split for name, of_split in splits if isinstance(of_split, dict)}
        return cls(folder, record, metrics, data, _task_of(folder, metrics["problem_type"], data), members)

    def setting(self, name: str) -> Any:
        """A setting of its record, or `NOT_KNOWN`. With `--layer_pooling auto`, what was chosen stands beside it."""
        value = self.record.settings.get(name, NOT_KNOWN)
        if name != CHOICE or value != AUTO:
            return value
        each = [_json_of(member / METRICS) for member in self.members] or [self.metrics]
        return f"{AUTO}: {'; '.join(map(_chosen_in, each))}"

    @property
    def results(self) -> dict[str, dict[str, float]]:
        """The metrics of each split that was measured. What was undefined is NaN.

        They are those of the answers in the tables: with exits, where these are on.
        """
        found = {}
        for split, of_split in results_of(self.metrics, "results").items():
            found[split] = {name: math.nan if value is None else value for name, value in of_split.items()}
        return found

    @property
    def kind(self) -> str:
        """`FOLD` or `SEED` if it is of several runs, which both have folders of their own; else empty."""
        return Members.of(self.record.settings).kind

    @property
    def seconds(self) -> float:
        """How long the command took that finished the run, or those of all members; 0 if that is not known."""
        records = [RunRecord.read(member) for member in self.members] or [self.record]
        return sum(record.seconds for record in records if record is not None)

    def row_count(self, split: str) -> int | None:
        """How many rows a split has; None if metrics.json does not say."""
        parts = ("train", "validation") if self.kind == FOLD and split in ("train", OUT_OF_FOLD) else (split,)
        counts = [self.data.get(part, {}).get("rows") for part in parts]
        return sum(counts) if all(isinstance(count, int) for count in counts) else None

    def interval(self, split: str) -> tuple[float, float] | None:
        """The interval of the headline metric; None if there is none."""
        found = results_of(self.metrics, "intervals").get(split)
        return None if found is None else (found["low"], found["high"])

    @property
    def was_searched(self) -> bool:
        """Whether a search has chosen its settings."""
        return (self.folder / "hp_search.csv").is_file()

    def digest(self, split: str) -> str | None:
        """A digest of the split's texts and labels in their order; None if the record has none."""
        return self.record.rows.get("train" if split == OUT_OF_FOLD else split)

    def weights(self) -> Weights | None:
        """The size of the weights, of all folds or seeds together; None if the folder has none. Raises InputError."""
        paths = [path for folder in self.members or (self.folder,) for path in sorted(folder.glob("*.safetensors"))]
        parameters, size = 0, 0
        for path in paths:
            if not WEIGHTS.fullmatch(path.name):
                continue
            with one_line(f"{path} cannot be read", SafetensorError, remedy=AGAIN):
                size += path.stat().st_size
                with safe_open(path, framework="np") as file:
                    parameters += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
        return Weights(parameters, size) if size else None

    def answered(self, split: str, task: Task) -> Answered:
        """The rows of a split and the answers to them, encoded as `task` does.

        Raises:
            InputError: if there is no table, it has no true labels, or it holds what the task does not know.
        """
        places = [self.folder / f"{TABLES[split]}.{ending}" for ending in ENDINGS]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise InputError(f"expected {places[0]} or .{ENDINGS[1]}, found neither. {AGAIN}")
        table = read_table(path)
        wanted = ["id", *_columns("prediction", task), *_columns("label", task)]
        missing = [name for name in wanted if name not in table.column_names]
        if any(name.startswith("label") for name in missing):
            raise InputError(
                f"{path} lacks the column {missing[0]!r} of true labels, as in earlier releases. Write it anew: "
                f"train_trainer.py --init_from {self.folder} --{split}_file FILE --output_dir OTHER_FOLDER."
            )
        if missing:
            raise InputError(f"{path} lacks the column {missing[0]!r}. {AGAIN}")
        labels = _encoded(table, "label", task, path)
        answers = Answers(_encoded(table, "prediction", task, path), _scores(table, task, path))
        return Answered([str(each) for each in table["id"][:]], labels, answers)


def _record_of(folder: Path) -> RunRecord:
    """The record of a finished run. Raises InputError if there is none."""
    expected = "expected the folder of a finished run, as --output_dir of train_trainer.py"
    if not folder.exists():
        near = did_you_mean(folder.name, [path.name for path in folder.parent.glob("*") if path.is_dir()])
        raise InputError(f"{expected}, found nothing at {folder}.{near}")
    if not folder.is_dir():
        raise InputError(f"{expected}, found the file {folder}. Name its folder.")
    record = RunRecord.read(folder)
    if record is None and (folder / RECORD).exists():
        raise InputError(f"{expected}, found in {folder} a {RECORD} that no run has written so. {AGAIN}")
    if record is None:
        inner = [str(path) for path in sorted(folder.iterdir()) if (path / RECORD).is_file()]
        hint = f" Did you mean the folders in it, such as {inner[0]}?" if inner else " Leave it out."
        raise InputError(f"{expected}, found no {RECORD} in {folder}.{hint}")
    if not record.finished:
        raise InputError(f"{expected}, found a run in {folder} that was cut off. {AGAIN}")
    return record


def _members_of(folder: Path, record: RunRecord) -> tuple[Path, ...]:
    """The folders of folds or seeds; none for a single run. Raises InputError if one is missing."""
    members = Members.of(record.settings)
    if not members.kind:
        return ()
    count, what = record.settings.get("cv_folds"), "folds"
    if members.kind == SEED:
        count, what = record.settings["seeds"], "seeds"
    found = tuple(takewhile(Path.is_dir, (folder / name for name in members.names())))
    if not found or len(found) != count:
        raise InputError(f"expected the folders of {count!r} {what} in {folder}, found {len(found)}. {AGAIN}")
    return found


def _check_whole(folder: Path, record: RunRecord) -> None:
    """Raises InputError if a file that is read here is not as the run has written it."""
    read = {METRICS} | {f"{name}.{ending}" for name in TABLES.values() for ending in ENDINGS}
    wrong = changed_since(folder, {name: record.digests[name] for name in sorted(record.digests.keys() & read)})
    if wrong:
        raise InputError(f"{folder} is not whole: {wrong}. {AGAIN}")


def _json_of(path: Path) -> dict[str, Any]:
    """The contents of a metrics.json. Raises InputError if it lacks what every one has."""
    if not path.is_file():
        raise InputError(f"expected {path}, found nothing there. {AGAIN}")
    with one_line(f"{path} cannot be read", ValueError, remedy=AGAIN):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("problem_type") not in list(TASKS) or not _are_results(found):
            raise ValueError("it does not hold a problem_type and the results of splits")
    return found


def _are_results(metrics: dict[str, Any]) -> bool:
    """Whether the results are numbers by split and metric, and the intervals are as `Evaluation.record` has them."""
    results, intervals = metrics.get("results"), metrics.get("intervals", {})
    if not isinstance(results, dict) or not isinstance(intervals, dict):
        return False
    for of_split in results.values():
        if not isinstance(of_split, dict):
            return False
        if not all(value is None or _is_number(value) for value in of_split.values()):
            return False
    bounds = [
        interval.get(end) if isinstance(interval, dict) else None for interval in intervals.values() for end in ENDS
    ]
    return all(_is_number(bound) for bound in bounds)


def _is_number(value: Any) -> bool:
    """Whether it is a float, or a whole number that one can hold."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53)


def _chosen_in(metrics: dict[str, Any]) -> str:
    """The layer pooling that was chosen, and its learning rate if that was taken, too."""
    choice = metrics.get(CHOICE)
    if not isinstance(choice, dict):
        return NOT_KNOWN
    pooling, rate = choice.get("chosen"), choice.get("head_learning_rate")
    which = f"last of layers {choice.get('layers')}" if pooling == "last" else str(pooling)
    return which if rate is None else f"{which} at the rate {rate}"


def _task_of(folder: Path, problem_type: str, data: dict[str, dict[str, Any]]) -> Task:
    """The task, with the names of its outputs, from what metrics.json says of the rows."""
    labels = [of_split.get("labels") for of_split in data.values()]
    known = next((of_split for of_split in labels if isinstance(of_split, dict) and of_split), None)
    if known is None:
        raise InputError(f"{folder} has no rows with labels, so there is nothing to compare. Leave it out.")
    return TASKS[problem_type](list(known))


# -------------------------------------------------------------------------------------------------------------- tables
def _columns(title: str, task: Task) -> list[str]:
    """The names of the columns of the predictions, or of the labels, as the task writes them."""
    if task.has_numbers and len(task.names) > 1:
        return [f"{title}_{name}" for name in task.names]
    return [title]


def _encoded(table: Dataset, title: str, task: Task, path: Path) -> np.ndarray:
    """The predictions, or the labels, as the task encodes them."""
    if task.has_numbers:
        return np.column_stack([_numbers(table, name, path) for name in _columns(title, task)])
    places = {name: i for i, name in enumerate(task.names)}
    cells = ["" if cell is None else str(cell) for cell in table[title][:]]
    encoded = np.zeros((len(cells), len(places)), dtype=np.uint8)
    for row, cell in enumerate(cells):
        names = [name for name in cell.split("|") if name] if task.has_thresholds else [cell]
        for name in names:
            if name not in places:
                known = ", ".join(task.names[:8]) + (" ..." if len(task.names) > 8 else "")
                raise InputError(f"{path}, row {row + 1}, {title}: expected one of {known}, found {name!r}. {AGAIN}")
            encoded[row, places[name]] = 1
    return encoded if task.has_thresholds else encoded.argmax(1)


def _scores(table: Dataset, task: Task, path: Path) -> np.ndarray | None:
    """The probabilities (N, C); None if the table does not have all of them."""
    names = [f"score_{name}" for name in task.names]
    if not task.has_probabilities or not set(names) <= set(table.column_names):
        return None
    return np.column_stack([_numbers(table, name, path) for name in names])


def _numbers(table: Dataset, name: str, path: Path) -> np.ndarray:
    """A column of numbers, (N,)."""
    with one_line(f"{path}, column {name!r}: expected numbers", ValueError, TypeError, remedy=AGAIN):
        numbers = np.array(table[name][:], dtype=float)
        if not np.isfinite(numbers).all():
            raise ValueError("found one that is missing or infinite")
    return numbers


# ---------------------------------------------------------------------------------------------------- what is the same
def common_task(runs: dict[str, FinishedRun]) -> Task:
    """The task of the first run. Raises InputError if another has other outputs. `runs`: by their names."""
    (first, of_first), *others = runs.items()
    task = of_first.task
    for name, run in others:
        if run.task.problem_type != task.problem_type:
            raise InputError(
                f"expected runs of one task, found {task.problem_type} in {first} and {run.task.problem_type} in "
                f"{name}. Compare them apart."
            )
        extra, missing = sorted({*run.task.names} - {*task.names}), sorted({*task.names} - {*run.task.names})
        if extra or missing:
            raise InputError(
                f"expected runs with the same labels or targets, found {', '.join(missing[:5]) or 'none'} only in "
                f"{first} and {', '.join(extra[:5]) or 'none'} only in {name}. Compare them apart."
            )
    return task


def common_split(runs: dict[str, FinishedRun], asked: str | None) -> str:
    """The split whose rows are compared: the one that is `asked` for, or test, or what takes its place.

    Raises:
        InputError: if a run was not measured on it.
    """
    measured = {name: [split for split in TABLES if split in run.results] for name, run in runs.items()}
    by_any = [split for split in TABLES if any(split in of_run for of_run in measured.values())]
    if not by_any:
        raise InputError("expected runs that were measured on rows with labels, found none. Give them test rows.")
    split = asked or by_any[0]
    common = [other for other in TABLES if all(other in of_run for of_run in measured.values())]
    for name, of_run in measured.items():
        if split not in of_run:
            found = ", ".join(of_run) or "no split"
            hint = f"Compare on --split {common[0]}" if common and common[0] != OUT_OF_FOLD else "Leave it out"
            raise InputError(f"expected runs measured on {split}, found {name} measured on {found}. {hint}.")
    return split
