"""Guest memory that is lost while frames move between it and a descriptor."""

from __future__ import annotations

import os
import socket
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from services.devicehost import fastpath
from services.devicehost.devices.net.frames.native_loop import NativeLoop
from services.devicehost.devices.net.rates import Limits
from services.devicehost.memory import ApertureMemory, OwnRisk, RegionTable
from services.devicehost.virtio.native_queue import NativeQueue, make_queue
from services.devicehost.virtio.queue_setup import QueueState
from services.wire import virtio_net
from services.wire.virtio_net import NetHeader
from tests.support.guest_ring import GuestRam
from tests.unit.devicehost.virtio.conftest import DATA, POOL
from tests.unit.devicehost.virtio.conftest import Rig as QueueRig

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    fastpath.library is None, reason="the native fast path was not built"
)

FRAME = bytes(range(200))


@dataclass(frozen=True)
class Wire:
    """Our end, as the loop is given it."""

    fd: int
    state: fastpath.PhStream | None
    wake_fd: int = -1


class ShrinkingRig(QueueRig):
    """A guest whose memory is a file that can be cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.memory.release()
        self.table.close()
        self.ram.close()
        self.ram = GuestRam(16 << 20, sealed=False)
        self.table = RegionTable(OwnRisk())
        self.table.add(self.ram.region())
        self.memory = ApertureMemory(self.table, POOL, self.meter)


@pytest.fixture
def queues() -> Iterator[ShrinkingRig]:
    made = ShrinkingRig()
    yield made
    made.close()


@pytest.mark.parametrize("stream", [False, True], ids=["tap", "stream"])
@pytest.mark.parametrize("receives", [False, True], ids=["transmit", "receive"])
def test_the_loss_is_noticed_and_the_loop_ends(
    queues: ShrinkingRig, stream: bool, receives: bool
) -> None:
    assert fastpath.library is not None
    kind = socket.SOCK_STREAM if stream else socket.SOCK_SEQPACKET
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    mine.setblocking(False)
    ring = queues.ring()
    queues.ram.write(DATA, virtio_net.HEADER.pack(*NetHeader()))
    # The header is in a page that stays.
    first = (DATA, 100)
    second = (DATA + (64 << 10), 1500)
    if receives:
        ring.chain(0, writable=[first, second])
    else:
        ring.chain(0, readable=[first, second])
    ring.offer(0)
    queue = make_queue(queues.setup(ring), QueueState(), natively=True)
    assert isinstance(queue, NativeQueue)
    queues.memory.loss.report_to(queue.stop)
    state = fastpath.PhStream() if stream else None
    wire = Wire(mine.fileno(), state)
    loop = NativeLoop(fastpath.library, wire, virtio_net.F_MRG_RXBUF, Limits(), mtu=1500)
    os.ftruncate(queues.ram.fd, DATA + 4096)
    if receives:
        header = struct.pack(">I", len(FRAME)) if stream else bytes(12)
        peer.send(header + FRAME)
    serve = loop.receive if receives else loop.transmit
    thread = threading.Thread(target=lambda: queue.lend(serve))
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert queues.memory.loss.has_happened
    queue.close()
    mine.close()
    peer.close()
