"""The tables and pictures of the study, from its CSV files and predictions alone.

    python -m study.tables --output study/results
    python -m study.tables --output study/results --pooling attention  # prints only

Both are given in the checkout. The command first gathers the predictions of runs that ended since the last time. It
then prints the tables, fills TABLES.md and the short answer on EVIDENCE.md, both beside the folder, and draws a
picture for each backbone and token pooling of the frozen regime: the LSTM's differences to the others. The variants of
the LSTM have a command and a page of their own, `study.choice` and VARIANTS.md.
"""

import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from scipy.stats import rankdata

from lstmpool.benchmarks.results import fill_page, markdown, parser_of
from study.differences import FEW, ROPE, Difference, bounds, compared, equivalence
from study.plots import differences_plot, rank_test
from study.poolings import BEST_LAYER, SINGLE_LAYERS, UNRANKED
from study.records import FINAL, TUNE, Setting
from study.statistics import Table, final_rows, read_tables
from study.store import Runs
from study.variants import VARIANTS


LSTM = "lstm"
PICTURED = "frozen"
PLAINEST = "last"  # every pooling is compared with this one, too


@dataclass
class Arguments:
    """What is shown."""

    output: str = field(default="study/results", metadata={"help": "Folder of the study's results."})
    pooling: str = field(default=LSTM, metadata={"help": "The pooling that the others are compared with."})
    page: str | None = field(
        default=None,
        metadata={"help": "Page to fill in. Unset: TABLES.md and EVIDENCE.md beside OUTPUT, with the LSTM's tables."},
    )


