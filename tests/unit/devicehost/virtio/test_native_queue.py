"""When the native side of a ring notifies its driver: its own rule, which Python's has not."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from typing import TYPE_CHECKING, Final

import pytest

from services.devicehost import fastpath
from services.devicehost.memory import WindowMemory, WindowQuota
from services.devicehost.virtio.native_queue import NativeQueue, make_queue
from services.devicehost.virtio.queue_setup import QueueState
from tests.unit.devicehost.virtio.conftest import DATA, full_and_blocking

if TYPE_CHECKING:
    from services.devicehost.virtio.queue_setup import QueueSetup
    from tests.unit.devicehost.virtio.conftest import Rig

LONG_BYTES: Final = 256 << 10

pytestmark = pytest.mark.skipif(
    fastpath.library is None, reason="the native fast path was not built"
)


def notified_after(rig: Rig, length: int, waiting: int = 16) -> list[int]:
    """Serve requests of one writable buffer, and tell after which ones the driver was notified."""
    library = fastpath.library
    assert library is not None
    ring = rig.ring(waiting)
    ring.chain(0, writable=[(DATA, length)])
    ring.offer(*[0] * ring.size)
    queue = make_queue(rig.setup(ring), QueueState(), natively=True)
    assert isinstance(queue, NativeQueue)
    chain = fastpath.Chain()

    def serve_one(ring: int) -> int:
        pointer = ctypes.c_void_p(ring)
        library.ph_ring_look(pointer)
        assert library.ph_ring_take(pointer, ctypes.byref(chain)) & 0xFF
        library.ph_ring_push(pointer, ctypes.c_uint32(length))
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
    windows = WindowMemory(rig.table, WindowQuota(), rig.counters)

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

    def notify(ring: int) -> int:
        begun.set()
        library.ph_ring_notify(ctypes.c_void_p(ring))
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
