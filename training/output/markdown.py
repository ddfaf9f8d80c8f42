"""Puts names that come from data into Markdown, so that each is read as a name and as nothing else.

Labels, columns, files and folders may hold anything: pipes, backticks, tags, links, line breaks. None of these acts
in a span of code, and a plain word needs no span.
"""

import re

from lstmpool.training.errors import escaped


# Letters and digits, joined by single signs that mean nothing inside a word.
_PLAIN = re.compile(r"[^\W_]+(?:[ _'-][^\W_]+)*")
_JOINERS = "\u200c\u200d"  # parts of words in Persian and Hindi, and of emoji


def visible(text: object) -> str:
    """One line, in which line breaks and what else cannot be seen stand as their escapes."""
    return escaped(str(text), kept=_JOINERS)


def name(text: object) -> str:
    """A name in a sentence or a cell: as it is if it is plain words, else as a span of code."""
    return str(text) if _PLAIN.fullmatch(str(text)) else code(text)


def code(text: object) -> str:
    """A span of code that shows `text`, whatever is in it."""
    shown = visible(text) or " "
    fence = "`" * (_longest_run(shown) + 1)
    touches = shown.startswith("`") or shown.endswith("`")
    is_stripped = shown.startswith(" ") and shown.endswith(" ") and shown.strip()  # of one space at each end
    space = " " if touches or is_stripped else ""
    return f"{fence}{space}{shown}{space}{fence}"


def code_block(text: str, language: str = "") -> str:
    """A block of code with the lines of `text`, none of which ends it."""
    lines = [visible(line) for line in text.split("\n")]
    fence = "`" * max(3, _longest_run(text) + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def short(text: object, longest: int) -> str:
    """`visible`, cut to at most `longest` characters."""
    shown = visible(str(text)[: longest + 1])  # enough to tell whether it is longer
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def table(rows: list[list[str]], words: int = 2) -> str:
    """The `rows` as a table, the first as its head. Cells are Markdown; only pipes and line breaks are escaped.

    The first `words` columns are words, the others numbers, which are flush right.
    """
    rule = ["---" if i < words else "---:" for i in range(len(rows[0]))]
    cells = [[visible(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]])


def python_text(text: str) -> str:
    """A literal of Python, in double quotes, whose value is `text`."""
    body = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{visible(body)}"'


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
