"""Counts how malformed inputs end: refused in one clear line, accepted, or with a traceback."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from lstmpool.training.errors import LONGEST, InputError


def count_outcomes(title: str, cases: Iterable[tuple[str, Callable[[], Any]]]) -> Counter:
    """Calls each case, and prints how many were refused, accepted, or ended with a traceback.

    Args:
        title: of the printed line.
        cases: a name and a function without arguments. It returns if the input is accepted, and raises `InputError` if
            it is refused. Any other exception counts as a traceback.

    Returns:
        The numbers of "clear", "accepted" and "traceback", and for each traceback an entry `name: error`.
    """
    outcomes: Counter = Counter()
    tracebacks: Counter = Counter()
    for name, call in cases:
        try:
            call()
            outcomes["accepted"] += 1
        except InputError as error:
            assert "\n" not in str(error), name
            assert len(str(error)) < LONGEST + 100, name
            outcomes["clear"] += 1
        except Exception as error:  # noqa: BLE001 -- whatever else comes is a bug, which is counted and named
            outcomes["traceback"] += 1
            tracebacks[f"{name}: {type(error).__name__}: {str(error)[:200]}"] += 1
    print(f"{title}: {outcomes['clear']} clear, {outcomes['accepted']} accepted, {outcomes['traceback']} tracebacks")
    return outcomes + tracebacks
