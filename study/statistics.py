"""From the study's runs and predictions to means, paired differences with intervals, and what could have been seen.

Each metric is a function of sums over test items (of the correct ones, of hits, of products), so a bootstrap over
items is a product of matrices: weights (R, N), how often each of R draws holds each of N items, times what is summed.
Over sets, of which there are few, an interval is Student's.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet
from scipy.stats import t as student

from lstmpool.study.poolings import BEST_LAYER, POOLINGS, SINGLE_LAYERS
from lstmpool.study.records import FINAL, KEY, TUNE, Row, Runs, Setting, best
from lstmpool.study.regimes import REGIMES, SETS, STOCK
from lstmpool.training.errors import InputError


DRAWS = 2000
# Sets that share texts are no independent witnesses: together they count as one.
FAMILIES = (
    {"trec6", "trec50"},
    {"mrpc", "stsb"},
    {"sst2", "sst5", "mr", "subj"},
    {"semeval2018_ec", "tweet_eval_emotion"},
)
DETECTABLE = 0.975, 0.8  # quantiles: what a two-sided test at 5 % sees in 80 of 100 studies


def family_of(dataset: str) -> str:
    """The name under which a set counts: its own, or those of the sets that share its texts."""
    return next(("/".join(sorted(family)) for family in FAMILIES if dataset in family), dataset)


# ------------------------------------------------------------------------------------------------- metrics, from sums
def item_sums(metric: str, label: list, prediction: list) -> np.ndarray:
    """What of each test item is summed, (N, K)."""
    if metric == "accuracy":
        return (np.array(label) == np.array(prediction))[:, None].astype(float)
    if metric == "f1_micro":
        pairs = [(set(true), set(found)) for true, found in zip(label, prediction, strict=True)]
        return np.array([(2 * len(true & found), len(true) + len(found)) for true, found in pairs], dtype=float)
    x, y = np.array(label, dtype=float), np.array(prediction, dtype=float)
    x, y = x - x.mean(), y - y.mean()  # as a constant changes nothing but the rounding
    return np.stack([x, y, x * x, y * y, x * y], axis=-1)


def metric_of(metric: str, means: np.ndarray) -> np.ndarray:
    """The metric from means over items of what `item_sums` gives, (..., K) to (...)."""
    if metric == "accuracy":
        return means[..., 0]
    if metric == "f1_micro":
        return np.divide(means[..., 0], means[..., 1], out=np.zeros(means.shape[:-1]), where=means[..., 1] > 0)
    x, y, xx, yy, xy = np.moveaxis(means, -1, 0)
    spread = np.sqrt(np.maximum(xx - x * x, 0) * np.maximum(yy - y * y, 0))
    # a constant prediction correlates with nothing
    return np.divide(xy - x * y, spread, out=np.zeros_like(xy), where=spread > 0)


# ----------------------------------------------------------------------------------------------------------- the runs
@dataclass(frozen=True)
class Table:
    """The final runs of one regime, backbone and token pooling: by set and pooling, by seed."""

    regime: str
    token_pooling: str
    backbone: str
    rows: dict[tuple[str, str], dict[int, Row]]  # (set, pooling) -> seed -> row
    read: Callable[[Row], dict[str, list]]  # the predictions of a row
    cache: dict[tuple[str, str, int], np.ndarray] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.regime}, {self.token_pooling}, {self.backbone}"

    @property
    def place(self) -> tuple:
        return self.backbone, list(REGIMES).index(self.regime), self.token_pooling != "mean", self.token_pooling

    @property
    def sets(self) -> list[str]:
        return _in_order({dataset for dataset, _ in self.rows}, SETS)

    @property
    def poolings(self) -> list[str]:
        """What is compared: all but the single layers below the top one, of which the best one stands for them."""
        known = list(dict.fromkeys([STOCK, "last", BEST_LAYER, *POOLINGS]))
        return _in_order({pooling for _, pooling in self.rows} - set(SINGLE_LAYERS[1:]), known)

    @property
    def lower_layers(self) -> list[str]:
        return [pooling for pooling in SINGLE_LAYERS[1:] if any(p == pooling for _, p in self.rows)]

    def metric(self, dataset: str) -> str:
        return next(row["metric"] for (d, _), runs in self.rows.items() if d == dataset for row in runs.values())

    def most_frequent(self, dataset: str) -> float | None:
        """The accuracy of the most frequent test label, whatever the text; None for other metrics."""
        if self.metric(dataset) != "accuracy":
            return None
        row = next(row for (d, _), runs in self.rows.items() if d == dataset for row in runs.values())
        return float(np.unique(self.read(row)["label"], return_counts=True)[1].max() / len(self.read(row)["label"]))

    def score(self, dataset: str, pooling: str) -> float | None:
        """Mean test score over the seeds, or None where there is none."""
        runs = self.rows.get((dataset, pooling))
        return None if runs is None else float(np.mean([float(row["test"]) for row in runs.values()]))

    def draws(self, dataset: str, poolings: list[str]) -> np.ndarray | None:
        """Scores of the poolings (P, R + 1) on one set: as they are, then in R draws of seeds and test items, the same
        ones for all. None where they have no seed in common."""
        runs = [self.rows.get((dataset, pooling), {}) for pooling in poolings]
        seeds = sorted(set.intersection(*(set(of_pooling) for of_pooling in runs)))
        if not seeds:
            return None
        scores = np.array([[self._over_items(dataset, p, seed) for seed in seeds] for p in poolings])  # (P, S, R + 1)
        weights = counts(generator_of(dataset + " seeds"), len(seeds)) / len(seeds)  # (R + 1, S)
        if len(seeds) > 1:  # draws of S seeds vary less than the seeds do, by (S - 1) / S
            weights = 1 / len(seeds) + (weights - 1 / len(seeds)) * math.sqrt(len(seeds) / (len(seeds) - 1))
        return np.einsum("psr,rs->pr", scores, weights)

    def _over_items(self, dataset: str, pooling: str, seed: int) -> np.ndarray:
        """A run's test score (R + 1,): as it is, then in R draws of the test items."""
        if (key := (dataset, pooling, seed)) not in self.cache:
            row = self.rows[dataset, pooling][seed]
            found = self.read(row)
            sums = item_sums(row["metric"], found["label"], found["prediction"])  # (N, K)
            self.cache[key] = metric_of(row["metric"], item_counts(family_of(dataset), len(sums)) @ sums / len(sums))
        return self.cache[key]

    def rectangle(self, poolings: list[str]) -> tuple[list[str], list[str]]:
        """The sets, and of the poolings those, of the largest part of the table that has no gap."""
        covered = {pooling: {d for d in self.sets if (d, pooling) in self.rows} for pooling in poolings}
        order = sorted(poolings, key=lambda pooling: -len(covered[pooling]))
        parts = [(order[:k], set.intersection(*(covered[p] for p in order[:k]))) for k in range(1, len(order) + 1)]
        kept, sets = max(parts, key=lambda part: len(part[0]) * len(part[1]), default=((), ()))
        return [d for d in self.sets if d in sets], [p for p in poolings if p in kept]

    def family_scores(self, poolings: list[str] | None = None) -> tuple[list[str], list[str], np.ndarray]:
        """Families, poolings and scores (F, P) of that part; a family's score is the mean of its sets'. Unset: of all
        poolings."""
        sets, poolings = self.rectangle(self.poolings if poolings is None else poolings)
        families = list(dict.fromkeys(family_of(d) for d in sets))
        scores = [
            [np.mean([self.score(d, p) for d in sets if family_of(d) == family]) for p in poolings]
            for family in families
        ]
        return families, poolings, np.array(scores)


