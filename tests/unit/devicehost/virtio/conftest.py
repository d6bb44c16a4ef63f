from __future__ import annotations

import os
import select
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

import pytest

from services.devicehost.accounting import DeviceMeter
from services.devicehost.memory import ApertureMemory, GuestMemory
from services.devicehost.virtio.queue import Queue
from services.devicehost.virtio.queue_setup import QueueSetup, QueueState
from services.handshake.pool import Gpa, SwiotlbPool
from services.wire.virtio_ring import avail_bytes, desc_table_bytes, used_bytes
from tests.support.guest_ring import GuestRam, GuestRing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

POOL = SwiotlbPool(Gpa(4 << 20), 4 << 20)
DATA = POOL.base + (1 << 20)
"""Address of the tests' buffers; the ring is at the start of the pool."""


class Rig:
    """A guest with one ring in its pool, and the device side of it."""

    def __init__(self) -> None:
        self.ram = GuestRam(16 << 20)
        self.meter = DeviceMeter()
        self.table = self.ram.table()
        self.memory: GuestMemory = ApertureMemory(self.table, POOL, self.meter)
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._queues: list[Queue] = []

    def ring(self, size: int = 8) -> GuestRing:
        return GuestRing(self.ram, POOL.base, size)

    def setup(
        self,
        ring: GuestRing,
        *,
        event_idx: bool = False,
        indirect: bool = True,
        memory: GuestMemory | None = None,
        polled: bool = False,
    ) -> QueueSetup:
        return QueueSetup(
            index=0,
            size=ring.size,
            desc=self.memory.pin(ring.desc, desc_table_bytes(ring.size)).view,
            avail=self.memory.pin(ring.avail, avail_bytes(ring.size)).view,
            used=self.memory.pin(ring.used, used_bytes(ring.size)).view,
            memory=memory or self.memory,
            kick_fd=None if polled else self.kick_fd,
            call_fd=self.call_fd,
            event_idx=event_idx,
            indirect=indirect,
            counters=self.meter.queue(0),
        )

    def queue(
        self,
        ring: GuestRing,
        *,
        event_idx: bool = False,
        indirect: bool = True,
        base: int = 0,
        memory: GuestMemory | None = None,
        polled: bool = False,
    ) -> Queue:
        setup = self.setup(
            ring, event_idx=event_idx, indirect=indirect, memory=memory, polled=polled
        )
        queue = Queue(setup, QueueState(base))
        self._queues.append(queue)
        return queue

    def kick(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

    def calls(self) -> int:
        """Return the number of notifications since the last call."""
        ready, _, _ = select.select([self.call_fd], [], [], 0)
        return os.eventfd_read(self.call_fd) if ready else 0

    def close(self) -> None:
        for queue in self._queues:
            queue.close()
        self.memory.release()
        self.table.close()
        os.close(self.kick_fd)
        os.close(self.call_fd)
        self.ram.close()


class CountingLease:
    """A lease that keeps a chain's buffers mapped, and counts how often it is closed.

    Attributes:
        closed: How often it was closed.
    """

    def __init__(self) -> None:
        self.closed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def view(self, gpa: int, length: int) -> memoryview:
        raise NotImplementedError

    def views(self, addresses: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1


@contextmanager
def full_and_blocking(fd: int) -> Iterator[None]:
    """Let the next write to an eventfd wait until this is over, as a front-end can."""
    with suppress(BlockingIOError):
        os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)
    os.eventfd_write(fd, (1 << 64) - 2)
    os.set_blocking(fd, True)
    try:
        yield
    finally:
        os.eventfd_read(fd)


def eventually(question: Callable[[], bool]) -> bool:
    """Ask again until the answer is yes: the other thread sends no event."""
    deadline = time.monotonic() + 10
    while not (answer := question()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return answer


def serve_all(queue: Queue, written: int = 0) -> int:
    served = 0
    while (chain := queue.pop()) is not None:
        queue.push(chain, written)
        served += 1
    return served


def push_bytes(queue: Queue, *written: int) -> None:
    for count in written:
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, count)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()
