"""Scores and draws of them, from the study's runs and predictions.

Each metric is a function of sums over test items: of correct ones, of hits, of products. So a bootstrap over items is
a product of two matrices: how often each of R draws holds each of N items (R, N), times what is summed (N, K).
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from lstmpool.training.errors import InputError
from study.poolings import BEST_LAYER, POOLINGS, SINGLE_LAYERS
from study.records import FINAL, KEY, TUNE, Row, Setting, best
from study.regimes import REGIMES, SETS, STOCK
from study.store import Entries, Runs
from study.variants import VARIANTS


DRAWS = 2000
# Sets that share texts are not independent, so a family counts as one set.
FAMILIES = (
    {"trec6", "trec50"},
    {"mrpc", "stsb"},
    {"sst2", "sst5", "mr", "subj"},
    {"semeval2018_ec", "tweet_eval_emotion"},
)
OF_RUN = {"pooling", "seed", "kind", "learning_rate", "head_learning_rate", "epochs"}
OF_BLOCK = [name for name in KEY if name not in OF_RUN]


def family_of(dataset: str) -> str:
    """The name under which a set counts: its own, or the names of all sets that share its texts."""
    for family in FAMILIES:
        if dataset in family:
            return "/".join(sorted(family))
    return dataset


# ------------------------------------------------------------------------------------------------- metrics, from sums
def item_sums(metric: str, label: list, prediction: list) -> np.ndarray:
    """What is summed over test items, (N, K). `label` and `prediction` have one value, or one list, for each item."""
    if metric == "accuracy":
        return (np.ravel(label) == np.ravel(prediction))[:, None].astype(float)
    if metric == "f1_micro":
        pairs = [(set(true), set(found)) for true, found in zip(label, prediction, strict=True)]
        return np.array([(2 * len(true & found), len(true) + len(found)) for true, found in pairs], dtype=float)
    x = np.ravel(label).astype(float)
    y = np.ravel(prediction).astype(float)
    # a constant changes a correlation only by rounding, and less so around zero
    x -= x.mean()
    y -= y.mean()
    return np.stack([x, y, x * x, y * y, x * y], axis=-1)


def metric_of(metric: str, means: np.ndarray) -> np.ndarray:
    """The metric (...) from the means over items (..., K) of what `item_sums` gives."""
    if metric == "accuracy":
        return means[..., 0]
    if metric == "f1_micro":
        return np.divide(means[..., 0], means[..., 1], out=np.zeros(means.shape[:-1]), where=means[..., 1] > 0)
    x, y, xx, yy, xy = np.moveaxis(means, -1, 0)
    spread = np.sqrt(np.maximum(xx - x * x, 0) * np.maximum(yy - y * y, 0))
    # a constant prediction correlates with nothing
    return np.divide(xy - x * y, spread, out=np.zeros_like(xy), where=spread > 0)


# ----------------------------------------------------------------------------------------------------------- the runs
@dataclass
class Table:
    """The final runs of one regime, backbone and token pooling."""

    regime: str
    token_pooling: str
    backbone: str
    rows: dict[tuple[str, str], dict[int, Row]]  # (set, pooling) -> seed -> row
    read: Callable[[Row], dict[str, Entries]]  # labels and predictions of a run
    cache: dict[tuple[str, str, int], np.ndarray] = field(default_factory=dict)  # of scores that were drawn

    @property
    def title(self) -> str:
        return f"{self.regime}, {self.token_pooling}, {self.backbone}"

    @property
    def place(self) -> tuple[str, int, bool, str]:
        """By which tables are sorted."""
        return self.backbone, list(REGIMES).index(self.regime), self.token_pooling != "mean", self.token_pooling

    @property
    def sets(self) -> list[str]:
        return _in_order({dataset for dataset, _ in self.rows}, SETS)

    @property
    def poolings(self) -> list[str]:
        """What is compared. The best layer stands for the single layers below the top one.

        The variants of the LSTM and their controls are not among them; `study.choice` compares these.
        """
        known = list(dict.fromkeys([STOCK, "last", BEST_LAYER, *POOLINGS]))
        return _in_order({pooling for _, pooling in self.rows} - {*SINGLE_LAYERS[1:], *VARIANTS}, known)

    @property
    def lower_layers(self) -> list[str]:
        return [pooling for pooling in SINGLE_LAYERS[1:] if any(p == pooling for _, p in self.rows)]

    def metric(self, dataset: str) -> str:
        return self._any_run(dataset)["metric"]

    def most_frequent(self, dataset: str) -> float | None:
        """The accuracy of a constant answer, the most frequent test label; None for other metrics."""
        if self.metric(dataset) != "accuracy":
            return None
        labels = np.ravel(self.read(self._any_run(dataset))["label"])
        _, how_often = np.unique(labels, return_counts=True)
        return float(how_often.max() / len(labels))

    def _any_run(self, dataset: str) -> Row:
        return next(row for (d, _), runs in self.rows.items() if d == dataset for row in runs.values())

    def score(self, dataset: str, pooling: str) -> float | None:
        """Mean test score over the seeds, or None where there is none."""
        runs = self.rows.get((dataset, pooling))
        return None if runs is None else float(np.mean([float(row["test"]) for row in runs.values()]))

    def draws(self, dataset: str, poolings: list[str]) -> np.ndarray | None:
        """Scores of the poolings on one set (P, R + 1): the measured ones, then those of R draws of seeds and items.

        All poolings get the same draws. None if they have no seed in common.
        """
        runs = [self.rows.get((dataset, pooling), {}) for pooling in poolings]
        seeds = sorted(set.intersection(*(set(of_pooling) for of_pooling in runs)))
        if not seeds:
            return None
        scores = np.array([[self._over_items(dataset, p, seed) for seed in seeds] for p in poolings])  # (P, S, R + 1)
        weights = counts(generator_of(dataset + " seeds"), len(seeds)) / len(seeds)  # (R + 1, S)
        if len(seeds) > 1:  # the variance of draws from S seeds is too small by (S - 1) / S
            weights = 1 / len(seeds) + (weights - 1 / len(seeds)) * math.sqrt(len(seeds) / (len(seeds) - 1))
        return np.einsum("psr,rs->pr", scores, weights)

    def _over_items(self, dataset: str, pooling: str, seed: int) -> np.ndarray:
        """A run's test score (R + 1,): the measured one, then those of R draws of the test items."""
        key = dataset, pooling, seed
        if key not in self.cache:
            row = self.rows[dataset, pooling][seed]
            found = self.read(row)
            sums = item_sums(row["metric"], found["label"], found["prediction"])  # (N, K)
            means = item_counts(family_of(dataset), len(sums)) @ sums / len(sums)  # (R + 1, K)
            self.cache[key] = metric_of(row["metric"], means)
        return self.cache[key]

    def rectangle(self, poolings: list[str]) -> tuple[list[str], list[str]]:
        """Sets and poolings of the largest part of the table that has no gap."""
        covered = {pooling: {d for d in self.sets if (d, pooling) in self.rows} for pooling in poolings}
        order = sorted(poolings, key=lambda pooling: -len(covered[pooling]))
        parts = [(order[:k], set.intersection(*(covered[p] for p in order[:k]))) for k in range(1, len(order) + 1)]
        kept, sets = max(parts, key=lambda part: len(part[0]) * len(part[1]), default=((), ()))
        return [d for d in self.sets if d in sets], [p for p in poolings if p in kept]

    def family_scores(self, poolings: list[str] | None = None) -> tuple[list[str], list[str], np.ndarray]:
        """Families, poolings and scores (F, P) of that part. A family's score is the mean over its sets.

        Without `poolings`, all are taken.
        """
        sets, poolings = self.rectangle(self.poolings if poolings is None else poolings)
        families = list(dict.fromkeys(family_of(d) for d in sets))
        scores = [
            [np.mean([self.score(d, p) for d in sets if family_of(d) == family]) for p in poolings]
            for family in families
        ]
        return families, poolings, np.array(scores)


