"""Writes files atomically: under a temporary name beside their place, then moved into it.

What has been moved survives a loss of power: the content is on the disk before the move, and the move itself after it.
Digests tell later whether the disk still holds what was written.
"""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from lstmpool.training.errors import InputError


Writer = Callable[[Path], Any]  # writes one file, at the path that it is given
DIGEST_SIZE = 16  # bytes
# How torch, safetensors and tokenizers (one form for both), and SQLite speak of the disk. They raise no OSError.
OF_TORCH = ("inline_container", "PytorchStreamWriter")
OF_THE_DISK = (*OF_TORCH, "(os error ", "database or disk is full", "disk I/O error")


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


@contextmanager
def saving(path: Path, half_made: Path | None = None) -> Iterator[None]:
    """Turns what a full or broken disk raises, while the block writes `path`, into one line.

    Args:
        path: a file or a folder, for the message.
        half_made (`Path`, *optional*): a folder that is removed then. Half of it is of no use, and takes room.

    Raises:
        InputError: in place of the errors of the disk. All others are left as they are.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not any(words in str(error) for words in OF_THE_DISK):
            raise
        reason = "a file did not take all bytes" if any(words in str(error) for words in OF_TORCH) else error
        free = bytes_free(path)  # before the half is removed
        if half_made is not None:
            shutil.rmtree(half_made, ignore_errors=True)
        raise InputError(
            f"{path} cannot be written: {reason}. The disk has {free / 1e6:,.1f} MB free. Make room, and then give "
            "the same command again: it goes on from the last checkpoint, if there is one."
        ) from None


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
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network drives cannot do this for a folder
            raise
    finally:
        os.close(descriptor)


def settle(folder: Path) -> None:
    """Gives each file in `folder` and its folders the mode that the umask says, and waits until all is on the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            open_to_others(path)
            sync(path)
        sync(Path(place))


def open_to_others(path: Path) -> None:
    """Gives a file the mode that the umask says. safetensors makes files that their owner alone can read."""
    umask = os.umask(0o077)  # there is no other way to read it
    os.umask(umask)
    mode = 0o666 & ~umask
    if stat.S_IMODE(path.stat().st_mode) != mode:
        with suppress(PermissionError):  # some network drives have no modes
            path.chmod(mode)


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """A digest of each file, by its name in `folder`."""
    return {name: digest_of(folder / name) for name in names}


def changed_since(folder: Path, digests: dict[str, str]) -> str:
    """Says which file in `folder` is missing, or no longer has its digest of then. Empty if all do."""
    for name, expected in digests.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if digest_of(folder / name) != expected:
            return f"{name} is not what was written (its bytes have another digest)"
    return ""


def digest_of(path: Path, left_out: int = 0) -> str:
    """A digest of a file's bytes without the last `left_out`.

    It is made once in a process, unless the file has changed meanwhile: folds and trials ask for the same files.
    """
    state = path.stat()
    return _digest(path, state.st_size - left_out, state.st_ino, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, inode: int, changed: int) -> str:
    """The digest of the first `size` bytes of the file that is in this state."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    with path.open("rb") as file:
        while block := file.read(min(size, 1 << 20)):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def bytes_free(path: Path) -> int:
    """Bytes that are free where `path` is, or will be."""
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(nearest).free
