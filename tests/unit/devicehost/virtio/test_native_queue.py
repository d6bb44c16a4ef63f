"""When the native side of a ring notifies its driver: its own rule, which Python's has not."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from services.devicehost import fastpath, peer_writes
from services.devicehost.memory import WindowMemory, WindowQuota
from services.devicehost.virtio.native_queue import NativeQueue, make_queue
from services.devicehost.virtio.queue_setup import QueueState
from services.handshake.errors import ResourceExhaustedError
from tests.unit.devicehost.virtio.conftest import DATA, full_and_blocking

if TYPE_CHECKING:
    from services.devicehost.virtio.queue_setup import QueueSetup
    from tests.unit.devicehost.virtio.conftest import Rig

LONG_BYTES: Final = 256 << 10

pytestmark = pytest.mark.skipif(
    fastpath.library is None, reason="the native fast path was not built"
)


def notified_after(rig: Rig, length: int, waiting: int = 16) -> list[int]:
    """Serve requests of one writable buffer; return after which ones the driver was notified."""
    library = fastpath.library
    assert library is not None
    ring = rig.ring(waiting)
    ring.chain(0, writable=[(DATA, length)])
    ring.offer(*[0] * ring.size)
    queue = make_queue(rig.setup(ring), QueueState(), natively=True)
    assert isinstance(queue, NativeQueue)
    chain = fastpath.PhChain()

    def serve_one(native: int) -> int:
        pointer = ctypes.c_void_p(native)
        library.ph_queue_look(pointer)
        assert library.ph_queue_take(pointer, ctypes.byref(chain)) & 0xFF
        library.ph_queue_push(pointer, ctypes.c_uint32(length))
        return fastpath.Outcome.PYTHON

    try:
        return [
            served
            for served in range(1, ring.size + 1)
            if queue.lend(serve_one) == fastpath.Outcome.PYTHON and rig.calls()
        ]
    finally:
        queue.close()


def test_a_driver_is_notified_while_work_is_left_for_the_time_it_takes_to_wake_up(rig: Rig) -> None:
    assert notified_after(rig, 4096) == [4, 7, 10, 12, 14, 16]


def test_a_driver_with_much_waiting_is_notified_in_batches(rig: Rig) -> None:
    assert notified_after(rig, 4096, waiting=64)[:4] == [8, 16, 24, 32]


def test_long_requests_are_notified_by_their_bytes(rig: Rig) -> None:
    assert notified_after(rig, LONG_BYTES) == [4, 8, 12, 16]


def test_a_ring_is_served_natively_only_if_it_has_what_the_loop_needs(rig: Rig) -> None:
    ring = rig.ring()
    windows = WindowMemory(rig.table, WindowQuota(), rig.meter)

    def is_native(setup: QueueSetup, *, natively: bool = True) -> bool:
        queue = make_queue(setup, QueueState(), natively=natively)
        queue.close()
        return isinstance(queue, NativeQueue)

    assert is_native(rig.setup(ring))
    assert not is_native(rig.setup(ring), natively=False)
    assert not is_native(rig.setup(ring, polled=True)), "the loop does not poll"
    assert not is_native(rig.setup(ring, memory=windows)), "nothing stays mapped"
    windows.release()


def test_a_call_descriptor_that_blocks_holds_up_no_other_thread(rig: Rig) -> None:
    library = fastpath.library
    assert library is not None
    ring = rig.ring()
    queue = make_queue(rig.setup(ring), QueueState(), natively=True)
    assert isinstance(queue, NativeQueue)
    begun = threading.Event()
    other = os.eventfd(0, os.EFD_NONBLOCK)

    def notify(native: int) -> int:
        begun.set()
        library.ph_queue_notify(ctypes.c_void_p(native))
        return fastpath.Outcome.PYTHON

    def control() -> None:
        queue.replace_call(other)
        queue.stop()
        queue.close()

    blocked = threading.Thread(target=queue.lend, args=(notify,))
    controller = threading.Thread(target=control)
    with full_and_blocking(rig.call_fd):
        blocked.start()
        assert begun.wait(5)
        time.sleep(0.02)  # nothing signals that a thread is in a system call
        controller.start()
        controller.join(5)
        went_on = not controller.is_alive()
    blocked.join(10)
    controller.join(10)
    os.close(other)
    assert went_on


@pytest.mark.usefixtures("interrupts")
def test_the_loop_is_got_out_of_a_notification_that_blocks(rig: Rig) -> None:
    library = fastpath.library
    assert library is not None
    queue = make_queue(rig.setup(rig.ring()), QueueState(), natively=True)
    returned: list[int] = []

    def notify_twice(native: int) -> int:
        for _ in range(2):
            library.ph_queue_notify(ctypes.c_void_p(native))
            returned.append(1)
        return fastpath.Outcome.PYTHON

    assert isinstance(queue, NativeQueue)
    thread = threading.Thread(target=queue.lend, args=(notify_twice,), daemon=True)
    with full_and_blocking(rig.call_fd):
        thread.start()
        assert not peer_writes.join(thread, 0.1, peer_writes.interrupt), "it is not Python's write"
        assert peer_writes.join(thread, 10, queue.interrupt)
    queue.close()
    assert returned == [1, 1]


def test_what_the_loop_does_beside_notifying_is_not_interrupted(
    rig: Rig,
) -> None:
    queue = make_queue(rig.setup(rig.ring()), QueueState(), natively=True)
    assert isinstance(queue, NativeQueue)
    came: list[int] = []
    before = signal.signal(peer_writes.SIGNAL, lambda number, _: came.append(number))
    waits = threading.Event()
    thread = threading.Thread(target=queue.lend, args=(lambda _: waits.wait(10) and 1,))
    try:
        thread.start()
        assert not peer_writes.join(thread, 0.1, queue.interrupt)
        waits.set()
        assert peer_writes.join(thread, 10, queue.interrupt)
    finally:
        signal.signal(peer_writes.SIGNAL, before)
    queue.close()
    assert came == []


class NoMemory:
    """A library that has no memory for a ring, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, int, int]] = []
        self.asked: dict[str, int] = {}

    def ph_queue_new(self, reference: Any) -> None:
        setup = reference._obj
        array = (fastpath.PhSpan * setup.span_count).from_address(setup.spans)
        self.spans = [(span.gpa, span.size_bytes, span.address) for span in array]
        self.asked = {name: getattr(setup, name) for name, _ in setup._fields_}


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("with_call", [False, True])
def test_the_native_side_gets_what_the_queue_has(rig: Rig, flag: bool, with_call: bool) -> None:
    setup = rig.setup(rig.ring(), event_idx=flag, indirect=not flag)
    if not with_call:
        setup = replace(setup, call_fd=None)
    library = NoMemory()
    with pytest.raises(ResourceExhaustedError, match="ring 0 gets no memory") as caught:
        NativeQueue(setup, QueueState(), cast("ctypes.CDLL", library), rig.memory.spans() or ())
    assert caught.value.reason == "RING_MEMORY"
    (span,) = rig.memory.spans() or ()
    assert library.spans == [(span.gpa, span.size_bytes, span.address)]
    stop_fd = library.asked.pop("stop_fd")
    library.asked.pop("spans")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(stop_fd)
    assert stop_fd > 2, "its own, and closed again"

    def address(view: memoryview) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(view))

    assert library.asked == {
        "desc": address(setup.desc),
        "avail": address(setup.avail),
        "used": address(setup.used),
        "counters": ctypes.addressof(setup.counters.native),
        "span_count": 1,
        "size": setup.size,
        "kick_fd": rig.kick_fd,
        "call_fd": rig.call_fd if with_call else -1,
        "event_idx": flag,
        "indirect": not flag,
        "counts_slots": rig.memory.is_pool,
    }


