"""The pictures of EVIDENCE.md and TABLES.md: paired differences by set."""

import io
import math
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.differences import Difference
from study.statistics import Table


COLUMNS = 7  # panels side by side
SHOWN = 10.0  # hundredths on either side of zero, so that one point can be seen


def differences_plot(table: Table, differences: dict[str, Difference], pooling: str, path: Path) -> None:
    """One panel for each other pooling, with a line for each set and, below, one for the mean over sets.

    Right of zero, `pooling` is better. An estimate outside the panel is a number at its edge.
    """
    sets = [dataset for dataset in table.sets if any(dataset in found.by_set for found in differences.values())]
    columns = min(len(differences), COLUMNS)
    rows = math.ceil(len(differences) / COLUMNS)
    height = 1.0 + 0.2 * (len(sets) + 1)
    figure = Figure(figsize=(1.2 + 1.6 * columns, 0.4 + height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(differences) :]:
        axes.set_visible(False)
    for axes, (other, found) in zip(grid.flat, differences.items(), strict=False):
        for dataset, of_set in found.by_set.items():
            _line(axes, sets.index(dataset), of_set, bold=False)
        mean = (found.pooled[0], *(found.over_sets or found.pooled[1:]))
        _line(axes, len(sets), mean, bold=True)
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_title(f"less {other}", fontsize=8)
        axes.tick_params(labelsize=7, labelbottom=True)
    grid[0, 0].set_yticks(range(len(sets) + 1), [*sets, "mean"])
    grid[0, 0].set_xlim(-SHOWN, SHOWN)
    grid[0, 0].invert_yaxis()
    told = f"{pooling} less the other pooling, hundredths, 95 %\n(the mean's as if sets were drawn, too)"
    figure.suptitle(f"{table.title}: {told}", fontsize=8)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _line(axes: Axes, place: int, found: tuple[float, float, float], bold: bool) -> None:
    """An interval with its estimate, or with a number if the estimate lies outside."""
    estimate, low, high = (100 * value for value in found)
    color = "tab:blue" if low > 0 else "tab:red" if high < 0 else "tab:gray"
    axes.plot([low, high], [place, place], color=color, linewidth=2.5 if bold else 1.2)
    if abs(estimate) < 0.95 * SHOWN:
        axes.plot([estimate], [place], "D" if bold else "o", color=color, markersize=5 if bold else 3.5)
    else:
        side = "right" if estimate > 0 else "left"
        at = 0.97 * math.copysign(SHOWN, estimate)
        axes.text(at, place, f"{estimate:+.0f}", color=color, fontsize=7, ha=side, va="center")


def rank_test(families: list[str], poolings: list[str], scores: np.ndarray) -> Any:
    """Friedman's test (`pvalue`) and Nemenyi's critical difference (`cd`) of scores (F, P), by autorank."""
    import pandas
    from autorank import autorank

    table = pandas.DataFrame(scores.round(9), index=families, columns=poolings)
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tests for normality, which are not used
        return autorank(table, alpha=0.05, verbose=False, order="descending", force_mode="nonparametric")
