"""Makes the tables and the picture of the first-run benchmark from its CSV and its predictions.

A cell is a set with a number of rows. Contenders are compared over the seeds that they share. The intervals come from
a bootstrap over test rows: a draw of test rows is the same for all contenders and seeds of a cell. So they say what
other test rows would change, and ignore other draws of training rows.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from lstmpool.benchmarks.results import Row, markdown
from lstmpool.training.errors import InputError
from lstmpool.training.writing import writing


DRAWS = 2000
OURS = "ours"
LAST = "ours_last"  # no rival: it shows what reading layers adds
RIVALS = ("linear", "stock", "setfit")
CONTENDERS = (*RIVALS, LAST, OURS)
PARTIAL = "setfit"  # runs on some cells only
GROUPS = ("all", "development", "confirmation")
KINDS = ("few classes", "many classes", "pairs", "numbers", "several labels")
KEY = "set rows seed contender code backbone".split()  # a run with the same of these is the same run
SCHEMA = pyarrow.schema(
    [(name, pyarrow.string()) for name in KEY]
    + [(name, pyarrow.list_(pyarrow.string())) for name in ("label", "prediction")]
)
LONG = 1000  # rows from which the time is compared with the library's class
# What the project wants to reach.
REACHES_ZERO = 0.9  # of the cells
LOWEST_END = -2.0  # points
MEAN_GAIN = 0.5  # points
OVER_STOCK = 1.3  # times its CPU seconds
SHORT_SECONDS = 120

Entries = list[str]  # of each test row: a name, names joined by |, or a number
Predicted = dict[tuple[str, ...], tuple[Entries, Entries]]  # labels and predictions of a run, by its key


# -------------------------------------------------------------------------------------------------------- predictions
class Predictions:
    """The predictions of all runs: one Parquet file beside the CSV.

    A run that ends writes a small file of its own, so a kill costs at most the run in progress. `gather` moves them
    into the one file.
    """

    def __init__(self, output: Path):
        self.file = output.with_suffix(".parquet")
        self.waiting = output.with_name(f"{output.stem}_waiting")

    def add(self, key: Row, label: Entries, prediction: Entries) -> None:
        """Writes the small file of one run."""
        digest = hashlib.blake2b(repr([key[name] for name in KEY]).encode(), digest_size=8).hexdigest()
        columns = {name: [key[name]] for name in KEY} | {"label": [label], "prediction": [prediction]}
        self.waiting.mkdir(parents=True, exist_ok=True)
        self._write(self.waiting / f"{digest}.parquet", pyarrow.table(columns, SCHEMA))

    def gather(self) -> None:
        """Moves the small files into the one file. The newest of several predictions of one run counts."""
        small = sorted(self.waiting.glob("*.parquet"))
        if not small:
            return
        files = [*small, self.file] if self.file.is_file() else small
        table = pyarrow.concat_tables([pyarrow.parquet.read_table(file, schema=SCHEMA) for file in files])
        places = {key: place for place, key in reversed(list(enumerate(_keys(table))))}
        self._write(self.file, table.take([places[key] for key in sorted(places)]))
        for file in small:
            file.unlink()

    def read(self) -> dict[tuple[str, ...], tuple[Entries, Entries]]:
        """Labels and predictions of each gathered run, by its key."""
        if not self.file.is_file():
            return {}
        table = pyarrow.parquet.read_table(self.file, schema=SCHEMA)
        columns = zip(table["label"].to_pylist(), table["prediction"].to_pylist(), strict=True)
        return dict(zip(_keys(table), columns, strict=True))

    @staticmethod
    def _write(file: Path, table: pyarrow.Table) -> None:
        with writing(file) as unfinished:
            pyarrow.parquet.write_table(table, unfinished, compression="zstd", compression_level=19)


def _keys(table: pyarrow.Table) -> list[tuple[str, ...]]:
    return list(zip(*(table[name].to_pylist() for name in KEY), strict=True))


# ------------------------------------------------------------------------------------------------------------- scores
def item_sums(metric: str, label: Entries, prediction: Entries) -> np.ndarray:
    """What is summed over test rows, (N, K). Each metric is a function of the means of these."""
    pairs = list(zip(label, prediction, strict=True))
    if metric == "accuracy":
        return np.array([[true == found] for true, found in pairs], dtype=float)
    if metric == "f1_micro":
        names = [({*true.split("|")} - {""}, {*found.split("|")} - {""}) for true, found in pairs]
        return np.array([(2 * len(true & found), len(true) + len(found)) for true, found in names], dtype=float)
    x, y = np.array(pairs, dtype=float).T
    # a constant changes a correlation only by rounding, and less so around zero
    x = x - x.mean()
    y = y - y.mean()
    return np.stack([x, y, x * x, y * y, x * y], axis=-1)


def metric_of(metric: str, means: np.ndarray) -> np.ndarray:
    """The metric (...) from the means over test rows (..., K) of what `item_sums` gives."""
    if metric == "accuracy":
        return means[..., 0]
    if metric == "f1_micro":
        return np.divide(means[..., 0], means[..., 1], out=np.zeros(means.shape[:-1]), where=means[..., 1] > 0)
    x, y, xx, yy, xy = np.moveaxis(means, -1, 0)
    spread = np.sqrt(np.maximum(xx - x * x, 0) * np.maximum(yy - y * y, 0))
    # a constant prediction correlates with nothing
    return np.divide(xy - x * y, spread, out=np.zeros_like(xy), where=spread > 1e-12)


def score_of(metric: str, label: Entries, prediction: Entries) -> float:
    """Accuracy, micro F1 or Pearson's r."""
    return float(metric_of(metric, item_sums(metric, label, prediction).mean(0)))


