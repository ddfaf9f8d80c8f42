"""Measures the peak memory of a forward, or a forward and backward, beside what users would pick.

    python -m lstmpool.benchmarks.memory
    python -m lstmpool.benchmarks.memory --table

It counts the bytes that torch allocates on the processor, so the numbers do not depend on the machine. In inference
these are the activations; in training they include the gradients of the weights, which the backward allocates. The
weights and an optimizer's state, allocated before, do not count. Counts that the CSV holds are not repeated.
"""

import gc
import sys

import torch

from lstmpool.benchmarks.grid import Quantity, peak_bytes
from lstmpool.benchmarks.variants import Cell, build, inference, prepare, random_inputs


def count(variant: str, cell: Cell) -> int:
    """Peak bytes of one step of `variant` in `cell`, above what the model and its inputs take."""
    gc.collect()  # frees the model before this one, whose hooks refer to it in a circle
    torch.manual_seed(0)
    side = build(variant, cell.config())
    inputs = random_inputs(cell)
    side.model.eval()
    inference(side, {name: value[:1, :8] for name, value in inputs.items()})  # makes what is made once and stays
    return peak_bytes(prepare(side, cell, inputs))


MEMORY = Quantity("memory", "peak_bytes", "MiB", 2**20, {"inference": "backbone", "training": "stock"}, count)


if __name__ == "__main__":
    sys.exit(MEMORY.main(__doc__))
