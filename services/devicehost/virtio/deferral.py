"""Answers that come later than their requests: what a queue does with a chain meanwhile.

A request that has to wait must not hold up its queue. Its handler returns a Deferred instead of a
number of bytes, and the queue's thread keeps the chain. Any thread settles the Deferred; the answer
is written and the chain pushed by the queue's own thread, which an eventfd wakes up. So guest
memory and the ring are touched by that thread alone, as ever, and a queue without such chains costs
no descriptor and spins before it sleeps. When the queue stops, what is kept is given up and
answered before the thread ends: the driver gets every chain back. Must not know devices.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.virtio.queue import Chain, Queue

RING_SHARE: Final = 8
"""A queue keeps at most one chain per so many entries of its ring: a request that waits takes up to
three descriptors (header, arguments, answer), and whatever ends the wait needs room as well."""

GIVE_UP_DEADLINE_S: Final = 2.0
"""How long a queue that stops waits for what it has given up; well below rings.STOP_DEADLINE_S."""


class Deferred(ABC):
    """An answer that is settled once, by any thread, and written by its queue's thread.

    Attributes:
        result: What it was settled with; of use once it is settled.
    """

    def __init__(self) -> None:
        self.result = 0
        self._settled = threading.Event()
        self._lock = threading.Lock()
        self._on_settled: Callable[[], None] | None = None

    def settle(self, result: int) -> bool:
        """Decide the answer; from any thread. Tells whether it was undecided until now."""
        with self._lock:
            if self._settled.is_set():
                return False
            self.result = result
            self._settled.set()
            on_settled = self._on_settled
        if on_settled is not None:
            on_settled()
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is settled; tells whether it is."""
        return self._settled.wait(timeout_s)

    def call_when_settled(self, on_settled: Callable[[], None]) -> None:
        """Have this called once, by whoever settles it, or at once if it is settled already."""
        with self._lock:
            if not self._settled.is_set():
                self._on_settled = on_settled
                return
        on_settled()

    @abstractmethod
    def write(self) -> int:
        """Write the answer that was settled; returns the bytes, as a handler does."""

    @abstractmethod
    def give_up(self) -> None:
        """Ask whoever works on it to settle it soon; returns at once, harmless when repeated."""

    @abstractmethod
    def expire(self, deadline: float) -> None:
        """Settle it in any case: as the one who works on it says until then, as failed afterwards.

        Args:
            deadline: By time.monotonic().
        """


class KeptChains:
    """The chains of one queue whose answers come later; for the queue's thread alone.

    Attributes:
        due: Those whose answer is settled; push them by `push_settled`. Other threads add to it.
    """

    def __init__(self, queue: Queue) -> None:
        self.due: list[Chain] = []
        self._queue = queue
        self._kept: dict[Chain, Deferred] = {}
        self._lock = threading.Lock()
        self._fd: int | None = None

    @property
    def fds(self) -> tuple[int, ...]:
        """What the queue must wake up for, besides its buffers; nothing while no chain is kept."""
        return (self._fd,) if self._kept and self._fd is not None else ()

    def keep(self, chain: Chain, deferred: Deferred) -> None:
        """Keep a chain until its answer is settled; beyond the bound it is given up at once."""
        if self._fd is None:
            self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._kept[chain] = deferred
        deferred.call_when_settled(lambda: self._announce(chain))
        if len(self._kept) > max(self._queue.size // RING_SHARE, 1):
            deferred.give_up()

    def push_settled(self) -> None:
        """Write and push every answer that is settled."""
        with self._lock:
            due, self.due = self.due, []
            if self._fd is not None:
                with contextlib.suppress(BlockingIOError):  # it says nothing, and that is fine
                    os.eventfd_read(self._fd)
        for chain in due:
            self._queue.push(chain, self._kept.pop(chain).write())

    def close(self) -> None:
        """Give every answer up, push them all, and let go of the eventfd."""
        for deferred in self._kept.values():
            deferred.give_up()
        deadline = time.monotonic() + GIVE_UP_DEADLINE_S
        for deferred in self._kept.values():
            deferred.expire(deadline)
        fd = self._fd
        if fd is None:
            return
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while self._kept:
            poll.poll()
            self.push_settled()
        self._fd = None
        os.close(fd)

    def _announce(self, chain: Chain) -> None:
        with self._lock:  # each chain is announced once, and `close` has waited for all of them
            self.due.append(chain)
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)