def test_the_state_is_right_before_during_and_after_the_loop(rig: Rig) -> None:
    library = fastpath.library
    assert library is not None
    ring = rig.ring()
    ring.next_avail = base = 5
    ring.chain(0, writable=[(DATA, 4)])
    ring.offer(0, 0, 0)
    queue = make_queue(rig.setup(ring), QueueState(base), natively=True)
    assert isinstance(queue, NativeQueue)
    seen = [queue.state.next_avail]
    chain = fastpath.PhChain()

    def serve(native: int) -> int:
        pointer = ctypes.c_void_p(native)
        library.ph_queue_look(pointer)
        library.ph_queue_take(pointer, ctypes.byref(chain))
        seen.append(queue.state.next_avail)
        library.ph_queue_push(pointer, ctypes.c_uint32(0))
        return fastpath.Outcome.PYTHON

    queue.lend(serve)
    seen.append(queue.state.next_avail)
    assert queue.pop() is not None
    seen.append(queue.state.next_avail)
    assert seen == [base, base + 1, base + 1, base + 2]
    queue.close()


def test_the_loop_and_python_notify_through_a_new_call_descriptor(rig: Rig) -> None:
    library = fastpath.library
    assert library is not None
    queue = make_queue(rig.setup(rig.ring()), QueueState(), natively=True)
    assert isinstance(queue, NativeQueue)
    other = os.eventfd(0, os.EFD_NONBLOCK)

    def notify(native: int) -> int:
        library.ph_queue_notify(ctypes.c_void_p(native))
        return fastpath.Outcome.PYTHON

    queue.replace_call(other)
    assert os.eventfd_read(other) >= 1, "what the old one was signalled may be lost"
    queue.lend(notify)
    assert os.eventfd_read(other) == 1
    queue.notify()
    assert os.eventfd_read(other) == 1
    assert rig.calls() == 0
    queue.close()
    os.close(other)


