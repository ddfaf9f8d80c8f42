"""Times a forward, or a training step, beside what users would pick.

    python -m lstmpool.benchmarks.speed
    python -m lstmpool.benchmarks.speed --cells 6x384/inference/1x128 --seconds 120
    python -m lstmpool.benchmarks.speed --table

In each cell all variants are built, and every round runs each of them once, in an order drawn anew. A ratio is the
time over that of the stock class in the same round; the tables show its median over the rounds, with a 95% bootstrap
interval. The last ratio is this project over itself, which shows the noise. A training step is forward, backward and a
step of AdamW, with dropout; `compiled` is inference after `backbone.compile()`. All runs use one thread: with more, a
neighbour on the machine can stall one of two variants. Cells that the CSV holds are not measured again.

With `--device cuda` everything is in bfloat16 and timed by the card's events, and the results go to a CSV with the
card's name. This was not tried, for lack of a card.
"""

import gc
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from lstmpool.benchmarks.pictures import ratios
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
from lstmpool.benchmarks.rounds import Step, interleave, ratio
from lstmpool.benchmarks.variants import VARIANTS, Cell, build, prepare, random_inputs


AGAIN = "lstmpool, again"
CELLS = (
    "6x384/inference/1x32 6x384/inference/1x128 6x384/inference/1x512 6x384/inference/32x128 6x384/inference/32x512 "
    "6x384/compiled/1x128 6x384/training/1x128 6x384/training/1x512 6x384/training/32x128 "
    "12x768/inference/1x128 12x768/inference/1x512 12x768/inference/8x128 12x768/training/1x128"
).split()


@dataclass
class Arguments:
    """The flags of the command."""

    cells: list[str] = field(
        default_factory=lambda: list(CELLS),
        metadata={"help": "Layers x hidden size/inference, training or compiled/batch x tokens."},
    )
    seconds: float = field(
        default=45.0,
        metadata={"help": "Seconds a cell. A begun round is finished, and at least five are run."},
    )
    rounds: int | None = field(default=None, metadata={"help": "Run this many rounds a cell, whatever the seconds."})
    device: str = field(default="cpu", metadata={"choices": ("cpu", "cuda"), "help": "Where it runs."})
    output: str | None = field(default=None, metadata={"help": "Results, CSV. Unset: beside the command's source."})
    table: bool = field(default=False, metadata={"help": "Make table and picture from the CSV, and measure nothing."})


def main(argv: list[str] | None = None) -> int:
    """Measures the cells that the CSV lacks, or makes the table; returns the exit status."""
    parser = parser_of(Arguments, "speed", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "expected a GPU for --device cuda, found none. Leave it out; for a table, name the CSV by --output."
        )
    card = f"-{torch.cuda.get_device_name().replace(' ', '_')}" if args.device == "cuda" else ""
    output = Path(args.output or HERE / f"speed{card}.csv")
    if not args.table:
        try:
            cells = [Cell.parse(text) for text in args.cells]
        except ValueError as error:
            parser.error(str(error))
        torch.set_num_threads(1)
        for cell in tqdm(cells, desc="speed"):
            if not holds(read_rows(output), cell.columns()):
                append_rows(output, measure(cell, args))
    show(parser, output, "speed" if output.stem == "speed" else "speed_gpu", table, ratios)
    return 0


def measure(cell: Cell, args: Arguments) -> list[Row]:
    """Times all variants in one cell; returns one row a variant."""
    torch.manual_seed(0)
    inputs = random_inputs(cell, args.device)
    steps = {}
    for name in VARIANTS:
        side = build(name, cell.config()).on(args.device, torch.bfloat16 if args.device == "cuda" else torch.float32)
        step = prepare(side, cell, inputs)
        steps[name] = _with_optimizer(step, side.model) if cell.mode == "training" else step
    steps[AGAIN] = steps["lstmpool"]
    warm_up = 3 if cell.mode == "compiled" or args.device == "cuda" else 1
    times = interleave(steps, args.seconds, args.rounds, args.device, warm_up)
    where = processor() if args.device == "cpu" else torch.cuda.get_device_name()
    rows = []
    for name, taken in times.items():
        over = "lstmpool" if name == AGAIN else "stock"
        middle, low, high = ratio(taken, times[over])
        rows.append(
            cell.columns()
            | {"variant": name, "device": where, "rounds": str(len(taken))}
            | {"milliseconds": f"{1000 * sorted(taken)[len(taken) // 2]:.2f}", "over": over}
            | {"ratio": f"{middle:.4f}", "low": f"{low:.4f}", "high": f"{high:.4f}"}
            | {"versions": versions("sentence-transformers")}
        )
    steps.clear()
    torch.compiler.reset()
    gc.collect()  # frees the models, whose hooks refer to them in a circle
    return rows


def _with_optimizer(step: Step, model: torch.nn.Module) -> Step:
    return partial(_training_step, step, torch.optim.AdamW(model.parameters(), lr=1e-5))


def _training_step(step: Step, optimizer: torch.optim.Optimizer) -> None:
    step()
    optimizer.step()
    optimizer.zero_grad()


def table(rows: list[Row]) -> str:
    """Markdown: one table a mode, with the stock class in milliseconds and the others over it."""
    parts = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        found: dict[tuple[str, ...], dict[str, Row]] = {}
        for row in rows:
            if row["mode"] == mode:
                place = (row["shape"], row["batch"], row["tokens"])
                found.setdefault(place, {})[row["variant"]] = row
        names = [name for name in (*VARIANTS, AGAIN) if name != "stock"]
        lines = [
            [place[0], " x ".join(place[1:]), by_name["stock"]["rounds"], by_name["stock"]["milliseconds"]]
            + ["{ratio:.2f} [{low:.2f}, {high:.2f}]".format(**_numbers(by_name[name])) for name in names]
            for place, by_name in found.items()
        ]
        head = ["layers x hidden", "batch x tokens", "rounds", "stock, ms", *names[:-1], f"{AGAIN}, over itself"]
        parts += [f"**{mode.capitalize()}**, time over stock [95% interval]:", markdown(head, lines, words=2).strip()]
    return "\n\n".join(parts) + "\n"


def _numbers(row: Row) -> dict[str, float]:
    return {name: float(row[name]) for name in ("ratio", "low", "high")}


if __name__ == "__main__":
    sys.exit(main())