def generator_of(name: str) -> np.random.Generator:
    """Draws that depend on nothing but a name: those of a set stay the same when other sets come and go, and are those
    of a sibling with the same test texts."""
    return np.random.default_rng(list(name.encode()))


def counts(generator: np.random.Generator, n: int) -> np.ndarray:
    """(R + 1, n): ones, then how often each of n is in each of R draws of n, with replacement."""
    drawn = generator.multinomial(n, np.full(n, 1 / n), size=DRAWS)
    return np.concatenate([np.ones((1, n), dtype=drawn.dtype), drawn])


@cache
def item_counts(family: str, n: int) -> np.ndarray:
    return counts(generator_of(family), n).astype(np.float32)


def final_rows(rows: list[Row]) -> list[tuple[str, Row]]:
    """The final runs with the setting that is the best of the tuning: a grid may have grown since they were made. Each
    comes with the pooling that it counts for: its own, and the best layer if validation likes this one best."""
    of_all = [name for name in KEY if name not in ("seed", "kind", "learning_rate", "head_learning_rate", "epochs")]
    at = of_all.index("pooling")
    tried = defaultdict(list)
    for row in rows:
        if row["kind"] == TUNE:
            tried[tuple(row[name] for name in of_all)].append(row)
    chosen = {key: best(of_key) for key, of_key in tried.items()}
    layers: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for key, (_, value) in chosen.items():
        if key[at] in SINGLE_LAYERS:
            layers[key[:at] + key[at + 1 :]][key[at]] = value
    finals = []
    for row in rows:
        key = tuple(row[name] for name in of_all)
        if row["kind"] == FINAL and key in chosen and Setting.of(row) == chosen[key][0]:
            finals.append((row["pooling"], row))
            of_layer = layers[key[:at] + key[at + 1 :]]
            # known only once each has a tuning run; of equal ones the highest
            if len(of_layer) == len(SINGLE_LAYERS) and row["pooling"] == max(SINGLE_LAYERS, key=of_layer.get):
                finals.append((BEST_LAYER, row))
    return finals


