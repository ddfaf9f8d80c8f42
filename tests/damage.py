"""Full disks and damaged files: what `python -m tests.kills` does to runs besides killing them.

A disk is full at a random moment of a random save: a limit on the size of files stands for it. Or bytes of a run's
files are flipped, zeroed or cut. Then the command is given again, and must end in the same weights as a run to which
nothing happened.
"""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


KINDS = ("flipped", "zeroed", "cut")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Within this block, no file can grow beyond `size` bytes. Python ignores the signal, so that writing fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def damage_file(path: Path, kind: str, at: float = 0.5) -> None:
    """Damages a file in place. `kind` is one of `KINDS`; `at`: where, as a share of its length."""
    content = bytearray(path.read_bytes())
    place = min(int(at * len(content)), len(content) - 1)
    if kind == "flipped":
        content[place] ^= 1
    elif kind == "zeroed":
        content[place:] = bytes(len(content) - place)
    else:
        content = content[:place]
    path.write_bytes(bytes(content))
