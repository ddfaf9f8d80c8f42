"""Takes times that can be compared: each round runs every step once, and ratios are within a round.

If the machine slows down for a while, this hits all steps alike. If it hits only one of them, the interval shows it.
`Comparison` is what the benchmarks of whole commands share: one row a run and round, so they can be stopped and
continued.
"""

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

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


Step = Callable[[], None]
FEWEST = 5  # rounds; with fewer, an interval says nothing


def seconds(step: Step, device: str = "cpu") -> float:
    """How long one call takes; on a GPU, by the GPU's own clock."""
    if device == "cuda":
        first = torch.cuda.Event(enable_timing=True)
        last = torch.cuda.Event(enable_timing=True)
        first.record()
        step()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1000
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def interleave(
    steps: dict[str, Step], budget: float, rounds: int | None = None, device: str = "cpu", warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each step in each round.

    Args:
        steps: the steps to compare, by name.
        budget: seconds after which no round begins, once there are `FEWEST`.
        rounds: how many rounds to run, in place of the budget.
        device: where the steps run, "cpu" or "cuda".
        warm_up: calls of each step before the first round, which do not count.
    """
    order = list(steps)
    draw = random.Random(0)
    for name in order * warm_up:
        seconds(steps[name], device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    started = time.monotonic()
    done = 0
    while done < rounds if rounds else done < FEWEST or time.monotonic() - started < budget:
        draw.shuffle(order)
        for name in order:
            times[name].append(seconds(steps[name], device))
        done += 1
    return times


def ratio(times: list[float], over: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """The median over rounds of `times` / `over`, and a 95% bootstrap interval of that median over the rounds."""
    ratios = np.array(times) / np.array(over)
    drawn = np.random.default_rng(0).choice(ratios, size=(draws, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def missed(low: float, bound: float) -> bool:
    """Whether the bound is exceeded by more than noise can explain; `low` is the lower end of the interval."""
    return low > bound


@dataclass
class Arguments:
    """The flags of such a command."""

    rounds: int = field(default=5, metadata={"help": "Rounds, in each of which every variant runs once."})
    output: str | None = field(default=None, metadata={"help": "Results, CSV. Unset: beside the command's source."})
    table: bool = field(default=False, metadata={"help": "Make the table from the CSV, and measure nothing."})


@dataclass(frozen=True)
class Comparison:
    """A benchmark that compares variants on each subject."""

    name: str  # also the name of its CSV
    subjects: tuple[str, ...]
    variants: tuple[str, ...]  # the last one is the base

    def main(
        self,
        arguments: type[Arguments],
        measure: Callable[[Any, str, str], float],
        description: str,
        argv: list[str] | None = None,
    ) -> int:
        """Measures what the CSV lacks, or makes the table; returns the exit status.

        Args:
            arguments: dataclass of the flags. If it has `data`, measuring needs that flag.
            measure: (args, subject, variant) -> seconds.
            description: what the help says about the command.
            argv: the words after the program's name. Unset: those of this process.
        """
        parser = parser_of(arguments, self.name, description)
        (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
        output = Path(args.output or HERE / f"{self.name}.csv")
        if not args.table:
            if getattr(args, "data", "") is None:
                parser.error("expected --data, the folder of the sets, or --table.")
            for number, subject, variant in tqdm(self._runs(args.rounds), desc=self.name):
                wanted = {"subject": subject, "variant": variant, "round": str(number)}
                if not holds(read_rows(output), wanted):
                    taken = {"seconds": f"{measure(args, subject, variant):.4f}"}
                    append_rows(output, [wanted | taken | {"device": processor(), "versions": versions()}])
        show(parser, output, self.name, self.table)
        return 0

    def _runs(self, rounds: int) -> list[tuple[int, str, str]]:
        """Round, subject and variant of each run. The order of the variants turns round with every round."""
        runs = []
        for number in range(1, rounds + 1):
            order = self.variants if number % 2 else self.variants[::-1]
            runs += [(number, subject, variant) for subject, variant in product(self.subjects, order)]
        return runs

    def over_base(self, rows: list[Row], subject: str, variant: str) -> tuple[float, float, float] | None:
        """The time of a variant over that of the base in the same round.

        Returns:
            The median over the rounds and the two ends of its interval; None without rounds.
        """
        times = _times(rows, subject, variant)
        base = _times(rows, subject, self.variants[-1])
        shared = sorted(times.keys() & base.keys())
        return ratio([times[n] for n in shared], [base[n] for n in shared]) if shared else None

    def table(self, rows: list[Row]) -> str:
        """Markdown: median seconds of each variant, and its ratio over the base."""
        base = self.variants[-1]
        lines = []
        for subject in dict.fromkeys(row["subject"] for row in rows):
            for variant in self.variants:
                times = sorted(_times(rows, subject, variant).values())
                found = self.over_base(rows, subject, variant)
                if times and found:
                    over = "" if variant == base else "{:.3f} [{:.3f}, {:.3f}]".format(*found)
                    lines.append([subject, variant, str(len(times)), f"{times[len(times) // 2]:.3g}", over])
        return markdown(["", "", "rounds", "median, s", f"over {base} [95% interval]"], lines, words=2)


def _times(rows: list[Row], subject: str, variant: str) -> dict[str, float]:
    """Seconds by round."""
    mine = (row for row in rows if (row["subject"], row["variant"]) == (subject, variant))
    return {row["round"]: float(row["seconds"]) for row in mine}
