"""The native loops on a stream: framing, partial reads and writes, stops inside a frame."""

from __future__ import annotations

import fcntl
import os
import random
import select
import socket
import struct
import sys
import termios
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import pytest

from services.devicehost import fastpath
from services.devicehost.devices.net.frames.native_loop import NativeLoop
from services.devicehost.devices.net.rates import Limits
from services.devicehost.fastpath import Outcome
from services.devicehost.virtio.native_queue import NativeQueue, make_queue
from services.devicehost.virtio.queue_setup import QueueState
from services.wire import virtio_net
from services.wire.virtio_net import HEADER_BYTES, NetHeader
from services.wire.virtio_ring import DESC_F_WRITE
from tests.unit.devicehost.virtio.conftest import DATA, eventually
from tests.unit.devicehost.virtio.conftest import Rig as QueueRig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.guest_ring import GuestRing

pytestmark = pytest.mark.skipif(
    fastpath.library is None, reason="the native fast path was not built"
)

HEADER: Final = virtio_net.HEADER.pack(*NetHeader())
BUFFER: Final = 1 << 15
"""Bytes between the buffers of the tests."""
AHEAD_BYTES: Final = 32768
"""What is read at most behind a short frame (AHEAD_BYTES of net_receive.c)."""
DEADLINE_S: Final = 10.0


@dataclass(frozen=True)
class Wire:
    """Our end, as the loop is given it."""

    fd: int
    state: fastpath.PhStream
    wake_fd: int = -1


class Rig:
    """A ring, a loop that serves it on a thread of its own, and the other end of its stream.

    Attributes:
        wire: The other end.
        stream: What the loop keeps of the stream.
        outcomes: What the loop returned each time that it was started.
    """

    def __init__(self) -> None:
        self.queues = QueueRig()
        self._mine, self.wire = socket.socketpair()
        self._mine.setblocking(False)
        self.wire.settimeout(DEADLINE_S)
        self.stream = fastpath.PhStream()
        self._wire = Wire(self._mine.fileno(), self.stream)
        self.outcomes: list[int] = []
        self.ring: GuestRing = self.queues.ring(64)
        self._queue: NativeQueue | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._mine.close()
        self.wire.close()
        self.queues.close()

    def loop(self, features: int) -> NativeLoop:
        assert fastpath.library is not None
        return NativeLoop(fastpath.library, self._wire, features, Limits(), mtu=65520)

    def receive(self, features: int = virtio_net.F_MRG_RXBUF, base: int = 0) -> NativeLoop:
        loop = self.loop(features)
        self._start(loop.receive, base)
        return loop

    def transmit(self, features: int = 0, base: int = 0) -> NativeLoop:
        loop = self.loop(features)
        self._start(loop.transmit, base)
        return loop

    def _start(self, serve: object, base: int) -> None:
        queue = make_queue(self.queues.setup(self.ring), QueueState(base), natively=True)
        assert isinstance(queue, NativeQueue)
        self._queue = queue
        self._thread = threading.Thread(
            target=lambda: self.outcomes.append(queue.lend(serve))  # type: ignore[arg-type]
        )
        self._thread.start()

    def stop(self) -> int:
        """Stop the ring; return where it goes on."""
        if self._queue is None or self._thread is None:
            return 0
        self._queue.stop()
        self.join()
        next_avail = self._queue.state.next_avail
        self._queue.close()
        self._queue = None
        return next_avail

    def join(self) -> None:
        """Wait until the loop has returned by itself."""
        assert self._thread is not None
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def offer_room(self, *sizes: int, first: int = 0) -> None:
        for place, size in enumerate(sizes, first):
            self.ring.describe(place, DATA + BUFFER * place, size, DESC_F_WRITE)
        self.ring.offer(*range(first, first + len(sizes)))
        self.queues.kick()

    def offer_frames(self, *frames: bytes, header: bytes = HEADER, first: int = 0) -> None:
        for place, frame in enumerate(frames, first):
            self.queues.ram.write(DATA + BUFFER * 3 * place, header + frame)
            self.ring.describe(place, DATA + BUFFER * 3 * place, len(header) + len(frame))
        self.ring.offer(*range(first, first + len(frames)))
        self.queues.kick()

    def await_used(self, count: int) -> list[tuple[int, int]]:
        while self.ring.used_idx < count:
            assert select.select([self.queues.call_fd], [], [], DEADLINE_S)[0], self.outcomes
            os.eventfd_read(self.queues.call_fd)
        return self.ring.completions()

    def got(self, *used: tuple[int, int]) -> bytes:
        read = self.queues.ram.read
        return b"".join(read(DATA + BUFFER * head, length) for head, length in used)

    @property
    def drops(self) -> int:
        return self.queues.meter.snapshot().frames_dropped


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as made:
        yield made


