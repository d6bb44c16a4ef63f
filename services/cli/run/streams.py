"""The standard streams of this process, read and written without blocking the event loop.

Owns the threads. The descriptors stay in blocking mode, because other programs have
them, too: O_NONBLOCK would be theirs as well. So each call waits with poll(2) first, together with
a pipe that ends the wait. Must not know commands or guests.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

CHUNK_BYTES: Final = 64 << 10

PIECE_BYTES: Final = select.PIPE_BUF
"""Most bytes of one write: a pipe that poll(2) calls writable takes this much without blocking."""

STUCK_S: Final = 1.0
"""How long a call may take to notice `stop`. One on a terminal that is stuck is left behind."""


class StandardStreams:
    """Reads and writes descriptors until `stop`; made by `streams`."""

    def __init__(self) -> None:
        self._stopped_fd, self._stop_fd = os.pipe()
        self._waiting = 0

    def stop(self) -> None:
        """End what is waiting, and everything from now on."""
        os.write(self._stop_fd, b"x")

    def close(self) -> None:
        """Close the pipe, unless a call is stuck that may still look at it."""
        if not self._waiting:
            os.close(self._stopped_fd)
            os.close(self._stop_fd)

    async def read(self, fd: int) -> bytes:
        """Read some bytes; empty at the end, and after `stop`.

        Raises:
            OSError: The file cannot be read.
        """
        return await self._in_thread(lambda: self._read(fd))

    async def write(self, fd: int, data: bytes) -> None:
        """Write all bytes, or until `stop`.

        Raises:
            BrokenPipeError: Nobody reads it any more.
            OSError: The file cannot be written.
        """
        await self._in_thread(lambda: self._write(fd, data))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        # A daemon thread: one that is stuck must not hold up the end of this process.
        call: Future[T] = Future()
        call.set_running_or_notify_cancel()

        def run() -> None:
            try:
                call.set_result(function())
            except BaseException as error:
                call.set_exception(error)

        threading.Thread(target=run, name="standard-stream", daemon=True).start()
        waiting = asyncio.wrap_future(call)
        self._waiting += 1
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            self.stop()
            await asyncio.wait([waiting], timeout=STUCK_S)
            raise
        finally:
            self._waiting -= call.done()

    def _read(self, fd: int) -> bytes:
        try:
            return os.read(fd, CHUNK_BYTES) if self._wait(fd, select.POLLIN) else b""
        except OSError as error:
            if error.errno == errno.EIO:
                return (
                    b""  # a terminal that is gone, or that a process in the background may not read
                )
            raise

    def _write(self, fd: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest and self._wait(fd, select.POLLOUT):
            rest = rest[os.write(fd, rest[:PIECE_BYTES]) :]

    def _wait(self, fd: int, event: int) -> bool:
        """Wait for a descriptor; return False after `stop`."""
        waiting = select.poll()
        waiting.register(fd, event)
        waiting.register(self._stopped_fd, select.POLLIN)
        return self._stopped_fd not in (ready for ready, _ in waiting.poll())


def open_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that the caller has closed, before other files get their numbers."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@contextlib.contextmanager
def streams() -> Iterator[StandardStreams]:
    """Have the streams in the body, in which all calls must end."""
    made = StandardStreams()
    try:
        yield made
    finally:
        made.stop()
        made.close()
