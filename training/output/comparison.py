"""Finished runs beside each other: settings that differ, metrics, and differences on the same rows; as text and files.

Runs are compared only on rows that all of them have answered, with the same true labels. N rows, R runs.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas

from lstmpool.training.errors import InputError, counted, did_you_mean
from lstmpool.training.evaluation.baselines import TELLING
from lstmpool.training.evaluation.differences import DRAWS, Difference, is_lower_better, paired_differences, same_rows
from lstmpool.training.output import markdown
from lstmpool.training.output.finished import NOT_KNOWN, OUT_OF_FOLD, FinishedRun, common_split, common_task
from lstmpool.training.output.folder import json_writer, text_writer
from lstmpool.training.output.found import SEED
from lstmpool.training.output.tables import write_table
from lstmpool.training.output.terminal import aligned, text_table
from lstmpool.training.tasks.intervals import LEVEL
from lstmpool.training.tasks.task import Task
from lstmpool.training.writing import writing


LONGEST = 60  # characters of a cell in the terminal
TITLES = {
    "f1_weighted": "weighted F1",
    "matthews_correlation": "Matthews correlation",
    "log_loss": "log-loss",
    "brier": "Brier score",
    "ece": "calibration error",
    "roc_auc": "ROC AUC",
    "mcrmse": "MCRMSE",
}


@dataclass(frozen=True)
class Comparison:
    """What there is to say of R runs.

    Args:
        runs: by the names that the tables give them.
        against: the name of the run that the others are compared with.
        split: whose rows were compared.
        rows: how many.
        differences: of each other run, by metric.
        notes: what one must know to read the numbers, a sentence or two each.
    """

    runs: dict[str, FinishedRun]
    against: str
    split: str
    rows: int
    differences: dict[str, dict[str, Difference]]
    notes: list[str]

    @classmethod
    def of(cls, folders: Sequence[Path], against: str | None = None, split: str | None = None) -> "Comparison":
        """Reads the runs and compares them.

        Args:
            folders: of the runs, two or more.
            against: a folder, or its name; None for the first one.
            split: whose rows are compared; None for test or, if no run has that, another one that all have.

        Raises:
            InputError: if a folder holds no finished run, or the runs are not about the same rows, labels and task.
        """
        named = _named(folders)
        other = _chosen(named, against)
        runs = {name: FinishedRun.read(folder) for name, folder in named.items()}
        task = common_task(runs)
        split = common_split(runs, split)
        answered = {name: run.answered(split, task) for name, run in runs.items()}
        digests = {name: run.digest(split) for name, run in runs.items()}
        answered, notes = same_rows(answered, digests, split, markdown.name)
        labels = answered[other].labels
        found = paired_differences(task, labels, [of.answers for of in answered.values()], list(runs).index(other))
        differences = {name: of for name, of in zip(runs, found, strict=True) if name != other}
        return cls(runs, other, split, len(labels), differences, notes + _notes(runs, other, split))

    @property
    def task(self) -> Task:
        """What all runs predict."""
        return self.runs[self.against].task

    @property
    def place(self) -> str:
        """What tables call the rows."""
        return "training, out of fold" if self.split == OUT_OF_FOLD else self.split

    @property
    def settings(self) -> dict[str, list[Any]]:
        """The settings that differ, by name, with the value of each run; and the training rows, if these do."""
        records = [run.record for run in self.runs.values()]
        found = {}
        for name in sorted({name for record in records for name in record.settings}):
            values = [run.setting(name) for run in self.runs.values()]
            if any(value != values[0] for value in values):
                found[name] = values
        for split in ("train", "validation"):
            digests = [record.rows.get(split) for record in records]
            if any(digest != digests[0] for digest in digests):
                found[f"{split} rows"] = [_rows_title(run, split) for run in self.runs.values()]
        return found

    @property
    def metrics(self) -> list[str]:
        """The metrics that a run has on the split: the headline, then the others."""
        measured = [name for run in self.runs.values() for name in run.results.get(self.split, {})]
        return list(dict.fromkeys([self.task.headline, *self.task.titles, *measured]))

    def title(self, metric: str) -> str:
        """What tables call a metric."""
        return self.task.titles.get(metric) or TITLES.get(metric) or metric.replace("_", " ")

    # -------------------------------------------------------------------------------------------------------- tables
    def setting_rows(self, named: Callable[[object], str]) -> list[list[str]]:
        """A table with a head: a row for each setting that differs, a column for each run."""
        rows = [["setting", *map(named, self.runs)]]
        for name, values in self.settings.items():
            rows.append([named(name), *(named(_value(value)) for value in values)])
        return rows

    def run_rows(self, named: Callable[[object], str]) -> list[list[str]]:
        """A table with a head: a row for each metric, and for rows, time and size; a column for each run."""
        runs = list(self.runs.values())
        rows = [[f"on {self.place}", *map(named, self.runs)]]
        for metric in self.metrics:
            rows.append([self.title(metric), *(_with_interval(run, self.split, metric) for run in runs)])
        rows.append(["rows", *(str(run.row_count(self.split)) for run in runs)])
        rows.append(["seconds", *(f"{run.seconds:,.0f}" if run.seconds else NOT_KNOWN for run in runs)])
        weights = [run.weights() for run in runs]
        rows.append(["weights, MB", *("none" if of is None else f"{of.bytes / 1e6:,.1f}" for of in weights)])
        rows.append(["parameters", *("none" if of is None else f"{of.parameters:,}" for of in weights)])
        return rows

    def difference_rows(self, named: Callable[[object], str]) -> list[list[str]]:
        """A table with a head: a row for each run that is compared, and each metric."""
        rows = [["run", "metric", named(self.against), "this run", "difference", f"{LEVEL:.0%} interval", "better"]]
        for name, of_run in self.differences.items():
            in_order = dict.fromkeys([*self.metrics, *of_run])  # that of the table above
            for metric in (name for name in in_order if name in of_run):
                found = of_run[metric]
                interval = "none" if found.interval is None else "[{:+.3f}, {:+.3f}]".format(*found.interval)
                better = {1: named(name), -1: named(self.against), 0: "not clear"}[self._sign(metric, found)]
                numbers = [_number(found.other), _number(found.this), _number(found.difference, "+")]
                rows.append([named(name), self.title(metric), *numbers, interval, better])
        return rows

    def kept_lines(self, named: Callable[[object], str], shown: Callable[[object], str]) -> list[str]:
        """Which model each run has kept. `shown` says how the sentence is written."""
        runs = self.runs.items()
        return [f"{named(name)}: {shown(run.record.kept or NOT_KNOWN)}" for name, run in runs if not run.members]

    # --------------------------------------------------------------------------------------------------------- forms
    def text(self) -> str:
        """For the terminal."""
        named = partial(markdown.short, longest=LONGEST)
        settings = ["Settings that differ:", "\n".join(aligned(self.setting_rows(named), words=1))]
        parts = settings if self.settings else ["No setting differs."]
        parts.append("\n".join(aligned(self.run_rows(named), words=1)))
        kept = self.kept_lines(named, markdown.visible)
        parts += ["\n".join(["Kept:", *kept])] if kept else []
        parts += [f"{self._what(named)}:", text_table(self.difference_rows(named))]
        parts.append("\n".join(map(markdown.visible, self.notes)))
        return "\n\n".join(parts)

    def markdown(self) -> str:
        """A page, in which every name from folders and data stands as a name."""
        name = markdown.name
        parts = ["# Runs beside each other", "## Settings that differ"]
        parts.append(markdown.table(self.setting_rows(name), words=1) if self.settings else "None.")
        parts += ["## Each run", markdown.table(self.run_rows(name), words=1)]
        kept = self.kept_lines(name, name)
        parts += ["\n".join(f"- {line}" for line in kept)] if kept else []
        parts += [f"## {self._what(name)}", markdown.table(self.difference_rows(name))]
        parts.append("\n".join(f"- {markdown.visible(note)}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def record(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        runs = {}
        for name, run in self.runs.items():
            weights = run.weights()
            runs[name] = {
                "folder": str(run.folder),
                "rows": run.row_count(self.split),
                "results": run.results.get(self.split, {}),
                "interval": run.interval(self.split),
                "seconds": run.seconds or None,
                "weights_bytes": None if weights is None else weights.bytes,
                "parameters": None if weights is None else weights.parameters,
                "kept": run.record.kept or None,
            }
        differences: dict[str, dict[str, Any]] = {}
        for name, of_run in self.differences.items():
            differences[name] = {}
            for metric, found in of_run.items():
                low, high = found.interval or (None, None)
                numbers = {"other": found.other, "this": found.this, "difference": found.difference}
                differences[name][metric] = numbers | {"low": low, "high": high}
        return {
            "split": self.split,
            "rows": self.rows,
            "against": self.against,
            "settings": {name: dict(zip(self.runs, values, strict=True)) for name, values in self.settings.items()},
            "runs": runs,
            "differences": differences,
            "notes": self.notes,
        }

    def table(self) -> pandas.DataFrame:
        """What `record` holds, in rows, for CSV: `about` says what is in a row."""
        record = self.record()
        rows: list[tuple[Any, ...]] = []
        for name, by_run in record["settings"].items():
            rows += [("setting", run, name, _value(value), None, None) for run, value in by_run.items()]
        for run, of_run in record["runs"].items():
            low, high = of_run["interval"] or (None, None)
            for metric, value in of_run["results"].items():
                bounds = (low, high) if metric == self.task.headline else (None, None)
                rows.append((f"metric on {self.place}", run, metric, value, *bounds))
            for name in ("rows", "seconds", "weights_bytes", "parameters", "kept"):
                rows.append(("run", run, name, of_run[name], None, None))
        for run, by_metric in record["differences"].items():
            for metric, of in by_metric.items():
                about = f"difference from {self.against}"
                rows.append((about, run, metric, of["difference"], of["low"], of["high"]))
        rows += [("note", None, None, note, None, None) for note in self.notes]
        return pandas.DataFrame(rows, columns=["about", "run", "name", "value", "low", "high"])

    def write(self, path: Path) -> None:
        """Writes `.md`, `.csv` or `.json`, as the ending of `path` says: whole, or not at all."""
        ending = path.suffix.lower()
        if ending == ".csv":
            write_table(self.table(), path)
            return
        with writing(path) as unfinished:
            write = text_writer(self.markdown()) if ending == ".md" else json_writer(self.record())
            write(unfinished)

    def _what(self, named: Callable[[object], str]) -> str:
        return f"Difference from {named(self.against)}, on the same {counted(self.rows, 'row', ',')} of {self.place}"

    def _sign(self, metric: str, found: Difference) -> int:
        """1 if this run is clearly better, -1 if the other one is, 0 if the rows do not tell.

        They tell if there are `TELLING` of them and the interval leaves out 0, or every draw gives one difference.
        """
        low, high = found.interval or (found.difference, found.difference)
        if self.rows < TELLING or not (low > 0 or high < 0):
            return 0
        return -1 if (low > 0) == is_lower_better(metric) else 1


# ----------------------------------------------------------------------------------------------------- names and cells
def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by what the tables call them: the folder's name, or the whole path if two have the same."""
    if len(folders) < 2:
        raise InputError(f"expected two or more folders of finished runs, found {len(folders)}. Name another one.")
    resolved = Counter(folder.resolve() for folder in folders)
    twice = next((folder for folder in folders if resolved[folder.resolve()] > 1), None)
    if twice is not None:
        raise InputError(f"expected different runs, found the folder {twice} twice. Name it once.")
    names = Counter(folder.resolve().name for folder in folders)
    short = {folder: folder.resolve().name for folder in folders}
    return {short[folder] if names[short[folder]] == 1 else str(folder): folder for folder in folders}


