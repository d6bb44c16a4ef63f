"""A virtio-net device whose TAP is a pair of sockets that keep frames apart, and one ring."""

from __future__ import annotations

import itertools
import os
import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from services.devicehost import fastpath
from services.devicehost.devices.net import backend as backend_module
from services.devicehost.devices.net.backend import NetBackend
from services.devicehost.devices.net.device import NetDevice
from services.devicehost.devices.net.frames.pair import Pair
from services.devicehost.devices.net.tap import Tap, TapQueue
from services.devicehost.virtio.native_queue import NativeQueue, make_queue
from services.devicehost.virtio.queue_setup import QueueState
from services.handshake.options import NetOptions
from services.wire import virtio_net
from services.wire.virtio_net import NetHeader
from services.wire.virtio_ring import DESC_F_WRITE
from tests.unit.devicehost.virtio.conftest import DATA
from tests.unit.devicehost.virtio.conftest import Rig as QueueRig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.devicehost.devices.net.backend import OpenBackend
    from services.devicehost.virtio.queue import Queue
    from tests.support.guest_ring import GuestRing

VM_ID = "6f1a2f5e-5f3e-4f53-9d5c-2b8f0a4f7c11"
OPTIONS = NetOptions(name="eth0", vm_id=VM_ID)
PLAIN = virtio_net.F_MAC | virtio_net.F_MTU | virtio_net.F_STATUS | virtio_net.F_MRG_RXBUF
"""What a driver without offloads negotiates."""
OFFLOADS = (
    virtio_net.F_CSUM
    | virtio_net.F_HOST_TSO4
    | virtio_net.F_HOST_TSO6
    | virtio_net.F_HOST_USO
    | virtio_net.F_GUEST_CSUM
    | virtio_net.F_GUEST_TSO4
    | virtio_net.F_GUEST_TSO6
    | virtio_net.F_GUEST_USO4
    | virtio_net.F_GUEST_USO6
    | virtio_net.F_CTRL_GUEST_OFFLOADS
)


class WireTap(Tap):
    """A TAP that can do all offloads; the test has the other end of its first queue."""

    def __init__(
        self,
        name: str,
        pairs: int = 1,
        on_link: Callable[[bool, str], None] = lambda _up, _why: None,
        bridge: str = "",
    ) -> None:
        wires = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(pairs)]
        for end in itertools.chain(*wires):
            end.setblocking(False)
        self.name = name
        self._on_link = on_link
        self._lock = threading.Lock()
        self._is_gone = False
        self._carrier = None
        self._bridge = bridge
        self.wires = [theirs for _, theirs in wires]
        self.wire = self.wires[0]
        self.queues = tuple(TapQueue(mine.detach(), self._failed) for mine, _ in wires)
        self.mtu = 1500
        self.has_link = True
        self.features = OFFLOADS
        self.negotiated: list[int] = []
        self.used: list[int] = []

    def negotiate(self, features: int) -> None:
        self.negotiated.append(features)

    def use(self, pairs: int) -> None:
        self.used.append(pairs)


class Rig:
    """The device, a guest's ring, and the wire behind the TAP."""

    def __init__(
        self,
        features: int = PLAIN,
        *,
        natively: bool = False,
        options: NetOptions = OPTIONS,
    ) -> None:
        self._natively = natively
        self.queues = QueueRig()
        with pytest.MonkeyPatch.context() as patch:
            if not natively:  # then its limits are Python's, too
                patch.setattr(fastpath, "library", None)
            self.device = NetDevice(options, NetBackend("wire"), self.queues.meter)
        tap = self.device._backend
        assert isinstance(tap, WireTap)
        self.tap = tap
        self.wire = tap.wire
        self.device.activate(features)
        self._thread: threading.Thread | None = None
        self.failure: list[BaseException] = []
        self.queue: Queue | None = None

    def use(self, backend: OpenBackend) -> None:
        """Serve another back end, before any queue is served."""
        features = self.device._features
        self.device._backend.close()
        self.device._backend = backend
        pairs = [
            Pair("eth0", port, backend.mtu, self.queues.meter, self.device._limits)
            for port in backend.queues
        ]
        self.device._pairs = tuple(pairs)
        self.device.activate(features)

    def serve(self, index: int, size: int = 8) -> GuestRing:
        ring = self.queues.ring(size)
        self.serve_ring(index, ring)
        return ring

    def serve_ring(self, index: int, ring: GuestRing) -> None:
        self.queue = queue = make_queue(
            self.queues.setup(ring), QueueState(), natively=self._natively
        )
        assert isinstance(queue, NativeQueue) == self._natively

        def run() -> None:
            try:
                self.device.serve(index, queue)
            except BaseException as error:  # for the test
                self.failure.append(error)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def offer_buffers(self, ring: GuestRing, sizes: list[int], first: int = 0) -> None:
        """Give the device one writable buffer per chain, 4 KiB apart."""
        for place, size in enumerate(sizes, first):
            ring.describe(place, DATA + 4096 * place, size, DESC_F_WRITE)
        ring.offer(*range(first, first + len(sizes)))
        self.queues.kick()

    def send_to_guest(self, frame: bytes) -> None:
        self.wire.send(virtio_net.HEADER.pack(*NetHeader()) + frame)

    def await_used(self, ring: GuestRing, count: int) -> list[tuple[int, int]]:
        """Sleep on the call descriptor until `count` chains were used."""
        while ring.used_idx < count:
            assert select.select([self.queues.call_fd], [], [], 10)[0], self.failure
            os.eventfd_read(self.queues.call_fd)
        return ring.completions()

    def stop(self) -> None:
        if self._thread is not None and self.queue is not None:
            self.queue.stop()
            self._thread.join(10)
            assert not self._thread.is_alive()
            self._thread = None

    def join(self) -> BaseException:
        """Wait for the device to give up."""
        assert self._thread is not None
        self._thread.join(10)
        return self.failure[0]

    def close(self) -> None:
        self.stop()
        if self.queue is not None:
            self.queue.close()
        self.device.close()
        for wire in self.tap.wires:
            wire.close()
        self.queues.close()


@pytest.fixture(autouse=True)
def wire_tap(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if not request.node.get_closest_marker("tap"):
        monkeypatch.setattr(backend_module, "Tap", WireTap)


@pytest.fixture(
    params=[
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                fastpath.library is None, reason="the native fast path was not built"
            ),
        ),
    ],
    ids=["python", "native"],
)
def make_rig(request: pytest.FixtureRequest) -> Iterator[Callable[..., Rig]]:
    """Make devices whose rings Python serves, or the native loop."""
    made: list[Rig] = []

    def make(features: int = PLAIN) -> Rig:
        made.append(Rig(features, natively=request.param))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()
