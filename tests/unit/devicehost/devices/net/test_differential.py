"""The native loops against Python: the same rings, bytes, drops and refusals, in both directions.

Each example is served twice, by Python alone and with the native loop. What is to come out is also
derived here, from the rules of the specification.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import sys
import termios
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.devicehost import fastpath
from services.devicehost.virtio.queue import QueueError
from services.handshake.rate_limit import RateLimit
from services.wire import virtio_net
from services.wire.virtio_net import HEADER_BYTES, MAX_FRAME_BYTES, NetHeader
from services.wire.virtio_ring import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor
from tests.unit.devicehost.devices.net.conftest import OPTIONS, PLAIN, Rig
from tests.unit.devicehost.virtio.conftest import DATA, eventually

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from tests.support.guest_ring import GuestRing

pytestmark = pytest.mark.skipif(
    fastpath.library is None, reason="the native fast path was not built"
)

RX, TX = virtio_net.RX_QUEUE, virtio_net.TX_QUEUE
RING_SIZE: Final = 64
EXAMPLES: Final = int(os.environ.get("PORTHOLE_DIFFERENTIAL_EXAMPLES", "300"))
MOST_HELD: Final = 64
FILL: Final = 0xA5
GAP: Final = 5
"""Bytes between buffers, which nobody may write."""
OFFLOADS: Final = [
    0,
    virtio_net.F_CSUM,
    virtio_net.F_CSUM | virtio_net.F_HOST_TSO4 | virtio_net.F_HOST_ECN,
    virtio_net.F_CSUM | virtio_net.F_HOST_TSO6 | virtio_net.F_HOST_USO,
    virtio_net.F_HOST_TSO4,
    virtio_net.F_CSUM
    | virtio_net.F_HOST_TSO4
    | virtio_net.F_HOST_TSO6
    | virtio_net.F_HOST_ECN
    | virtio_net.F_HOST_USO,
]

LIMITS: Final = [RateLimit(), RateLimit(pps=50_000), RateLimit(bps=10_000_000, burst_bytes=1)]
"""With the latter each frame waits for the one before it."""

no_fixtures = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Sent:
    """A frame that the driver sends, and how it divides it."""

    header: bytes
    length: int
    cuts: tuple[int, ...]
    indirect: bool = False
    room: int = 0

    @property
    def data(self) -> bytes:
        return self.header + bytes(i % 251 for i in range(self.length))


_numbers = st.sampled_from([0, 1, 13, 14, 34, 54, 58, 59, 60, 1448, 0x7FFF, 0xFFFF])
_headers = st.builds(
    NetHeader,
    flags=st.sampled_from([0, 0, 1, 1, 1, 2, 4, 0xFF]),
    gso_type=st.sampled_from([0, 0, 0, 1, 3, 4, 5, 2, 0x80, 0x81, 0x84, 0x85]),
    hdr_len=_numbers,
    gso_size=_numbers,
    csum_start=_numbers,
    csum_offset=st.sampled_from([0, 6, 16, 24, 44, 0xFFFF]),
    num_buffers=_numbers,
).map(lambda header: virtio_net.HEADER.pack(*header))
_plain: Final = virtio_net.HEADER.pack(*NetHeader())
FRAMES: Final = st.lists(
    st.builds(
        Sent,
        header=st.one_of(_headers, st.just(_plain), st.binary(max_size=HEADER_BYTES)),
        length=st.sampled_from([0, 1, 13, 14, 60, 60, 60, 61, 1514, 9000]),
        cuts=st.lists(st.integers(1, 80), max_size=4).map(tuple),
        indirect=st.booleans(),
        room=st.sampled_from([0, 0, 7]),
    ).filter(lambda sent: sent.data or sent.room),
    min_size=1,
    max_size=10,
)


def segments(hdr_len: int) -> Sent:
    """A frame of 1,514 bytes that is to be segmented."""
    return Sent(virtio_net.HEADER.pack(1, 1, hdr_len, 536, 34, 16, 0), 1514, ())


def lay_out(rig: Rig, ring: GuestRing, frames: Sequence[Sent]) -> None:
    """Make each frame available, as a chain of its own."""
    at, free = DATA, 0
    for sent in frames:
        pieces, begin = [], 0
        for cut in (*sent.cuts, len(sent.data)):
            if piece := sent.data[begin : begin + cut]:
                pieces.append((piece, 0))
            begin += cut
        if sent.room:
            pieces.append((bytes(sent.room), DESC_F_WRITE))
        descs = []
        for number, (piece, flags) in enumerate(pieces):
            rig.queues.ram.write(at, piece)
            more = DESC_F_NEXT if number + 1 < len(pieces) else 0
            following = number + 1 if sent.indirect else free + number + 1
            descs.append(Descriptor(at, len(piece), flags | more, following).pack())
            at += len(piece) + 3
        if sent.indirect:
            at += -at % 16
            rig.queues.ram.write(at, b"".join(descs))
            ring.describe(free, at, 16 * len(descs), DESC_F_INDIRECT)
            at += 16 * len(descs)
        else:
            rig.queues.ram.write(ring.desc + 16 * free, b"".join(descs))
        ring.offer(free)
        free += 1 if sent.indirect else len(descs)


def received_on(wire: socket.socket) -> list[bytes]:
    got = []
    while True:
        try:
            got.append(wire.recv(1 << 17))
        except BlockingIOError:
            return got


def counted(rig: Rig) -> tuple[int, int, int, int]:
    total = rig.queues.meter.snapshot()
    return total.requests, total.bytes_in, total.bytes_out, total.frames_dropped


def transmitted(
    features: int, frames: Sequence[Sent], limit: RateLimit, *, natively: bool, broken: bool
) -> tuple[object, ...]:
    rig = Rig(features | PLAIN, natively=natively, options=replace(OPTIONS, limit_tx=limit))
    try:
        ring = rig.queues.ring(RING_SIZE)
        lay_out(rig, ring, frames)
        if broken:
            ring.describe(RING_SIZE - 1, DATA, 100, DESC_F_NEXT, RING_SIZE - 1)
            ring.offer(RING_SIZE - 1)
        rig.serve_ring(TX, ring)
        rig.queues.kick()
        if broken:
            assert isinstance(rig.join(), QueueError)
        rig.await_used(ring, len(frames))
        rig.stop()
        refusal = [str(error) for error in rig.failure]
        return ring.completions(), received_on(rig.wire), counted(rig), refusal
    finally:
        rig.close()


@no_fixtures
@given(
    frames=FRAMES,
    features=st.sampled_from(OFFLOADS),
    broken=st.booleans(),
    limit=st.sampled_from(LIMITS),
)
@example(frames=[Sent(_plain, MAX_FRAME_BYTES, ())], features=0, broken=False, limit=LIMITS[0])
@example(frames=[Sent(_plain, MAX_FRAME_BYTES + 1, ())], features=0, broken=False, limit=LIMITS[0])
@example(frames=[Sent(_plain, 60, tuple([1] * 60))] * 2, features=0, broken=True, limit=LIMITS[1])
@example(
    frames=[segments(1514), segments(1515)], features=OFFLOADS[-1], broken=False, limit=LIMITS[2]
)
def test_frames_of_a_driver_leave_in_the_same_way(
    frames: list[Sent], features: int, broken: bool, limit: RateLimit
) -> None:
    if sum(len(sent.cuts) + 2 for sent in frames) >= RING_SIZE:
        frames = frames[:1]
    python = transmitted(features, frames, limit, natively=False, broken=broken)
    native = transmitted(features, frames, limit, natively=True, broken=broken)
    assert native == python


@dataclass(frozen=True)
class Reception:
    """What a run of the receive queue gave.

    Attributes:
        used: The used elements.
        data: What each of those chains has.
        next_avail: Where the ring goes on.
        counted: Requests, bytes and drops.
    """

    used: list[tuple[int, int]]
    data: list[bytes]
    next_avail: int
    counted: tuple[int, int, int, int]


def expected(
    sizes: Sequence[int], frames: Sequence[bytes], ring_size: int, *, mergeable: bool
) -> tuple[list[tuple[int, int]], int, int]:
    """Derive used elements, frames dropped while the ring is served, and frames that are read."""
    used: list[tuple[int, int]] = []
    dropped = read = 0
    for frame in frames:
        free = list(enumerate(sizes))[len(used) :]
        if not free:
            break
        read += 1
        most = min(MOST_HELD, ring_size) if mergeable else 1
        taken = []
        left = len(frame)
        for head, size in free[:most]:
            if not left:
                break
            taken.append((head, min(size, left)))
            left -= taken[-1][1]
        if not left:
            used += taken
        elif len(taken) == most:
            dropped += 1
        else:
            break  # it waits for further buffers
    return used, dropped, read


def received(
    sizes: Sequence[int],
    pieces: int,
    frames: Sequence[bytes],
    features: int,
    ring_size: int,
    limit: RateLimit,
    *,
    natively: bool,
) -> Reception:
    mergeable = bool(features & virtio_net.F_MRG_RXBUF)
    used, dropped, read = expected(sizes, frames, ring_size, mergeable=mergeable)
    rig = Rig(features, natively=natively, options=replace(OPTIONS, limit_rx=limit))
    try:
        ring = rig.queues.ring(ring_size)
        at, step = DATA, ring_size // max(len(sizes), 1)
        buffers: list[list[tuple[int, int]]] = []
        for number, size in enumerate(sizes):
            count = min(pieces, step, size)
            parts = [size // count] * (count - 1)
            parts.append(size - sum(parts))
            places = itertools.accumulate((part + GAP for part in parts), initial=at)
            buffers.append(list(zip(places, parts, strict=False)))
            ring.chain(number * step, writable=buffers[-1])
            at += size + GAP * count
        rig.queues.ram.write(DATA - GAP, bytes([FILL]) * (at - DATA + GAP))
        ring.offer(*(number * step for number in range(len(sizes))))
        for frame in frames:
            rig.wire.send(frame)
        rig.serve_ring(RX, ring)
        rig.queues.kick()
        left = sum(map(len, frames[read:]))
        assert eventually(
            lambda: (
                ring.used_idx == len(used)
                and rig.queues.meter.snapshot().frames_dropped == dropped
                and waiting_bytes(rig) == left
            )
        ), (ring.completions(), used, counted(rig), dropped, left)
        rig.stop()
        assert rig.failure == []
        assert rig.queue is not None
        assert ring.completions() == [(number * step, length) for number, length in used]
        read_ram = rig.queues.ram.read
        for place, length in itertools.chain(*buffers):
            assert (
                read_ram(place - GAP, GAP) == read_ram(place + length, GAP) == bytes([FILL] * GAP)
            )
        data = [
            b"".join(read_ram(*buffer) for buffer in buffers[number])[:length]
            for number, length in used
        ]
        return Reception(ring.completions(), data, rig.queue.state.next_avail, counted(rig))
    finally:
        rig.close()


def waiting_bytes(rig: Rig) -> int:
    """Return how much the device has not read off the wire (SIOCINQ)."""
    answer = fcntl.ioctl(rig.tap.queues[0].fd, termios.FIONREAD, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


_frames = st.lists(
    st.builds(
        lambda flags, gso, length: (
            virtio_net.HEADER.pack(flags, gso, 54, 1448, 34, 16, 0)
            + bytes(i % 253 for i in range(length))
        ),
        st.sampled_from([0, 1, 2, 3, 0xFF]),
        st.sampled_from([0, 1, 4]),
        st.sampled_from([14, 60, 61, 500, 1514, 3000, 5000]),
    ),
    min_size=1,
    max_size=8,
)


@no_fixtures
@given(
    sizes=st.lists(st.sampled_from([1, 5, 12, 13, 100, 600, 1526, 2048, 4096]), max_size=16),
    pieces=st.integers(1, 3),
    frames=_frames,
    features=st.sampled_from(
        [
            0,
            virtio_net.F_MRG_RXBUF,
            virtio_net.F_MRG_RXBUF | virtio_net.F_GUEST_CSUM,
            virtio_net.F_MRG_RXBUF | virtio_net.F_GUEST_CSUM | virtio_net.F_GUEST_TSO4,
        ]
    ),
    full=st.booleans(),
    limit=st.sampled_from(LIMITS),
)
def test_frames_reach_a_driver_in_the_same_way(
    sizes: list[int],
    pieces: int,
    frames: list[bytes],
    features: int,
    full: bool,
    limit: RateLimit,
) -> None:
    # With a full ring no further buffers can come, so what is too long is dropped.
    ring_size = 1 << max(len(sizes) - 1, 0).bit_length()
    if not full:
        ring_size = RING_SIZE
    python = received(sizes, pieces, frames, features, ring_size, limit, natively=False)
    native = received(sizes, pieces, frames, features, ring_size, limit, natively=True)
    assert native == python
    assert native.next_avail == len(native.used)
