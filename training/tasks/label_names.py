"""Names of labels: which two of them may be meant to be one."""

import difflib
import re
import unicodedata
from collections import Counter, defaultdict

from lstmpool.training.tasks.columns import Distinct


SHOWN = 5  # warnings of one kind
RARE = 20  # names that occur once; with more of them, it is usual for a name to occur once
NEAR = 0.8  # how alike two names are, from 0 to 1, if one may be the other misspelt
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\ufe00-\ufe0f]")  # not in category Cf
_BETWEEN = re.compile("(?<=[^\\s_\u2010-\u2015-])[\\s_\u2010-\u2015-]+(?=[^\\s_\u2010-\u2015-])")  # words of a name


def look_of(name: str) -> str:
    """What is left of a name without case, accents' form, invisible characters, and kinds of spaces and hyphens.

    A hyphen at an end stays: -1 is not 1, nor the mark A- an A.
    """
    visible = "".join(character for character in name if unicodedata.category(character) != "Cf")
    plain = _INVISIBLE.sub("", visible.casefold())
    return _BETWEEN.sub(" ", unicodedata.normalize("NFKC", plain).strip())


def warnings_of(found: list[list[str]], cells: Distinct, place: str) -> list[str]:
    """A line for each two names that look alike, and for each that occurs once and resembles another.

    Args:
        found: the names in each of the different cells.
        cells: these cells, in training.
        place: the column, for the message.
    """
    counts: Counter = Counter()
    row_of: dict[str, int] = {}
    for names, row, count in zip(found, cells.rows, cells.counts, strict=True):
        for name in names:
            counts[name] += count
            row_of.setdefault(name, row)
    pairs = [(one, other, "looks like") for one, other in _alike(counts)]
    known = {name for one, other, _ in pairs for name in (one, other)}
    pairs += [(one, other, "occurs once, and resembles") for one, other in _misspelt(counts) if one not in known]
    lines = []
    for one, other, how in pairs:
        show = ascii if _show_alike(one, other) else repr
        lines.append(
            f"{place}, training row {row_of[one]}: label {show(one)} {how} {show(other)} ({_rows(counts[other])}, the "
            f"first is row {row_of[other]}). If they are one label, write them alike."
        )
    more = [f"{place}: {len(lines) - SHOWN} more labels look like others."] if len(lines) > SHOWN else []
    return lines[:SHOWN] + more


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _show_alike(one: str, other: str) -> bool:
    """Whether two names look the same on a screen even where invisible format characters are escaped."""
    if _INVISIBLE.search(one + other):
        return True
    return unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


def _alike(counts: Counter) -> list[tuple[str, str]]:
    """Each name that looks like another which more rows have, and that other."""
    by_look: dict[str, list[str]] = defaultdict(list)
    for name, _ in counts.most_common():
        by_look[look_of(name)].append(name)
    return [(rarer, names[0]) for names in by_look.values() for rarer in names[1:]]


def _misspelt(counts: Counter) -> list[tuple[str, str]]:
    """Each name that occurs once, and the name that it resembles most."""
    once = [name for name, count in counts.items() if count == 1]
    if len(once) > RARE:
        return []
    pairs = []
    for name in once:
        others = [other for other in counts if other != name and _may_be(name, other)]
        nearest = difflib.get_close_matches(name.casefold(), [other.casefold() for other in others], 1, NEAR)
        if nearest:
            pairs.append((name, next(other for other in others if other.casefold() == nearest[0])))
    return pairs


def _may_be(name: str, other: str) -> bool:
    """Whether one may be the other misspelt. Names that differ in digits alone are numbered."""
    if len(name) > 200 or abs(len(name) - len(other)) > 2:
        return False
    return re.sub(r"\d", "", name) != re.sub(r"\d", "", other)
