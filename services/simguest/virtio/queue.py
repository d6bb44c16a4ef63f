"""A virtqueue for many threads: they submit requests, the queue's own thread completes them.

Owns the requests in flight on one ring, their mappings and the eventfds. The device is not trusted:
when it breaks a rule, the queue fails and the guest goes on. Must not know vhost-user or what the
requests mean.

Submitters share a lock. The completion thread takes it only when a submitter waits for room. No
system call is made under it, because another thread could run during the call, and would only wait
for the lock.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    PortholeError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.simguest.virtio.interface import REQUEST_DEADLINE_S
from services.simguest.virtio.ring import BrokenRingError, DriverRing, chain_descriptors
from services.wire.virtio_ring import DESC, DESC_BYTES, DESC_F_INDIRECT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.simguest.memory.dma import Buffer, Dma, Mapping

_HANG_UP: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

_log = logging.getLogger(__name__)


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


class _Doorbell:
    """The kick eventfd. It is closed with its last reference, so a late kick hits no other file."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        self.fd = _eventfd()

    def __del__(self) -> None:
        os.close(self.fd)

    def ring(self) -> None:
        os.eventfd_write(self.fd, 1)


@dataclass(slots=True, eq=False)
class _Request:
    """One request in flight; the device owns its mappings until it is used or withdrawn.

    Attributes:
        chain: The buffers, device-readable ones first.
        readable: Number of buffers that the device may only read.
        table: The indirect table, if there is one.
        future: Gets the answer; None for a receive buffer, which is posted again.
        descriptors: Entries of the ring's table that the request takes.
        writable: The buffers that the device may write.
        room: Bytes that the device may write.
    """

    chain: list[Mapping]
    readable: int
    table: Mapping | None
    future: Future[list[bytes]] | None
    descriptors: list[int] = field(default_factory=list)
    writable: list[Mapping] = field(init=False)
    room: int = field(init=False)

    def __post_init__(self) -> None:
        self.writable = self.chain[self.readable :]
        self.room = sum(mapping.length for mapping in self.writable)

    @property
    def mappings(self) -> list[Mapping]:
        return self.chain if self.table is None else [*self.chain, self.table]


