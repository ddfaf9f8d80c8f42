"""The tables and pictures of EVIDENCE.md, from the study's CSV files and predictions alone.

    python -m lstmpool.study.tables --output study/results
    python -m lstmpool.study.tables --output study/results --pooling attention  # and no page

fills the tables in beside the folder, where EVIDENCE.md is, prints them, and draws two pictures a regime, backbone and
token pooling: the LSTM's paired differences to the other poolings, and the critical differences of the mean ranks.
"""

import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from scipy.stats import rankdata

from lstmpool.benchmarks.results import fill_page, markdown, parser_of
from lstmpool.study.plots import differences_plot, rank_test, ranks_plot
from lstmpool.study.poolings import BEST_LAYER, SINGLE_LAYERS, UNRANKED
from lstmpool.study.records import FINAL, TUNE, Runs, Setting, read_rows
from lstmpool.study.statistics import (
    Difference,
    Table,
    bounds,
    difference,
    family_of,
    final_rows,
    read_tables,
)


ROPE = 0.01  # a difference below one point is no reason to choose
FEW = 5  # families; below it neither ranks, nor an interval or a test over sets say anything
LSTM = "lstm"
PLAINEST = "last"  # what every pooling is compared with, too


@dataclass
class Arguments:
    """What is shown."""

    output: str = field(default="study/results", metadata={"help": "Folder of the study's results."})
    pooling: str = field(default=LSTM, metadata={"help": "The pooling that the others are compared with."})
    page: str | None = field(
        default=None,
        metadata={"help": "Page to fill in. Unset: OUTPUT/../EVIDENCE.md with the LSTM's tables, none with others."},
    )


