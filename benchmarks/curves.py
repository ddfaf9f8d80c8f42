"""How memory and FLOPs grow with the layers read, the backbone's depth, the length and the batch; which batch fits.

    python -m lstmpool.benchmarks.curves
    python -m lstmpool.benchmarks.curves --table

Memory and FLOPs are counted as in `memory` and `flops`, so they are the same on every machine. The largest batch that
fits a memory is computed from the peaks of two batches, since activations grow in proportion to the batch. The weights
are added and, in training, the two states that AdamW keeps of each. Counts that the CSV holds are not repeated.
"""

import gc
import sys
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from lstmpool.benchmarks.grid import flops, peak_bytes
from lstmpool.benchmarks.pictures import COLORS, curves
from lstmpool.benchmarks.results import HERE, Row, append_rows, holds, markdown, parser_of, read_rows, show, versions
from lstmpool.benchmarks.variants import Cell, build, inference, prepare, random_inputs


if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDES = ("backbone", "stock", "naive", "weighted", "lstmpool")
MODES = ("inference", "training")
FITS = "fits"  # the points from which the largest batch is reckoned
GIB = 2**30
MEMORIES = (4, 8, 16)  # GiB


@dataclass(frozen=True)
class Point:
    """A point on a curve."""

    along: str  # what varies along the curve
    x: int  # its value here
    cell: Cell
    read: int  # how many of the highest layers are read

    def columns(self) -> Row:
        """The columns of the CSV that say which point it is."""
        return {"along": self.along, "x": str(self.x)} | self.cell.columns() | {"read": str(self.read)}


def points(mode: str) -> list[Point]:
    """All points that are counted in one mode."""
    found = [Point("layers read", n, Cell("12x384", mode, 2, 128), n) for n in (1, 4, 8, 12)]
    found += [Point("layers of the backbone", n, Cell(f"{n}x384", mode, 2, 128), n) for n in (3, 6, 12, 18)]
    found += [Point("tokens", n, Cell("12x384", mode, 2, n), 12) for n in (32, 128, 256, 512)]
    found += [Point("texts a batch", n, Cell("12x384", mode, n, 128), 12) for n in (1, 4, 8, 16)]
    return found + [Point(FITS, n, Cell("12x768", mode, n, 512), 12) for n in (2, 4)]


@dataclass
class Arguments:
    """The flags of the command."""

    along: list[str] = field(
        default_factory=lambda: list(dict.fromkeys(point.along for point in points("inference"))),
        metadata={"help": "Curves to count."},
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
    """Peak bytes, FLOPs, and the bytes of the weights, as columns of the CSV, for the variant `name`."""
    gc.collect()  # frees the model before this one, whose hooks refer to it in a circle
    torch.manual_seed(0)
    layers = list(range(-point.read, 0))
    side = build(name, point.cell.config(), layers)
    inputs = random_inputs(point.cell)
    side.model.eval()
    inference(side, {key: value[:1, :8] for key, value in inputs.items()})  # makes what is made once and stays
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
    kept = weights * (3 if mode == "training" else 1)  # with AdamW's two states; gradients are in the peak
    constant = low - slope * small + kept
    return max(0, int((memory - constant) // slope))


def table(rows: list[Row]) -> str:
    """Markdown: the largest batch that fits each memory, by mode and variant."""
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
    """Draws peak memory in MiB, and FLOPs over the stock class, along each of the curves, in both modes."""
    panels = {}
    for mode, (what, draw) in product(MODES, (("memory", _draw_memory), ("FLOPs", _draw_flops))):
        for along in dict.fromkeys(row["along"] for row in rows if row["along"] != FITS):
            mine = [row for row in rows if (row["along"], row["mode"]) == (along, mode)]
            panels[f"{mode}: {what} by {along}"] = partial(draw, mine, along)
    if panels:
        curves(panels, len(panels) // 4, path)


def _draw_memory(rows: list[Row], along: str, axes: "Axes") -> None:
    for name, points_of in _by_variant(rows).items():
        values = [float(row["peak_bytes"]) / 2**20 for row in points_of]
        _draw_curve(axes, name, points_of, values)
    axes.set(xlabel=along, ylabel="peak memory, MiB")
    axes.set_ylim(bottom=0)


def _draw_flops(rows: list[Row], along: str, axes: "Axes") -> None:
    by_variant = _by_variant(rows)
    stock = [float(row["flops"]) for row in by_variant["stock"]]
    for name, points_of in by_variant.items():
        values = [float(row["flops"]) / one for row, one in zip(points_of, stock, strict=False)]
        _draw_curve(axes, name, points_of, values)
    axes.set(xlabel=along, ylabel="FLOPs over stock")


def _by_variant(rows: list[Row]) -> dict[str, list[Row]]:
    return {name: [row for row in rows if row["variant"] == name] for name in SIDES}


def _draw_curve(axes: "Axes", name: str, rows: list[Row], values: list[float]) -> None:
    x = [int(row["x"]) for row in rows][: len(values)]
    axes.plot(x, values, color=COLORS[name], label=name, marker="o", markersize=3)


if __name__ == "__main__":
    sys.exit(main())