# -------------------------------------------------------------------------------------------------------------- cells
@dataclass(frozen=True)
class Gain:
    """Ours less another, in points, with the ends of its 95 % interval."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass(frozen=True)
class Cell:
    """One set with one number of rows."""

    name: str
    rows: int
    group: str
    kind: str
    scores: dict[str, dict[str, np.ndarray]]  # by contender and seed (R + 1,): as measured, then of R draws, in points
    cpu_seconds: dict[str, float]  # mean over seeds
    peak_mb: dict[str, float]  # highest of the seeds
    code: str  # the state of the command in which ours was measured; empty if it was not

    @property
    def title(self) -> str:
        return f"{self.name}, {self.rows:,}"

    def score(self, who: str) -> float:
        """As measured, the mean over the seeds."""
        return float(np.mean([of_seed[0] for of_seed in self.scores[who].values()]))

    @property
    def best(self) -> str | None:
        """The rival that ours gains least over or, without ours, the one with the highest score."""
        rivals = [rival for rival in RIVALS if rival in self.scores]
        if OURS in self.scores:
            return min(rivals, key=lambda rival: self.gain(rival).points, default=None)
        return max(rivals, key=self.score, default=None)

    def gain(self, other: str | None) -> Gain | None:
        """Ours less `other`, over the seeds of both; None if one of them has not run."""
        if OURS not in self.scores or other not in self.scores:
            return None
        by_seed = self.scores[other]
        differences = [self.scores[OURS][seed] - by_seed[seed] for seed in by_seed]
        difference = np.mean(differences, axis=0)  # (R + 1,)
        low, high = np.percentile(difference[1:], [2.5, 97.5])
        return Gain(float(difference[0]), float(low), float(high))


def cells_of(rows: list[Row], predictions: Predicted, code: str | None = None) -> list[Cell]:
    """The cells, the small sizes first.

    Of each contender, only the lines count that have the same code as its last one, or of ours the given `code`.

    Raises:
        InputError: if the predictions of a line are missing.
    """
    last = {row["contender"]: row["code"] for row in rows}
    if code is not None:
        last |= {OURS: code, LAST: code}
    runs: dict[tuple[str, int], dict[str, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["code"] == last[row["contender"]]:
            runs[row["set"], int(row["rows"])][row["contender"]][row["seed"]] = row
    cells = []
    for (name, size), by_contender in sorted(runs.items(), key=lambda item: (item[0][1], item[0][0])):
        seeds = _shared_seeds(by_contender)
        shared = {}
        for who, by_seed in by_contender.items():
            of_who = [by_seed[seed] for seed in seeds if seed in by_seed]
            shared |= {who: of_who} if of_who else {}
        if shared:
            cells.append(_cell(name, size, shared, predictions))
    return cells


def _shared_seeds(by_contender: dict[str, dict[str, Row]]) -> list[str]:
    """The seeds that all contenders have. SetFit, which takes longest, may have fewer."""
    whole = [set(by_seed) for who, by_seed in by_contender.items() if who != PARTIAL]
    return sorted(set.intersection(*(whole or [set(by_contender[PARTIAL])])))


def _cell(name: str, size: int, runs: dict[str, list[Row]], predictions: Predicted) -> Cell:
    any_run = next(iter(runs.values()))[0]
    scores = {who: {row["seed"]: _drawn(row, predictions) for row in of_seeds} for who, of_seeds in runs.items()}
    seconds = {who: float(np.mean([float(row["cpu_seconds"]) for row in of])) for who, of in runs.items()}
    peak = {who: max(float(row["peak_mb"]) for row in of) for who, of in runs.items()}
    code = runs[OURS][0]["code"] if OURS in runs else ""
    return Cell(name, size, any_run["group"], any_run["kind"], scores, seconds, peak, code)


def _drawn(row: Row, predictions: Predicted) -> np.ndarray:
    """A run's score in points (R + 1,): the measured one, then those of R draws of test rows."""
    key = tuple(row[column] for column in KEY)
    if key not in predictions:
        raise InputError(
            f"expected the predictions of {', '.join(key)} beside the CSV, found none. Delete its line, and run again."
        )
    sums = item_sums(row["metric"], *predictions[key])  # (N, K)
    return 100 * metric_of(row["metric"], _counts(row["set"], len(sums)) @ sums / len(sums))


