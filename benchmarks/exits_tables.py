"""Makes the tables and the picture of the benchmark of exits from its CSVs.

A contender's number is the mean over sets of the mean over their seeds. Intervals are of one run, over its test rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lstmpool.benchmarks.pictures import panels_of
from lstmpool.benchmarks.results import Row, markdown
from lstmpool.benchmarks.rounds import missed


if TYPE_CHECKING:
    from matplotlib.axes import Axes

FULL, EXITS, BOUNDED, CUT, HALF, STOCK = "full", "exits", "bounded", "cut", "half", "stock"
TIMED = (FULL, EXITS, BOUNDED, CUT, HALF, STOCK)
PATIENCE = "patience"
OWN, MEAN, LSTM = "linear, own layer", "linear, mean so far", "LSTM"
CONTROLS = (OWN, MEAN, LSTM)  # fitted to training rows alone
UNTIMED = (PATIENCE, *CONTROLS)
RIVALS = (FULL, EXITS, CUT, HALF, STOCK, PATIENCE)  # `bounded` has the exits of `exits`
COLORS = {
    FULL: "#000000",
    EXITS: "#0072b2",
    BOUNDED: "#56b4e9",
    CUT: "#d55e00",
    HALF: "#e69f00",
    STOCK: "#999999",
    PATIENCE: "#cc79a7",
}
# What the project wants to reach.
FASTER = 1.8  # times, on average over sets
MEAN_LOSS = 0.5  # points on average over sets
WORST_LOSS = 1.0  # points on any set
DROP = 0.5  # points that exits, and the cut that the depth curve names, may lose
SIZES = {"1": "one text", "32": "batches of 32"}
SHORT = 64  # tokens, from which exits that are never taken may cost `COST`, and below `COST_SHORT`
COST, COST_SHORT = 1.03, 1.06  # of the time without them
COST_MEMORY = 1.02


@dataclass(frozen=True)
class Results:
    """The numbers of contenders, from rows of the CSV."""

    rows: list[Row]

    @property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(row["set"] for row in self.rows))

    def of(self, who: str) -> list[Row]:
        """The lines of a contender."""
        return [row for row in self.rows if row["contender"] == who]

    def of_set(self, who: str, column: str, name: str) -> float:
        """The mean over the seeds of a set; NaN where the column is empty, or the contender was not measured."""
        found = [float(row[column] or "nan") for row in self.of(who) if row["set"] == name]
        return float(np.mean(found)) if found else float("nan")

    def mean(self, who: str, column: str) -> float:
        """The mean over the sets on which the contender was measured."""
        return float(np.nanmean([self.of_set(who, column, name) for name in self.sets]))

    def time(self, who: str, size: str) -> float:
        """Mean time relative to the full model. Of one that was not timed, the layers read relative to all."""
        if who in UNTIMED:
            return self.mean(who, "layers") / self.mean(FULL, "layers")
        return float(np.nanmean([1 / self.of_set(who, f"faster_{size}", name) for name in self.sets]))

    def front(self, size: str) -> list[str]:
        """Those of `RIVALS` that no other one beats in time without being worse, or in score without being slower, the
        fastest first."""
        places = {who: (self.time(who, size), -self.mean(who, "gain_test")) for who in RIVALS}
        return sorted((who for who in places if not _is_beaten(who, places)), key=lambda who: places[who])


def _is_beaten(who: str, places: dict[str, tuple[float, float]]) -> bool:
    """Whether another one is as good in both, and better in one; in both, less is better."""
    time, loss = places[who]
    others = [place for place in places.values() if place != (time, loss)]
    return any(other_time <= time and other_loss <= loss for other_time, other_loss in others)


# ------------------------------------------------------------------------------------------------------------- tables
def tables(rows: list[Row]) -> str:
    """Markdown: the goals, all contenders on average, each run of the exits, each set, the controls, and the hint."""
    results = Results(rows)
    runs = f"{len(results.sets)} sets, {len(results.of(EXITS))} runs"
    parts = [
        f"**Goals**, over {runs}:",
        goals(results),
        "**On average over sets**, on test rows. Points are hundredths of accuracy, or of micro F1 for several "
        "labels; time is relative to `full`:",
        averages(results),
        "**Exits in each run**, with 95 % intervals over test rows and over rounds:",
        each_run(results, EXITS),
        "**By the rule `bounded`**:",
        each_run(results, BOUNDED),
        "**Each set:** `full` in hundredths, and what the others gain over it in points:",
        each_set(results),
        "**Heads of other kinds**, on average over sets, under the same rule; `exits` has linear heads on each "
        "layer's own vector:",
        controls(results),
        "**The depth that the curve names**, and a model trained with `--layers` up to it, in points over `full`:",
        hints(results),
        f"Made with {'; '.join(sorted({row['versions'] for row in rows}))}, on "
        f"{'; '.join(sorted({row['device'] for row in rows}))}. State of the command: {rows[0]['code']}.",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def goals(results: Results) -> str:
    """Markdown: what is wanted of exits, and what was found."""
    lines = []
    for size, title in SIZES.items():
        faster = results.mean(EXITS, f"faster_{size}")
        lines.append([f"times faster than `full`, {title}", f"at least {FASTER:g}", f"{faster:.2f}", faster >= FASTER])
    gain = results.mean(EXITS, "gain_test")
    lines.append(["points over `full`, mean", f"at least {-MEAN_LOSS:g}", f"{gain:+.2f}", gain >= -MEAN_LOSS])
    by_set = {name: results.of_set(EXITS, "gain_test", name) for name in results.sets}
    worst = min(by_set, key=by_set.get)
    found = f"{by_set[worst]:+.2f} ({worst})"
    lines.append(["the same, lowest set", f"at least {-WORST_LOSS:g}", found, by_set[worst] >= -WORST_LOSS])
    for size, title in SIZES.items():
        front = results.front(size)
        lines.append([f"on the front of time against score, {title}", "exits", ", ".join(front), EXITS in front])
    verdicts = [[*words, "**met**" if is_met else "**not met**"] for *words, is_met in lines]
    return markdown(["goal", "wanted", "found", ""], verdicts, words=4)


def averages(results: Results) -> str:
    """Markdown, one line a contender: points, times, layers and agreement with the full model."""
    lines = []
    for who in (*TIMED, PATIENCE):
        gains = [results.of_set(who, "gain_test", name) for name in results.sets]
        count = int(np.isfinite(gains).sum())
        on_all = count == len(gains)
        points = f"{results.mean(who, 'test'):.1f}" if on_all else "–"  # a mean over other sets would not compare
        title = who if on_all else f"{who} ({count} sets)"
        line = [title, points, f"{np.nanmean(gains):+.2f}", f"{np.nanmin(gains):+.2f}"]
        for size in SIZES:
            line += ["–", "–"] if who in UNTIMED else _times(results, who, size)
        lines.append([*line, f"{results.mean(who, 'layers'):.2f}", f"{results.mean(who, 'agreement'):.1%}"])
    times = [word for title in SIZES.values() for word in (f"time, {title}", "times faster")]
    return markdown(["", "points", "over `full`", "lowest set", *times, "mean layers", "as `full` answers"], lines)


def _times(results: Results, who: str, size: str) -> list[str]:
    return [f"{results.time(who, size):.2f}", f"{results.mean(who, f'faster_{size}'):.2f}"]


def each_run(results: Results, who: str) -> str:
    """Markdown, one line a set and seed of a contender."""
    lines = []
    for row in results.of(who):
        full = next(of for of in results.of(FULL) if (of["set"], of["seed"]) == (row["set"], row["seed"]))
        line = [
            row["set"],
            row["seed"],
            f"{float(full['test']):.1f}",
            _with_ends(row, "gain_test", "low", "high", "+.1f"),
        ]
        line += [_with_ends(row, f"faster_{n}", f"faster_low_{n}", f"faster_high_{n}", ".2f") for n in SIZES]
        threshold = f"{float(row['chosen']):.4g}" if row["chosen"] else "none"
        lines.append([*line, f"{float(row['layers']):.2f}", f"{float(row['agreement']):.1%}", threshold])
    times = [f"times faster, {title}" for title in SIZES.values()]
    head = ["set", "seed", "full", f"{who} − full", *times, "mean layers", "as `full` answers", "threshold"]
    return markdown(head, lines, words=2)


def _with_ends(row: Row, *columns_and_form: str) -> str:
    *columns, form = columns_and_form
    middle, low, high = (f"{float(row[column]):{form}}" for column in columns)
    return f"{middle} [{low}, {high}]"


def each_set(results: Results) -> str:
    """Markdown, one line a set: what each contender gains over the full model."""
    others = [who for who in (*TIMED, PATIENCE) if who != FULL]
    lines = []
    for name in results.sets:
        gains = [f"{results.of_set(who, 'gain_test', name):+.1f}".replace("+nan", "–") for who in others]
        lines.append([name, f"{results.of_set(FULL, 'test', name):.1f}", *gains])
    return markdown(["set", FULL, *others], lines)


def controls(results: Results) -> str:
    """Markdown, one line a kind of heads."""
    lines = []
    for who in (EXITS, *CONTROLS):
        gains = [results.of_set(who, "gain_test", name) for name in results.sets]
        layers = [f"{results.of_set(who, 'layers', name):.2f}" for name in results.sets]
        lines.append(
            [who, f"{results.mean(who, 'layers'):.2f}", f"{np.mean(gains):+.2f}", f"{min(gains):+.2f}", *layers]
        )
    return markdown(["", "mean layers", "over `full`", "lowest set", *(f"layers, {s}" for s in results.sets)], lines)


def hints(results: Results) -> str:
    """Markdown: how often a model cut to the named depth is within the allowed drop, and each run."""
    lines, held = [], {"validation": 0, "test": 0}
    named = 0
    for row in results.of(CUT):
        full = next(of for of in results.of(FULL) if (of["set"], of["seed"]) == (row["set"], row["seed"]))
        if row["depth"] == full["depth"]:
            lines.append([row["set"], row["seed"], "none", "–", "–"])
            continue
        named += 1
        for split in held:
            held[split] += float(row[f"gain_{split}"]) >= -DROP
        gains = [f"{float(row[f'gain_{split}']):+.1f}" for split in held]
        lines.append([row["set"], row["seed"], row["depth"], *gains])
    said = (
        f"A depth below the whole was named in {named} of {len(lines)} runs. The model that was trained with this cut "
        f"was within {DROP:g} points of `full` on validation in {held['validation']} of these, on test in "
        f"{held['test']}."
    )
    return f"{said}\n\n{markdown(['set', 'seed', 'layers named', 'validation', 'test'], lines, words=2)}"


def cost_table(rows: list[Row]) -> str:
    """Markdown: what exits cost that are never taken, over the same model without them."""
    if not rows:
        return "Not measured yet.\n"
    lines = []
    for row in rows:
        bound = COST if int(row["tokens"]) >= SHORT else COST_SHORT
        memory = int(row["bytes"]) / int(row["bytes_without"])
        line = [f"{row['batch']} x {row['tokens']}", _with_ends(row, "time", "low", "high", ".3f"), f"{bound:g}"]
        line += [_verdict(float(row["time"]), float(row["low"]), bound), f"{memory:.3f}", f"{COST_MEMORY:g}"]
        lines.append([*line, _verdict(memory, memory, COST_MEMORY)])
    made = "; ".join(sorted({f"{row['device']} with {row['versions']}" for row in rows}))
    head = ["texts x tokens", "time [95 % interval]", "at most", "", "peak memory", "at most", ""]
    return f"{markdown(head, lines)}\nMade on {made}.\n"


def _verdict(found: float, low: float, bound: float) -> str:
    if found <= bound:
        return "met"
    return "missed" if missed(low, bound) else "within noise"


# ------------------------------------------------------------------------------------------------------------ picture
def picture(rows: list[Row], path: Path) -> None:
    """Draws score against time, on average over sets, for one text at a time and for batches."""
    results = Results(rows)
    panels: dict[str, Callable[[Axes], None]] = {title: partial(_draw, results, size) for size, title in SIZES.items()}
    panels_of(panels, 2, path)


def _draw(results: Results, size: str, axes: "Axes") -> None:
    """A dot for each contender; a hollow one where the time is that of the layers alone."""
    for who, color in COLORS.items():
        place = results.time(who, size), results.mean(who, "gain_test")
        face = "none" if who in UNTIMED else color
        axes.plot(*place, "o", markersize=7, color=color, markerfacecolor=face, label=who)
    front = results.front(size)
    times = [results.time(who, size) for who in front]
    axes.plot(times, [results.mean(who, "gain_test") for who in front], color="#bbbbbb", linewidth=1, zorder=0)
    axes.set(xlabel="time over that of the full model", ylabel="points over the full model")
    axes.set_xlim(left=0)
