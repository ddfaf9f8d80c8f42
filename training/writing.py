"""Writes files atomically: under a temporary name beside their place, then moved into it.

What has been moved survives a loss of power: the content is on the disk before the move, and the move itself after it.
"""

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
        move(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` atomically, as UTF-8."""
    with writing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def move(source: Path, target: Path) -> None:
    """Moves a file to `target`, on the same file system, so that it is there after a loss of power."""
    sync(source)
    os.replace(source, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
