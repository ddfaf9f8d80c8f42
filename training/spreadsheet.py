"""Keeps spreadsheets from running a cell of a CSV table as a formula.

A spreadsheet takes a cell that begins with `=`, `+`, `-`, `@`, a tab or a carriage return for a formula. An apostrophe
before it makes it text, as OWASP advises (https://owasp.org/www-community/attacks/CSV_Injection). Numbers stay.
"""

import re


_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def guard(cell: str) -> str:
    """The cell with an apostrophe before it if a spreadsheet would run it, or if `unguard` would change it."""
    return f"'{cell}" if _is_risky(cell) else cell


def unguard(cell: str) -> str:
    """The cell that `guard` was given."""
    return cell[1:] if cell.startswith("'") and _is_risky(cell[1:]) else cell


def _is_risky(cell: str) -> bool:
    return bool(_FORMULA.match(cell)) and not _NUMBER.fullmatch(cell)
