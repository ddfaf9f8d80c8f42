"""Makes the tables and the picture of the learning-rate benchmark from its CSV."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from lstmpool.benchmarks.results import Row


SAME = "same"  # the new layers learn at the backbone's rate
Cell = tuple[float, float]  # rate of the backbone, and of the new layers; 0 if they are the same


@dataclass(frozen=True)
class Grid:
    """The results, by the title of a set and backbone. More is better."""

    cells: list[Cell]
    values: dict[str, np.ndarray]  # (seeds, cells)
    parts: dict[str, dict[Cell, float]]  # results that lack some of the cells
    metrics: dict[str, str]  # name of the metric

    def noise(self, name: str) -> float:
        """Standard deviation of what neither the cell nor the seed explains."""
        values = self.values[name]  # (seeds, cells)
        rest = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
        seeds, cells = values.shape
        return math.sqrt((rest**2).sum() / ((seeds - 1) * (cells - 1)))

    def ranks(self) -> np.ndarray:
        """Rank of each cell in each set, (sets, cells), by its mean over seeds. 1 is best; ties share a rank."""
        return np.array([rankdata(-values.mean(0)) for values in self.values.values()])

    def lost(self) -> np.ndarray:
        """How far each cell is below the set's best cell, (sets, cells)."""
        means = [values.mean(0) for values in self.values.values()]
        return np.array([of_cells.max() - of_cells for of_cells in means])

    def rates(self) -> tuple[list[float], list[float]]:
        """The rates of the backbone, and those of the new layers, ascending."""
        return _rates(self.cells)


def read_grid(rows: list[Row]) -> Grid:
    """The results on the cells of the largest grid. A seed that lacks any of them counts only if all do."""
    runs: dict[str, dict[str, dict[Cell, float]]] = {}
    for row in rows:
        rate, head = float(row["learning_rate"]), float(row["head_learning_rate"])
        block = runs.setdefault(_title(row), {}).setdefault(row["seed"], {})
        block[rate, 0.0 if head == rate else head] = float(row["value"])  # 0 sorts 'same' first
    cells = sorted(max((block for seeds in runs.values() for block in seeds.values()), key=len))
    values, parts = {}, {}
    for name, seeds in runs.items():
        whole = [[block[cell] for cell in cells] for block in seeds.values() if block.keys() >= set(cells)]
        if whole:
            values[name] = np.array(whole)  # (seeds, cells)
        else:
            parts[name] = max(seeds.values(), key=len)
    return Grid(cells, values, parts, {_title(row): row["metric"] for row in rows})


def _rates(cells: list[Cell]) -> tuple[list[float], list[float]]:
    backbone = sorted({cell[0] for cell in cells})
    new_layers = sorted({cell[1] for cell in cells})
    return backbone, new_layers


def _title(row: Row) -> str:
    return f"{row['set']}, {row['backbone'].removeprefix('package:')}"


def tables(rows: list[Row]) -> str:
    """Markdown: one table a set, and two over all sets, which help to choose a default."""
    grid = read_grid(rows)
    parts = []
    for name, values in grid.values.items():
        noise = f"; a run scatters by {grid.noise(name):.3f} about its cell" if len(values) > 1 else ""
        parts += [f"**{name}**, {grid.metrics[name]} on validation, mean of {len(values)} seed(s){noise}:"]
        parts += [_square(grid.cells, [f"{value:.3f}" for value in values.mean(0)])]
    ranks, lost = grid.ranks(), grid.lost()
    spread = [f"{rank.mean():.1f} ({rank.min():g} to {rank.max():g})" for rank in ranks.T]
    parts += ["**Rank** among the cells, 1 is best: mean over sets (from the best to the worst of them):"]
    parts += [_square(grid.cells, spread)]
    parts += ["**Distance** to the best cell of each set, in hundredths: mean over sets (the largest):"]
    parts += [_square(grid.cells, [f"{100 * loss.mean():.1f} ({100 * loss.max():.1f})" for loss in lost.T])]
    for name, part in grid.parts.items():
        parts += [
            f"**{name}**, {grid.metrics[name]} on validation, one seed, of some cells, which the above leaves out:"
        ]
        parts += [_square(sorted(part), [f"{part[cell]:.3f}" for cell in sorted(part)])]
    return "\n\n".join(parts) + "\n"


def _square(cells: list[Cell], entries: list[str]) -> str:
    """One row a rate of the backbone, one column a rate of the new layers."""
    entry = dict(zip(cells, entries, strict=True))
    rates, heads = _rates(cells)
    head = ["backbone", *(f"new layers {_name(rate)}" for rate in heads)]
    lines = [[f"{rate:g}", *(entry.get((rate, of_head), "") for of_head in heads)] for rate in rates]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---:"] * len(head), *lines])


def _name(head: float) -> str:
    return f"{head:g}" if head else SAME


def heat_map(rows: list[Row], path: Path) -> None:
    """Draws one square a set, and one for the mean rank. Light is good."""
    from matplotlib.figure import Figure  # no other part of the benchmark needs it

    grid = read_grid(rows)
    rates, heads = grid.rates()
    shown = {f"{name}\n{grid.metrics[name]}": values.mean(0) for name, values in grid.values.items()}
    shown["mean rank"] = -grid.ranks().mean(0)
    figure = Figure(figsize=(3.2 * len(shown), 3.4), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        square = np.full((len(rates), len(heads)), np.nan)
        for (rate, head), value in zip(grid.cells, values, strict=True):
            row, column = rates.index(rate), heads.index(head)
            square[row, column] = value
            color = "white" if value < (values.min() + values.max()) / 2 else "black"
            text = f"{-value:.1f}" if title == "mean rank" else f"{value:.3f}"
            axes.text(column, row, text, ha="center", va="center", color=color)
        axes.imshow(square, cmap="viridis")
        axes.set_title(title)
        axes.set_xticks(range(len(heads)), [_name(head) for head in heads])
        axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axes.set_xlabel("rate of the new layers")
    figure.axes[0].set_ylabel("rate of the backbone")
    figure.savefig(path, dpi=100, metadata={"Software": None})
