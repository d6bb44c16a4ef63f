"""When a queue sleeps, what it asks of its driver before, and what wakes it up."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

from services.devicehost.virtio import queue as queue_module
from services.devicehost.virtio.device import serve_requests
from services.devicehost.virtio.queue import (
    POLL_INTERVAL_MS,
)
from services.devicehost.virtio.wake_ups import WakeUps
from services.wire.virtio_ring import USED_F_NO_NOTIFY, avail_event_offset
from tests.unit.devicehost.virtio.conftest import (
    DATA,
    serve_all,
)

if TYPE_CHECKING:
    import pytest

    from tests.unit.devicehost.virtio.conftest import Rig


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


def test_a_queue_that_waits_for_a_descriptor_alone_leaves_the_ring_as_it_is(rig: Rig) -> None:
    ring = rig.ring()
    queue = rig.queue(ring)
    other = os.eventfd(1, os.EFD_NONBLOCK)
    assert queue.wait(other, buffers=False) == {other}
    os.eventfd_read(other)
    assert queue.wait(other, buffers=False, timeout_s=0.001) == set()
    assert ring.used_flags == 0
    os.close(other)


def test_the_descriptor_that_stops_a_queue_is_not_inherited_and_never_blocks() -> None:
    wake_ups = WakeUps(None)
    assert not os.get_inheritable(wake_ups.stop_fd)
    assert not os.get_blocking(wake_ups.stop_fd)
    wake_ups.close()


def test_a_queue_may_be_stopped_any_number_of_times() -> None:
    wake_ups = WakeUps(None)
    os.eventfd_write(wake_ups.stop_fd, (1 << 64) - 2)
    wake_ups.stop()
    assert wake_ups.sleep((), kick=False, timeout_ms=0) == {wake_ups.stop_fd}
    wake_ups.close()
