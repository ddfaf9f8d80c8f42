"""What the study keeps: one row a run in a CSV, and one Parquet file of predictions a final run.

A row is appended in one write once its predictions are on disk, so that a kill at any moment leaves whole rows and, at
worst, the beginning of one, which is passed over; several processes, on different sets, may write to one file.
"""

import csv
import hashlib
import io
import math
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import pyarrow
import pyarrow.parquet


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
    """The setting that validation likes best, over the seeds that it was tried with, and its mean there; of equal
    ones, that with the fewer epochs, then with the lower rates."""
    values = defaultdict(list)
    for row in tried:
        value = float(row["validation"])
        values[Setting.of(row)].append(-math.inf if math.isnan(value) else value)
    means = {setting: mean(of_setting) for setting, of_setting in values.items()}
    chosen = max(means, key=lambda s: (means[s], -s.epochs, -s.learning_rate, -(s.head_learning_rate or 0.0)))
    return chosen, means[chosen]


class Runs:
    """The finished runs of a regime with a token pooling, in one CSV."""

    def __init__(self, path: Path):
        self.path, self.rows = path, read_rows(path)

    @classmethod
    def of(cls, output: Path, regime: str, token_pooling: str) -> "Runs":
        return cls(output / f"{regime}-{token_pooling}.csv")

    def find(self, key: Row) -> Row | None:
        """The finished run with this key, if there is one."""
        return next((row for row in self.rows if all(row[name] == key[name] for name in KEY)), None)

    def add(self, row: Row, predictions: dict[str, Any] | None = None) -> None:
        """Keeps a finished run, and the columns of its predictions."""
        if predictions is not None:
            write_parquet(self.predictions_of(row), predictions)
        append_row(self.path, row)
        self.rows.append(row)

    def predictions_of(self, row: Row) -> Path:
        """Where the predictions of a final run are."""
        return self.path.parent / "predictions" / row["regime"] / row["dataset"] / predictions_name(row)

    def pace(self) -> dict[str, float]:
        """Seconds that a pooling takes for one training row once, as measured so far."""
        measured = defaultdict(list)
        for row in self.rows:
            measured[row["pooling"]].append(float(row["seconds"]) / (int(row["epochs"]) * int(row["train_rows"])))
        return {pooling: median(values) for pooling, values in measured.items()}


def predictions_name(row: Row) -> str:
    """A name for people, and a digest of the whole key, so that no two runs share a file."""
    digest = hashlib.blake2b(repr([row[name] for name in KEY]).encode(), digest_size=4).hexdigest()
    return f"{row['token_pooling']}-{row['pooling']}-seed{row['seed']}-{digest}.parquet"


def read_rows(path: Path) -> list[Row]:
    """The whole rows of the file, each run once; none if there is no file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    rows: dict[tuple[str, ...], Row] = {}
    for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")):
        if None not in row.values() and None not in row:
            rows.setdefault(tuple(row[name] for name in KEY), row)
    return list(rows.values())


def append_row(path: Path, row: Row) -> None:
    """Adds a line, after a header where the file is new; what a kill left of another line stays apart from it."""
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


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    """Writes the columns, small, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    table = pyarrow.table({name: pyarrow.array(value) for name, value in columns.items()})
    form = {"compression": "zstd", "write_statistics": False, "store_schema": False}
    form |= {"use_dictionary": ["label"], "column_encoding": {"id": "DELTA_BINARY_PACKED"}}  # a third of the size
    pyarrow.parquet.write_table(table, unfinished, **form)
    os.replace(unfinished, path)
