"""Counts bytes and FLOPs, which do not depend on the machine, in a grid of cells, with a CSV and a table."""

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from lstmpool.benchmarks.results import HERE, Row, append_rows, holds, markdown, parser_of, read_rows, show, versions
from lstmpool.benchmarks.variants import VARIANTS, Cell


GRID = [
    f"{shape}/{mode}/8x{tokens}"  # 8 is the library's own default batch
    for shape, mode, tokens in product(("6x384", "12x768"), ("inference", "training"), (32, 128, 512))
]


@dataclass
class Arguments:
    """The flags of the command."""

    cells: list[str] = field(
        default_factory=lambda: list(GRID),
        metadata={"help": "Cells of the grid: layers x hidden size/inference or training/batch x tokens."},
    )
    output: str | None = field(default=None, metadata={"help": "Results, CSV. Unset: beside the command's source."})
    table: bool = field(default=False, metadata={"help": "Make the table from the CSV, and count nothing."})


@dataclass(frozen=True)
class Quantity:
    """A quantity that is counted."""

    name: str  # also the name of its CSV
    column: str  # of the CSV
    unit: str
    divisor: float  # counts in one unit
    over: dict[str, str]  # mode -> the variant to compare the others with
    count: Callable[[str, Cell], int]  # from a variant and a cell

    def main(self, description: str, argv: list[str] | None = None) -> int:
        """Counts what the CSV lacks, or makes the table; returns the exit status."""
        parser = parser_of(Arguments, self.name, description)
        (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
        output = Path(args.output or HERE / f"{self.name}.csv")
        if not args.table:
            try:
                cells = [Cell.parse(text) for text in args.cells]
            except ValueError as error:
                parser.error(str(error))
            if any(cell.mode not in self.over for cell in cells):
                parser.error(f"--cells are of the modes {', '.join(self.over)}; times are compared for the others.")
            self.run(output, cells)
        show(parser, output, self.name, self.table)
        return 0

    def run(self, output: Path, cells: list[Cell]) -> None:
        """Counts each variant in each cell that the CSV `output` lacks, and adds a row for it."""
        for cell, variant in tqdm(list(product(cells, VARIANTS)), desc=self.name):
            wanted = cell.columns() | {"variant": variant}
            if holds(read_rows(output), wanted):
                continue
            found = {self.column: str(self.count(variant, cell))}
            append_rows(output, [wanted | found | {"versions": versions("sentence-transformers")}])

    def table(self, rows: list[Row]) -> str:
        """Markdown: by mode, the count of one variant in its unit, and the others' counts over it."""
        parts = []
        for mode, base in self.over.items():
            found: dict[tuple[str, ...], dict[str, int]] = {}
            for row in rows:
                if row["mode"] == mode:
                    place = (row["shape"], row["batch"], row["tokens"])
                    found.setdefault(place, {})[row["variant"]] = int(row[self.column])
            others = [name for name in VARIANTS if name != base]
            lines = [
                [
                    place[0],
                    " x ".join(place[1:]),
                    f"{counts[base] / self.divisor:,.1f}",
                    *(f"{counts[name] / counts[base]:.3f}" if name in counts else "" for name in others),
                ]
                for place, counts in found.items()
                if base in counts
            ]
            head = ["layers x hidden", "batch x tokens", f"{base}, {self.unit}", *others]
            parts += [f"**{mode.capitalize()}**, over {base}:", markdown(head, lines, words=2).strip()]
        return "\n\n".join(parts) + "\n"


def peak_bytes(step: Callable[[], None]) -> int:
    """The most bytes that torch held at once of those that `step` allocated on the processor.

    The profiler records each allocation, even inside an operation. Run `step` once before, to fill caches that stay.
    It must not free what it allocated in that run, because that would count as negative.
    """
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
            step()
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]  # negative where something is freed
        peak = max(peak, held)
    return peak


def flops(step: Callable[[], None]) -> int:
    """Floating-point operations of the matrix products of `step`, two for each multiply and add.

    On a processor, the fused LSTM and attention would count as none. The fused LSTM is switched off here; build the
    model with `attn_implementation="eager"` to avoid the other. On the device "meta" nothing is computed, and the
    count is the same.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration")  # about a setting that this does not touch
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            step()
    return counter.get_total_flops()


def lstm_flops(batch: int, layers: int, hidden: int, units: int, directions: int = 2) -> int:
    """FLOPs of an LSTM by the formula: at each of L steps, four gates read an input (H) and a state (units)."""
    return 2 * batch * layers * directions * 4 * units * (hidden + units)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the standard error, where some builds of the profiler write a line a run, past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
