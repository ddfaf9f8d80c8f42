"""Conditions that hold for the value of any flag, of whatever kind: no control characters, no number without an end.

Rules use them as they use `conditions`. They come before any file is opened, and before the library sees a value.
"""

import math
import os
from collections.abc import Iterator
from typing import Any

from lstmpool.training.errors import control_in
from lstmpool.training.flags.arguments import MAPS, OF_FILES
from lstmpool.training.flags.conditions import Broken, Flags


PATHS = ("output_dir", *OF_FILES, "dataset_name", "backbone", "init_from", "resume_from_checkpoint", "hp_space")
LONGEST_NAME = 255  # bytes of a file's name, on all usual file systems
COLUMNS = ("text_column_names", "label_column_name")
JOINS = "text_column_delimiter"  # the one flag whose value may be blank
BREAKS = "\t\n\r"
LARGEST_INTEGER = 2**63 - 1
UTF8 = "If it is part of a letter, start the command with PYTHONUTF8=1."


def _texts(flags: Flags) -> Iterator[tuple[str, str]]:
    """Each text that was given, alone or in a list, with the name of its flag."""
    for name, value in flags.given.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                yield name, item


def unprintable_character(flags: Flags) -> Broken:
    """A text has a control character, or a byte that was not UTF-8."""
    for name, text in _texts(flags):
        character = control_in(text, allowed=BREAKS if name == JOINS or name in MAPS else "")
        if character:
            return {"name": name, "character": character}
    return None


def blank_text(flags: Flags) -> Broken:
    """A text has no visible character."""
    for name, text in _texts(flags):
        if name != JOINS and not text.strip():
            return {"name": name}
    return None


def endless_number(flags: Flags) -> Broken:
    """A number is infinite or NaN, or a whole number has more than 64 bits."""
    for name, value in flags.given.items():
        for item in value if isinstance(value, list) else [value]:
            if _is_endless(item):
                return {"name": name, "value": f"{str(item)[:20]}..." if isinstance(item, int) else item}
    return None


def _is_endless(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, int) and abs(value) > LARGEST_INTEGER


def column_named_twice(flags: Flags) -> Broken:
    """A list of columns names one twice, or has an empty name."""
    for name in COLUMNS:
        columns = [column.strip() for column in str(flags.given.get(name, "")).split(",")]
        if name in flags.given and (len(set(columns)) < len(columns) or "" in columns):
            return {"name": name, "value": flags.given[name]}
    return None


def odd_output_dir(flags: Flags) -> Broken:
    """The output folder has the name of something else: an address, the standard output, a home folder."""
    name = str(flags.given.get("output_dir", ""))
    return name == "-" or "://" in name or name.startswith("~")


def unusable_path(flags: Flags) -> Broken:
    """A path cannot be used, whatever lies there: a name is too long, a parent is a file, or we may not read it."""
    for name in PATHS:
        path = flags.given.get(name)
        if path is None or (name == "hp_space" and path.lstrip().startswith("{")):  # JSON, and no path
            continue
        reason = _why_unusable(path, is_output=name == "output_dir")
        if reason:
            return {"name": name, "path": path, "reason": reason}
    return None


def _why_unusable(path: str, is_output: bool) -> str:
    """Why the file system cannot use a path; empty if it can, or if nothing is there: it may be a name on the Hub."""
    try:
        longest = max(len(os.fsencode(part)) for part in path.split(os.sep))
        if longest > LONGEST_NAME:
            return f"a name of {longest} bytes, where at most {LONGEST_NAME} fit"
        os.stat(path)
    except FileNotFoundError:
        return ""
    except NotADirectoryError as error:
        return error.strerror if is_output else ""
    except OSError as error:
        return error.strerror
    except ValueError as error:  # a character that this locale's file names cannot have
        return str(error)
    needed = os.R_OK | (os.X_OK if os.path.isdir(path) else 0) | (os.W_OK if is_output else 0)
    return "" if os.access(path, needed) else "permission denied"
