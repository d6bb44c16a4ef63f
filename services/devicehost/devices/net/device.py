"""A virtio-net device with one pair of queues over its back end (virtio 1.2, section 5.1).

Owns the path of a frame, and the rule that a slow guest holds frames back in the TAP or the socket,
where the kernel bounds them, instead of in memory of ours: of a frame that is longer than the
buffers that are there, one is kept until there are more. Frames go by the native loop where it can
serve the ring, and otherwise by Python. Must not know vhost-user, or how the back end got its
addresses.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Final

from services.devicehost import fastpath
from services.devicehost.accounting import Bound
from services.devicehost.devices.net.backend import open_backend
from services.devicehost.devices.net.native_loop import NativeLoop
from services.devicehost.devices.net.protocol import frame_of, received_flags, spread
from services.devicehost.devices.net.user import UserNetwork
from services.devicehost.virtio.deferral import MAX_QUEUED
from services.devicehost.virtio.native_queue import NativeQueue
from services.devicehost.virtio.queue import QueueError
from services.handshake.errors import FailedPreconditionError
from services.handshake.events import NET
from services.handshake.exhaustion import Resource
from services.wire import virtio_net
from services.wire.virtio_net import HEADER_BYTES, MAX_FRAME_BYTES, NetConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.accounting import DeviceMeter
    from services.devicehost.devices.net.backend import NetBackend, UserBackend, Wire
    from services.devicehost.devices.net.user.ports import Ports
    from services.devicehost.virtio.queue import Chain, Queue
    from services.handshake.options import NetOptions

MAX_PARTS: Final = 64
"""Buffers of a frame that are handed to the kernel as they are; more are joined first."""

_GONE: Final = frozenset({errno.EBADFD, errno.EBADF, errno.ENODEV})

_LOG = logging.getLogger(__name__)


class NetDevice:
    """One adapter of a guest; a `VirtioDevice`.

    Attributes:
        mac: 6 bytes; in the configuration space.
        mtu: Bytes of payload per frame; in the configuration space.
        on_link_change: Called with each change of the link, on any thread, with no lock held.
    """

    device_class = NET
    goes_native = True
    num_queues = 2
    features = virtio_net.F_MAC | virtio_net.F_MTU | virtio_net.F_STATUS | virtio_net.F_MRG_RXBUF

    def __init__(
        self, options: NetOptions, backend: NetBackend | UserBackend, meter: DeviceMeter
    ) -> None:
        """Open the back end.

        Args:
            options: The options of the adapter.
            backend: The TAP interface, or the user-mode network.
            meter: Of the device; counts dropped frames and lost links, and has its bounds.

        Raises:
            InvalidArgumentError: TAP_NAME, USER_NETWORK_VALUE.
            FailedPreconditionError: The back end cannot be opened; see Tap, UserNetwork.
        """
        self.mac = options.client_mac or derive_mac(options.vm_id, options.name)
        self._name = options.name
        self._meter = meter
        self.on_link_change: Callable[[str], None] = lambda _: None
        self._link_up = True
        self._is_gone = False
        self._backend = open_backend(backend, options, self._link_changed)
        self.mtu = self._backend.mtu
        self._features = 0
        self._ready: deque[Chain] = deque()
        self._receiver: NativeLoop | None = None
        meter.bounds.add(Bound(Resource.QUEUED_REQUESTS, MAX_QUEUED, self._count_ready))

    def config(self) -> bytes:
        """Return MAC address, link status and MTU."""
        status = virtio_net.S_LINK_UP if self._link_up else 0
        return virtio_net.CONFIG.pack(*NetConfig(self.mac, status, 1, self.mtu))

    def activate(self, features: int) -> None:
        """Learn which offloads frames may ask for, and whether they may span several buffers."""
        self._features = features

    def serve(self, index: int, queue: Queue) -> None:
        """Serve the receive or the transmit queue until it is stopped.

        Raises:
            QueueError: The guest broke a rule of the ring.
        """
        if index == virtio_net.RX_QUEUE:
            try:
                self._serve_receive(queue)
            finally:
                self._put_back(queue)
        else:
            self._serve_transmit(queue)

    def reset(self) -> None:
        """Forget what was negotiated; frames carry no state."""
        self._features = 0

    def close(self) -> None:
        """Let go of the back end."""
        self._backend.close()

    @property
    def ports(self) -> Ports:
        """What the host forwards to the guest.

        Raises:
            FailedPreconditionError: NO_USER_NETWORK.
        """
        if isinstance(self._backend, UserNetwork):
            return self._backend.ports
        raise FailedPreconditionError(
            "NO_USER_NETWORK",
            f"adapter {self._name} is on a TAP, whose ports the host's firewall forwards; only an "
            "adapter with a user-mode network maps ports",
            adapter=self._name,
        )

    def _link_changed(self, up: bool, why: str) -> None:
        self._link_up = up
        if not up:
            with self._meter.counting as counters:
                counters.link_losses += 1
        self.on_link_change(f"the link is {'up' if up else 'down'}: {why}")

    def _count_ready(self) -> int:
        receiver = self._receiver
        return len(self._ready) + (receiver.state.held if receiver else 0)

    def _native_loop(
        self, queue: Queue, wire: Wire | None, before: NativeLoop | None
    ) -> NativeLoop | None:
        """Return a native loop on what the back end has now; None: Python serves the queue."""
        library = fastpath.library
        if wire is None or library is None or not isinstance(queue, NativeQueue):
            return None
        if before is not None and before.wire is wire:
            return before
        return NativeLoop(library, wire, self._features, mtu=self.mtu)

    def _serve_receive(self, queue: Queue) -> None:
        frame = memoryview(bytearray(HEADER_BYTES + MAX_FRAME_BYTES))
        self._receiver = None  # that of an earlier guest has other features
        while not queue.stopped:
            if not queue.first_request_is_due and not self._is_gone:
                loop = self._native_loop(queue, self._backend.receiving(), self._receiver)
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
            self._note_failure(loop.wire, loop.state.receive_error)

    def _receive(self, queue: Queue, frame: memoryview) -> None:
        """Give a frame to the guest, or wait for one or for buffers."""
        ready = self._ready
        if not ready and not _take(queue, ready):
            queue.wait()  # for buffers only: until then frames stay where they are
        elif self._is_gone:
            queue.wait(buffers=False)
        elif length := self._read(frame):
            self._deliver(queue, ready, frame[:length])
        else:
            queue.wait(self._backend.read_fd, buffers=False)

    def _serve_transmit(self, queue: Queue) -> None:
        loop: NativeLoop | None = None
        while not queue.stopped:
            outcome = None
            if not queue.first_request_is_due:
                loop = self._native_loop(queue, self._backend.sending(), loop)
                if loop is not None and isinstance(queue, NativeQueue):
                    outcome = queue.lend(loop.transmit, loop.wire.wake_fd)
                    if outcome == fastpath.Outcome.FAILED:
                        self._note_failure(loop.wire, loop.state.transmit_error)
            if outcome in (None, fastpath.Outcome.PYTHON):
                self._transmit_next(queue, waits=outcome is None)

    def _transmit_next(self, queue: Queue, *, waits: bool) -> None:
        """Send the next frame, or wait for room or, if `waits`, for a frame."""
        if not self._backend.flush():
            queue.wait_for_room(self._backend.write_fd)
        elif (chain := queue.pop()) is not None:
            queue.push(chain, self._transmit(chain))
        elif waits:
            queue.wait()

    def _put_back(self, queue: Queue) -> None:
        while self._ready:
            queue.put_back(self._ready.pop())

    def _read(self, frame: memoryview) -> int:
        try:
            return self._backend.read(frame)
        except OSError as error:
            self._note_failure(None, error.errno or 0)
            return 0

    def _note_failure(self, wire: Wire | None, number: int) -> None:
        if isinstance(self._backend, UserNetwork):
            self._backend.fail(wire, number)
            return
        _LOG.warning("adapter %s: its TAP: %s", self._name, os.strerror(number))
        if number in _GONE and not self._is_gone:
            self._is_gone = True
            self._link_changed(False, f"its TAP is gone: {os.strerror(number)}")

    def _deliver(self, queue: Queue, ready: deque[Chain], frame: memoryview) -> None:
        """Spread one frame over buffers of the guest, or drop it when they cannot hold it.

        It waits for further buffers as long as the ring can have more of them.
        """
        mergeable = self._features & virtio_net.F_MRG_RXBUF
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
        queue.push_together(spread(frame, chains, received_flags(self._features)))

    def _transmit(self, chain: Chain) -> int:
        """Send one frame; what is not a frame is dropped and counted."""
        frame = frame_of(chain, self._features)
        if frame is None or not self._write(frame):
            self._count_drop()
        return 0

    def _count_drop(self) -> None:
        with self._meter.counting as counters:
            counters.frames_dropped += 1

    def _write(self, parts: list[bytes | memoryview]) -> bool:
        try:
            if len(parts) > MAX_PARTS:
                header, *frame = parts
                parts = [header, b"".join(frame)]
            self._backend.write(parts)
        except OSError as error:
            # Down, gone or full: like an unplugged cable, so senders retry.
            _LOG.debug("adapter %s: frame dropped: %s", self._name, os.strerror(error.errno or 0))
            return False
        return True


def derive_mac(vm_id: str, name: str) -> bytes:
    """Make a locally administered unicast MAC address that is the same at every start."""
    raw = bytearray(hashlib.sha256(f"{vm_id}/{name}".encode()).digest()[: virtio_net.MAC_BYTES])
    raw[0] = raw[0] & 0xFC | 0x02
    return bytes(raw)


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
