"""One pair of queues: frames between a guest's rings and a queue of the back end.

Owns the path of a frame, and the rule that a slow guest holds frames back in the TAP or the socket,
where the kernel bounds them, instead of in memory of ours: of a frame that is longer than the
buffers that are there, one is kept until there are more. Frames go by the native loop where it can
serve the ring, and otherwise by Python. A frame for which there is no token stays where it is. One
thread receives, and one transmits. Must not know other pairs, or what kind of back end it has.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Final

from services.devicehost import fastpath
from services.devicehost.devices.net.frames.native_loop import NativeLoop
from services.devicehost.devices.net.protocol import (
    checksum_at,
    frame_of,
    received_flags,
    spread,
)
from services.devicehost.virtio.deferral import MAX_QUEUED
from services.devicehost.virtio.native_queue import NativeQueue
from services.devicehost.virtio.queue import QueueError
from services.handshake.exhaustion import Resource
from services.wire import virtio_net
from services.wire.virtio_net import HEADER_BYTES, MAX_FRAME_BYTES

if TYPE_CHECKING:
    from services.devicehost.accounting import DeviceMeter
    from services.devicehost.devices.net.backend import Port, Wire
    from services.devicehost.devices.net.rates import Limiter, Limits
    from services.devicehost.devices.net.spoofing import Source
    from services.devicehost.virtio.queue import Chain, Queue

MAX_PARTS: Final = 64
"""Buffers of a frame that are handed to the kernel as they are; more are joined first."""

_LOG = logging.getLogger(__name__)


class Pair:
    """One pair of queues.

    Attributes:
        features: What was negotiated, as a mask; queues that start later go by it.
    """

    def __init__(
        self,
        name: str,
        port: Port,
        mtu: int,
        meter: DeviceMeter,
        limits: Limits,
        source: Source | None = None,
    ) -> None:
        """Make a pair.

        Args:
            name: Of the adapter, for the log.
            port: The queue of the back end.
            mtu: Bytes of payload per frame.
            meter: Of the device; counts dropped frames, and waits for a limit.
            limits: How fast the frames of all pairs may go.
            source: Under which addresses the guest may send; None: under any.
        """
        self.features = 0
        self._name = name
        self._port = port
        self._mtu = mtu
        self._meter = meter
        self._limits = limits
        self._source = source
        self._ready: deque[Chain] = deque()
        self._receiver: NativeLoop | None = None

    @property
    def held(self) -> int:
        """Buffers that wait for a frame."""
        receiver = self._receiver
        return len(self._ready) + (receiver.state.held if receiver else 0)

    def receive(self, queue: Queue) -> None:
        """Give frames to the guest until the queue is stopped.

        Raises:
            QueueError: The guest broke a rule of the ring.
        """
        try:
            self._serve_receive(queue)
        finally:
            self._put_back(queue)

    def transmit(self, queue: Queue) -> None:
        """Send the guest's frames until the queue is stopped.

        Raises:
            QueueError: The guest broke a rule of the ring.
        """
        loop: NativeLoop | None = None
        while not queue.stopped:
            outcome = None
            if not queue.first_request_is_due:
                loop = self._native_loop(queue, self._port.sending(), loop)
                if loop is not None and isinstance(queue, NativeQueue):
                    outcome = queue.lend(loop.transmit, loop.wire.wake_fd)
                    if outcome == fastpath.Outcome.FAILED:
                        self._port.fail(loop.wire, loop.state.transmit_error)
            if outcome in (None, fastpath.Outcome.PYTHON):
                self._transmit_next(queue, waits=outcome is None)

    def _native_loop(
        self, queue: Queue, wire: Wire | None, before: NativeLoop | None
    ) -> NativeLoop | None:
        """Return a native loop on what the back end has now; None: Python serves the queue."""
        library = fastpath.library
        if wire is None or library is None or not isinstance(queue, NativeQueue):
            return None
        if before is not None and before.wire is wire:
            return before
        return NativeLoop(library, wire, self.features, self._limits, self._source, mtu=self._mtu)

    def _serve_receive(self, queue: Queue) -> None:
        frame = memoryview(bytearray(HEADER_BYTES + MAX_FRAME_BYTES))
        self._receiver = None  # that of an earlier guest has other features
        while not queue.stopped:
            if not queue.first_request_is_due and not self._port.is_gone:
                loop = self._native_loop(queue, self._port.receiving(), self._receiver)
                if loop is not None and isinstance(queue, NativeQueue):
                    self._receiver = loop
                    self._receive_natively(queue, loop)
            self._receive(queue, frame)

    def _receive_natively(self, queue: NativeQueue, loop: NativeLoop) -> None:
        """Have the native loop give frames to the guest until there is something for Python."""
        self._put_back(queue)
        outcome = None
        while outcome in (None, fastpath.Outcome.BOUND):
            if outcome is not None:
                self._meter.bounds.hit(Resource.QUEUED_REQUESTS)
            outcome = queue.lend(loop.receive, loop.wire.wake_fd)
        if outcome == fastpath.Outcome.FAILED:
            self._port.fail(loop.wire, loop.state.receive_error)

    def _receive(self, queue: Queue, frame: memoryview) -> None:
        """Give a frame to the guest, or wait for one or for buffers."""
        ready = self._ready
        if not ready and not _take(queue, ready):
            queue.wait()  # for buffers only: until then frames stay where they are
        elif self._port.is_gone:
            queue.wait(buffers=False)
        elif not self._wait_for_tokens(queue, self._limits.receive):
            return
        elif length := self._read(frame):
            self._limits.receive.charge(length - HEADER_BYTES)
            self._deliver(queue, ready, frame[:length])
        else:
            queue.wait(self._port.read_fd, buffers=False)

    def _transmit_next(self, queue: Queue, *, waits: bool) -> None:
        """Send the next frame, or wait for room or, if `waits`, for a frame."""
        if not self._port.flush():
            queue.wait_for_room(self._port.write_fd)
        elif not queue.has_next():
            if waits:
                queue.wait()
        elif (
            self._wait_for_tokens(queue, self._limits.transmit)
            and (chain := queue.pop()) is not None
        ):
            self._limits.transmit.charge(chain.readable_bytes - HEADER_BYTES)
            queue.push(chain, self._transmit(chain))

    def _wait_for_tokens(self, queue: Queue, limiter: Limiter) -> bool:
        """Wait until a frame may go; return False when the queue was stopped before."""
        while not limiter.admits():
            if queue.stopped:
                return False
            with self._meter.counting as counters:
                counters.throttled += 1
            limiter.arm()
            queue.wait(limiter.timer_fd, buffers=False)
        return True

    def _put_back(self, queue: Queue) -> None:
        while self._ready:
            queue.put_back(self._ready.pop())

    def _read(self, frame: memoryview) -> int:
        try:
            return self._port.read(frame)
        except OSError as error:
            self._port.fail(None, error.errno or 0)
            return 0

    def _deliver(self, queue: Queue, ready: deque[Chain], frame: memoryview) -> None:
        """Spread one frame over buffers of the guest, or drop it when they cannot hold it.

        It waits for further buffers as long as the ring can have more of them.
        """
        mergeable = self.features & virtio_net.F_MRG_RXBUF
        most = min(MAX_QUEUED, queue.size) if mergeable else 1
        count, room = 1, ready[0].writable_bytes
        while room < len(frame):
            if count == most:
                if count == MAX_QUEUED:
                    self._meter.bounds.hit(Resource.QUEUED_REQUESTS)
                self._count_drop()
                return
            while count == len(ready) and not _take(queue, ready):
                if queue.stopped:
                    self._count_drop()
                    return
                queue.wait()
            room += ready[count].writable_bytes
            count += 1
        chains = [ready.popleft() for _ in range(count)]
        queue.push_together(spread(frame, chains, received_flags(self.features)))

    def _transmit(self, chain: Chain) -> int:
        """Send one frame; what is not a frame is dropped and counted."""
        frame = frame_of(chain, self.features)
        if frame is not None and not self._is_own(frame[0], frame[1]):
            self._count_drop(spoofed=1)
        elif frame is None or not self._write(frame):
            self._count_drop()
        return 0

    def _is_own(self, header: bytes | memoryview, start: bytes | memoryview) -> bool:
        return self._source is None or self._source.is_own(bytes(start), checksum_at(header))

    def _count_drop(self, *, spoofed: int = 0) -> None:
        with self._meter.counting as counters:
            counters.frames_dropped += 1
            counters.frames_spoofed += spoofed

    def _write(self, parts: list[bytes | memoryview]) -> bool:
        try:
            if len(parts) > MAX_PARTS:
                header, *frame = parts
                parts = [header, b"".join(frame)]
            self._port.write(parts)
        except OSError as error:
            # Down, gone or full: like an unplugged cable, so senders retry.
            _LOG.debug("adapter %s: frame dropped: %s", self._name, os.strerror(error.errno or 0))
            return False
        return True


def _take(queue: Queue, ready: deque[Chain]) -> bool:
    chain = queue.pop()
    if chain is None:
        return False
    ready.append(chain)
    if chain.readable or not chain.writable_bytes:
        raise QueueError(
            "RX_BUFFER",
            f"the chain at descriptor {chain.head} of the receive queue has {chain.readable_bytes} "
            f"readable and {chain.writable_bytes} writable bytes; give writable ones only",
            head=chain.head,
        )
    return True
