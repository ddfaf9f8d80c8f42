"""How many floating-point operations a forward, or a forward and backward, takes, beside what users would pick.

    python -m lstmpool.benchmarks.flops
    python -m lstmpool.benchmarks.flops --table

Counted are matrix products, by torch's own counter, on tensors that are never filled: it takes seconds. Attention is
the library's plain one, since the counter sees nothing of the fused one; both do the same products. A count that the
CSV holds is not made again.
"""

import sys

import torch

from lstmpool.benchmarks.counters import flops
from lstmpool.benchmarks.grid import Quantity
from lstmpool.benchmarks.variants import Cell, build, prepare, random_inputs


def count(variant: str, cell: Cell) -> int:
    """FLOPs of one step."""
    with torch.device("meta"):
        side = build(variant, cell.config(attn_implementation="eager"))
    return flops(prepare(side, cell, random_inputs(cell, "meta")))


FLOPS = Quantity("flops", "flops", "GFLOPs", 1e9, {"inference": "stock", "training": "stock"}, count)


if __name__ == "__main__":
    sys.exit(FLOPS.main(__doc__))