def test_a_queue_that_is_stopped_stops_the_loop(rig: Rig) -> None:
    library = fastpath.library
    assert library is not None
    queue = make_queue(rig.setup(rig.ring()), QueueState(), natively=True)
    assert isinstance(queue, NativeQueue)
    stopped: list[bool] = []

    def look(native: int) -> int:
        stopped.append(bool(library.ph_queue_is_stopped(ctypes.c_void_p(native)) & 0xFF))
        return fastpath.Outcome.PYTHON

    queue.lend(look)
    queue.stop()
    queue.lend(look)
    assert stopped == [False, True]
    queue.close()


def test_the_loop_touches_neither_the_ring_nor_a_descriptor_of_a_closed_queue(rig: Rig) -> None:
    library = fastpath.library
    assert library is not None
    ring = rig.ring()
    ring.chain(0, writable=[(DATA, 4)])
    ring.offer(0)
    queue = make_queue(rig.setup(ring), QueueState(), natively=True)
    assert isinstance(queue, NativeQueue)
    chain = fastpath.PhChain()

    def come_back_late(native: int) -> int:
        pointer = ctypes.c_void_p(native)
        library.ph_queue_look(pointer)
        assert library.ph_queue_take(pointer, ctypes.byref(chain)) & 0xFF
        queue.stop()
        queue.close()
        library.ph_queue_push(pointer, ctypes.c_uint32(4))
        library.ph_queue_notify(pointer)
        return fastpath.Outcome.STOPPED

    before = ring.ram.read(ring.desc, ring.end - ring.desc)
    queue.lend(come_back_late)
    assert ring.ram.read(ring.desc, ring.end - ring.desc) == before
    assert rig.calls() == 0


class CountsFreed:
    """The native library, which counts the queues that are freed."""

    def __init__(self) -> None:
        self.freed = 0

    def __getattr__(self, name: str) -> object:
        return getattr(fastpath.library, name)

    def ph_queue_free(self, queue: int) -> None:
        self.freed += 1
        assert fastpath.library is not None
        fastpath.library.ph_queue_free(queue)


def test_what_the_library_has_of_a_queue_is_freed_with_it_and_not_before(rig: Rig) -> None:
    """A thread that is left behind uses it until it ends, and has the queue as long."""
    library = CountsFreed()
    setup = rig.setup(rig.ring())
    spans = rig.memory.spans() or ()
    queue = NativeQueue(setup, QueueState(), cast("ctypes.CDLL", library), spans)
    queue.close()
    assert library.freed == 0
    del queue
    gc.collect()
    assert library.freed == 1
