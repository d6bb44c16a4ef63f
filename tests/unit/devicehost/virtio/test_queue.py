from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from services.devicehost.memory import WindowMemory, WindowQuota
from services.devicehost.virtio import queue as queue_module
from services.devicehost.virtio.device import serve_requests
from services.devicehost.virtio.queue import (
    BATCH_BYTES,
    BATCH_REQUESTS,
    POLL_INTERVAL_MS,
    Queue,
    QueueError,
)
from services.devicehost.virtio.queue_setup import QueueState
from services.devicehost.virtio.wake_ups import WakeUps, signal
from services.handshake.exhaustion import Exhaustion
from services.wire.virtio_ring import AVAIL_F_NO_INTERRUPT, USED_F_NO_NOTIFY, avail_event_offset
from tests.unit.devicehost.virtio.conftest import DATA, POOL, eventually, full_and_blocking

if TYPE_CHECKING:
    from services.devicehost.virtio.chain import Chain
    from tests.unit.devicehost.virtio.conftest import Rig


def serve_all(queue: Queue, written: int = 0) -> int:
    served = 0
    while (chain := queue.pop()) is not None:
        queue.push(chain, written)
        served += 1
    return served


def test_an_empty_ring_gives_nothing(rig: Rig) -> None:
    assert rig.queue(rig.ring()).pop() is None


def test_a_chain_goes_round_and_is_counted(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(1, readable=[(DATA, 10)], writable=[(DATA + 64, 20)])
    ring.offer(1)
    queue = rig.queue(ring)
    chain = queue.pop()
    assert chain is not None
    queue.push(chain, 12)
    queue.notify()
    assert ring.completions() == [(1, 12)]
    assert rig.calls() == 1
    counted = rig.meter.snapshot()
    assert (counted.requests, counted.bytes_in, counted.bytes_out) == (1, 10, 12)


def test_the_ring_goes_round_past_16_bits(rig: Rig) -> None:
    ring = rig.ring(8)
    ring.next_avail = base = 0xFFFA
    ring.ram.write(ring.used + 2, base.to_bytes(2, "little"))
    ring.chain(0, writable=[(DATA, 4)])
    queue = rig.queue(ring, base=base)
    for _ in range(20):
        ring.offer(0)
        assert serve_all(queue, 4) == 1
    assert queue.state.next_avail == ring.used_idx == (base + 20) & 0xFFFF


def test_a_large_ring_is_served(rig: Rig) -> None:
    ring = rig.ring(32768)
    data = ring.end
    ring.chain(0, writable=[(data, 4)])
    for _ in range(32768):
        ring.offer(0)
    assert serve_all(rig.queue(ring), 4) == 32768


@pytest.mark.parametrize("jump", [9, 0x8000, 0xFFFF])
def test_an_available_index_that_jumps_is_refused(rig: Rig, jump: int) -> None:
    ring = rig.ring(8)
    ring.set_avail_idx(jump)
    with pytest.raises(QueueError) as caught:
        rig.queue(ring).pop()
    assert caught.value.reason == "AVAILABLE_INDEX"


def test_more_written_than_writable_is_a_fault_of_the_device(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, writable=[(DATA, 4)])
    ring.offer(0)
    queue = rig.queue(ring)
    chain = queue.pop()
    assert chain is not None
    with pytest.raises(ValueError, match="5 bytes written"):
        queue.push(chain, 5)


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


def test_kicks_are_asked_for_only_while_the_queue_sleeps(rig: Rig) -> None:
    ring = rig.ring()
    queue = rig.queue(ring)
    rig.kick()
    queue.wait()
    assert ring.used_flags == USED_F_NO_NOTIFY
    worker = threading.Thread(target=queue.wait)
    worker.start()
    deadline = time.monotonic() + 10
    while ring.used_flags == USED_F_NO_NOTIFY:
        assert time.monotonic() < deadline, "it sleeps without asking for a kick"
    rig.kick()
    worker.join(10)
    assert not worker.is_alive()
    assert ring.used_flags == USED_F_NO_NOTIFY


def test_with_event_idx_a_sleeping_queue_names_the_index_it_waits_for(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 4)])
    queue = rig.queue(ring, event_idx=True)
    ring.offer(0, 0, 0)
    serve_all(queue)
    rig.kick()
    queue.wait()
    assert ring.avail_event == 3