def read_tables(output: Path) -> list[Table]:
    """One table a backbone, regime and token pooling, in the order of the regimes, mean vectors first.

    Raises:
        InputError: if a pooling was run with more than one setting on a set.
    """
    tables = []
    for path in sorted(output.glob("*.csv")):
        runs, groups = Runs(path), defaultdict(lambda: defaultdict(dict))
        for pooling, row in final_rows(runs.rows):
            group = groups[row["regime"], row["token_pooling"], row["backbone"]]
            of_seed = group[row["dataset"], pooling]
            if int(row["seed"]) in of_seed:
                raise InputError(
                    f"{path}: expected one setting a set and pooling, found two of {row['dataset']}, "
                    f"{pooling}. Keep each number of rows in a folder of its own."
                )
            of_seed[int(row["seed"])] = row

        def read(row: Row, runs: Runs = runs) -> dict[str, list]:
            return pyarrow.parquet.read_table(runs.predictions_of(row)).to_pydict()

        tables += [Table(*of, dict(rows), read) for of, rows in groups.items()]
    return sorted(tables, key=lambda table: table.place)


def _in_order(names: set[str], known: list[str]) -> list[str]:
    """In the order of the known ones, the others after them by name."""
    return [name for name in known if name in names] + sorted(names - set(known))


# --------------------------------------------------------------------------------------------------------- comparisons
@dataclass(frozen=True)
class Difference:
    """One pooling less another, over the sets that have both: by set (estimate, low, high), and pooled."""

    pooling: str
    other: str
    by_set: dict[str, tuple[float, float, float]]
    pooled: tuple[float, float, float]  # the families' mean, with the sets as they are
    over_sets: tuple[float, float] | None  # its interval if the families are drawn, too; None of a single one
    without_one: tuple[float, float] | None  # the least and the most that it is without one of the families
    detectable: float | None  # what a study of so many families, which differ so much, sees in 8 of 10 cases

    @property
    def tally(self) -> tuple[int, int, int]:
        """On how many sets the interval lies above zero, holds it, lies below."""
        above = sum(low > 0 for _, low, _ in self.by_set.values())
        below = sum(high < 0 for _, _, high in self.by_set.values())
        return above, len(self.by_set) - above - below, below


def difference(table: Table, pooling: str, other: str) -> Difference | None:
    """`pooling` less `other`; None if no set has both."""
    drawn = {dataset: table.draws(dataset, [pooling, other]) for dataset in table.sets}
    by_set = {dataset: scores[0] - scores[1] for dataset, scores in drawn.items() if scores is not None}  # (R + 1,)
    if not by_set:
        return None
    families = defaultdict(list)
    for dataset, values in by_set.items():
        families[family_of(dataset)].append(values)
    of_family = np.array([np.mean(values, axis=0) for values in families.values()])  # (F, R + 1)
    pooled, n = of_family.mean(0), len(of_family)
    over_sets = without_one = detectable = None
    if n > 1:
        # what items and seeds add to a family's difference is in how much these differ
        error = of_family[:, 0].std(ddof=1) / math.sqrt(n)
        half = student.ppf(0.975, n - 1) * error
        over_sets = float(pooled[0] - half), float(pooled[0] + half)
        others = (pooled[0] * n - of_family[:, 0]) / (n - 1)
        without_one = float(others.min()), float(others.max())
        detectable = float(sum(student.ppf(q, n - 1) for q in DETECTABLE) * error)
    return Difference(
        pooling,
        other,
        {dataset: (float(values[0]), *bounds(values[1:])) for dataset, values in by_set.items()},
        (float(pooled[0]), *bounds(pooled[1:])),
        over_sets,
        without_one,
        detectable,
    )


def bounds(values: np.ndarray) -> tuple[float, float]:
    """Of a 95 % interval."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
