"""The bounds that the project set itself, and what was measured: the table of the README, made from the CSVs.

    python -m lstmpool.benchmarks.summary --table

prints the table and puts it into the README and SPEED.md. Of several cells, the one with the highest number counts. A
bound is missed when the lower end of the interval lies above it; where only the median does, that is said.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from lstmpool.benchmarks import cached_epochs, loading, prediction
from lstmpool.benchmarks.results import HERE, Row, fill_page, markdown, read_rows
from lstmpool.benchmarks.timing import missed
from lstmpool.benchmarks.variants import TWO_THIRDS


README = HERE.parent / "README.md"
Found = tuple[float, float, float, str]  # a ratio, the ends of its interval, and where it was found
COUNTED, TIMED = ("memory", "flops"), ("speed", "cached_epochs", "prediction", "loading")


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


def line(what: str, bound: float, found: Iterable[Found]) -> list[list[str]]:
    """A line of the table from the worst of what was found; none if nothing was."""
    worst = max(found, default=None)
    if worst is None:
        return []
    middle, low, high, where = worst
    interval = f" [{low:.3f}, {high:.3f}]" if low < high else ""
    verdict = "missed" if missed(low, bound) else "met" if middle <= bound else "within noise"
    return [[what, where, f"{bound:.2f}", f"{middle:.3f}{interval}", verdict]]


def table(folder: Path = HERE) -> str:
    """Markdown: what, where it was worst, the bound, what was measured, and whether the bound is met."""
    rows = {name: read_rows(folder / f"{name}.csv") for name in (*COUNTED, *TIMED)}
    memory, flops, speed, cached = (rows[name] for name in ("memory", "flops", "speed", "cached_epochs"))
    lines = [
        *line(
            "inference, peak memory over the bare backbone",
            1.02,
            counted(memory, "peak_bytes", "inference", "backbone", "12x", 512),
        ),
        *line(
            "inference, FLOPs over the stock class, 6 layers",
            0.92,
            counted(flops, "flops", "inference", "stock", "6x"),
        ),
        *line(
            "inference, FLOPs over the stock class, 12 layers",
            0.97,
            counted(flops, "flops", "inference", "stock", "12x"),
        ),
        *line("inference, time over the stock class", 1.02, timed(speed, "inference", "lstmpool")),
        *line(
            "training step, FLOPs over the stock class, 6 layers",
            0.92,
            counted(flops, "flops", "training", "stock", "6x"),
        ),
        *line(
            "training step, FLOPs over the stock class, 12 layers",
            0.97,
            counted(flops, "flops", "training", "stock", "12x"),
        ),
        *line("training step, time over the stock class", 1.03, timed(speed, "training", "lstmpool")),
        *line(
            "training step, peak memory over the stock class", 1.03, counted(memory, "peak_bytes", "training", "stock")
        ),
        *line("inference with two thirds of the layers, time", 0.70, timed(speed, "inference", TWO_THIRDS)),
        *line("cached epoch over one without the cache", 0.12, compared(cached, cached_epochs.COMPARED, "trec6")),
        *line(
            "cached epoch over one without the cache", 0.02, compared(cached, cached_epochs.COMPARED, "movie_reviews")
        ),
        *line(
            "prediction over `pipeline(batch_size=32)`",
            0.6,
            compared(rows["prediction"], prediction.COMPARED, *prediction.COMPARED.subjects),
        ),
        *line("import over the stock class", 1.1, compared(rows["loading"], loading.COMPARED, "import")),
        *line("loading a folder over the stock class", 1.1, compared(rows["loading"], loading.COMPARED, "load")),
    ]
    head = ["this project", "where it is worst", "at most", "measured [95% interval]", ""]
    return markdown(head, lines, words=2)


def main(argv: list[str] | None = None) -> int:
    """Prints the table and fills the pages; returns the exit status."""
    parser = argparse.ArgumentParser("summary", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", action="store_true", required=True, help="make the table from the CSVs")
    parser.parse_args(argv)
    print(text := table())
    for page in (README, HERE / "SPEED.md"):
        if page.is_file():
            fill_page(page, "bounds", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
