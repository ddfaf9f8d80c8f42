"""The rows of the study: one run each, appended to a CSV as it ends.

A row is appended in one write, once its predictions are on disk. So a kill at any moment leaves whole rows and, at
worst, the beginning of one, which is skipped. Several processes may append to one file if they work on different sets.
"""

import csv
import io
import math
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean


Row = dict[str, str]
KEY = (  # a run with the same of these is the same run
    "backbone regime dataset token_pooling pooling seed kind learning_rate head_learning_rate epochs batch_size "
    "precision train_rows validation_rows"
).split()
COLUMNS = (*KEY, "metric", "validation", "test", "parameters", "flops", "seconds", "versions")
TUNE, FINAL = "tune", "final"


@dataclass(frozen=True)
class Setting:
    """What is tuned."""

    learning_rate: float  # of all that is trained, or of the backbone alone
    epochs: int
    head_learning_rate: float | None = None  # of what lies above the backbone; None: no rate of its own

    @classmethod
    def of(cls, row: Row) -> "Setting":
        head = row["head_learning_rate"]
        return cls(float(row["learning_rate"]), int(row["epochs"]), float(head) if head else None)

    def columns(self) -> Row:
        head = self.head_learning_rate
        return {
            "learning_rate": f"{self.learning_rate:g}",
            "head_learning_rate": "" if head is None else f"{head:g}",
            "epochs": str(self.epochs),
        }


def best(tried: list[Row]) -> tuple[Setting, float]:
    """The setting with the best mean validation score over its seeds, and that mean.

    Of equal settings, the one with fewer epochs wins, then the one with lower rates. A score that is no number is the
    worst.
    """
    values = defaultdict(list)
    for row in tried:
        value = float(row["validation"])
        values[Setting.of(row)].append(-math.inf if math.isnan(value) else value)
    means = {setting: mean(of_setting) for setting, of_setting in values.items()}
    chosen = max(means, key=lambda s: (means[s], -s.epochs, -s.learning_rate, -(s.head_learning_rate or 0.0)))
    return chosen, means[chosen]


def key_of(row: Row) -> tuple[str, ...]:
    """What tells this run from every other one."""
    return tuple(row[name] for name in KEY)


def read_rows(path: Path) -> list[Row]:
    """The whole rows of the file, each run once; none if there is no file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole_lines = text[: text.rfind("\n") + 1]
    rows: dict[tuple[str, ...], Row] = {}
    for row in csv.DictReader(io.StringIO(whole_lines, newline="")):
        if None not in row.values() and None not in row:
            rows.setdefault(key_of(row), row)
    return list(rows.values())


def append_row(path: Path, row: Row) -> None:
    """Adds a line, after a header if the file is new. A torn line that a kill left stays on a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = io.StringIO(newline="")
    writer = csv.DictWriter(line, COLUMNS, lineterminator="\n")
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            writer.writeheader()
        elif file.seek(size - 1) and file.read(1) != b"\n":
            line.write("\n")
        writer.writerow(row)
        file.write(line.getvalue().encode("utf-8"))
        os.fsync(file.fileno())
