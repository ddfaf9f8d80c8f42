"""How memory and FLOPs grow with the layers read, the backbone's depth, the length and the batch, and what then fits.

    python -m lstmpool.benchmarks.curves
    python -m lstmpool.benchmarks.curves --table

Counted as in `memory` and `flops`, and so the same on every machine. The largest batch that fits a memory is reckoned
from the peaks of two batches, as activations grow in proportion to the batch: to them come the weights and, in
training, the two states that AdamW keeps of each. A count that the CSV holds is not made again.
"""

import gc
import sys
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch
from tqdm.auto import tqdm

from lstmpool.benchmarks.counters import flops, peak_bytes
from lstmpool.benchmarks.pictures import COLORS, curves
from lstmpool.benchmarks.results import HERE, Row, append_rows, holds, markdown, parser_of, read_rows, show, versions
from lstmpool.benchmarks.variants import Cell, build, inference, prepare, random_inputs


SIDES = ("backbone", "stock", "naive", "weighted", "lstmpool")
MODES = ("inference", "training")
FITS = "fits"  # the points from which the largest batch is reckoned
GIB = 2**30
MEMORIES = (4, 8, 16)  # GiB


@dataclass(frozen=True)
class Point:
    """A place on a curve: `x` along it, in a cell, with so many of the highest layers read."""

    along: str
    x: int
    cell: Cell
    read: int

    def columns(self) -> Row:
        return {"along": self.along, "x": str(self.x)} | self.cell.columns() | {"read": str(self.read)}


def points(mode: str) -> list[Point]:
    """Everything that is counted in one mode."""
    found = [Point("layers read", n, Cell("12x384", mode, 2, 128), n) for n in (1, 4, 8, 12)]
    found += [Point("layers of the backbone", n, Cell(f"{n}x384", mode, 2, 128), n) for n in (3, 6, 12, 18)]
    found += [Point("tokens", n, Cell("12x384", mode, 2, n), 12) for n in (32, 128, 256, 512)]
    found += [Point("texts a batch", n, Cell("12x384", mode, n, 128), 12) for n in (1, 4, 8, 16)]
    return found + [Point(FITS, n, Cell("12x768", mode, n, 512), 12) for n in (2, 4)]


@dataclass
class Arguments:
    """What is counted."""

    along: list[str] = field(
        default_factory=lambda: list(dict.fromkeys(point.along for point in points("inference"))),
        metadata={"help": "Curves, of those that are counted when this is not given."},
    )
    output: str | None = field(default=None, metadata={"help": "Results, CSV. Unset: beside the command's source."})
    table: bool = field(default=False, metadata={"help": "Make table and picture from the CSV, and count nothing."})


def main(argv: list[str] | None = None) -> int:
    """Counts what the CSV lacks, or makes table and picture; returns the exit status."""
    parser = parser_of(Arguments, "curves", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    output = Path(args.output or HERE / "curves.csv")
    if not args.table:
        todo = [point for mode in MODES for point in points(mode) if point.along in args.along]
        for point, name in tqdm(list(product(todo, SIDES)), desc="curves"):
            wanted = point.columns() | {"variant": name}
            if not holds(read_rows(output), wanted):
                append_rows(output, [wanted | count(point, name)])
    show(parser, output, "curves", table, picture)
    return 0


def count(point: Point, name: str) -> Row:
    """Peak bytes, FLOPs, and the bytes of the weights."""
    gc.collect()  # the model before this one, whose hooks refer to it in a circle
    torch.manual_seed(0)
    layers = list(range(-point.read, 0))
    side, inputs = build(name, point.cell.config(), layers), random_inputs(point.cell)
    side.model.eval()
    inference(side, {key: value[:1, :8] for key, value in inputs.items()})  # what is made once and stays
    peak = peak_bytes(prepare(side, point.cell, inputs))
    weights = sum(parameter.nbytes for parameter in side.model.parameters())
    with torch.device("meta"):
        side = build(name, point.cell.config(attn_implementation="eager"), layers)
    operations = flops(prepare(side, point.cell, random_inputs(point.cell, "meta")))
    numbers = {"peak_bytes": str(peak), "flops": str(operations), "weight_bytes": str(weights)}
    return numbers | {"versions": versions("sentence-transformers")}


def largest_batch(memory: int, peaks: dict[int, int], weights: int, mode: str) -> int:
    """How many texts fit into `memory` bytes, from the peak bytes of two batches; 0 if not one does."""
    (small, low), (large, high) = sorted(peaks.items())
    slope = (high - low) / (large - small)  # bytes a text
    constant = low - slope * small + weights * (3 if mode == "training" else 1)  # gradients are in the peak
    return max(0, int((memory - constant) // slope))


def table(rows: list[Row]) -> str:
    """Markdown: the largest batches."""
    lines = []
    for mode, name in product(MODES, SIDES[1:]):
        mine = [row for row in rows if (row["along"], row["mode"], row["variant"]) == (FITS, mode, name)]
        if len(mine) == 2:
            peaks = {int(row["batch"]): int(row["peak_bytes"]) for row in mine}
            weights = int(mine[0]["weight_bytes"])
            fit = [str(largest_batch(memory * GIB, peaks, weights, mode)) for memory in MEMORIES]
            lines.append([mode, name, *fit])
    head = ["12x768, texts of 512 tokens", "", *(f"{memory} GiB" for memory in MEMORIES)]
    return markdown(head, lines, words=2)


def picture(rows: list[Row], path: Path) -> None:
    """Peak memory in MiB, and FLOPs over the stock class, along each of the curves, in both modes."""
    panels = {}
    for mode, quantity in product(MODES, ("peak_bytes", "flops")):
        for along in dict.fromkeys(row["along"] for row in rows if row["along"] != FITS):
            mine = [row for row in rows if (row["along"], row["mode"]) == (along, mode)]

            def draw(axes, mine=mine, along=along, quantity=quantity):
                by_name = {name: [row for row in mine if row["variant"] == name] for name in SIDES}
                base = [float(row[quantity]) for row in by_name["stock"]]
                for name, found in by_name.items():
                    values = [float(row[quantity]) for row in found]
                    if quantity == "flops":
                        values = [value / one for value, one in zip(values, base, strict=False)]
                    else:
                        values = [value / 2**20 for value in values]
                    x = [int(row["x"]) for row in found][: len(values)]
                    axes.plot(x, values, color=COLORS[name], label=name, marker="o", markersize=3)
                axes.set(xlabel=along, ylabel="FLOPs over stock" if quantity == "flops" else "peak memory, MiB")
                if quantity == "peak_bytes":
                    axes.set_ylim(bottom=0)

            what = "FLOPs" if quantity == "flops" else "memory"
            panels[f"{mode}: {what} by {along}"] = draw
    if panels:
        curves(panels, len(panels) // 4, path)


if __name__ == "__main__":
    sys.exit(main())
