"""How much memory a forward, or a forward and backward, takes at its peak, beside what users would pick.

    python -m lstmpool.benchmarks.memory
    python -m lstmpool.benchmarks.memory --table

Counted are the bytes that torch allocates on the processor, so that the numbers do not depend on the machine: in
inference the activations, in training also the gradients of the weights, which come into being in the backward. What
was there before, the weights and an optimizer's state, is not in them. A count that the CSV holds is not made again.
"""

import gc
import sys

import torch

from lstmpool.benchmarks.counters import peak_bytes
from lstmpool.benchmarks.grid import Quantity
from lstmpool.benchmarks.variants import Cell, build, inference, prepare, random_inputs


def count(variant: str, cell: Cell) -> int:
    """Peak bytes over what the model and its inputs take."""
    gc.collect()  # the model before this one, whose hooks refer to it in a circle
    torch.manual_seed(0)
    side, inputs = build(variant, cell.config()), random_inputs(cell)
    side.model.eval()
    inference(side, {name: value[:1, :8] for name, value in inputs.items()})  # what is made once and stays
    return peak_bytes(prepare(side, cell, inputs))


MEMORY = Quantity("memory", "peak_bytes", "MiB", 2**20, {"inference": "backbone", "training": "stock"}, count)


if __name__ == "__main__":
    sys.exit(MEMORY.main(__doc__))
