"""Counts the floating-point operations of a forward, or a forward and backward, beside what users would pick.

    python -m lstmpool.benchmarks.flops
    python -m lstmpool.benchmarks.flops --table

torch's own counter counts matrix products on tensors that are never filled, so it takes seconds. Attention is the
library's plain one, since the counter does not see into the fused one; both compute the same products. Counts that the
CSV holds are not repeated.
"""

import sys

import torch

from lstmpool.benchmarks.grid import Quantity, flops
from lstmpool.benchmarks.variants import Cell, build, prepare, random_inputs


def count(variant: str, cell: Cell) -> int:
    """FLOPs of one step of `variant` in `cell`."""
    with torch.device("meta"):
        side = build(variant, cell.config(attn_implementation="eager"))
    return flops(prepare(side, cell, random_inputs(cell, "meta")))


FLOPS = Quantity("flops", "flops", "GFLOPs", 1e9, {"inference": "stock", "training": "stock"}, count)


if __name__ == "__main__":
    sys.exit(FLOPS.main(__doc__))