def generator_of(name: str) -> np.random.Generator:
    """Draws that depend on the name alone.

    So a set's draws stay the same when other sets come and go, and sets of one family share theirs.
    """
    return np.random.default_rng(list(name.encode()))


def counts(generator: np.random.Generator, n: int) -> np.ndarray:
    """(R + 1, n): ones, then how often each of n is in each of R draws of n with replacement."""
    drawn = generator.multinomial(n, np.full(n, 1 / n), size=DRAWS)
    return np.concatenate([np.ones((1, n), dtype=drawn.dtype), drawn])


@cache
def item_counts(family: str, n: int) -> np.ndarray:
    return counts(generator_of(family), n).astype(np.float32)


def final_rows(rows: list[Row]) -> list[tuple[str, Row]]:
    """The final runs that count, each with the name of the pooling that it counts for.

    A final run counts if its setting is the best one of the tuning: the grid may have grown since it was made. It
    counts for its own pooling and, if validation scores this single layer highest, for the best layer, too.
    """
    tried = defaultdict(list)
    for row in rows:
        if row["kind"] == TUNE:
            tried[_block_of(row), row["pooling"]].append(row)
    chosen = {place: best(of_place) for place, of_place in tried.items()}
    best_layers = _best_layers(chosen)
    finals = []
    for row in rows:
        block, pooling = _block_of(row), row["pooling"]
        if row["kind"] != FINAL or (block, pooling) not in chosen:
            continue
        setting, _ = chosen[block, pooling]
        if Setting.of(row) != setting:
            continue
        finals.append((pooling, row))
        if pooling == best_layers.get(block):
            finals.append((BEST_LAYER, row))
    return finals


