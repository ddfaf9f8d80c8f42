"""Where the study keeps the runs of a regime with one token pooling: a CSV, and the final runs' predictions."""

from collections import defaultdict
from pathlib import Path
from statistics import median

from study.predictions import Entries, Predictions
from study.records import Row, append_row, key_of, read_rows


class Runs:
    """The finished runs in one CSV, and the predictions that belong to them."""

    def __init__(self, path: Path):
        self.path = path
        self.predictions = Predictions(path.parent / "predictions" / f"{path.stem}.parquet")
        self.rows = read_rows(path)
        self._by_key = {key_of(row): row for row in self.rows}

    @classmethod
    def of(cls, output: Path, regime: str, token_pooling: str) -> "Runs":
        return cls(output / f"{regime}-{token_pooling}.csv")

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
