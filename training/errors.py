"""Errors that the user can mend: one line each, saying what was expected, what was found and what to do."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something given to the command is wrong. Its message is one line; the command ends with status 2."""

    def __init__(self, message: object):
        super().__init__(" ".join(str(message).split()))


class Diverged(InputError):
    """Training has ended in what is no number, which other settings may not do."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the nearest of `choices`, or nothing if none is near."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