@lru_cache(maxsize=1)  # the runs of a cell follow one another
def _counts(name: str, n: int) -> np.ndarray:
    """(R + 1, n): ones, then how often each of n test rows is in each of R draws. They depend on the set alone."""
    generator = np.random.default_rng(list(name.encode()))
    drawn = generator.multinomial(n, np.full(n, 1 / n), size=DRAWS)
    return np.concatenate([np.ones((1, n)), drawn])


# -------------------------------------------------------------------------------------------------------------- goals
def gains_over_best(cells: list[Cell]) -> list[tuple[Cell, Gain]]:
    """Ours less the best of the others, of each cell that has both."""
    return [(cell, gain) for cell in cells if (gain := cell.gain(cell.best)) is not None]


def mean_gain(cells: list[Cell], other: str) -> float | None:
    """Ours less `other` in points, the mean over the cells that have both; None if there are none."""
    gains = [gain.points for cell in cells if (gain := cell.gain(other)) is not None]
    return float(np.mean(gains)) if gains else None


def goals(cells: list[Cell]) -> str:
    """Markdown: what is wanted, what was found over all sets and over each group of them, and whether it is met."""
    lines = []
    for what, wanted, find in GOALS:
        found = [find([cell for cell in cells if group in ("all", cell.group)]) for group in GROUPS]
        lines.append([what, wanted, *found])
    return markdown(["goal", "wanted", *(f"{group} sets" for group in GROUPS)], lines, words=5)


def _verdict(is_met: bool) -> str:
    return "**met**" if is_met else "**not met**"


def _reaching(cells: list[Cell]) -> str:
    gains = gains_over_best(cells)
    if not gains:
        return "–"
    reaching = sum(gain.high >= 0 for _, gain in gains)
    share = reaching / len(gains)
    return f"{_verdict(share >= REACHES_ZERO)}: {share:.1%} ({reaching} of {len(gains)})"


def _lowest(cells: list[Cell]) -> str:
    gains = gains_over_best(cells)
    if not gains:
        return "–"
    cell, gain = min(gains, key=lambda of: of[1].high)
    return f"{_verdict(gain.high >= LOWEST_END)}: {gain.high:+.2f} ({cell.title})"


def _ahead(cells: list[Cell]) -> str:
    found = {rival: gain for rival in RIVALS if (gain := mean_gain(cells, rival)) is not None}
    if not found:
        return "–"
    rival = min(found, key=found.get)  # on the cells that both have
    return f"{_verdict(found[rival] >= MEAN_GAIN)}: {found[rival]:+.2f} (over {rival})"


def _time_ratio(cells: list[Cell]) -> str:
    both = [cell for cell in cells if cell.rows >= LONG and {OURS, "stock"} <= cell.cpu_seconds.keys()]
    if not both:
        return "–"
    ratios = {cell.title: cell.cpu_seconds[OURS] / cell.cpu_seconds["stock"] for cell in both}
    whole = sum(cell.cpu_seconds[OURS] for cell in both) / sum(cell.cpu_seconds["stock"] for cell in both)
    worst = max(ratios, key=ratios.get)
    return f"{_verdict(ratios[worst] <= OVER_STOCK)}: {whole:.2f} in all, highest {ratios[worst]:.2f} ({worst})"


def _short_time(cells: list[Cell]) -> str:
    seconds = {cell.title: cell.cpu_seconds[OURS] for cell in cells if cell.rows < LONG and OURS in cell.cpu_seconds}
    if not seconds:
        return "–"
    worst = max(seconds, key=seconds.get)
    return f"{_verdict(seconds[worst] <= SHORT_SECONDS)}: highest {seconds[worst]:.0f} ({worst})"


