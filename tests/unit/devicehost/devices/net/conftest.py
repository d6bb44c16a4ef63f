"""A virtio-net device whose TAP is a pair of sockets that keep frames apart, and one ring."""

from __future__ import annotations

import os
import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from services.devicehost import fastpath
from services.devicehost.devices.net import backend as backend_module
from services.devicehost.devices.net.backend import NetBackend, Tap
from services.devicehost.devices.net.device import NetDevice
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

    from services.devicehost.virtio.queue import Queue
    from tests.support.guest_ring import GuestRing

VM_ID = "6f1a2f5e-5f3e-4f53-9d5c-2b8f0a4f7c11"
OPTIONS = NetOptions(name="eth0", vm_id=VM_ID)


class WireTap(Tap):
    """A TAP; the test has its other end."""

    def __init__(self, name: str) -> None:
        mine, self.wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.setblocking(False)
        self.wire.setblocking(False)
        self.name = name
        self.fd = mine.detach()
        self.mtu = 1500


class Rig:
    """The device, a guest's ring, and the wire behind the TAP."""

    def __init__(self, features: int = NetDevice.features, *, natively: bool = False) -> None:
        self._natively = natively
        self.queues = QueueRig()
        self.device = NetDevice(OPTIONS, NetBackend("wire"), self.queues.meter)
        tap = self.device._backend
        assert isinstance(tap, WireTap)
        self.wire = tap.wire
        self.device.activate(features)
        self._thread: threading.Thread | None = None
        self.failure: list[BaseException] = []
        self.queue: Queue | None = None

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
        self.wire.close()
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

    def make(**arguments: int) -> Rig:
        made.append(Rig(**arguments, natively=request.param))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()
