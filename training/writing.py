"""Writes files atomically: under a temporary name beside their place, then moved into it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


Writer = Callable[[Path], Any]  # writes one file, at the path that it is given


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Gives the temporary name to write under. When the block ends, one move puts the file in its place.

    If the block raises, `path` stays as it was and the temporary file is removed. If the process is killed, the
    temporary file stays; the next `writing` of the same `path` removes it first.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` atomically, as UTF-8."""
    with writing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
