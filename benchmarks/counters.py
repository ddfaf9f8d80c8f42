"""Counts bytes and FLOPs, which do not depend on the machine."""

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
    """The most bytes that torch held at once of those that `step` allocated on the processor.

    The profiler records each allocation, even inside an operation. Run `step` once before, to fill caches that stay.
    It must not free what it allocated in that run, because that would count as negative.
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

    On a processor, the fused LSTM and attention would count as none. The fused LSTM is switched off here; build the
    model with `attn_implementation="eager"` to avoid the other. On the device "meta" nothing is computed, and the
    count is the same.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration")  # about a setting that this does not touch
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            step()
    return counter.get_total_flops()


def lstm_flops(batch: int, layers: int, hidden: int, units: int, directions: int = 2) -> int:
    """FLOPs of an LSTM by the formula: at each of L steps, four gates read an input (H) and a state (units)."""
    return 2 * batch * layers * directions * 4 * units * (hidden + units)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the standard error, where some builds of the profiler write a line a run, past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
