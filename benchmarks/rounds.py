"""What the benchmarks of whole commands share: one row a run and round, so they can be stopped and continued."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

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
from lstmpool.benchmarks.timing import ratio


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
