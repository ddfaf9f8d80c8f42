"""Errors that the user can fix. Each is one line that says what was expected, what was found and what to do.

Such a line may show what strangers wrote. So the characters that act on a terminal or a page are here, too.
"""

import difflib
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


LONGEST = 1500  # characters of a message; a cell of the user's data may hold millions
# What a broken file, a full disk or a lack of memory raises. ValueError is not among them: it may be a bug.
OF_THE_OUTSIDE = (OSError, EOFError, MemoryError, RecursionError, UnicodeError, zlib.error)
ACTING = ("Cc", "Cs", "Zl", "Zp")  # Unicode's controls, halves of a surrogate pair, line and paragraph ends
UNSEEN = (*ACTING, "Cf")  # and format characters, which some scripts need
TURNING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # marks that turn the direction of a text


class InputError(ValueError):
    """Something given to the command is wrong. Its message is one line; the command ends with status 2."""

    def __init__(self, message: object):
        super().__init__(as_line(message))


class Diverged(InputError):
    """Training has ended in logits that are not numbers. Other settings may avoid that."""


@contextmanager
def one_line(what: str, *also: type[Exception], remedy: str = "") -> Iterator[None]:
    """Turns errors of `OF_THE_OUTSIDE` into an `InputError` that begins with `what`: a file, a flag or a step.

    Args:
        what: begins the message, such as "train.csv cannot be read".
        also: further kinds of errors that the block raises for bad input, such as `ValueError` of a library.
        remedy: ends the message.
    """
    try:
        yield
    except InputError:
        raise
    except (*OF_THE_OUTSIDE, *also) as error:
        reason = str(error).strip() or type(error).__name__
        raise InputError(f"{what}: {reason.rstrip('.')}. {remedy}") from None


@contextmanager
def rows_counted_from_1() -> Iterator[None]:
    """Adds to an error that names a row which one it is."""
    try:
        yield
    except InputError as error:
        if re.search(r"\brow \d", str(error)):
            raise InputError(f"{error} Row 1 is the first row of data.") from None
        raise


def as_line(message: object) -> str:
    """One line of at most `LONGEST` characters, in which no invisible character acts on a terminal."""
    text = str(message)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 400]} [...] {text[-390:]}"
    return escaped(" ".join(text.split()))


def escaped(text: str, kept: str = "") -> str:
    """The text with an escape for each character that cannot be seen, except for those in `kept`."""
    hidden = {character for character in text if unicodedata.category(character) in UNSEEN} - set(kept)
    return "".join(_escape(character) if character in hidden else character for character in text)


def control_in(text: str, allowed: str = "") -> str:
    """The escape of the first character that acts on a terminal or a page; empty if there is none."""
    if text.isprintable():
        return ""
    for character in text:
        acts = character in TURNING or unicodedata.category(character) in ACTING
        if acts and character not in allowed:
            return _escape(character)
    return ""


def counted(number: float, noun: str, form: str = "") -> str:
    """The number, in this `form`, and the noun: "1 step", "2 steps"."""
    return f"{number:{form}} {noun}{'' if number == 1 else 's'}"


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """' Did you mean 'x'?' with the nearest of `choices`, or an empty string if none is near."""
    if len(name) > 200:
        return ""  # no name of anything, and slow to compare
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


@contextmanager
def tokenizing(where: str) -> Iterator[None]:
    """Within this block, a word for which a tokenizer has no id raises InputError, which begins with `where`."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:  # which is what tokenizers raise for such words
            raise
        raise InputError(
            f"{where}: the tokenizer cannot read them: {error}. Give it an unk_token, and save it."
        ) from None
