"""Bytes and FLOPs, which do not depend on the machine."""

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode


def peak_bytes(step: Callable[[], None]) -> int:
    """The most that torch held at once for what `step` allocated on the processor; what was there before is not in it.

    The profiler records each allocation, those inside an operation too. A run before it fills caches that stay, but
    `step` must not free what it allocated then: that would count as negative.
    """
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
            step()
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]  # negative where something is freed
        peak = max(peak, held)
    return peak


def flops(step: Callable[[], None]) -> int:
    """Floating-point operations of the matrix products of `step`, two for each multiply and add.

    On a processor, the fused LSTM and attention would count as none: the first is switched off here, and the model
    should be built with `attn_implementation="eager"`. On the device "meta" nothing is computed, and the count is the
    same.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration")  # of a setting that this does not touch
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            step()
    return counter.get_total_flops()


def lstm_flops(batch: int, layers: int, hidden: int, units: int, directions: int = 2) -> int:
    """By the formula: four gates, each of which reads an input (H) and a state (units) at each of L steps."""
    return 2 * batch * layers * directions * 4 * units * (hidden + units)


@contextmanager
def _quiet() -> Iterator[None]:
    """Some builds of the profiler write a line a run to the standard error, past Python, into the progress bar."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
