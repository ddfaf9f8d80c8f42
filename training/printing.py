"""Where a command's output goes: a terminal that lacks letters, or a pipe whose reader may go away, as with `head`."""

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


READER_GONE = 141  # the status that a shell gives a command whose output nobody reads any more


@contextmanager
def printing() -> Iterator[None]:
    """Escapes what the terminal cannot show. If the reader of a pipe is gone, as with `head`, ends quietly."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not closed:
            raise  # a connection of another kind
        for stream in closed:  # what is left in it would raise once more at the end of the process
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(READER_GONE)


def _has_no_reader(stream: TextIO) -> bool:
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # a stream of a test or a notebook, without a file
        return False
    return bool(poll.poll(0))
