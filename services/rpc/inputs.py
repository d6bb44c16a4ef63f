"""Input files that are read as a whole: at most so many bytes, and for at most so long.

A path may name a pipe that nobody writes to, a device, or a file without end. Reading them must
end, too. Must not know what is in the files.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from typing import TYPE_CHECKING, Final

from services.handshake.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path

TIME_LIMIT_S: Final = 60.0
"""Longest time that a pipe or device gets from its opening to its end. A file needs no limit."""

STDIN_FD: Final = 0

_CHUNK_BYTES: Final = 1 << 20


def read_bounded(path: Path, limit_bytes: int, remedy: str) -> bytes:
    """Read a file, pipe or device to its end.

    Args:
        path: Its path.
        limit_bytes: Most bytes that it may have.
        remedy: The advice for one that is longer.

    Raises:
        OSError: It cannot be read.
        InvalidArgumentError: INPUT_TOO_LARGE, or INPUT_TOO_SLOW after TIME_LIMIT_S.
    """
    # With O_NONBLOCK a pipe opens without a writer, for which `poll` then waits.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if status.st_size > limit_bytes:
            raise too_large(str(path), limit_bytes, remedy)
        return _read(fd, str(path), limit_bytes, remedy)
    finally:
        os.close(fd)


def read_standard_input(limit_bytes: int, remedy: str) -> bytes:
    """Read the standard input to its end; arguments and errors are those of `read_bounded`."""
    return _read(STDIN_FD, "standard input", limit_bytes, remedy)


def _read(fd: int, name: str, limit_bytes: int, remedy: str) -> bytes:
    deadline_s = time.monotonic() + TIME_LIMIT_S
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    content = bytearray()
    while True:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not ready.poll(left_s * 1000):
            raise too_slow(name, len(content))
        try:
            chunk = os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:  # another reader of the same pipe was faster
            continue
        if not chunk:
            return bytes(content)
        content += chunk
        if len(content) > limit_bytes:
            raise too_large(name, limit_bytes, remedy)


def too_large(name: str, limit_bytes: int, remedy: str) -> InvalidArgumentError:
    """Return the refusal of an input that is longer than its bound."""
    return InvalidArgumentError(
        "INPUT_TOO_LARGE",
        f"{name} is longer than {limit_bytes} bytes, or has no end; {remedy}",
        path=name,
        limit=limit_bytes,
    )


def too_slow(name: str, read_bytes: int) -> InvalidArgumentError:
    """Return the refusal of an input that did not end in time, after so many bytes."""
    return InvalidArgumentError(
        "INPUT_TOO_SLOW",
        f"{name} did not end within {TIME_LIMIT_S:g} s, after {read_bytes} bytes; write "
        "it to a file first",
        path=name,
        limit_s=str(TIME_LIMIT_S),
    )
