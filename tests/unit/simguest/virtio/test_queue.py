"""The driver's ring by itself: layout, wrapping, notifications, and devices that write nonsense."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from services.handshake.errors import FailedPreconditionError, PortholeError
from services.simguest.memory.dma import DirectDma
from services.simguest.memory.pages import PageAllocator
from services.simguest.memory.ram import GuestRam
from services.simguest.virtio.queue import SplitQueue
from services.simguest.virtio.ring import BrokenRingError, DriverRing, ring_bytes
from services.wire import virtio_ring as wire

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 8


class Bench:
    """A queue whose device is the test itself."""

    def __init__(self, *, event_idx: bool = True, indirect: bool = True) -> None:
        self.ram = GuestRam(32 << 20)
        self.pages = PageAllocator([(0x1000000, 0x1100000)])
        self.dma = DirectDma(self.ram, self.pages)
        [self.memory] = self.dma.map([ring_bytes(SIZE)], 0)
        self.ring = DriverRing(SIZE, self.memory, event_idx=event_idx)
        self.queue = SplitQueue(3, "bench", self.ring, self.dma, indirect=indirect)
        self.ours, self.theirs = socket.socketpair()
        self.desc = self.ram.view(self.ring.desc_gpa, wire.desc_table_bytes(SIZE))
        self.avail = self.ram.view(self.ring.avail_gpa, wire.avail_bytes(SIZE)).cast("H")
        self.used = self.ram.view(self.ring.used_gpa, wire.used_bytes(SIZE))

    def start(self) -> None:
        self.queue.start(self.ours.fileno())

    def use(self, index: int, head: int, written: int, *, publish: int | None = None) -> None:
        """Write used element `index` and set the used index behind it, or to `publish`."""
        offset = wire.USED_RING + index % SIZE * wire.USED_ELEM_BYTES
        wire.USED_ELEM.pack_into(self.used, offset, head, written)
        following = index + 1 if publish is None else publish
        self.used.cast("H")[1] = following & 0xFFFF
        os.eventfd_write(self.queue.call_fd, 1)

    def descriptor(self, index: int) -> wire.Descriptor:
        return wire.Descriptor(*wire.DESC.unpack_from(self.desc, index * wire.DESC_BYTES))

    def kicked(self) -> bool:
        try:
            return os.eventfd_read(self.queue.kick_fd) > 0
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.queue.stop()
        self.queue.release()
        self.dma.unmap([self.memory])
        self.ours.close()
        self.theirs.close()
        assert self.pages.used_bytes == 0
        self.ram.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def make(stack: ExitStack, *, event_idx: bool = True, indirect: bool = True) -> Bench:
    bench = Bench(event_idx=event_idx, indirect=indirect)
    stack.callback(bench.close)
    return bench


@pytest.mark.parametrize("size", [1, 2, 8, 256, 1024, 32768])
def test_the_parts_of_a_ring_are_aligned_and_apart(size: int) -> None:
    ram = GuestRam(32 << 20)
    [memory] = DirectDma(ram, PageAllocator([(0x1000000, 0x1200000)])).map([ring_bytes(size)], 0)
    ring = DriverRing(size, memory, event_idx=True)
    assert ring.desc_gpa % wire.DESC_ALIGN == 0
    assert ring.avail_gpa % wire.AVAIL_ALIGN == 0
    assert ring.used_gpa % wire.USED_ALIGN == 0
    assert ring.desc_gpa + wire.desc_table_bytes(size) <= ring.avail_gpa
    assert ring.avail_gpa + wire.avail_bytes(size) <= ring.used_gpa
    assert ring.used_gpa + wire.used_bytes(size) == memory.gpa + memory.length
    ram.close()


def test_an_indirect_request_takes_one_descriptor(stack: ExitStack) -> None:
    bench = make(stack)
    bench.queue.submit([b"in1", b"in02"], [5, 6])
    head = bench.avail[2]
    outer = bench.descriptor(head)
    assert outer.flags == wire.DESC_F_INDIRECT
    assert outer.length == 4 * wire.DESC_BYTES
    table = bytes(bench.ram.view(outer.addr, outer.length))
    inner = [wire.Descriptor(*fields) for fields in wire.DESC.iter_unpack(table)]
    next_, write = wire.DESC_F_NEXT, wire.DESC_F_WRITE
    assert [entry.flags for entry in inner] == [next_, next_, next_ | write, write]
    assert [entry.length for entry in inner] == [3, 4, 5, 6]
    assert [entry.next for entry in inner[:-1]] == [1, 2, 3]
    assert bytes(bench.ram.view(inner[1].addr, 4)) == b"in02"


def test_without_indirect_a_request_is_a_chain_in_the_ring(stack: ExitStack) -> None:
    bench = make(stack, indirect=False)
    bench.start()
    future = bench.queue.submit([b"a", b"b"], [1, 1])
    head = bench.avail[2]
    seen = []
    entry = bench.descriptor(head)
    while True:
        seen.append((entry.length, entry.flags & wire.DESC_F_WRITE))
        if not entry.flags & wire.DESC_F_NEXT:
            break
        entry = bench.descriptor(entry.next)
    assert seen == [(1, 0), (1, 0), (1, 2), (1, 2)]
    second = bench.queue.submit([b"a"] * 4, [])
    with pytest.raises(PortholeError) as caught:
        bench.queue.submit([b"a"], [], deadline_s=0)
    assert caught.value.reason == "RING_FULL"
    bench.use(0, bench.avail[3], 0)
    assert second.result(10) == []
    bench.use(1, head, 1)
    assert future.result(10) == [b"\0", b""]


def test_indices_wrap_at_65536(stack: ExitStack) -> None:
    bench = make(stack)
    avail_event = bench.used[wire.avail_event_offset(SIZE) :].cast("H")
    used_idx = bench.used.cast("H")
    for turn in range(65_536 + 3 * SIZE):
        avail_event[0] = turn & 0xFFFF
        bench.ring.publish(turn % SIZE)
        assert bench.ring.should_kick()
        wire.USED_ELEM.pack_into(bench.used, wire.USED_RING + turn % SIZE * 8, turn % SIZE, turn)
        used_idx[1] = (turn + 1) & 0xFFFF
        assert bench.ring.pop_used() == (turn % SIZE, turn)
        assert bench.ring.pop_used() is None
    assert bench.avail[1] == 3 * SIZE


def test_used_bytes_fill_the_buffers_in_order(stack: ExitStack) -> None:
    bench = make(stack)
    bench.start()
    for turn, (written, parts) in enumerate([(0, [0, 0]), (3, [3, 0]), (4, [4, 0]), (9, [4, 5])]):
        future = bench.queue.submit([b"x"], [4, 5])
        bench.use(turn, bench.avail[2 + turn], written)
        assert [len(part) for part in future.result(10)] == parts


def test_event_idx_kicks_only_when_asked(stack: ExitStack) -> None:
    bench = make(stack)
    avail_event = bench.used[wire.avail_event_offset(SIZE) :].cast("H")
    avail_event[0] = 1
    bench.queue.submit([b"x"], [])
    assert not bench.kicked()  # the device asked for a kick at entry 1, this is entry 0
    bench.queue.submit([b"x"], [])
    assert bench.kicked()
    bench.queue.submit([b"x"], [])
    assert not bench.kicked()


def test_without_event_idx_the_flag_counts(stack: ExitStack) -> None:
    bench = make(stack, event_idx=False)
    flags = bench.used.cast("H")
    flags[0] = wire.USED_F_NO_NOTIFY
    bench.queue.submit([b"x"], [])
    assert not bench.kicked()
    flags[0] = 0
    bench.queue.submit([b"x"], [])
    assert bench.kicked()


@pytest.mark.parametrize(
    ("index", "head", "written", "publish", "what"),
    [
        (0, SIZE, 0, None, "names head 8 in a ring of 8"),
        (0, 0xFFFFFFFF, 0, None, "names head 4294967295"),
        (0, 5, 0, None, "names head 5, which is not available"),
        (0, 0, 17, None, "the device wrote 17 bytes to a request with room for 16"),
        (0, 0, 0xFFFFFFFF, None, "the device wrote 4294967295 bytes"),
        (0, 0, 0, SIZE + 1, "jumped by 9 in a ring of 8"),
        (0, 0, 0, 0xFFFF, "jumped by 65535"),
    ],
)
def test_a_device_that_breaks_the_ring_fails_its_queue_and_nothing_else(
    stack: ExitStack, index: int, head: int, written: int, publish: int | None, what: str
) -> None:
    bench = make(stack)
    bench.start()
    future = bench.queue.submit([b"x"], [16])
    assert bench.avail[2] == 0
    bench.use(index, head, written, publish=publish)
    error = future.exception(10)
    assert isinstance(error, FailedPreconditionError)
    assert error.reason == "DEVICE_BROKEN"
    assert what in error.message
    assert "queue 3 of bench" in error.message
    with pytest.raises(FailedPreconditionError):
        bench.queue.submit([b"y"], [])
    assert bench.pages.used_bytes > 4096  # until it is closed, the device may write to them


def test_a_request_that_is_used_twice_breaks_the_ring(stack: ExitStack) -> None:
    bench = make(stack)
    bench.start()
    first = bench.queue.submit([b"x"], [16])
    bench.use(0, 0, 3)
    assert [len(part) for part in first.result(10)] == [3]
    second = bench.queue.submit([b"x"], [16])
    bench.use(1, 0, 3)
    error = second.exception(10)
    assert isinstance(error, FailedPreconditionError)
    assert "names head 0, which is not available" in error.message


def test_the_ring_alone_takes_used_elements_in_order() -> None:
    bench = Bench()
    ring = bench.ring
    assert ring.pop_used() is None
    assert ring.arm()
    bench.use(0, 2, 7)
    assert not ring.arm()
    assert ring.pop_used() == (2, 7)
    assert ring.pop_used() is None
    assert bench.avail[wire.used_event_offset(SIZE) // 2] == 0
    assert ring.arm()
    assert bench.avail[wire.used_event_offset(SIZE) // 2] == 1
    bench.use(1, 2, 7, publish=0x8000)
    with pytest.raises(BrokenRingError, match="jumped"):
        ring.pop_used()
    bench.close()