def test_chains_that_come_before_the_queue_sleeps_are_not_missed(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 4)])
    queue = rig.queue(ring, event_idx=True)
    ring.offer(0)
    queue.wait()  # returns without any kick
    assert queue.pop() is not None


def test_other_descriptors_wake_a_queue_up_with_or_without_buffers(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 4)])
    ring.offer(0)
    queue = rig.queue(ring)
    other = os.eventfd(1, os.EFD_NONBLOCK)
    try:
        assert queue.wait(other) == set(), "there are buffers"
        assert queue.wait(other, buffers=False) == {other}, "buffers do not matter"
    finally:
        os.close(other)


def test_a_kick_descriptor_that_the_front_end_has_made_blocking_does_not_block(rig: Rig) -> None:
    queue = rig.queue(rig.ring())
    other = os.eventfd(1)
    os.set_blocking(rig.kick_fd, True)
    waiting = threading.Thread(target=queue.wait, args=(other,), daemon=True)
    try:
        waiting.start()
        waiting.join(5)
        assert not waiting.is_alive()
    finally:
        os.close(other)


def test_a_queue_without_a_kick_descriptor_is_polled(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 4)])
    queue = rig.queue(ring, polled=True)
    worker = threading.Thread(target=queue.wait)
    worker.start()
    ring.offer(0)
    worker.join(10)
    assert not worker.is_alive()
    assert queue.pop() is not None


def test_stop_wakes_a_sleeping_queue_and_it_gives_nothing_more(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 4)])
    queue = rig.queue(ring)
    worker = threading.Thread(target=serve_requests, args=(queue, lambda chain: 0))
    worker.start()
    queue.stop()
    worker.join(10)
    assert not worker.is_alive()
    ring.offer(0)
    assert queue.pop() is None
    assert queue.state.next_avail == 0


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


def test_several_chains_are_pushed_in_one_step(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, writable=[(DATA, 8)])
    ring.chain(1, writable=[(DATA + 8, 8)])
    ring.offer(0, 1)
    queue = rig.queue(ring)
    first, second = queue.pop(), queue.pop()
    assert first is not None
    assert second is not None
    queue.push_together([(first, 8), (second, 3)])
    assert ring.completions() == [(0, 8), (1, 3)]
    assert rig.meter.snapshot().bytes_out == 11


def test_a_request_for_which_no_window_comes_is_given_back_and_the_queue_goes_on(rig: Rig) -> None:
    quota = WindowQuota(limit=2, deadline_s=0.05)
    table = rig.ram.table()
    windows = WindowMemory(table, quota, rig.meter)
    ring = rig.ring()
    ring.chain(0, writable=[(0, 4), (0x1000, 4), (0x2000, 4)])
    ring.chain(3, writable=[(0x3000, 4)])
    ring.offer(0, 3)
    queue = rig.queue(ring, memory=windows)
    chain = queue.pop()
    assert chain is not None
    assert chain.head == 3
    queue.push(chain, 4)
    assert ring.completions() == [(0, 0), (3, 4)]
    windows.release()
    table.close()


def test_windows_that_requests_hold_are_told_once(rig: Rig) -> None:
    exhaustions: list[Exhaustion] = []
    rig.meter.bounds.on_exhausted = exhaustions.append
    table = rig.ram.table()
    windows = WindowMemory(table, WindowQuota(limit=2, deadline_s=0.02), rig.meter)
    ring = rig.ring()
    ring.chain(0, writable=[(0, 4), (0x1000, 4)])
    for head in (3, 4):
        ring.chain(head, writable=[(0x3000, 4)])
    ring.offer(0, 3, 4)
    queue = rig.queue(ring, memory=windows)
    first = queue.pop()
    assert first is not None
    assert queue.pop() is None, "both were given back unserved"
    assert ring.completions() == [(3, 0), (4, 0)]
    assert exhaustions == [Exhaustion("windows", 2, 2)]
    queue.push(first, 0)
    windows.release()
    table.close()


