"""Files that are whole or not there: written under a temporary name beside their place, then moved into it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


Writer = Callable[[Path], Any]  # writes one file, at the path that it is given


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Gives the temporary name to write under. The file takes its place when the block ends, in one move.

    A block that raises leaves what lies at `path` as it was, and no temporary file. A kill leaves the temporary file,
    which the next writing of the same `path` removes first.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8."""
    with writing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
