"""Writes the tables of the documentation that are made from the code.

    python -m lstmpool.training.docs

A table stands between two comments that name this command. A test checks that the table matches the code.
"""

import sys
from pathlib import Path

from lstmpool.fields_lstmpool import describe_fields


ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "python.md"
BEGIN = "<!-- fields: made by python -m lstmpool.training.docs -->\n"
END = "<!-- end of fields -->\n"


def fields_table() -> str:
    """The fields of `LstmPoolConfig`: one row each, with its meaning and default."""
    rows = ["| field | what it sets | default |", "|---|---|---|"]
    rows += [f"| `{name}` | {meaning} | {default} |" for name, _, meaning, default in describe_fields()]
    return "\n".join(rows) + "\n"


def with_table(page: str) -> str:
    """`page` with a fresh table between its two comments. Raises ValueError if it lacks one of them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"expected the lines {BEGIN.strip()} and {END.strip()}, found at most one. Put them in.")
    return before + BEGIN + fields_table() + END + after


def main() -> int:
    """Brings the page up to date; returns the exit status."""
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is up to date.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