def test_serve_requests_serves_a_driver_that_kicks(rig: Rig) -> None:
    ring = rig.ring(16)
    ring.chain(0, readable=[(DATA, 5)], writable=[(DATA + 64, 5)])
    queue = rig.queue(ring, event_idx=True)

    def upper(chain: Chain) -> int:
        answer = bytes(chain.readable[0]).upper()
        chain.writable[0][:] = answer
        return len(answer)

    worker = threading.Thread(target=serve_requests, args=(queue, upper))
    worker.start()
    for turn in range(200):
        rig.ram.write(DATA, b"ab%03d" % turn)
        ring.set_used_event(ring.used_idx)
        ring.offer(0)
        rig.kick()
        deadline = time.monotonic() + 10
        while ring.used_idx != (turn + 1) & 0xFFFF:
            assert time.monotonic() < deadline
        assert rig.ram.read(DATA + 64, 5) == b"AB%03d" % turn
    queue.stop()
    worker.join(10)
    assert not worker.is_alive()
    assert rig.meter.snapshot().requests == 200


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


def test_an_index_that_jumps_is_named(rig: Rig) -> None:
    ring = rig.ring(8)
    ring.set_avail_idx(12)
    with pytest.raises(QueueError, match=r"queue 0: .* from 3 to 12, more than the 8") as caught:
        rig.queue(ring, base=3).pop()
    assert caught.value.metadata == {"queue": "0", "bound": "8"}


def test_a_chain_that_is_put_back_is_taken_again(rig: Rig) -> None:
    ring = rig.ring()
    ring.next_avail = base = 0xFFFF
    for head in (0, 2):
        ring.chain(head, writable=[(DATA, 4)])
    ring.offer(0, 2)
    queue = rig.queue(ring, base=base)
    for _ in range(2):
        first, second = queue.pop(), queue.pop()
        assert first is not None
        assert second is not None
        assert (first.head, second.head) == (0, 2)
        queue.put_back(second)
        assert queue.state.next_avail == 0
        queue.put_back(first)
        assert queue.state.next_avail == base
    assert ring.used_idx == 0


@pytest.mark.parametrize("together", [False, True])
def test_the_first_request_is_reported_once_when_it_is_pushed(rig: Rig, together: bool) -> None:
    ring = rig.ring()
    ring.chain(0, writable=[(DATA, 4)])
    reported: list[int] = []
    setup = replace(rig.setup(ring), on_first_request=lambda: reported.append(ring.used_idx))
    queue = Queue(setup, QueueState())
    for number in range(2):
        ring.offer(0)
        chain = queue.pop()
        assert chain is not None
        assert queue.first_request_is_due == (number == 0)
        if together:
            queue.push_together([(chain, 4)])
        else:
            queue.push(chain, 4)
    assert reported == [1], "once, and after the driver can see it"
    assert not queue.first_request_is_due
    queue.close()


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


def test_a_queue_looks_for_work_for_as_long_as_that_has_paid_off(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0

    def clock() -> int:
        nonlocal now
        now += 1
        return now

    monkeypatch.setattr(queue_module, "time", SimpleNamespace(monotonic_ns=clock))
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 4)])
    queue = rig.queue(ring)

    def looked_for_ns() -> int:
        begun = now
        assert queue._spin() is False
        return now - begun - 1

    shorter = [50_000, 25_000, 12_500, 6_250, 3_125, 1_562, 1_000, 1_000]
    assert [looked_for_ns() for _ in shorter] == shorter
    ring.offer(0)
    assert queue._spin() is True
    assert queue.pop() is not None
    assert looked_for_ns() == 50_000
    queue.stop()
    assert looked_for_ns() == 0


def test_a_queue_that_finds_work_while_it_looks_does_not_ask_for_a_kick(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 4)])
    ring.ram.write(ring.used + avail_event_offset(ring.size), (99).to_bytes(2, "little"))
    queue = rig.queue(ring, event_idx=True)
    ring.offer(0)
    assert queue.wait() == set()
    assert ring.avail_event == 99


