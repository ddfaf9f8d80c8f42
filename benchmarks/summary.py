"""The bounds that the project set itself, and what was measured: two tables, made from the CSVs.

    python -m lstmpool.benchmarks.summary --table

prints the table of bounds and puts it into SPEED.md; the README gets three lines of it. Of several cells, the one with
the highest number counts. A bound is missed if the lower end of the interval lies above it. If only the median does,
the table says so.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from lstmpool.benchmarks import loading, prediction
from lstmpool.benchmarks.results import HERE, Row, fill_page, markdown, read_rows
from lstmpool.benchmarks.rounds import Comparison, missed
from lstmpool.benchmarks.variants import TWO_THIRDS


README = HERE.parent / "README.md"
Found = tuple[float, float, float, str]  # a ratio, the ends of its interval, and where it was found
Results = dict[str, list[Row]]  # the rows of each CSV, by its name
CSVS = ("memory", "flops", "speed", "prediction", "loading")


@dataclass(frozen=True)
class Counted:
    """Each cell's count of this project over that of `base`."""

    csv: str
    column: str
    mode: str
    base: str
    shape: str = ""  # how a cell's shape begins
    tokens: int = 128  # a cell's texts have at least this many

    def find(self, results: Results) -> list[Found]:
        """The ratios. A count has no interval, so its ends are the ratio."""
        counts = {}
        for row in results[self.csv]:
            place = (row["shape"], row["batch"], row["tokens"])
            if row["mode"] == self.mode and row["shape"].startswith(self.shape) and int(row["tokens"]) >= self.tokens:
                counts.setdefault(place, {})[row["variant"]] = int(row[self.column])
        found = []
        for (shape, batch, tokens), by_variant in counts.items():
            if "lstmpool" in by_variant and by_variant.get(self.base):
                ratio = by_variant["lstmpool"] / by_variant[self.base]
                found.append((ratio, ratio, ratio, f"{shape}, {batch} x {tokens}"))
        return found


@dataclass(frozen=True)
class Timed:
    """Each cell's time of a variant over the stock class, in texts of at least 128 tokens."""

    mode: str
    variant: str

    def find(self, results: Results) -> list[Found]:
        """The ratios and their intervals."""
        found = []
        for row in results["speed"]:
            if (row["mode"], row["variant"]) == (self.mode, self.variant) and int(row["tokens"]) >= 128:
                place = f"{row['shape']}, {row['batch']} x {row['tokens']}"
                found.append((float(row["ratio"]), float(row["low"]), float(row["high"]), place))
        return found


@dataclass(frozen=True)
class Compared:
    """What a comparison of whole commands says of one subject: the time of its first variant over the last."""

    comparison: Comparison
    subject: str

    def find(self, results: Results) -> list[Found]:
        """The ratio and its interval; none without rounds."""
        rows = results[self.comparison.name]
        found = self.comparison.over_base(rows, self.subject, self.comparison.variants[0])
        return [(*found, self.subject)] if found else []


@dataclass(frozen=True)
class Bound:
    """A bound on a ratio: `source` finds the ratio in the CSVs, and it may be at most `limit`."""

    what: str
    limit: float
    source: Counted | Timed | Compared


BOUNDS = (
    Bound(
        "inference of 512 tokens, 12 layers, peak memory over the bare backbone",
        1.02,
        Counted("memory", "peak_bytes", "inference", "backbone", "12x", tokens=512),
    ),
    Bound(
        "inference, FLOPs over the stock class, 6 layers",
        1.01,
        Counted("flops", "flops", "inference", "stock", "6x"),
    ),
    Bound(
        "inference, FLOPs over the stock class, 12 layers",
        1.01,
        Counted("flops", "flops", "inference", "stock", "12x"),
    ),
    Bound(
        "training step, FLOPs over the stock class, 6 layers",
        1.01,
        Counted("flops", "flops", "training", "stock", "6x"),
    ),
    Bound(
        "training step, FLOPs over the stock class, 12 layers",
        1.01,
        Counted("flops", "flops", "training", "stock", "12x"),
    ),
    Bound("inference, time over the stock class", 1.02, Timed("inference", "lstmpool")),
    Bound("training step, time over the stock class", 1.03, Timed("training", "lstmpool")),
    Bound(
        "training step, peak memory over the stock class",
        1.03,
        Counted("memory", "peak_bytes", "training", "stock"),
    ),
    Bound(
        "inference with two thirds of the layers, time over the whole stock class",
        0.70,
        Timed("inference", TWO_THIRDS),
    ),
    Bound(
        "prediction over `pipeline(batch_size=32)`",
        0.5,
        Compared(prediction.COMPARED, "movie_reviews with cr"),
    ),
    Bound("import over the stock class", 1.1, Compared(loading.COMPARED, "import")),
    Bound("loading a folder over the stock class", 1.1, Compared(loading.COMPARED, "load")),
    Bound("the same once more, in the same process", 1.1, Compared(loading.COMPARED, "load again")),
)
# The bounds that the README shows, without their limits.
IN_README = (
    "inference, time over the stock class",
    "training step, time over the stock class",
    "prediction over `pipeline(batch_size=32)`",
)


def line(what: str, bound: float, found: list[Found]) -> list[list[str]]:
    """The line of the table for the worst of `found`: a miss if there is one, else the highest. No line for none."""
    if not found:
        return []
    middle, low, high, where = max(found, key=lambda of: (missed(of[1], bound), of))
    verdict = "missed" if missed(low, bound) else "met" if middle <= bound else "within noise"
    return [[what, where, f"{bound:.2f}", measured(middle, low, high), verdict]]


def measured(middle: float, low: float, high: float) -> str:
    """A ratio, with its interval if it has one: a count has none."""
    interval = f" [{low:.3f}, {high:.3f}]" if low < high else ""
    return f"{middle:.3f}{interval}"


def read_results(folder: Path) -> Results:
    """The rows of each CSV in `folder`."""
    return {name: read_rows(folder / f"{name}.csv") for name in CSVS}


def short_table(folder: Path = HERE) -> str:
    """Markdown for the README: what, where it was worst, and what was measured."""
    results = read_results(folder)
    lines = []
    for bound in BOUNDS:
        found = bound.source.find(results) if bound.what in IN_README else []
        if found:
            middle, low, high, where = max(found)
            lines.append([bound.what, where, measured(middle, low, high)])
    return markdown(["this project", "where it is worst", "measured [95% interval]"], lines, words=2)


def table(folder: Path = HERE) -> str:
    """Markdown: what, where it was worst, the bound, what was measured, and whether the bound is met."""
    results = read_results(folder)
    lines = []
    for bound in BOUNDS:
        lines += line(bound.what, bound.limit, bound.source.find(results))
    return markdown(["this project", "where it is worst", "at most", "measured [95% interval]", ""], lines, words=2)


def main(argv: list[str] | None = None) -> int:
    """Prints the table and fills the pages; returns the exit status."""
    parser = argparse.ArgumentParser("summary", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", action="store_true", required=True, help="make the table from the CSVs")
    parser.parse_args(argv)
    bounds = table()
    print(bounds)
    for page, name, text in ((README, "cost", short_table()), (HERE / "SPEED.md", "bounds", bounds)):
        if page.is_file():
            fill_page(page, name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
