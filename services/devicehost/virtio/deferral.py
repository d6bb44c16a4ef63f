"""Answers that come later than their requests, and what a queue does with a chain meanwhile.

A request that has to wait must not hold up its queue. Its handler returns a Deferred instead of a
number of bytes, and the queue's thread keeps the chain. Any thread settles the Deferred. An eventfd
then wakes up the queue's thread, which writes the answer and pushes the chain: no other thread
touches guest memory or the ring. A queue that keeps no chain has no such eventfd, and spins before
it sleeps. A queue that stops gives up all requests that it keeps, and answers them before its
thread ends: the driver gets every chain back.

The number of kept chains is bounded, per queue and per device. A queue that keeps one too many
waits for room and takes no further chain meanwhile. But the request that would make room, an unlock
for instance, may be in that very ring. So the queue waits for a limited time, then gives up the
request beyond the bound and goes on. Until there is room again, further requests beyond the bound
are given up at once. Must not know devices.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from services.devicehost.accounting import Bound, DeviceMeter
from services.handshake.exhaustion import Resource

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.virtio.queue import Chain, Queue

MAX_QUEUED: Final = 64
"""Most requests that a device has taken off its rings and not answered: those that wait, and the
buffers that wait for a frame. A request that a queue is serving does not count."""

ROOM_DEADLINE_S: Final = 1.0
"""How long a queue waits for room, and takes no chain meanwhile."""

RING_SHARE: Final = 4
"""Entries of a ring for each chain that its queue may keep: a request that waits takes up to three
descriptors (header, arguments, answer), and the request that ends the wait needs room too."""

GIVE_UP_DEADLINE_S: Final = 2.0
"""How long a queue that stops waits for requests that it has given up; well below
vhost_user.worker.STOP_DEADLINE_S."""


class Deferred(ABC):
    """An answer that is settled once, by any thread, and written by its queue's thread.

    Attributes:
        result: What it was settled with; meaningless before.
    """

    def __init__(self) -> None:
        self.result = 0
        self._settled = threading.Event()
        self._lock = threading.Lock()
        self._on_settled: Callable[[], None] | None = None

    def settle(self, result: int) -> bool:
        """Decide the answer; from any thread. Return whether it was undecided until now."""
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
        """Wait until it is settled; return whether it is."""
        return self._settled.wait(timeout_s)

    def call_when_settled(self, on_settled: Callable[[], None]) -> None:
        """Call this once: on the thread that settles the answer, or now if it is settled."""
        with self._lock:
            if not self._settled.is_set():
                self._on_settled = on_settled
                return
        on_settled()

    @abstractmethod
    def write(self) -> int:
        """Write the answer that was settled, and return its length in bytes."""

    @abstractmethod
    def give_up(self) -> None:
        """Cause it to be settled soon, without waiting. Harmless when repeated."""

    @abstractmethod
    def expire(self, deadline: float) -> None:
        """Wait until it is settled; at a deadline, settle it as failed.

        Args:
            deadline: By time.monotonic().
        """


REFUSE_DEADLINE_S: Final = 0.05
"""How long a queue waits for a given-up request beyond the bound to be settled."""


class QueuedRequests:
    """The requests of one device whose answers come later, of all its queues together."""

    def __init__(self, meter: DeviceMeter, limit: int = MAX_QUEUED) -> None:
        """Begin with none.

        Args:
            meter: Of the device.
            limit: Most of them at a time.
        """
        self._meter = meter
        self._limit = limit
        self._count = 0
        self._waiting: set[KeptChains] = set()
        self._in_vain = False
        self._lock = threading.Lock()
        meter.bounds.add(Bound(Resource.QUEUED_REQUESTS, limit, lambda: self._count))

    def lacks_room(self, kept: KeptChains) -> bool:
        """Return whether a queue has taken more than there is room for."""
        with self._lock:  # the requests for which other queues wait do not count
            return self._count - len(self._waiting - {kept}) > self._limit

    def take(self) -> None:
        """Count one more."""
        with self._lock:
            self._count += 1

    def give(self, count: int) -> None:
        """Take off requests that were answered, and wake up the queues that wait for room."""
        with self._lock:
            self._count -= count
            waiting = tuple(self._waiting)
        for kept in waiting:
            kept.wake()

    def begin_wait(self, kept: KeptChains) -> bool:
        """Return whether a queue that lacks room is to wait for it; `end_wait` ends its wait."""
        bounds = self._meter.bounds
        known = bounds.is_exhausted(Resource.QUEUED_REQUESTS)
        bounds.hit(Resource.QUEUED_REQUESTS)
        with self._lock:
            self._in_vain = known and self._in_vain
            if self._in_vain:
                return False
            self._waiting.add(kept)
        with self._meter.counting as counters:
            counters.held_back += 1
        return True

    def end_wait(self, kept: KeptChains, *, in_vain: bool) -> None:
        """End a queue's wait.

        Args:
            kept: Of the queue.
            in_vain: Whether the deadline came before there was room.
        """
        with self._lock:
            self._waiting.discard(kept)
            self._in_vain = self._in_vain or in_vain


class KeptChains:
    """The chains of one queue whose answers come later; for the queue's thread alone.

    Attributes:
        due: Chains whose answer is settled and not pushed yet; other threads add to them.
    """

    def __init__(self, queue: Queue, queued: QueuedRequests | None = None) -> None:
        self.due: list[Chain] = []
        self._queue = queue
        self._queued = queued or QueuedRequests(DeviceMeter())
        self._kept: dict[Chain, Deferred] = {}
        self._lock = threading.Lock()
        self._fd: int | None = None

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that wake the queue up, besides its buffers; none while no chain is kept."""
        return (self._fd,) if self._kept and self._fd is not None else ()

    def keep(self, chain: Chain, deferred: Deferred) -> None:
        """Keep a chain until its answer is settled; waits for room when there are too many."""
        if self._fd is None:
            self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._kept[chain] = deferred
        self._queued.take()
        deferred.call_when_settled(lambda: self._announce(chain))
        if self._lacks_room():
            if self._queued.begin_wait(self):
                self._wait_for_room(self._fd)
            if self._lacks_room():
                deferred.give_up()
                deferred.expire(time.monotonic() + REFUSE_DEADLINE_S)

    def push_settled(self) -> None:
        """Write and push every answer that is settled."""
        with self._lock:
            due, self.due = self.due, []
            if self._fd is not None:
                with contextlib.suppress(BlockingIOError):  # nothing was signalled
                    os.eventfd_read(self._fd)
        for chain in due:
            self._queue.push(chain, self._kept.pop(chain).write())
        self._queued.give(len(due))

    def wake(self) -> None:
        """Make the queue look for room again, if it waits for room; from any thread."""
        with self._lock:  # the descriptor is not closed meanwhile
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Give up every answer, push them all, and close the eventfd."""
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
        with self._lock:
            self._fd = None
        os.close(fd)

    def _lacks_room(self) -> bool:
        share = max(self._queue.size // RING_SHARE, 1)
        return len(self._kept) > share or self._queued.lacks_room(self)

    def _wait_for_room(self, fd: int) -> None:
        """Push what is settled until there is room, the time is over, or the queue was stopped."""
        deadline = time.monotonic() + ROOM_DEADLINE_S
        left_s = ROOM_DEADLINE_S
        while self._lacks_room() and left_s > 0 and not self._queue.stopped:
            self._queue.wait(fd, buffers=False, timeout_s=left_s)
            self.push_settled()
            left_s = deadline - time.monotonic()
        self._queued.end_wait(self, in_vain=left_s <= 0)

    def _announce(self, chain: Chain) -> None:
        with self._lock:  # each chain is announced once, and `close` has waited for all of them
            self.due.append(chain)
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)
