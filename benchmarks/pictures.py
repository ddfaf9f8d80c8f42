"""Draws the pictures of the benchmarks, each from its CSV."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lstmpool.benchmarks.first_run_tables import GROUPS, LAST, LONG, OURS, Cell, gains_over_best
from lstmpool.benchmarks.results import Row


if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {
    "backbone": "#999999",
    "stock": "#000000",
    "naive": "#d55e00",
    "weighted": "#cc79a7",
    "lstmpool": "#0072b2",
    "lstmpool, two thirds": "#56b4e9",
    "lstmpool, again": "#bbccdd",
}
CONTENDERS = {"linear": "#d55e00", "stock": "#000000", LAST: "#56b4e9", OURS: "#0072b2"}


def ratios(rows: list[Row], path: Path) -> None:
    """Draws times over the stock class: a dot and its interval for each variant, one line a cell."""
    from matplotlib.figure import Figure  # not needed to measure

    cells = list(dict.fromkeys(f"{r['shape']} {r['mode']} {r['batch']}x{r['tokens']}" for r in rows))
    names = [name for name in COLORS if name != "stock" and any(row["variant"] == name for row in rows)]
    figure = Figure(figsize=(8, 1.4 + 0.55 * len(cells)), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row["variant"] in names:
            cell = cells.index(f"{row['shape']} {row['mode']} {row['batch']}x{row['tokens']}")
            height = cell + 0.8 * (names.index(row["variant"]) / len(names) - 0.4)
            color = COLORS[row["variant"]]
            axes.plot([float(row["low"]), float(row["high"])], [height, height], color=color, linewidth=2)
            axes.plot(float(row["ratio"]), height, marker="o", markersize=4, color=color)
    for name in names:
        axes.plot([], [], marker="o", markersize=4, color=COLORS[name], label=name)
    axes.axvline(1, color=COLORS["stock"], linewidth=1, label="stock")
    axes.set_yticks(range(len(cells)), cells)
    axes.invert_yaxis()
    axes.set(xlabel="time over that of the stock class (lower is better)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=100, metadata={"Software": None})


def panels_of(panels: dict[str, Callable[["Axes"], None]], columns: int, path: Path) -> None:
    """Draws a grid of panels, each by its own function, with one legend for all."""
    from matplotlib.figure import Figure

    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.9 * lines), layout="constrained")
    for axes, (title, draw) in zip(figure.subplots(lines, columns, squeeze=False).flat, panels.items(), strict=False):
        draw(axes)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def gains_and_scores(cells: list[Cell], path: Path) -> None:
    """Draws the gain over the best of the others in each cell of the first run, and mean scores by rows."""
    from matplotlib.figure import Figure

    panels = {group: gains_over_best([cell for cell in cells if cell.group == group]) for group in GROUPS[1:]}
    height = max(5.0, 1.2 + 0.19 * max(map(len, panels.values())))
    figure = Figure(figsize=(16, height), layout="constrained")
    axes = figure.subplots(1, 3)
    for of_group, (group, gains) in zip(axes, panels.items(), strict=False):
        for place, (_, gain) in enumerate(gains):
            color = CONTENDERS[OURS if gain.high >= 0 else "linear"]
            of_group.plot([gain.low, gain.high], [place, place], color=color, linewidth=1.5)
            of_group.plot(gain.points, place, marker="o", markersize=4, color=color)
        of_group.axvline(0, color="black", linewidth=1)
        of_group.set_yticks(range(len(gains)), [f"{cell.title} ({cell.best})" for cell, _ in gains], fontsize=8)
        of_group.invert_yaxis()
        of_group.set(title=f"{group} sets", xlabel="ours less the best of the others (in brackets), points")
        of_group.grid(axis="x", alpha=0.3)
    _scores_by_rows(cells, axes[2])
    figure.savefig(path, dpi=80, metadata={"Software": None})


def _scores_by_rows(cells: list[Cell], axes: "Axes") -> None:
    """One line a contender: its mean score over the sets that have each size up to `LONG`."""
    short = [cell for cell in cells if cell.rows <= LONG]
    sizes = sorted({cell.rows for cell in short})
    shown = [who for who in CONTENDERS if any(who in cell.scores for cell in short)]
    whole = [cell for cell in short if cell.scores.keys() >= set(shown)]
    sets = {cell.name for cell in whole if sum(other.name == cell.name for other in whole) == len(sizes)}
    if sets:
        for who in shown:
            of_size = [[cell.score(who) for cell in whole if cell.name in sets and cell.rows == n] for n in sizes]
            scores = [np.mean(scores) for scores in of_size]
            axes.plot(sizes, scores, marker="o", markersize=4, color=CONTENDERS[who], label=who)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.legend()
    axes.set(title=f"mean score of {len(sets)} sets, hundredths", xlabel="rows to train on")
    axes.grid(alpha=0.3)