def main(argv: list[str] | None = None) -> int:
    """Makes tables and pictures; returns the exit status."""
    parser = parser_of(Arguments, "python -m study.tables", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    output = Path(args.output)
    Runs(output).predictions.gather()
    tables = read_tables(output)
    if not tables:
        parser.error(f"expected results in {output}, found none. Make some with python -m study.run.")
    text = all_tables(tables, args.pooling, output)
    short = answer(tables)
    print(text)
    print(short)
    if args.page is not None:
        fill_page(Path(args.page), "tables", text)
    elif args.pooling == LSTM:
        for page, name, part in (("TABLES.md", "tables", text), ("EVIDENCE.md", "answer", short)):
            if (output.parent / page).is_file():
                fill_page(output.parent / page, name, part)
    for table in tables:
        draw(table, args.pooling, output)
    return 0


def draw(table: Table, pooling: str, output: Path) -> None:
    """The picture of a table of the frozen regime: the differences of `pooling`. The others have few poolings."""
    if table.regime == PICTURED and (differences := compared(table, pooling)):
        differences_plot(table, differences, pooling, output / picture(table, pooling))


def picture(table: Table, pooling: str) -> str:
    """The name of its file."""
    return f"differences-{pooling}-{table.regime}-{table.token_pooling}-{table.backbone}.png"


def to_rank(table: Table) -> tuple[list[str], list[str], np.ndarray] | None:
    """Families, poolings and scores (F, P); None if there are too few."""
    poolings = [pooling for pooling in table.poolings if pooling not in UNRANKED]
    families, poolings, scores = table.family_scores(poolings)
    return (families, poolings, scores) if len(families) >= FEW and len(poolings) > 2 else None


@dataclass(frozen=True)
class Question:
    """Is the LSTM better than `other`, in a regime and with a token pooling?"""

    words: str
    regime: str
    token_pooling: str
    other: str


QUESTIONS = (
    Question("Does it pay to look below the top layer?", "frozen", "mean", "last"),
    Question("Does it pay to read all layers, rather than the best one?", "frozen", "mean", "best_layer"),
    Question("Does it pay to read them with a thousand times the parameters?", "frozen", "mean", "attention"),
    Question("Does the order of the layers matter?", "frozen", "mean", "lstm_shuffled"),
    Question("Does it pay with CLS vectors?", "frozen", "cls", "last"),
    Question("Does it pay where the backbone is trained, too?", "full", "mean", "stock"),
)


def answer(tables: list[Table]) -> str:
    """Markdown; a row for each question, or for each backbone that answers it."""
    lines = []
    for question in QUESTIONS:
        for table in tables:
            if (table.regime, table.token_pooling) == (question.regime, question.token_pooling):
                for other, found in compared(table, LSTM, [question.other]).items():
                    lines.append([question.words, table.regime, table.token_pooling, other, *numbers(found)])
    head = [
        "question",
        "regime",
        "tokens",
        "lstm less",
        "sets",
        "mean difference, these sets",
        "95 %, sets like these",
    ]
    return markdown(head, lines, words=4)


def numbers(found: Difference) -> list[str]:
    """On how many sets, and the mean in hundredths: for these sets, and for sets like these."""
    estimate, low, high = (100 * value for value in found.pooled)
    wide = "too few sets"
    if found.enough:
        wide = "{:+.1f} to {:+.1f}".format(*(100 * value for value in found.over_sets))
    return [str(len(found.by_set)), f"{estimate:+.1f} ({low:+.1f} to {high:+.1f})", wide]


def all_tables(tables: list[Table], pooling: str, output: Path) -> str:
    """Markdown: a section for each table, then the chosen settings and the hours."""
    parts = []
    for table in tables:
        parts += section(table, pooling, output)
    parts.append("### Settings and hours")
    parts += [chosen(table, output) for table in tables]
    parts.append(hours(output))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def section(table: Table, pooling: str, output: Path) -> list[str]:
    """The paragraphs on one table."""
    seeds = sorted({seed for runs in table.rows.values() for seed in runs})
    parts = [
        f"### {table.title}",
        f"{len(table.sets)} set{'s' * (len(table.sets) > 1)}, seeds {', '.join(map(str, seeds))}.",
        "**Test scores**, in hundredths, with half the width of the 95 % interval:",
        means(table),
    ]
    if differences := compared(table, pooling):
        parts += [
            f"**{pooling} less the other pooling**, in hundredths:",
            pairs(table, differences),
            *([f"![differences]({output.name}/{picture(table, pooling)})"] if table.regime == PICTURED else []),
            "By set:",
            by_set(differences),
        ]
    if pooling != PLAINEST:
        others = [other for other in table.poolings if other not in (pooling, PLAINEST)]
        if above := compared(table, PLAINEST, others, others_first=True):
            parts += [f"**The others less {PLAINEST}**, in hundredths:", pairs(table, above)]
    if (ranked := to_rank(table)) is not None:
        result = rank_test(*ranked)
        parts.append(f"Friedman's test of the ranks: p = {result.pvalue:.1g}; critical difference {result.cd:.2f}.")
    return [*parts, "**Cost beside quality:**", costs(table)]


def means(table: Table) -> str:
    """One row a pooling, one column a set, then the mean over the sets that all have, and the mean rank on these.

    A family counts once in the mean. Only the ranked poolings have a rank.
    """
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
        cells = [score_cell(table, dataset, pooling) for dataset in table.sets]
        mean = f"{100 * of_all[pooling]:.1f}" if pooling in of_all else ""
        lines.append([pooling, *cells, mean, f"{ranks[pooling]:.1f}" if pooling in ranks else ""])
    shares = [table.most_frequent(dataset) for dataset in table.sets]
    constant = ["" if share is None else f"{100 * share:.1f}" for share in shares]
    lines.append(["most frequent test label", *constant, "", ""])
    head = ["pooling", *(f"{d} ({table.metric(d)})" for d in table.sets), f"mean of {len(families)}", "mean rank"]
    return markdown(head, lines)


def score_cell(table: Table, dataset: str, pooling: str) -> str:
    """A score with half the width of its interval, or nothing where there is no run."""
    drawn = table.draws(dataset, [pooling])
    if drawn is None:
        return ""
    low, high = bounds(drawn[0, 1:])
    return f"{100 * drawn[0, 0]:.1f} ±{50 * (high - low):.1f}"


def mean_ranks(scores: np.ndarray) -> np.ndarray:
    """The mean place (P,) from scores (F, P); 1 is the best, and equal scores share their places."""
    return rankdata(-scores.round(9), axis=1).mean(0)  # scores that differ by rounding alone are equal


def pairs(table: Table, differences: dict[str, Difference]) -> str:
    """One row for each other pooling."""
    head = [
        *("other", "sets", "better / unclear / worse", "mean difference, these sets", "95 % if sets are drawn too"),
        *("without one of the sets", "detectable", f"P(better), P(within {100 * ROPE:g}), P(worse)"),
    ]
    lines = []
    for other, found in differences.items():
        estimate, low, high = (100 * value for value in found.pooled)
        lines.append(
            [
                other,
                str(len(found.by_set)),
                " / ".join(map(str, found.tally)),
                f"{estimate:+.1f} ({low:+.1f} to {high:+.1f})",
                span(found.over_sets if found.enough else None),
                span(found.without_one),
                f"{100 * found.detectable:.1f}" if found.enough else "",
                ", ".join(f"{p:.2f}" for p in equivalence(table, found)) if found.enough else "too few sets",
            ]
        )
    return markdown(head, lines)


def span(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}"


def by_set(differences: dict[str, Difference]) -> str:
    """One row a set, one column for each other pooling."""
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
        parameters = median(float(row["parameters"]) for row in rows)
        flops = median(float(row["flops"]) for row in rows)
        pace = median(float(row["seconds"]) / (int(row["epochs"]) * int(row["train_rows"])) for row in rows)
        score = f"{100 * of_all[pooling]:.1f}" if pooling in of_all else ""
        lines.append([pooling, f"{parameters:,.0f}", f"{flops / 1e6:.3f}", f"{1000 * 1000 * pace:.0f}", score])
    head = [
        "pooling",
        "new parameters",
        "MFLOP a text, without the backbone",
        "ms of training for 1,000 rows once",
        "mean score",
    ]
    return markdown(head, lines)


def chosen(table: Table, output: Path) -> str:
    """How often each setting of the grid was chosen for each pooling, and how often each layer was the best."""
    tried = Runs.of(output, table.regime, table.token_pooling).rows
    shown_here = {*table.poolings, *SINGLE_LAYERS}
    tried = [row for row in tried if row["backbone"] == table.backbone and row["pooling"] in shown_here]
    grid = {Setting.of(row) for row in tried if row["kind"] == TUNE}
    grid = sorted(grid, key=lambda s: (s.epochs, s.learning_rate, s.head_learning_rate or 0.0))
    of_pooling = defaultdict(Counter)
    single = Counter()
    for (_, pooling), runs in table.rows.items():
        if pooling in VARIANTS:
            continue
        row = next(iter(runs.values()))  # all seeds have the same setting
        of_pooling[pooling][Setting.of(row)] += 1
        single[row["pooling"]] += pooling == BEST_LAYER
    lines = [
        [pooling, *(str(of_pooling[pooling][setting]) for setting in grid)]
        for pooling in [*table.poolings, *table.lower_layers]
    ]
    parts = [f"{table.title}: on how many sets each setting was best on validation"]
    parts.append(markdown(["pooling", *map(shown, grid)], lines))
    if single.total():
        layers = ", ".join(f"{layer} {single[layer]}" for layer in SINGLE_LAYERS)
        parts.append(f"The layer that was best alone: {layers}.")
    return "\n\n".join(part.rstrip() for part in parts)


def shown(setting: Setting) -> str:
    """The head of a setting's column."""
    head = setting.head_learning_rate
    return f"{setting.epochs} epochs, {setting.learning_rate:g}" + ("" if head is None else f", head {head:g}")


def hours(output: Path) -> str:
    """How long the runs took, and how many final runs do not count because another setting became the best."""
    lines = []
    of_place = defaultdict(list)
    for row in Runs(output).rows:
        of_place[row["regime"], row["token_pooling"]].append(row)
    for place, rows in sorted(of_place.items()):
        finals = [row for row in rows if row["kind"] == FINAL]
        counting = [row for _, row in final_rows(rows)]
        void = [row for row in finals if row not in counting]
        of_pairs = {(row["dataset"], row["pooling"]) for row in void}
        took = sum(float(row["seconds"]) for row in rows) / 3600
        cells = len(rows) - len(finals), len(finals), len(void), len(of_pairs)
        lines.append(["-".join(place), *map(str, cells), f"{took:.2f}"])
    head = ["runs of tuning", "final runs", "of these void", "of how many pairs of pooling and set"]
    return markdown(["regime", *head, "hours of one core, training alone"], lines)


if __name__ == "__main__":
    sys.exit(main())
