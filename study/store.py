"""Where the study keeps its runs: a CSV, and beside it a Parquet file of the final runs' test predictions.

A run that ends writes a small file of its own, so a kill costs at most the run in progress. `gather` moves the small
files into the one file. Either file has one row a run: the columns of `KEY`, then `label` and `prediction`. These two
are lists with one entry for each test row, in the order of the test file. An entry is a list, too: of one class, of
several or no classes, or of one number. Classes are numbers, in the order of their names.
"""

import hashlib
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow
import pyarrow.parquet

from lstmpool.training.errors import InputError
from lstmpool.training.writing import writing
from study.records import KEY, Row, append_row, key_of, read_rows


Entries = list[list[float]]  # one for each test row
PER_TEST_ROW = pyarrow.list_(pyarrow.list_(pyarrow.float32()))
SCHEMA = pyarrow.schema(
    [*((name, pyarrow.string()) for name in KEY), ("label", PER_TEST_ROW), ("prediction", PER_TEST_ROW)]
)


class Predictions:
    """The predictions of the final runs.

    Args:
        file: where those of all runs are gathered. Runs that are not gathered yet wait in a folder of the same name.
    """

    def __init__(self, file: Path):
        self.file = file
        self.waiting = file.with_suffix("")

    def add(self, row: Row, label: Entries, prediction: Entries) -> None:
        """Writes the small file of one run."""
        columns = {name: [row[name]] for name in KEY}
        columns["label"] = [label]
        columns["prediction"] = [prediction]
        _write(self.waiting / name_of(row), pyarrow.table(columns, SCHEMA))

    def read(self, row: Row) -> dict[str, Entries]:
        """`label` and `prediction` of a run.

        Raises:
            InputError: if nothing is kept of this run.
        """
        alone = self.waiting / name_of(row)
        if alone.is_file():
            table, place = _read(alone), 0
        else:
            table, place = self._gathered
            place = place.get(key_of(row))
        if place is None:
            raise InputError(
                f"expected the predictions of {', '.join(filter(None, key_of(row)))} in {self.file} or {alone}, found "
                "none. Delete its line in the CSV, and run the study again."
            )
        return {name: table[name][place].as_py() for name in ("label", "prediction")}

    @cached_property
    def _gathered(self) -> tuple[pyarrow.Table, dict[tuple[str, ...], int]]:
        """The table of all gathered runs, and the place of each run in it."""
        table = _read(self.file) if self.file.is_file() else SCHEMA.empty_table()
        return table, _places(table)

    def gather(self) -> None:
        """Moves the waiting files into the one file.

        The small files go only after the new file has replaced the old one. A kill in between leaves both, and the
        next call does the same again. Only one process at a time may gather; others may go on writing small files.
        """
        small = sorted(self.waiting.glob("*.parquet"))
        if not small:
            return
        newest_first = [_read(file) for file in small]
        if self.file.is_file():
            newest_first.append(_read(self.file))
        table = pyarrow.concat_tables(newest_first)
        places = _places(table)
        _write(self.file, table.take([places[key] for key in sorted(places)]))
        for file in small:
            file.unlink()
        if not any(self.waiting.iterdir()):
            self.waiting.rmdir()
        self.__dict__.pop("_gathered", None)  # it was read from the old file


def name_of(row: Row) -> str:
    """A file name with words for people, and a digest of the whole key, so that no two runs share a file."""
    digest = hashlib.blake2b(repr(list(key_of(row))).encode(), digest_size=4).hexdigest()
    return f"{row['dataset']}-{row['pooling']}-seed{row['seed']}-{digest}.parquet"


def rounded(numbers: np.ndarray) -> np.ndarray:
    """The numbers to 16 binary digits, so with an error of at most one part in 65,536.

    The other digits do not compress: with them the files would be a quarter larger. No table shows them.
    """
    mantissa, exponent = np.frexp(numbers)
    return np.ldexp(np.round(mantissa * 2**16) / 2**16, exponent)


def _places(table: pyarrow.Table) -> dict[tuple[str, ...], int]:
    """Where each run is; of several rows with one key, the first."""
    places: dict[tuple[str, ...], int] = {}
    columns = [table[name].to_pylist() for name in KEY]
    for place, key in enumerate(zip(*columns, strict=True)):
        places.setdefault(key, place)
    return places


def _read(file: Path) -> pyarrow.Table:
    return pyarrow.parquet.read_table(file, schema=SCHEMA)


def _write(file: Path, table: pyarrow.Table) -> None:
    """Writes the whole file; a kill leaves the old one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with writing(file) as unfinished:
        # runs on one set resemble one another: dictionaries of values would hide that from the compression
        pyarrow.parquet.write_table(
            table,
            unfinished,
            compression="zstd",
            compression_level=19,
            use_dictionary=False,
            write_statistics=False,
            store_schema=False,
        )


class Runs:
    """The finished runs in the folder `output`, and the predictions that belong to them."""

    def __init__(self, output: Path):
        self.path = output / "runs.csv"
        self.predictions = Predictions(output / "predictions.parquet")
        self.rows = read_rows(self.path)
        self._by_key = {key_of(row): row for row in self.rows}

    @classmethod
    def of(cls, output: Path, regime: str, token_pooling: str) -> "Runs":
        """Those of one regime, with one token pooling."""
        runs = cls(output)
        runs.rows = [row for row in runs.rows if (row["regime"], row["token_pooling"]) == (regime, token_pooling)]
        return runs

    def find(self, key: Row) -> Row | None:
        """The finished run with this key, if there is one."""
        return self._by_key.get(key_of(key))

    def add(self, row: Row, predictions: tuple[Entries, Entries] | None = None) -> None:
        """Keeps a finished run and, of a final one, its labels and predictions."""
        if predictions is not None:
            self.predictions.add(row, *predictions)
        append_row(self.path, row)
        self.rows.append(row)
        self._by_key[key_of(row)] = row

    def pace(self) -> dict[str, float]:
        """Seconds that a pooling takes to train on one row once, as measured so far."""
        measured = defaultdict(list)
        for row in self.rows:
            row_epochs = int(row["epochs"]) * int(row["train_rows"])
            measured[row["pooling"]].append(float(row["seconds"]) / row_epochs)
        return {pooling: median(values) for pooling, values in measured.items()}