GOALS: tuple[tuple[str, str, Callable[[list[Cell]], str]], ...] = (
    (
        "cells where the interval of ours less the best of the others reaches 0",
        f"at least {REACHES_ZERO:.0%}",
        _reaching,
    ),
    ("the lowest upper end of these intervals", f"at least {LOWEST_END:g} points", _lowest),
    ("ours less the rival that is best on average", f"at least {MEAN_GAIN:g} points", _ahead),
    (f"CPU seconds over those of `stock`, {LONG:,} rows and more", f"at most {OVER_STOCK:g}", _time_ratio),
    ("CPU seconds, fewer rows", f"at most {SHORT_SECONDS}", _short_time),
)


# ------------------------------------------------------------------------------------------------------------- tables
def tables(rows: list[Row], cells: list[Cell]) -> str:
    """Markdown: the goals, means by size and kind, cost by size, and each cell of the CSV's `rows`."""
    sizes = sorted({cell.rows for cell in cells})
    by_size = {f"{size:,} rows": [cell for cell in cells if cell.rows == size] for size in sizes}
    by_kind = {kind: [cell for cell in cells if cell.kind == kind] for kind in KINDS}
    by_group = {f"{group} sets": [cell for cell in cells if group in ("all", cell.group)] for group in GROUPS}
    by_group = {group: of_group for group, of_group in by_group.items() if of_group}
    parts = [
        f"**Goals**, over {len(gains_over_best(cells))} cells of ours and its rivals:",
        goals(cells),
        "**By size:** mean score in hundredths, and mean gain of ours:",
        means(by_size),
        "**By kind of task:**",
        means({kind: of_kind for kind, of_kind in by_kind.items() if of_kind}),
        "**By what the sets were used for:**",
        means(by_group),
        "**Cost:** mean CPU seconds / highest peak of memory in MB:",
        cost(by_size),
        "**Each cell:** the score of ours in hundredths, and what it gains, with 95 % intervals:",
        each_cell(cells),
        f"Made with {'; '.join(sorted({row['versions'] for row in rows}))}, on "
        f"{'; '.join(sorted({row['device'] for row in rows}))}. State of the command: "
        f"{', '.join(sorted({cell.code for cell in cells if cell.code})) or 'not measured'}.",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def means(groups: dict[str, list[Cell]]) -> str:
    """Markdown, one line a group: mean scores over the cells that all but SetFit have, then mean gains of ours."""
    ran = {who for cells in groups.values() for cell in cells for who in cell.scores}
    everywhere = [who for who in CONTENDERS if who in ran and who != PARTIAL]
    others = [who for who in CONTENDERS if who in ran and who != OURS]
    head = ["", "cells", *everywhere, *(f"ours − {other}" for other in others), "ours − best"]
    lines = []
    for title, cells in groups.items():
        shared = [cell for cell in cells if cell.scores.keys() >= set(everywhere)]
        line = [title, str(len(shared))]
        line += [f"{np.mean([cell.score(who) for cell in shared]):.1f}" if shared else "–" for who in everywhere]
        for other in others:
            gain = mean_gain(cells, other)
            of = sum(cell.gain(other) is not None for cell in cells) if other == PARTIAL else 0
            line.append("–" if gain is None else f"{gain:+.1f}" + (f" ({of})" if of else ""))
        best = [gain.points for _, gain in gains_over_best(cells)]
        line.append(f"{np.mean(best):+.1f}" if best else "–")
        lines.append(line)
    return markdown(head, lines)


def cost(groups: dict[str, list[Cell]]) -> str:
    """Markdown, one line a group: each contender's mean CPU seconds and highest peak of memory."""
    lines = []
    for title, cells in groups.items():
        line = [title]
        for who in CONTENDERS:
            seconds = [cell.cpu_seconds[who] for cell in cells if who in cell.cpu_seconds]
            peak = max((cell.peak_mb[who] for cell in cells if who in cell.peak_mb), default=0)
            line.append(f"{np.mean(seconds):.0f} / {peak:.0f}" if seconds else "–")
        lines.append(line)
    return markdown(["", *CONTENDERS], lines)


def each_cell(cells: list[Cell]) -> str:
    """Markdown, one line a cell."""
    others = [*RIVALS, LAST]
    lines = []
    for cell in cells:
        ours = f"{cell.score(OURS):.1f}" if OURS in cell.scores else "–"
        gains = [cell.gain(other) for other in others]
        line = [cell.name, cell.group, f"{cell.rows:,}", ours, *("–" if gain is None else str(gain) for gain in gains)]
        best = f"{cell.best} {cell.score(cell.best):.1f}" if cell.best else "–"
        lines.append([*line, best])
    head = ["set", "used for", "rows", "ours", *(f"ours − {other}" for other in others), "best of the others"]
    return markdown(head, lines, words=2)
