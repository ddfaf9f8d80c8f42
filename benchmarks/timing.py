"""Takes times that can be compared: each round runs every step once, in an order drawn anew, and ratios are within it.

If the machine slows down for a while, this hits all steps alike. If it hits only one of them, the interval shows it.
"""

import random
import time
from collections.abc import Callable

import numpy as np
import torch


Step = Callable[[], None]
FEWEST = 5  # rounds; with fewer, an interval says nothing


def seconds(step: Step, device: str = "cpu") -> float:
    """How long one call takes; on a GPU, by the GPU's own clock."""
    if device == "cuda":
        first = torch.cuda.Event(enable_timing=True)
        last = torch.cuda.Event(enable_timing=True)
        first.record()
        step()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1000
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def interleave(
    steps: dict[str, Step], budget: float, rounds: int | None = None, device: str = "cpu", warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each step in each round.

    Args:
        steps: the steps to compare, by name.
        budget: seconds after which no round begins, once there are `FEWEST`.
        rounds: how many rounds to run, in place of the budget.
        device: where the steps run, "cpu" or "cuda".
        warm_up: calls of each step before the first round, which do not count.
    """
    order = list(steps)
    draw = random.Random(0)
    for name in order * warm_up:
        seconds(steps[name], device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    started = time.monotonic()
    done = 0
    while done < rounds if rounds else done < FEWEST or time.monotonic() - started < budget:
        draw.shuffle(order)
        for name in order:
            times[name].append(seconds(steps[name], device))
        done += 1
    return times


def ratio(times: list[float], over: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """The median over rounds of `times` / `over`, and a 95% bootstrap interval of that median over the rounds."""
    ratios = np.array(times) / np.array(over)
    drawn = np.random.default_rng(0).choice(ratios, size=(draws, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def missed(low: float, bound: float) -> bool:
    """Whether the bound is exceeded by more than noise can explain; `low` is the lower end of the interval."""
    return low > bound