def _block_of(row: Row) -> tuple[str, ...]:
    """The part of a run's key that all poolings and seeds share."""
    return tuple(row[name] for name in OF_BLOCK)


def _best_layers(chosen: dict[tuple[tuple[str, ...], str], tuple[Setting, float]]) -> dict[tuple[str, ...], str]:
    """By block, the single layer with the best validation score, or the highest of equal ones.

    A block has one only when each of its single layers was tuned.
    """
    validation = defaultdict(dict)
    for (block, pooling), (_, value) in chosen.items():
        if pooling in SINGLE_LAYERS:
            validation[block][pooling] = value
    return {
        block: max(SINGLE_LAYERS, key=of_layer.get)
        for block, of_layer in validation.items()
        if len(of_layer) == len(SINGLE_LAYERS)
    }


def read_tables(output: Path) -> list[Table]:
    """One table for each backbone, regime and token pooling: in the order of the regimes, mean vectors first.

    Raises:
        InputError: if a pooling was run with more than one setting on a set.
    """
    runs = Runs(output)
    groups = defaultdict(lambda: defaultdict(dict))
    for pooling, row in final_rows(runs.rows):
        group = groups[row["regime"], row["token_pooling"], row["backbone"]]
        of_seed = group[row["dataset"], pooling]
        if int(row["seed"]) in of_seed:
            raise InputError(
                f"{runs.path}: expected one setting for each set and pooling, found two of {row['dataset']}, "
                f"{pooling}. Keep each number of rows in a folder of its own."
            )
        of_seed[int(row["seed"])] = row
    tables = [Table(*of, dict(rows), runs.predictions.read) for of, rows in groups.items()]
    return sorted(tables, key=lambda table: table.place)


def _in_order(names: set[str], known: list[str]) -> list[str]:
    """The known names in their order, then the others by name."""
    return [name for name in known if name in names] + sorted(names - set(known))
