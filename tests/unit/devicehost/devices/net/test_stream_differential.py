"""The native loops against Python, on a stream: the same rings, bytes, drops and refusals.

The reference is the user-mode network's own reading and writing of frames, without its passt.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.devicehost import fastpath
from services.devicehost.devices.net.user.network import UserNetwork
from services.devicehost.devices.net.user.stream import Stream
from services.wire import virtio_net
from services.wire.virtio_net import HEADER_BYTES
from tests.unit.devicehost.devices.net.conftest import OPTIONS, Rig
from tests.unit.devicehost.devices.net.test_differential import (
    EXAMPLES,
    FRAMES,
    LIMITS,
    RING_SIZE,
    Sent,
    counted,
    lay_out,
)
from tests.unit.devicehost.virtio.conftest import DATA, eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.handshake.rate_limit import RateLimit

pytestmark = pytest.mark.skipif(
    fastpath.library is None, reason="the native fast path was not built"
)

RX, TX = virtio_net.RX_QUEUE, virtio_net.TX_QUEUE
LONGEST: Final = 65535
ROOM: Final = 2048


class StreamNetwork(UserNetwork):
    """A user-mode network whose other end the test has, and which is not started again."""

    def __init__(self) -> None:
        ours, self.wire = socket.socketpair()
        ours.setblocking(False)
        self.wire.settimeout(10)
        self.mtu = 65520
        self.ended = ""
        self._stream = Stream(ours.detach())
        self._receiving = self._sending = None
        self._lock = threading.Lock()
        self._up_fd = os.eventfd(1, os.EFD_NONBLOCK)

    @property
    def is_empty(self) -> bool:
        """Whether all that was sent has been read off the stream."""
        with self._lock:  # its descriptor is not closed meanwhile
            stream = self._stream
            return stream is None or not select.select([stream.fd], [], [], 0)[0]

    def _take_down(self, stream: Stream, why: str) -> None:
        with self._lock:
            if self._stream is stream:
                self._stream, self.ended = None, why
                os.eventfd_read(self._up_fd)
                stream.shut_down()
                stream.release()

    def close(self) -> None:
        if self._stream is not None:
            self._take_down(self._stream, "closed")
        for used in (self._receiving, self._sending):
            if used is not None:
                used.release()
        self.wire.close()
        os.close(self._up_fd)


def framed(frame: bytes) -> bytes:
    return struct.pack(">I", len(frame)) + frame


def make(features: int, limit: RateLimit, *, natively: bool) -> tuple[Rig, StreamNetwork]:
    options = replace(OPTIONS, limit_tx=limit, limit_rx=limit)
    rig = Rig(features, natively=natively, options=options)
    network = StreamNetwork()
    rig.use(network)
    return rig, network


def transmitted(
    features: int, frames: Sequence[Sent], limit: RateLimit, *, natively: bool
) -> tuple[object, ...]:
    rig, network = make(features, limit, natively=natively)
    try:
        ring = rig.queues.ring(RING_SIZE)
        lay_out(rig, ring, frames)
        rig.serve_ring(TX, ring)
        rig.queues.kick()
        rig.await_used(ring, len(frames))
        rig.stop()
        network.wire.setblocking(False)
        sent = b""
        while select.select([network.wire], [], [], 0)[0]:
            sent += network.wire.recv(1 << 20)
        return ring.completions(), sent, counted(rig), network.ended, rig.failure
    finally:
        rig.close()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    frames=FRAMES,
    features=st.sampled_from([0, virtio_net.F_CSUM]),
    limit=st.sampled_from(LIMITS),
)
@example(frames=[Sent(bytes(HEADER_BYTES), LONGEST, ())], features=0, limit=LIMITS[0])
@example(frames=[Sent(bytes(HEADER_BYTES), LONGEST + 1, ())], features=0, limit=LIMITS[2])
def test_frames_of_a_driver_leave_in_the_same_way(
    frames: list[Sent], features: int, limit: RateLimit
) -> None:
    if sum(len(sent.cuts) + 2 for sent in frames) >= RING_SIZE:
        frames = frames[:1]
    features |= virtio_net.F_MRG_RXBUF
    python = transmitted(features, frames, limit, natively=False)
    assert transmitted(features, frames, limit, natively=True) == python


def received(
    frames: Sequence[bytes],
    cuts: Sequence[int],
    end: bytes,
    features: int,
    limit: RateLimit,
    *,
    natively: bool,
) -> tuple[object, ...]:
    rig, network = make(features, limit, natively=natively)
    try:
        ring = rig.queues.ring(RING_SIZE)
        for number in range(len(frames) + 1):
            ring.chain(number, writable=[(DATA + ROOM * number, ROOM)])
        ring.offer(*range(len(frames) + 1))
        rig.serve_ring(RX, ring)
        rig.queues.kick()
        data = b"".join(map(framed, frames)) + end
        for cut in [*cuts, len(data)]:
            if piece := data[:cut]:
                network.wire.sendall(piece)
            data = data[cut:]
            assert eventually(lambda: network.is_empty)
        used = rig.await_used(ring, len(frames))
        if end:
            assert eventually(lambda: bool(network.ended))
        rig.stop()
        got = [rig.queues.ram.read(DATA + ROOM * head, length) for head, length in used]
        assert [each[HEADER_BYTES:] for each in got] == list(frames)
        assert rig.queue is not None
        state = rig.queue.state
        return used, got, state, counted(rig), network.ended, rig.failure
    finally:
        rig.close()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    frames=st.lists(st.binary(min_size=14, max_size=200), max_size=6),
    cuts=st.lists(st.integers(1, 300), max_size=8),
    end=st.sampled_from([b"", b"", struct.pack(">I", 13), struct.pack(">I", LONGEST + 1)]),
    features=st.sampled_from([virtio_net.F_MRG_RXBUF, 0, virtio_net.F_GUEST_CSUM]),
    limit=st.sampled_from(LIMITS),
)
def test_frames_reach_a_driver_in_the_same_way(
    frames: list[bytes], cuts: list[int], end: bytes, features: int, limit: RateLimit
) -> None:
    python = received(frames, cuts, end, features, limit, natively=False)
    assert received(frames, cuts, end, features, limit, natively=True) == python