def test_a_queue_that_waits_for_a_descriptor_too_does_not_look_first(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = rig.queue(rig.ring())
    looked: list[None] = []
    monkeypatch.setattr(queue, "_spin", lambda: looked.append(None))
    other = os.eventfd(1, os.EFD_NONBLOCK)
    assert queue.wait(other) == {other}
    assert looked == []
    os.close(other)


def test_a_queue_with_a_kick_descriptor_sleeps_without_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = rig.queue(rig.ring())
    asked: list[tuple[tuple[int, ...], bool, float | None]] = []

    def sleep(fds: tuple[int, ...], *, kick: bool, timeout_ms: float | None) -> set[int]:
        asked.append((fds, kick, timeout_ms))
        return {rig.kick_fd}

    monkeypatch.setattr(queue._wake_ups, "sleep", sleep)
    queue.wait()
    queue.wait(7, buffers=False, timeout_s=0.5)
    assert asked == [((), True, None), ((7,), False, 500)]
    polled = rig.queue(rig.ring(), polled=True)
    monkeypatch.setattr(polled._wake_ups, "sleep", sleep)
    polled.wait()
    assert asked[2:] == [((), True, POLL_INTERVAL_MS)]


def test_a_polled_queue_looks_again_until_there_are_buffers(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 4)])
    queue = rig.queue(ring, polled=True)
    slept: list[None] = []

    def sleep(fds: tuple[int, ...], *, kick: bool, timeout_ms: float | None) -> set[int]:
        slept.append(None)
        if len(slept) == 3:
            ring.offer(0)
        return set()

    monkeypatch.setattr(queue._wake_ups, "sleep", sleep)
    assert queue.wait() == set()
    assert len(slept) == 3


def test_a_queue_that_is_stopped_while_it_falls_asleep_does_not_touch_the_ring(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = rig.queue(rig.ring())
    disarmed: list[None] = []

    def stopped_meanwhile() -> bool:
        queue.stop()
        return False

    monkeypatch.setattr(queue, "_arm", stopped_meanwhile)
    monkeypatch.setattr(queue, "_disarm", lambda: disarmed.append(None))
    assert queue.wait() == set()
    assert disarmed == []


def test_a_queue_that_waits_for_a_descriptor_alone_leaves_the_ring_as_it_is(rig: Rig) -> None:
    ring = rig.ring()
    queue = rig.queue(ring)
    other = os.eventfd(1, os.EFD_NONBLOCK)
    assert queue.wait(other, buffers=False) == {other}
    os.eventfd_read(other)
    assert queue.wait(other, buffers=False, timeout_s=0.001) == set()
    assert ring.used_flags == 0
    os.close(other)


def push_bytes(queue: Queue, *written: int) -> None:
    for count in written:
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, count)


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


def test_the_descriptor_that_stops_a_queue_is_not_inherited_and_never_blocks() -> None:
    wake_ups = WakeUps(None)
    assert not os.get_inheritable(wake_ups.stop_fd)
    assert not os.get_blocking(wake_ups.stop_fd)
    wake_ups.close()


def test_a_full_counter_is_a_pending_signal() -> None:
    fd = os.eventfd((1 << 32) - 1, os.EFD_NONBLOCK)
    os.eventfd_write(fd, (1 << 64) - 1 - (1 << 32))
    signal(fd)
    assert os.eventfd_read(fd) == (1 << 64) - 2
    os.close(fd)


@pytest.mark.parametrize("together", [False, True])
def test_a_closed_queue_touches_neither_the_ring_nor_a_descriptor(rig: Rig, together: bool) -> None:
    ring = rig.ring()
    ring.chain(0, writable=[(DATA, 4)])
    ring.offer(0)
    queue = Queue(rig.setup(ring), QueueState())
    chain = queue.pop()
    assert chain is not None
    queue.stop()
    queue.close()
    queue.stop()
    if together:
        queue.push_together([(chain, 4)])
    else:
        queue.push(chain, 4)
    queue.notify()
    assert (ring.used_idx, rig.calls()) == (0, 0)


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


def test_an_answer_may_be_longer_than_31_bits(rig: Rig) -> None:
    ring = rig.ring(2048)
    room = POOL.end - ring.end
    pieces = (1 << 31) // room + 1
    ring.chain(0, writable=[(ring.end, room)] * pieces)
    ring.offer(0)
    push_bytes(rig.queue(ring), 1 << 31)
    assert ring.completions() == [(0, 1 << 31)]