def _chosen(named: dict[str, Path], against: str | None) -> str:
    """The name of the run that the others are compared with."""
    if against is None:
        return next(iter(named))
    for name, folder in named.items():
        if against == name or Path(against).resolve() == folder.resolve():
            return name
    names = ", ".join(named)
    raise InputError(f"--against {against}: expected one of {names}.{did_you_mean(against, named)}")


def _notes(runs: dict[str, FinishedRun], against: str, split: str) -> list[str]:
    """What holds for the numbers of any such comparison."""
    compared = len(runs) - 1
    notes = [
        f"Intervals are over rows ({DRAWS:,} draws, the same for all runs). They ignore chance in training: another "
        "seed may change a difference. There is none where every draw gives the same difference."
    ]
    if compared > 1:
        chance = min(1.0, compared * (1 - LEVEL))
        notes.append(
            f"{compared} runs were compared with {markdown.name(against)} at once. If all were equally good, the "
            f"chance that one of the {compared} intervals of a metric leaves out 0 would be up to {chance:.0%}."
        )
    if split != "test" and any(run.record.settings.get("load_best_model_at_end") for run in runs.values()):
        notes.append("Epochs were chosen on these rows, so the numbers of the runs are somewhat too good.")
    for name, run in runs.items():
        if run.kind == SEED:
            notes.append(
                f"{markdown.name(name)} is {len(run.members)} models: its answers are the mean of those of its seeds. "
                "To compare a single run, name a folder in it."
            )
    searched = [markdown.name(name) for name, run in runs.items() if run.was_searched]
    if split == "validation" and searched:
        notes.append(f"A search has chosen the settings of {', '.join(searched)} on these rows, which flatters it.")
    return notes


def _value(value: Any) -> str:
    """A setting as a cell."""
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _rows_title(run: FinishedRun, split: str) -> str:
    """How many rows a split has, and which: the beginning of their digest."""
    digest = run.digest(split)
    return "none" if digest is None else f"{run.row_count(split)} ({digest[:6]})"


def _with_interval(run: FinishedRun, split: str, metric: str) -> str:
    """A metric as a cell, with its interval if it has one."""
    value = run.results.get(split, {}).get(metric)
    if value is None:
        return "none"
    interval = run.interval(split) if metric == run.task.headline else None
    return _number(value) + ("" if interval is None else " [{:.3f}, {:.3f}]".format(*interval))


def _number(value: float, sign: str = "") -> str:
    return "undefined" if math.isnan(value) else f"{value:{sign}.3f}"
