"""The logits of many texts, computed from the longest to the shortest and given in the order asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from datasets import Dataset
from transformers import Trainer

from lstmpool.training.data.order import by_length
from lstmpool.training.loop.divergence import check_logits
from lstmpool.training.tasks.task import SCORED


@contextmanager
def in_given_order(trainer: Trainer) -> Iterator[None]:
    """Within this block, Trainer evaluates rows in the order given, whichever order it trains in.

    With `group_by_length`, it would choose an order of its own. This sets Trainer's own copy of the arguments.
    """
    strategy = trainer.args.train_sampling_strategy
    trainer.args.train_sampling_strategy = "random"
    try:
        yield
    finally:
        trainer.args.train_sampling_strategy = strategy


def predict_logits(trainer: Trainer, dataset: Dataset) -> np.ndarray:
    """The logits (N, C) of the rows, in their order. Labels are ignored.

    Raises:
        Diverged: if some are NaN or infinite, as after training that has diverged.
    """
    if "labels" in dataset.column_names:
        dataset = dataset.remove_columns("labels")
    ordered, order = by_length(dataset)
    with in_given_order(trainer):
        found = trainer.predict(ordered).predictions
    check_logits(found)
    # of many labels, they stay as narrow as the model gives them
    logits = np.empty_like(found, dtype=np.float64 if found.shape[1] <= SCORED else None)
    logits[order] = found
    return logits
