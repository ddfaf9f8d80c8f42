"""The bounds that the project set itself, and what was measured: two tables, made from the CSVs.

    python -m lstmpool.benchmarks.summary --table

prints the table of bounds and puts it into SPEED.md; the README gets four lines of it. Of several cells, the one with
the highest number counts. A bound is missed when the lower end of the interval lies above it; where only the median
does, the table says so.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from lstmpool.benchmarks import cached_epochs, loading, prediction
from lstmpool.benchmarks.results import HERE, Row, fill_page, markdown, read_rows
from lstmpool.benchmarks.timing import missed
from lstmpool.benchmarks.variants import TWO_THIRDS


README = HERE.parent / "README.md"
Found = tuple[float, float, float, str]  # a ratio, the ends of its interval, and where it was found
CSVS = ("memory", "flops", "speed", "cached_epochs", "prediction", "loading")


def counted(rows: list[Row], column: str, mode: str, base: str, shape: str = "", tokens: int = 128) -> list[Found]:
    """Each cell's count of this project over that of `base`, in texts of at least so many tokens."""
    counts = {(r["shape"], r["mode"], r["batch"], r["tokens"], r["variant"]): int(r[column]) for r in rows}
    found = []
    for (of, in_mode, batch, long, variant), value in counts.items():
        over = counts.get((of, in_mode, batch, long, base))
        if variant == "lstmpool" and in_mode == mode and of.startswith(shape) and int(long) >= tokens and over:
            found.append((value / over, value / over, value / over, f"{of}, {batch} x {long}"))
    return found


def timed(rows: list[Row], mode: str, variant: str) -> list[Found]:
    """Each cell's time of a variant over the stock class, in texts of at least 128 tokens."""
    return [
        (float(r["ratio"]), float(r["low"]), float(r["high"]), f"{r['shape']}, {r['batch']} x {r['tokens']}")
        for r in rows
        if (r["mode"], r["variant"]) == (mode, variant) and int(r["tokens"]) >= 128
    ]


def compared(rows: list[Row], comparison, subject: str) -> list[Found]:
    """What a comparison says of one subject."""
    found = comparison.over_base(rows, subject, comparison.variants[0])
    return [(*found, subject)] if found else []


# What is bounded, the bound, and what finds it in the rows of each CSV.
BOUNDS: list[tuple[str, float, Callable[[dict[str, list[Row]]], list[Found]]]] = [
    (
        "inference of 512 tokens, 12 layers, peak memory over the bare backbone",
        1.02,
        lambda rows: counted(rows["memory"], "peak_bytes", "inference", "backbone", "12x", 512),
    ),
    *(
        (
            f"{title}, FLOPs over the stock class, {layers} layers",
            bound,
            lambda rows, mode=mode, layers=layers: counted(rows["flops"], "flops", mode, "stock", f"{layers}x"),
        )
        for mode, title in (("inference", "inference"), ("training", "training step"))
        for layers, bound in ((6, 1.01), (12, 1.01))
    ),
    ("inference, time over the stock class", 1.02, lambda rows: timed(rows["speed"], "inference", "lstmpool")),
    ("training step, time over the stock class", 1.03, lambda rows: timed(rows["speed"], "training", "lstmpool")),
    (
        "training step, peak memory over the stock class",
        1.03,
        lambda rows: counted(rows["memory"], "peak_bytes", "training", "stock"),
    ),
    (
        "inference with two thirds of the layers, time over the whole stock class",
        0.70,
        lambda rows: timed(rows["speed"], "inference", TWO_THIRDS),
    ),
    *(
        (what, bound, lambda rows, of=of, subject=subject: compared(rows[of.name], of, subject))
        for what, bound, of, subject in (
            ("cached epoch over one without the cache", 0.12, cached_epochs.COMPARED, "trec6"),
            ("cached epoch over one without the cache", 0.02, cached_epochs.COMPARED, "movie_reviews"),
            ("prediction over `pipeline(batch_size=32)`", 0.6, prediction.COMPARED, *prediction.COMPARED.subjects),
            ("import over the stock class", 1.1, loading.COMPARED, "import"),
            ("loading a folder over the stock class", 1.1, loading.COMPARED, "load"),
            ("the same once more, in the same process", 1.1, loading.COMPARED, "load again"),
        )
    ),
]


# The bounds that the README shows, without the bound itself.
IN_README = (
    "inference, time over the stock class",
    "training step, time over the stock class",
    "cached epoch over one without the cache",
    "prediction over `pipeline(batch_size=32)`",
)


def line(what: str, bound: float, found: list[Found]) -> list[list[str]]:
    """A line of the table from the worst of what was found, which is a miss if there is one; none if nothing was."""
    if not found:
        return []
    middle, low, high, where = max(found, key=lambda of: (missed(of[1], bound), of))
    verdict = "missed" if missed(low, bound) else "met" if middle <= bound else "within noise"
    return [[what, where, f"{bound:.2f}", measured(middle, low, high), verdict]]


def measured(middle: float, low: float, high: float) -> str:
    """A ratio, with its interval if it has one: a count has none."""
    interval = f" [{low:.3f}, {high:.3f}]" if low < high else ""
    return f"{middle:.3f}{interval}"


def read_results(folder: Path) -> dict[str, list[Row]]:
    """The rows of each CSV."""
    return {name: read_rows(folder / f"{name}.csv") for name in CSVS}


def short_table(folder: Path = HERE) -> str:
    """Markdown for the README: what, where it was worst, and what was measured, of all bounds of that name."""
    rows = read_results(folder)
    lines = []
    for name in IN_README:
        found = [one for what, _, find in BOUNDS if what == name for one in find(rows)]
        if found:
            middle, low, high, where = max(found)
            lines.append([name, where, measured(middle, low, high)])
    return markdown(["this project", "where it is worst", "measured [95% interval]"], lines, words=2)


def table(folder: Path = HERE) -> str:
    """Markdown: what, where it was worst, the bound, what was measured, and whether the bound is met."""
    rows = read_results(folder)
    lines = [of for what, bound, find in BOUNDS for of in line(what, bound, find(rows))]
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