def main(argv: list[str] | None = None) -> int:
    """Makes tables and pictures; returns the exit status."""
    parser = parser_of(Arguments, "evidence_tables", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    output = Path(args.output)
    tables = read_tables(output)
    if not tables:
        parser.error(f"expected results in {output}, found none. Make some with lstmpool.study.run.")
    text = all_tables(tables, args.pooling, output)
    print(text)
    page = output.parent / "EVIDENCE.md" if args.page is None else Path(args.page)
    if page.is_file() and (args.page or args.pooling == LSTM):
        fill_page(page, "tables", text)
    for table in tables:
        if differences := compared(table, args.pooling):
            differences_plot(table, differences, args.pooling, output / picture(table, f"differences-{args.pooling}"))
        if (ranked := to_rank(table)) is not None:
            ranks_plot(*ranked, output / picture(table, "ranks"))
    return 0


def picture(table: Table, of: str) -> str:
    """The name of its file."""
    return f"{of}-{table.regime}-{table.token_pooling}-{table.backbone}.png"


def to_rank(table: Table) -> tuple[list[str], list[str], np.ndarray] | None:
    """Families, poolings and scores (F, P), or None if they are too few."""
    poolings = [pooling for pooling in table.poolings if pooling not in UNRANKED]
    families, poolings, scores = table.family_scores(poolings)
    return (families, poolings, scores) if len(families) >= FEW and len(poolings) > 2 else None


def compared(table: Table, pooling: str) -> dict[str, Difference]:
    """The differences of `pooling` to each other one with a set in common."""
    found = {other: difference(table, pooling, other) for other in table.poolings if other != pooling}
    return {other: value for other, value in found.items() if value is not None}


def above_plainest(table: Table, pooling: str) -> dict[str, Difference]:
    """The differences of all but `pooling` to the plainest one."""
    others = [other for other in table.poolings if other not in (pooling, PLAINEST)]
    found = {other: difference(table, other, PLAINEST) for other in others}
    return {other: value for other, value in found.items() if value is not None}


def all_tables(tables: list[Table], pooling: str, output: Path) -> str:
    """Markdown; a section for each regime and token pooling, then the settings that were chosen and the hours."""
    parts = []
    for table in tables:
        seeds = sorted({seed for runs in table.rows.values() for seed in runs})
        parts += [
            f"### {table.title}",
            f"{len(table.sets)} set{'s' * (len(table.sets) > 1)}, seeds {', '.join(map(str, seeds))}.",
        ]
        parts += ["**Test scores**, in hundredths, with half the width of the 95 % interval:", means(table)]
        if differences := compared(table, pooling):
            parts += [f"**{pooling} less the other pooling**, in hundredths:", pairs(table, differences)]
            parts += [f"![differences]({output.name}/{picture(table, f'differences-{pooling}')})"]
            parts += ["The same by set:", by_set(differences)]
        if pooling != PLAINEST and (above := above_plainest(table, pooling)):
            parts += [f"**The others less {PLAINEST}**, in hundredths:", pairs(table, above)]
        if (ranked := to_rank(table)) is not None:
            result = rank_test(*ranked)
            told = f"Friedman's test of the ranks: p = {result.pvalue:.1g}; critical difference {result.cd:.2f}."
            parts += [f"![ranks]({output.name}/{picture(table, 'ranks')})", told]
        parts += ["**Cost beside quality:**", costs(table)]
    parts += ["### Settings and hours", *(chosen(table, output) for table in tables), hours(output)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def means(table: Table) -> str:
    """One row a pooling, one column a set; then the mean over what all have, siblings once, and the mean rank there of
    those that are ranked."""
    families, complete, scores = table.family_scores()
    of_all = dict(zip(complete, scores.mean(0), strict=True))
    _, ranked, of_ranked = to_rank(table) or ([], [], np.zeros((1, 0)))
    ranks = dict(zip(ranked, mean_ranks(of_ranked), strict=True))
    if table.lower_layers:
        of_lower, lower, scores = table.family_scores(table.lower_layers)
        if of_lower == families:  # the mean is over the same sets
            of_all |= dict(zip(lower, scores.mean(0), strict=True))
    lines = []
    for pooling in [*table.poolings, *table.lower_layers]:
        cells = []
        for dataset in table.sets:
            drawn = table.draws(dataset, [pooling])
            if drawn is None:
                cells.append("")
            else:
                low, high = bounds(drawn[0, 1:])
                cells.append(f"{100 * drawn[0, 0]:.1f} ±{50 * (high - low):.1f}")
        mean = f"{100 * of_all[pooling]:.1f}" if pooling in of_all else ""
        lines.append([pooling, *cells, mean, f"{ranks[pooling]:.1f}" if pooling in ranks else ""])
    shares = [table.most_frequent(dataset) for dataset in table.sets]
    lines.append(
        ["most frequent test label", *("" if share is None else f"{100 * share:.1f}" for share in shares), "", ""]
    )
    head = ["pooling", *(f"{d} ({table.metric(d)})" for d in table.sets), f"mean of {len(families)}", "mean rank"]
    return markdown(head, lines)


def mean_ranks(scores: np.ndarray) -> np.ndarray:
    """(P,) from scores (F, P): the mean place, where 1 is best and ties share theirs."""
    return rankdata(-scores.round(9), axis=1).mean(0)  # what differs in rounding alone is equal


def pairs(table: Table, differences: dict[str, Difference]) -> str:
    """One row for each other pooling."""
    head = [
        *("other", "sets", "better / unclear / worse", "mean difference, these sets", "95 % if sets are drawn too"),
        *("without one of the sets", "detectable", f"P(better), P(within {100 * ROPE:g}), P(worse)"),
    ]
    lines = []
    for other, found in differences.items():
        estimate, low, high = (100 * value for value in found.pooled)
        enough = len({family_of(dataset) for dataset in found.by_set}) >= FEW  # else their spread is too uncertain
        wide = found.over_sets if enough else None, found.without_one
        lines.append(
            [
                other,
                str(len(found.by_set)),
                " / ".join(map(str, found.tally)),
                f"{estimate:+.1f} ({low:+.1f} to {high:+.1f})",
                *("" if of is None else f"{100 * of[0]:+.1f} to {100 * of[1]:+.1f}" for of in wide),
                f"{100 * found.detectable:.1f}" if enough else "",
                equivalence(table, found) if enough else "too few sets",
            ]
        )
    return markdown(head, lines)


def equivalence(table: Table, found: Difference) -> str:
    """The Bayesian signed-rank test's probabilities, over families, that of three cases for a new one, the pooling is
    better, practically equal or worse, each is the likeliest (Benavoli et al. 2017,
    https://jmlr.org/papers/v18/16-305.html)."""
    import baycomp  # no other part of the project needs it

    scores = defaultdict(list)
    for dataset in found.by_set:
        of_set = [table.score(dataset, pooling) for pooling in (found.pooling, found.other)]
        scores[family_of(dataset)].append(of_set)
    mine, its = np.array([np.mean(values, axis=0) for values in scores.values()]).T  # (F,) each
    return ", ".join(f"{p:.2f}" for p in baycomp.two_on_multiple(mine, its, rope=ROPE, random_state=0))


def by_set(differences: dict[str, Difference]) -> str:
    sets = list(dict.fromkeys(d for found in differences.values() for d in found.by_set))
    lines = []
    for dataset in sets:
        cells = []
        for found in differences.values():
            of_set = found.by_set.get(dataset)
            cells.append("{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * v for v in of_set)) if of_set else "")
        lines.append([dataset, *cells])
    return markdown(["set", *differences], lines)


def costs(table: Table) -> str:
    """Medians over the sets and seeds of a pooling."""
    _, complete, scores = table.family_scores()
    of_all = dict(zip(complete, scores.mean(0), strict=True))
    lines = []
    for pooling in table.poolings:
        rows = [row for (_, p), runs in table.rows.items() if p == pooling for row in runs.values()]
        numbers = [median(float(row[name]) for row in rows) for name in ("parameters", "flops")]
        pace = median(float(row["seconds"]) / (int(row["epochs"]) * int(row["train_rows"])) for row in rows)
        score = f"{100 * of_all[pooling]:.1f}" if pooling in of_all else ""
        lines.append([pooling, f"{numbers[0]:,.0f}", f"{numbers[1] / 1e6:.3f}", f"{1000 * 1000 * pace:.0f}", score])
    head = [
        "pooling",
        "new parameters",
        "MFLOP a text, without the backbone",
        "ms of training for 1,000 rows once",
        "mean score",
    ]
    return markdown(head, lines)


def chosen(table: Table, output: Path) -> str:
    """How often each setting of the grid was chosen, by pooling, and each layer."""
    tried = Runs.of(output, table.regime, table.token_pooling).rows
    grid = {Setting.of(row) for row in tried if row["kind"] == TUNE and row["backbone"] == table.backbone}
    of_pooling, single = defaultdict(Counter), Counter()
    for (_, pooling), runs in table.rows.items():
        row = next(iter(runs.values()))  # of several seeds, one
        of_pooling[pooling][Setting.of(row)] += 1
        single[row["pooling"]] += pooling == BEST_LAYER
    grid = sorted(grid, key=lambda s: (s.epochs, s.learning_rate, s.head_learning_rate or 0.0))
    lines = [
        [pooling, *(str(of_pooling[pooling][setting]) for setting in grid)]
        for pooling in [*table.poolings, *table.lower_layers]
    ]
    parts = [f"{table.title}: on how many sets each setting was best on validation"]
    parts += [markdown(["pooling", *map(shown, grid)], lines)]
    if single.total():
        parts += [
            f"The layer that was best alone: {', '.join(f'{layer} {single[layer]}' for layer in SINGLE_LAYERS)}."
        ]
    return "\n\n".join(part.rstrip() for part in parts)


def shown(setting: Setting) -> str:
    head = setting.head_learning_rate
    return f"{setting.epochs} epochs, {setting.learning_rate:g}" + ("" if head is None else f", head {head:g}")


def hours(output: Path) -> str:
    """What the runs took, and which final runs do not count, as another setting came to be the best."""
    lines = []
    for path in sorted(output.glob("*.csv")):
        rows = read_rows(path)
        finals = [row for row in rows if row["kind"] == FINAL]
        counting = [row for _, row in final_rows(rows)]
        void = [row for row in finals if row not in counting]
        of_pairs = {(row["dataset"], row["pooling"]) for row in void}
        took = sum(float(row["seconds"]) for row in rows) / 3600
        cells = len(rows) - len(finals), len(finals), len(void), len(of_pairs)
        lines.append([path.stem, *map(str, cells), f"{took:.2f}"])
    head = ["runs of tuning", "final runs", "of these void", "of how many pairs of pooling and set"]
    return markdown(["regime", *head, "hours of one core, training alone"], lines)


if __name__ == "__main__":
    sys.exit(main())