def framed(*frames: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)


def frame(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


def waiting_bytes(rig: Rig) -> int:
    """Return how much the loop has not read (SIOCINQ)."""
    answer = fcntl.ioctl(rig._mine.fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def read_exactly(wire: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = wire.recv(length - len(data))
        assert part
        data += part
    return data


@pytest.mark.parametrize("step", [1, 3, 4, 5, 17, 1000])
def test_frames_arrive_however_the_stream_divides_them(rig: Rig, step: int) -> None:
    frames = [frame(14), frame(61, 1), frame(300, 2), frame(14, 3)]
    rig.offer_room(*[2048] * 4)
    rig.receive()
    data = framed(*frames)
    for at in range(0, len(data), step):
        rig.wire.sendall(data[at : at + step])
    used = rig.await_used(4)
    assert used == [(place, HEADER_BYTES + len(each)) for place, each in enumerate(frames)]
    for place, each in enumerate(frames):
        header = virtio_net.HEADER.pack(*NetHeader(num_buffers=1))
        assert rig.got(used[place]) == header + each


def test_a_long_frame_spans_chains_that_appear_together(rig: Rig) -> None:
    long = frame(65535)
    rig.offer_room(*[2048] * 33)
    rig.receive(virtio_net.F_MRG_RXBUF | virtio_net.F_GUEST_CSUM)
    rig.wire.sendall(framed(long))
    used = rig.await_used(33)
    header = NetHeader(flags=virtio_net.HDR_F_DATA_VALID, num_buffers=33)
    assert rig.got(*used) == virtio_net.HEADER.pack(*header) + long


def test_a_frame_waits_in_the_stream_until_there_are_buffers_for_it(rig: Rig) -> None:
    rig.offer_room(1000)
    rig.receive()
    rig.wire.sendall(framed(frame(1800)))
    assert eventually(lambda: waiting_bytes(rig) == 1800)
    assert rig.ring.used_idx == 0
    rig.offer_room(1000, first=1)
    used = rig.await_used(2)
    assert rig.got(*used)[HEADER_BYTES:] == frame(1800)
    assert rig.drops == 0


def test_a_frame_that_no_chains_can_hold_is_dropped_and_the_next_one_is_not(rig: Rig) -> None:
    rig.offer_room(1000)
    rig.receive(features=0)
    rig.wire.sendall(framed(frame(1800), frame(60, 1)))
    used = rig.await_used(1)
    assert rig.got(*used)[HEADER_BYTES:] == frame(60, 1)
    assert rig.drops == 1


def test_short_frames_are_read_ahead_up_to_a_bound(rig: Rig) -> None:
    frames = [frame(1000, seed) for seed in range(63)]
    rig.wire.sendall(framed(*frames))
    rig.offer_room(2048)
    rig.receive()
    assert eventually(lambda: waiting_bytes(rig) == len(framed(*frames[1:])) - AHEAD_BYTES)
    assert rig.await_used(1) == [(0, HEADER_BYTES + 1000)]
    rig.offer_room(*[2048] * 62, first=1)
    used = rig.await_used(63)
    assert [rig.got(each)[HEADER_BYTES:] for each in used] == frames
    assert rig.drops == 0


def test_no_part_of_a_frame_behind_a_long_one_is_read_ahead(rig: Rig) -> None:
    """It goes straight into the guest's buffers: only its length comes along."""
    frames = [frame(4000), frame(5000, 1)]
    rig.wire.sendall(framed(*frames))
    rig.offer_room(4096)
    rig.receive()
    assert rig.await_used(1) == [(0, HEADER_BYTES + 4000)]
    assert waiting_bytes(rig) == 5000
    rig.offer_room(8192, first=1)
    assert rig.got(*rig.await_used(2)[1:])[HEADER_BYTES:] == frames[1]


@pytest.mark.parametrize("sent", [0, 1, 3, 4, 5, 50, 103, 104, 107, 108, 110])
def test_a_stop_in_the_middle_of_a_frame_loses_nothing(rig: Rig, sent: int) -> None:
    frames = [frame(100), frame(200, 1)]
    rig.offer_room(2048, 2048)
    rig.receive()
    data = framed(*frames)
    rig.wire.sendall(data[:sent])
    assert eventually(lambda: not select.select([rig._mine], [], [], 0)[0])
    base = rig.stop()
    assert base == rig.ring.used_idx == (sent >= 104)
    rig.receive(base=base)
    rig.wire.sendall(data[sent:])
    used = rig.await_used(2)
    assert rig.got(used[0])[HEADER_BYTES:] == frames[0]
    assert rig.got(used[1])[HEADER_BYTES:] == frames[1]
    assert rig.drops == 0


@pytest.mark.parametrize("length", [0, 13, 65536, 1 << 31, (1 << 32) - 1])
def test_a_length_of_nonsense_ends_the_loop(rig: Rig, length: int) -> None:
    rig.offer_room(2048, 2048)
    loop = rig.receive()
    rig.wire.sendall(framed(frame(60)) + struct.pack(">I", length))
    rig.join()
    assert rig.outcomes == [Outcome.FAILED]
    assert os.strerror(loop.state.receive_error) == "Protocol error"
    assert rig.await_used(1) == [(0, HEADER_BYTES + 60)]


@pytest.mark.parametrize("started", [b"", framed(bytes(60))[:20]])
def test_the_end_of_the_stream_ends_the_loops(rig: Rig, started: bytes) -> None:
    rig.offer_room(2048)
    loop = rig.receive()
    rig.wire.sendall(started)
    rig.wire.close()
    rig.join()
    assert rig.outcomes == [Outcome.FAILED]
    assert loop.state.receive_error
    assert rig.stop() == 0


def test_frames_leave_with_their_lengths(rig: Rig) -> None:
    frames = [frame(14), frame(60, 1), frame(65535, 2), frame(9000, 3)]
    rig.offer_frames(*frames)
    rig.transmit()
    assert read_exactly(rig.wire, len(framed(*frames))) == framed(*frames)
    assert rig.await_used(4) == [(place, 0) for place in range(4)]


def test_frames_in_many_pieces_leave_by_several_calls(rig: Rig) -> None:
    """A call takes 1,024 buffers (IOV_MAX), and each frame has a copy of its start beside its own.

    The first piece is longer than the copy, so that the rest of it is a buffer, too.
    """
    rig.ring = rig.queues.ring(1024)
    frames = [frame(70 + 5 * 15, seed) for seed in range(62)]
    for number, each in enumerate(frames):
        at = DATA + 1024 * number
        pieces = [HEADER + each[:70], *(each[place : place + 5] for place in range(70, 145, 5))]
        places = [at, *(at + 100 + 20 * place for place in range(15))]
        for place, piece in zip(places, pieces, strict=True):
            rig.queues.ram.write(place, piece)
        lengths = map(len, pieces)
        rig.ring.chain(16 * number, readable=list(zip(places, lengths, strict=True)))
    rig.ring.offer(*range(0, 16 * len(frames), 16))
    rig.queues.kick()
    rig.transmit()
    assert read_exactly(rig.wire, len(framed(*frames))) == framed(*frames)
    rig.await_used(len(frames))
    assert rig.drops == 0


@pytest.mark.parametrize("hostile", [b"", HEADER[:11], HEADER + bytes(13), HEADER + bytes(65536)])
def test_what_is_no_frame_is_dropped_between_others(rig: Rig, hostile: bytes) -> None:
    rig.offer_frames(frame(60))
    rig.offer_frames(hostile or b"\x01" + HEADER[1:] + bytes(60), header=b"", first=1)
    rig.offer_frames(frame(61, 1), first=2)
    rig.transmit()
    rig.await_used(3)
    assert read_exactly(rig.wire, 129) == framed(frame(60), frame(61, 1))
    assert rig.drops == 1


def fill(rig: Rig, frames: list[bytes]) -> int:
    """Send until the stream is full; return how many chains were given back by then."""
    rig.offer_frames(*frames)
    rig.transmit()
    assert eventually(lambda: not select.select([], [rig._mine], [], 0)[1])
    return rig.ring.used_idx


def test_a_full_stream_takes_frames_in_parts_and_tears_none(rig: Rig) -> None:
    frames = [frame(60000, seed) for seed in range(16)]
    assert fill(rig, frames) < len(frames)
    assert read_exactly(rig.wire, len(framed(*frames))) == framed(*frames)
    assert rig.await_used(16)[-1] == (15, 0)
    assert rig.drops == 0


def test_a_batch_that_stops_between_two_frames_goes_on_with_the_next_one(rig: Rig) -> None:
    """The kernel takes pieces of half a socket's buffer (unix_stream_sendmsg), here frames."""
    rig._mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    piece = rig._mine.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2 - 64
    frames = [frame(piece - 4, seed) for seed in range(16)]
    fill(rig, frames)
    base = rig.stop()
    assert 0 < base == rig.ring.used_idx < len(frames)
    sent = int.from_bytes(fcntl.ioctl(rig.wire.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)
    assert sent == base * piece
    assert rig.stream.unsent_start == rig.stream.unsent_end
    rig.transmit(base=base)
    assert read_exactly(rig.wire, len(framed(*frames))) == framed(*frames)
    rig.await_used(16)
    assert rig.drops == 0


def test_a_stop_while_the_stream_is_full_is_prompt_and_tears_nothing(rig: Rig) -> None:
    frames = [frame(60000, seed) for seed in range(16)]
    fill(rig, frames)
    base = rig.stop()
    assert base == rig.ring.used_idx < len(frames)
    assert rig.outcomes == [Outcome.STOPPED]
    rig.transmit(base=base)
    assert read_exactly(rig.wire, len(framed(*frames))) == framed(*frames)
    rig.await_used(16)
    assert rig.drops == 0


def test_what_the_stream_cannot_take_any_more_is_dropped(rig: Rig) -> None:
    frames = [frame(60000, seed) for seed in range(16)]
    fill(rig, frames)
    rig.wire.close()
    rig.join()
    assert rig.outcomes == [Outcome.FAILED]
    assert rig.drops > 0
    assert rig.stop() == rig.ring.used_idx


def test_receiving_goes_on_while_sending_waits_for_room(rig: Rig) -> None:
    """passt blocks in a write, and reads nothing meanwhile: both would wait for ever."""
    fill(rig, [frame(60000, seed) for seed in range(16)])
    with Rig() as other:
        other._mine.close()
        other._mine = socket.socket(fileno=os.dup(rig._mine.fileno()))
        other.stream = rig.stream
        other.offer_room(2048)
        other.receive()
        rig.wire.sendall(framed(frame(60)))
        assert other.got(*other.await_used(1))[HEADER_BYTES:] == frame(60)
