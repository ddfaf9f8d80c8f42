"""One run at a time in an output folder: a lock of the kernel, which a kill lets go, and a note of who holds it.

The lock file and the note are hidden, belong to no run, and are removed when the run ends.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from lstmpool.training.errors import InputError, one_line
from lstmpool.training.output.found import MEMBERS
from lstmpool.training.writing import write_text


LOCK, HOLDER = ".lstmpool.lock", ".lstmpool.holder"
_held: set[Path] = set()  # absolute paths of the folders that this process holds


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of `folder`, which is made if it is missing, until the block ends.

    Inside of a folder that this process holds already, nothing is done. The same holds for a file, which the run
    refuses by itself.

    Raises:
        InputError: if another run holds the folder, one around it or a fold or seed in it, and says which one; or if
            nothing can be written there.
    """
    place = folder.resolve()
    if not _held.isdisjoint([place, *place.parents]) or (folder.exists() and not folder.is_dir()):
        yield
        return
    with ExitStack() as stack:
        with one_line(f"--output_dir {folder} cannot be written"):
            members = [lock.parent for kind in MEMBERS for lock in place.glob(f"{kind}*/{LOCK}")]
            for other in (*place.parents, *members):
                with suppress(OSError):  # a file of another user
                    if (other / LOCK).is_file():  # of a cross-validation, for example, or of one of its folds
                        _acquire(folder, other).release()
            stack.callback(_remove_empty, _made(place))
            lock = _acquire(folder, place)
            stack.callback(lock.release)
            # It goes while it is held: who has opened it before sees that it is gone, and does not take it for the
            # lock.
            stack.callback(_remove, place / LOCK)
            since = datetime.now().astimezone().isoformat(" ", "seconds")
            note = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
            write_text(place / HOLDER, json.dumps(note) + "\n")
            stack.callback(_remove, place / HOLDER)
        _held.add(place)
        stack.callback(_held.discard, place)
        yield


def _made(place: Path) -> list[Path]:
    """Makes the folder; returns those that were missing, the innermost first."""
    missing = [path for path in (place, *place.parents) if not path.exists()]
    place.mkdir(parents=True, exist_ok=True)
    return missing


def _acquire(folder: Path, place: Path) -> FileLock:
    """Takes the lock of `place`: the `folder`, or one around or in it. Raises InputError if another run has it."""
    lock = FileLock(place / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"--output_dir {folder} is in use by another run, {_name(place)}. Wait for its end, or choose another "
            "folder."
        ) from None
    return lock


def _name(place: Path) -> str:
    """Who holds the lock, and since when."""
    try:
        note = json.loads((place / HOLDER).read_text(encoding="utf-8"))
        return f"process {note['process']} on {note['host']}, since {note['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which has just begun"


def _remove(path: Path) -> None:
    """Removes a file. If that fails, the run has ended as it has, all the same."""
    with suppress(OSError):
        path.unlink()


def _remove_empty(folders: list[Path]) -> None:
    """Removes the folders, the innermost first, as far as nothing lies in them."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
