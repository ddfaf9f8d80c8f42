"""Temporary folders that killed processes do not leave for long: the next process that needs one removes them.

The owner of a folder holds a lock on a file in it, which the kernel lets go when the process ends, however it ends. A
process number would not do: another container that shares the folder of temporary files has numbers of its own.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


PREFIX = "lstmpool-publish-"
LOCK = "owner.lock"
INSIDE = "inside"  # the folder that is given away
YOUNG = 1  # second, in which the owner has surely taken the lock
OLD = 60  # seconds


@contextmanager
def scratch() -> Iterator[Path]:
    """Gives an empty temporary folder, and removes it at the end.

    First it removes the folders that killed processes have left.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
        with FileLock(Path(folder, LOCK)):
            inside = Path(folder, INSIDE)
            inside.mkdir()
            yield inside


def _is_abandoned(folder: Path) -> bool:
    """Whether nobody holds the folder's lock.

    A folder without a lock was made again by a child of the killed process, which lives on for a while.
    """
    try:
        if folder.is_symlink() or not folder.is_dir():
            return False
        age = time.time() - folder.stat().st_mtime
        if not (folder / LOCK).is_file():
            return age > OLD and {path.name for path in folder.iterdir()} <= {INSIDE}
        with FileLock(folder / LOCK, blocking=False):
            return age > YOUNG
    except (Timeout, OSError):
        return False  # somebody holds it, or has just removed it
