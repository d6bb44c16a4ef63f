"""Looks at paths of the host, each in a thread of its own and with a deadline.

Owns the threads. A file system whose server is gone (NFS, FUSE) may never answer, and the thread
that asks it cannot be stopped. Such a thread must hold up neither an operation that has the lock of
a VM, nor the threads that other operations need, nor the end of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, TypeVar

from services.handshake.errors import DeadlineExceededError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

DEADLINE_S: Final = 5.0
"""Longest that a look takes, the wait for a free thread included."""

MAX_THREADS: Final = 32
"""Most looks at a time; those that no file system answers count as long as they last."""


class HostPaths:
    """The looks at paths of the host. Use it in one event loop.

    Args:
        deadline_s: Longest that a look takes.
        max_threads: Most looks at a time.
    """

    def __init__(self, deadline_s: float = DEADLINE_S, max_threads: int = MAX_THREADS) -> None:
        self._deadline_s = deadline_s
        self._max_threads = max_threads
        self._free = asyncio.Semaphore(max_threads)

    async def look(self, path: str, function: Callable[[], T]) -> T:
        """Run a function that looks at a path, in a thread of its own.

        Args:
            path: The path, for the message.
            function: It may block for ever; its result is then dropped.

        Raises:
            DeadlineExceededError: SHARE_PATH_SILENT.
            PortholeError: Any that the function raises.
        """
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._free.acquire()
                return await asyncio.wrap_future(self._start(function))
        except TimeoutError:
            raise DeadlineExceededError(
                "SHARE_PATH_SILENT",
                f"host path {path!r}: its file system did not answer within {self._deadline_s:g} "
                f"s, or {self._max_threads} looks at other paths have not ended; see whether the "
                "server of the file system runs",
                host_path=path,
            ) from None

    def _start(self, function: Callable[[], T]) -> Future[T]:
        loop = asyncio.get_running_loop()
        found: Future[T] = Future()
        found.set_running_or_notify_cancel()  # a caller that has gone away must not cancel it

        def give_back(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before the look
                loop.call_soon_threadsafe(self._free.release)

        found.add_done_callback(give_back)

        def run() -> None:
            try:
                found.set_result(function())
            except BaseException as error:
                found.set_exception(error)

        try:
            threading.Thread(target=run, name="host-path", daemon=True).start()
        except RuntimeError as error:  # no thread can be made now
            found.set_exception(error)
        return found
