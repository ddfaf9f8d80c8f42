"""Errors that the user can fix. Each is one line that says what was expected, what was found and what to do."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something given to the command is wrong. Its message is one line; the command ends with status 2."""

    def __init__(self, message: object):
        super().__init__(" ".join(str(message).split()))


class Diverged(InputError):
    """Training has ended in logits that are not numbers. Other settings may avoid that."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """' Did you mean 'x'?' with the nearest of `choices`, or an empty string if none is near."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