class SplitQueue:
    """One virtqueue, from its driver's side; implements `interface.DriverQueue`."""

    def __init__(
        self, index: int, device: str, ring: DriverRing, dma: Dma, *, indirect: bool
    ) -> None:
        """Make the queue; nothing completes until `start`.

        Args:
            index: Number of the queue in its device.
            device: Name of the device, for messages.
            ring: The ring, empty.
            dma: Maps the buffers.
            indirect: Whether INDIRECT_DESC is negotiated.
        """
        self.index = index
        self.size = ring.size
        self.ring = ring
        self.call_fd, self.err_fd, self._stop_fd = _eventfd(), _eventfd(), _eventfd()
        self._doorbell: _Doorbell | None = _Doorbell()
        self._name = f"queue {index} of {device}"
        self._dma = dma
        self._indirect = indirect
        self._requests: list[_Request | None] = [None] * ring.size
        self._free = deque(range(ring.size))
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._waiting = 0
        self._error: PortholeError | None = None
        self._withdrawn: list[Mapping] = []
        self._received: Callable[[bytes], None] | None = None
        self._thread: threading.Thread | None = None

    # For drivers.

    def submit(
        self,
        out: Sequence[Buffer],
        in_sizes: Sequence[int],
        *,
        deadline_s: float = REQUEST_DEADLINE_S,
    ) -> Future[list[bytes]]:
        """Make one request available; see `DriverQueue.submit`."""
        if self._error is not None:
            raise self._error
        end = time.monotonic() + deadline_s
        count = len(out) + len(in_sizes)
        if not 0 < count <= self.size:
            raise InvalidArgumentError(
                "CHAIN_LENGTH",
                f"a request of {count} buffers for {self._name}: give 1 to {self.size}",
                count=count,
                bound=self.size,
            )
        lengths = [*map(len, out), *in_sizes]
        if not self._indirect or count == 1:
            chain, table = self._dma.map(lengths, deadline_s), None
        else:
            *chain, table = self._dma.map([*lengths, count * DESC_BYTES], deadline_s)
        future: Future[list[bytes]] = Future()
        future.set_running_or_notify_cancel()  # a request cannot be taken back from the device
        request = _Request(chain, len(out), table, future)
        try:
            if table is None:
                self._dma.sync_for_device(chain, out)
            else:
                packed = chain_descriptors(chain, len(out), range(1, count))
                self._dma.sync_for_device([*chain[: len(out)], table], [*out, packed])
            self._add(request, end)
        except BaseException:
            self._dma.unmap(request.mappings)
            raise
        return future

    def transact(
        self,
        out: Sequence[Buffer],
        in_sizes: Sequence[int],
        *,
        deadline_s: float = REQUEST_DEADLINE_S,
        timeout_s: float | None = None,
    ) -> list[bytes]:
        """Submit and wait for the answer; see `DriverQueue.transact`."""
        future = self.submit(out, in_sizes, deadline_s=deadline_s)
        try:
            return future.result(timeout_s)
        except FutureTimeoutError:
            raise DeadlineExceededError(
                "REQUEST_TIMEOUT",
                f"{self._name} has not answered a request within {timeout_s} s",
                queue=self.index,
            ) from None

    def post_receive(self, buffers: int, size_bytes: int, on_data: Callable[[bytes], None]) -> None:
        """Post long-lived receive buffers; see `DriverQueue.post_receive`."""
        if self._error is not None:
            raise self._error
        if not 0 < buffers <= self.size or self._received is not None:
            raise InvalidArgumentError(
                "RECEIVE_BUFFERS",
                f"{buffers} receive buffers for {self._name}: post 1 to {self.size}, once",
                buffers=buffers,
                bound=self.size,
            )
        end = time.monotonic() + REQUEST_DEADLINE_S
        mappings = self._dma.map([size_bytes] * buffers, REQUEST_DEADLINE_S)
        self._received = on_data
        for posted, mapping in enumerate(mappings):
            try:
                self._add(_Request([mapping], 0, None, None), end)
            except BaseException:
                self._dma.unmap(mappings[posted:])
                raise

    # For the transport.

    @property
    def kick_fd(self) -> int:
        """The eventfd that kicks the device; -1 after `release`."""
        return -1 if self._doorbell is None else self._doorbell.fd

    def start(self, socket_fd: int) -> None:
        """Start the completion thread; the device is gone when `socket_fd` hangs up."""
        name = f"virtqueue-{self.index}"
        self._thread = threading.Thread(target=self._run, args=(socket_fd,), name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the completion thread and fail all requests in flight.

        Must not be called from a callback of the queue. The buffers stay mapped until `release`,
        because the device may still write to them.
        """
        if self._thread is not None:
            os.eventfd_write(self._stop_fd, 1)
            self._thread.join()
            self._thread = None
        self._fail(FailedPreconditionError("QUEUE_CLOSED", f"{self._name} is closed"))

    def release(self) -> None:
        """Unmap every buffer and close the eventfds, once, after `stop`.

        The device must have stopped the ring. The caller still owns the ring's memory.
        """
        with self._lock:
            withdrawn, self._withdrawn = self._withdrawn, []
            doorbell, self._doorbell = self._doorbell, None
        del doorbell  # closed here, or by the submitter that still has it
        self._dma.unmap(withdrawn)
        for fd in (self.call_fd, self.err_fd, self._stop_fd):
            os.close(fd)

    # Submitting.

    def _add(self, request: _Request, end: float) -> None:
        needed = 1 if request.table is not None else len(request.chain)
        with self._lock:
            if len(self._free) < needed:
                self._wait_for_descriptors(needed, end)
            if self._error is not None:
                raise self._error
            request.descriptors = [self._free.popleft() for _ in range(needed)]
            doorbell = self._publish(request)
        if doorbell is not None:
            doorbell.ring()

    def _wait_for_descriptors(self, needed: int, end: float) -> None:
        # Before the look at free descriptors: either the completion thread sees this count, or the
        # look sees its descriptors.
        self._waiting += 1
        try:
            while len(self._free) < needed and self._error is None:
                left = end - time.monotonic()
                if left <= 0:
                    raise ResourceExhaustedError(
                        "RING_FULL",
                        f"{self._name} is full: none of its {self.size} descriptors came free in "
                        "time; have fewer requests in flight",
                        queue=self.index,
                        total=self.size,
                    )
                self._room.wait(left)
        finally:
            self._waiting -= 1

    def _publish(self, request: _Request) -> _Doorbell | None:
        """Make a request available, under the lock; return the doorbell to ring after that."""
        entries, table = request.descriptors, request.table
        if table is not None:
            packed = DESC.pack(table.gpa, table.length, DESC_F_INDIRECT, 0)
        else:
            packed = chain_descriptors(request.chain, request.readable, entries[1:])
        self.ring.write_descriptors(entries, packed)
        self._requests[entries[0]] = request
        self.ring.publish(entries[0])
        return self._doorbell if self.ring.should_kick() else None

    # Completing: only on the queue's own thread.

    def _run(self, socket_fd: int) -> None:
        try:
            self._complete_until_stopped(socket_fd)
        except BrokenRingError as broken:
            self._fail(
                FailedPreconditionError(
                    "DEVICE_BROKEN", f"{self._name} is broken by its device: {broken}"
                )
            )
        except Exception as bug:
            _log.exception("%s: its driver failed", self._name)
            self._fail(
                FailedPreconditionError("DRIVER_FAILED", f"{self._name}: its driver failed: {bug}")
            )

    def _complete_until_stopped(self, socket_fd: int) -> None:
        with select.epoll() as poll:
            # Edge-triggered: each call is reported once, and its count need not be read.
            poll.register(self.call_fd, select.EPOLLIN | select.EPOLLET)
            poll.register(self.err_fd, select.EPOLLIN)
            poll.register(self._stop_fd, select.EPOLLIN)
            poll.register(socket_fd, select.EPOLLRDHUP)
            while True:
                self._complete_used()
                if not self.ring.arm():
                    continue
                events = dict(poll.poll())
                if self._stop_fd in events:
                    return
                if (end := self._end_of_device(events, socket_fd)) is not None:
                    self._complete_used()
                    self._fail(end)
                    return

    def _end_of_device(self, events: dict[int, int], socket_fd: int) -> PortholeError | None:
        if events.get(socket_fd, 0) & _HANG_UP:
            return UnavailableError(
                "DEVICE_GONE",
                f"the device behind {self._name} is gone: it closed its vhost-user socket",
            )
        if self.err_fd in events:
            return FailedPreconditionError(
                "DEVICE_NEEDS_RESET",
                f"the device behind {self._name} reports an error and serves nothing until it is "
                "detached and attached again; its log says why",
            )
        return None

    def _complete_used(self) -> None:
        """Complete all requests that the device has used."""
        while (used := self.ring.pop_used()) is not None:
            head, written = used
            request = self._requests[head]
            if request is None:
                raise BrokenRingError(f"used element names head {head}, which is not available")
            if written > request.room:
                raise BrokenRingError(
                    f"the device wrote {written} bytes to a request with room for {request.room}"
                )
            self._requests[head] = None
            data = self._dma.sync_for_cpu(request.writable, written)
            if request.future is None:
                self._post_again(request)
                if self._received is not None:
                    self._received(data[0])
            else:
                self._free.extend(request.descriptors)
                self._dma.unmap(request.mappings)
                if self._waiting:
                    with self._room:
                        self._room.notify_all()
                request.future.set_result(data)

    def _post_again(self, request: _Request) -> None:
        with self._lock:
            doorbell = self._publish(request)
        if doorbell is not None:
            doorbell.ring()

    def _fail(self, error: PortholeError) -> None:
        """Fail the requests in flight and all later ones; the first of several errors stays."""
        with self._lock:
            if self._error is None:
                self._error = error
            requests = [request for request in self._requests if request is not None]
            self._requests = [None] * self.size
            for request in requests:
                self._withdrawn += request.mappings
            self._room.notify_all()
        for request in requests:
            if request.future is not None:
                request.future.set_exception(error)
