"""How much faster a model answers with its exits than without them, measured on this machine.

Both ways read the same batches in turn, so that whatever else the machine does meanwhile slows both.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel
from transformers.data.data_collator import DataCollator


BATCHES = (1, 32)  # rows
SECONDS = 4.0  # for each of these sizes
SEED = 0  # of the order of the rows: in use, texts of all lengths come together


@torch.no_grad()
def time_gains(
    model: PreTrainedModel, rows: Dataset, collator: DataCollator, seconds: float = SECONDS
) -> dict[int, float]:
    """By the size of a batch, the time without exits divided by that with them. `rows`: the tokenizer's columns.

    Sizes of which there is no full batch are left out.
    """
    model.eval()
    order = np.random.default_rng(SEED).permutation(len(rows))
    gains = {}
    for size in BATCHES:
        batches = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
        if batches:
            gains[size] = _gain(model, rows, collator, batches, seconds)
    return gains


def _gain(
    model: PreTrainedModel, rows: Dataset, collator: DataCollator, batches: list[np.ndarray], seconds: float
) -> float:
    began = time.perf_counter()
    with_exits, without = 0.0, 0.0
    for number, chosen in enumerate([batches[0], *batches]):  # the first one warms up, and does not count
        inputs = collator([rows[int(row)] for row in chosen]).to(model.device)
        early = _seconds_of(model, inputs)
        with switched_off(model):
            whole = _seconds_of(model, inputs)
        if number:
            with_exits += early
            without += whole
            if time.perf_counter() - began > seconds:
                break
    return without / with_exits


def _seconds_of(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> float:
    """How long the model takes for a batch."""
    began = time.perf_counter()
    model(**inputs).logits.cpu()  # which waits for the device
    return time.perf_counter() - began


@contextmanager
def switched_off(model: PreTrainedModel) -> Iterator[None]:
    """Within this block, no text leaves at an exit."""
    threshold, model.config.exit_threshold = model.config.exit_threshold, None
    try:
        yield
    finally:
        model.config.exit_threshold = threshold
