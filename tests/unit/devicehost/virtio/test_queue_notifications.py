"""When a queue notifies its driver, and through which descriptor."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from services.devicehost.memory import WindowMemory, WindowQuota
from services.devicehost.peer_writes import notify_peer
from services.devicehost.virtio.queue import (
    BATCH_BYTES,
    BATCH_REQUESTS,
)
from services.wire.virtio_ring import AVAIL_F_NO_INTERRUPT
from tests.unit.devicehost.virtio.conftest import (
    DATA,
    eventually,
    full_and_blocking,
    push_bytes,
    serve_all,
)

if TYPE_CHECKING:
    from tests.unit.devicehost.virtio.conftest import Rig


@pytest.mark.parametrize("event_idx", [False, True])
def test_completions_are_notified_in_batches_and_before_sleep(rig: Rig, event_idx: bool) -> None:
    ring = rig.ring(32)
    queue = rig.queue(ring, event_idx=event_idx)
    ring.chain(0, readable=[(DATA, 4)])
    for _ in range(BATCH_REQUESTS + 3):
        ring.offer(0)
    ring.set_used_event(BATCH_REQUESTS - 1)
    assert serve_all(queue) == BATCH_REQUESTS + 3
    assert rig.calls() == 1, "one notification for the batch, none yet for the rest"
    ring.set_used_event(BATCH_REQUESTS)
    rig.kick()
    queue.wait()
    assert rig.calls() == 1, "the rest is notified before the queue sleeps"


def test_many_bytes_are_a_batch(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, writable=[(DATA, BATCH_BYTES)])
    ring.offer(0)
    queue = rig.queue(ring)
    chain = queue.pop()
    assert chain is not None
    queue.push(chain, BATCH_BYTES)
    assert rig.calls() == 1


def test_a_driver_that_wants_no_notification_gets_none(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 4)])
    ring.offer(0)
    ring.set_avail_flags(AVAIL_F_NO_INTERRUPT)
    queue = rig.queue(ring)
    serve_all(queue)
    queue.notify()
    assert rig.calls() == 0


def test_with_event_idx_a_driver_is_notified_only_when_its_event_is_passed(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 4)])
    queue = rig.queue(ring, event_idx=True)
    calls = []
    ring.set_used_event(2)
    for _ in range(5):
        ring.offer(0)
        serve_all(queue)
        queue.notify()
        calls.append(rig.calls())
    # The first is always sent: what the driver saw before this queue is not known.
    assert calls == [1, 0, 1, 0, 0]


def test_a_new_call_descriptor_is_used_and_what_may_be_lost_is_sent_again(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 4)])
    queue = rig.queue(ring)
    other = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        queue.replace_call(other)
        assert os.eventfd_read(other) == 1
        ring.offer(0)
        serve_all(queue)
        queue.notify()
        assert os.eventfd_read(other) == 1
        assert rig.calls() == 0
    finally:
        queue.replace_call(None)
        os.close(other)


def test_a_call_descriptor_that_blocks_holds_up_no_other_thread(rig: Rig) -> None:
    """A front-end shares the descriptor's flags and its counter."""
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 4)])
    ring.offer(0)
    queue = rig.queue(ring)
    other = os.eventfd(0, os.EFD_NONBLOCK)

    def serve() -> None:
        serve_all(queue)
        queue.notify()

    def control() -> None:
        queue.replace_call(other)
        queue.stop()

    blocked, controller = threading.Thread(target=serve), threading.Thread(target=control)
    with full_and_blocking(rig.call_fd):
        blocked.start()
        assert eventually(lambda: ring.used_idx == 1)
        time.sleep(0.02)  # nothing signals that a thread is in a system call
        controller.start()
        controller.join(5)
        went_on = not controller.is_alive()
    blocked.join(10)
    controller.join(10)
    os.close(other)
    assert went_on


def test_requests_that_are_given_back_unserved_are_notified_in_batches(rig: Rig) -> None:
    table = rig.ram.table()
    windows = WindowMemory(table, WindowQuota(limit=1), rig.meter)
    ring = rig.ring(16)
    ring.chain(0, writable=[(0, 4), (0x1000, 4)])
    queue = rig.queue(ring, memory=windows)
    ring.offer(*[0] * (BATCH_REQUESTS - 1))
    assert queue.pop() is None
    assert (ring.used_idx, rig.calls()) == (BATCH_REQUESTS - 1, 0)
    ring.offer(0)
    assert queue.pop() is None
    assert (ring.used_idx, rig.calls()) == (BATCH_REQUESTS, 1)
    windows.release()
    table.close()


def test_bytes_of_several_requests_are_a_batch_and_add_up(rig: Rig) -> None:
    ring = rig.ring()
    half = BATCH_BYTES // 2
    ring.chain(0, readable=[(DATA, 8)], writable=[(DATA, BATCH_BYTES)])
    queue = rig.queue(ring)
    ring.offer(0, 0)
    push_bytes(queue, half - 1, half)
    assert rig.calls() == 0
    ring.offer(0)
    push_bytes(queue, 1)
    assert rig.calls() == 1
    ring.offer(0)
    push_bytes(queue, BATCH_BYTES - 1)
    assert rig.calls() == 0, "counted anew after a notification"
    counted = rig.meter.snapshot()
    assert (counted.bytes_in, counted.bytes_out) == (32, 2 * BATCH_BYTES - 1)


def test_requests_are_counted_anew_after_a_notification(rig: Rig) -> None:
    ring = rig.ring(32)
    ring.chain(0, readable=[(DATA, 4)])
    queue = rig.queue(ring)
    ring.offer(*[0] * BATCH_REQUESTS)
    serve_all(queue)
    assert rig.calls() == 1
    ring.offer(*[0] * (BATCH_REQUESTS - 1))
    serve_all(queue)
    assert rig.calls() == 0


def test_a_request_that_is_given_back_unserved_has_no_bytes(rig: Rig) -> None:
    table = rig.ram.table()
    windows = WindowMemory(table, WindowQuota(limit=1), rig.meter)
    ring = rig.ring()
    ring.chain(0, writable=[(0, 4), (0x1000, 4)])
    ring.chain(3, writable=[(0x2000, BATCH_BYTES - 1)])
    ring.offer(0, 3)
    push_bytes(rig.queue(ring, memory=windows), BATCH_BYTES - 1)
    assert (ring.used_idx, rig.calls()) == (2, 0)
    windows.release()
    table.close()


def test_a_full_counter_is_a_pending_signal() -> None:
    fd = os.eventfd((1 << 32) - 1, os.EFD_NONBLOCK)
    os.eventfd_write(fd, (1 << 64) - 1 - (1 << 32))
    notify_peer(fd)
    assert os.eventfd_read(fd) == (1 << 64) - 2
    os.close(fd)


def test_indices_go_on_past_15_bits_with_event_idx(rig: Rig) -> None:
    ring = rig.ring()
    ring.next_avail = base = 0x9000
    ring.set_avail_idx(base)
    ring.ram.write(ring.used + 2, base.to_bytes(2, "little"))
    ring.chain(0, readable=[(DATA, 4)])
    queue = rig.queue(ring, event_idx=True, base=base)
    rig.kick()
    queue.wait()
    assert ring.avail_event == base
    ring.set_used_event(base + 1)
    calls = []
    for _ in range(3):
        ring.offer(0)
        serve_all(queue)
        queue.notify()
        calls.append(rig.calls())
    assert calls == [1, 1, 0], "the first always, then when the event is passed"
