"""Draws the pictures of the speed benchmarks, each from its CSV."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

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


def curves(panels: dict[str, Callable[["Axes"], None]], columns: int, path: Path) -> None:
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
