"""Chains whose answers come later, on a real ring."""

from __future__ import annotations

import gc
import os
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from services.devicehost.virtio import deferral
from services.devicehost.virtio.deferral import RING_SHARE, Deferred, KeptChains, QueuedRequests
from services.devicehost.virtio.device import serve_requests
from services.handshake.exhaustion import Exhaustion
from tests.unit.devicehost.virtio.conftest import DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.devicehost.virtio.chain import Chain
    from services.devicehost.virtio.queue import Queue
    from tests.support.guest_ring import GuestRing
    from tests.unit.devicehost.virtio.conftest import Rig

GIVEN_UP = 7
EXPIRED = 9


class Later(Deferred):
    """Writes what it was settled with as one byte, and where that was done."""

    def __init__(self, chain: Chain, *, stubborn: bool = False) -> None:
        super().__init__()
        self.chain = chain
        self.stubborn = stubborn
        self.given_up = threading.Event()
        self.written_by = ""

    def write(self) -> int:
        self.chain.writable[0][0] = self.result
        self.written_by = threading.current_thread().name
        return 1

    def give_up(self) -> None:
        self.given_up.set()
        if not self.stubborn:
            self.settle(GIVEN_UP)

    def expire(self, deadline: float) -> None:
        self.settle(EXPIRED)


class Server:
    """Serves a queue: readable chains wait, others are answered at once."""

    def __init__(
        self, queue: Queue, *, stubborn: bool = False, queued: QueuedRequests | None = None
    ) -> None:
        self.queue = queue
        self.queued = queued
        self.stubborn = stubborn
        self.waiting: list[Later] = []
        self.arrived = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, name="the queue")
        self.thread.start()

    def _run(self) -> None:
        serve_requests(self.queue, self._handle, self.queued)
        self.queue.notify()

    def _handle(self, chain: Chain) -> int | Deferred:
        if not chain.readable:
            return 0
        later = Later(chain, stubborn=self.stubborn)
        self.waiting.append(later)
        self.arrived.release()
        return later

    def stop(self) -> None:
        self.queue.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


@contextmanager
def served(
    queue: Queue, *, stubborn: bool = False, queued: QueuedRequests | None = None
) -> Iterator[Server]:
    server = Server(queue, stubborn=stubborn, queued=queued)
    try:
        yield server
    finally:
        server.stop()


def offer(rig: Rig, ring: GuestRing, head: int, *, waits: bool) -> None:
    place = DATA + 64 * head
    ring.chain(head, readable=[(place, 4)] if waits else [], writable=[(place + 32, 4)])
    ring.offer(head)
    rig.kick()


def completed(rig: Rig, ring: GuestRing, count: int) -> list[tuple[int, int]]:
    """Wait for so many completions, by the call descriptor."""
    while len(ring.completions()) < count:
        os.set_blocking(rig.call_fd, True)
        os.eventfd_read(rig.call_fd)
    return ring.completions()


def test_a_request_that_waits_holds_up_no_other(rig: Rig) -> None:
    ring = rig.ring(32)
    with served(rig.queue(ring)) as server:
        offer(rig, ring, 0, waits=True)
        offer(rig, ring, 4, waits=False)
        assert completed(rig, ring, 1) == [(4, 0)]
        assert server.arrived.acquire(timeout=10)
        assert server.waiting[0].settle(3)
        assert completed(rig, ring, 2) == [(4, 0), (0, 1)]
        assert rig.ram.read(DATA + 32, 1) == b"\3"
        assert server.waiting[0].written_by == "the queue", "not by whoever settled it"
        assert not server.waiting[0].settle(4), "once only"


def test_answers_come_in_the_order_in_which_they_are_settled(rig: Rig) -> None:
    ring = rig.ring(64)
    with served(rig.queue(ring)) as server:
        for head in (0, 8, 16):
            offer(rig, ring, head, waits=True)
            assert server.arrived.acquire(timeout=10)
        for number, place in enumerate((2, 0, 1)):
            server.waiting[place].settle(0)
            completed(rig, ring, number + 1)
        assert [head for head, _ in ring.completions()] == [16, 0, 8]


def test_a_busy_queue_answers_as_well(rig: Rig) -> None:
    """The answer is pushed between requests: the queue never gets to sleep."""
    ring = rig.ring(32)
    queue = rig.queue(ring)
    ring.chain(0, readable=[(DATA, 4)], writable=[(DATA + 32, 4)])
    ring.chain(4, writable=[(DATA + 64, 4)])
    ring.offer(0)
    for _ in range(20):
        ring.offer(4)
    served_at_once = 0

    def handle(chain: Chain) -> int | Deferred:
        nonlocal served_at_once
        if chain.readable:
            later = Later(chain)
            later.settle(1)
            return later
        served_at_once += 1
        if served_at_once == 20:
            queue.stop()
        return 0

    serve_requests(queue, handle)
    assert ring.completions()[0] == (0, 1)


@pytest.mark.parametrize(("stubborn", "result"), [(False, GIVEN_UP), (True, EXPIRED)])
def test_a_queue_that_stops_gives_every_chain_back(rig: Rig, stubborn: bool, result: int) -> None:
    ring = rig.ring(64)
    server = Server(rig.queue(ring), stubborn=stubborn)
    for head in (0, 8, 16):
        offer(rig, ring, head, waits=True)
        assert server.arrived.acquire(timeout=10)
    server.stop()
    assert sorted(ring.completions()) == [(0, 1), (8, 1), (16, 1)]
    assert [later.result for later in server.waiting] == [result] * 3
    assert not server.waiting[0].settle(0), "too late, and harmless"
    assert rig.calls() == 1, "the driver is notified"


def test_a_ring_cannot_be_filled_with_waiting_requests(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferral, "ROOM_DEADLINE_S", 0.05)
    ring = rig.ring(32)
    with served(rig.queue(ring)) as server:
        share = 32 // RING_SHARE
        for number in range(share + 4):
            offer(rig, ring, 2 * number, waits=True)
            assert server.arrived.acquire(timeout=10)
        assert len(completed(rig, ring, 4)) == 4
        given_up = [later.given_up.is_set() for later in server.waiting]
        assert given_up == [False] * share + [True] * 4


def event_descriptors() -> int:
    gc.collect()  # queues that other tests left would close theirs in between
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum("eventfd" in str(link) for link in links)


def test_nothing_is_taken_before_a_chain_is_kept_or_left_after(rig: Rig) -> None:
    ring = rig.ring(32)
    ring.chain(0, readable=[(DATA, 4)], writable=[(DATA + 32, 4)])
    ring.offer(0)
    queue = rig.queue(ring)
    before = event_descriptors()
    kept = KeptChains(queue)
    counts = [len(kept.fds)]
    chain = queue.pop()
    assert chain is not None
    kept.keep(chain, Later(chain))
    counts.append(len(kept.fds))
    assert event_descriptors() == before + 1
    kept.close()
    assert [*counts, len(kept.fds)] == [0, 1, 0]
    assert event_descriptors() == before
    assert ring.completions() == [(0, 1)]


class Device:
    """Two queues of one device that may keep so many requests."""

    def __init__(self, rig: Rig, limit: int) -> None:
        self.exhaustions: list[Exhaustion] = []
        self.meter = rig.meter
        self.meter.bounds.on_exhausted = self.exhaustions.append
        self.queued = QueuedRequests(rig.meter, limit)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline

    def used(self) -> int:
        [usage] = self.meter.bounds.usage()
        return usage.used


def test_a_ring_is_not_read_until_there_is_room(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request beyond the bound waits, and so does what is behind it; none of them fails."""
    monkeypatch.setattr(deferral, "ROOM_DEADLINE_S", 60.0)
    ring = rig.ring(64)
    device = Device(rig, 2)
    with served(rig.queue(ring), queued=device.queued) as server:
        for head in (0, 8, 16):
            offer(rig, ring, head, waits=True)
            assert server.arrived.acquire(timeout=10)
        offer(rig, ring, 24, waits=False)
        offer(rig, ring, 32, waits=True)
        server.waiting[1].settle(1)
        assert completed(rig, ring, 2) == [(8, 1), (24, 0)], "the ring was read when there was room"
        assert server.arrived.acquire(timeout=10), "and on, to the one that has to wait next"
        assert not any(later.given_up.is_set() for later in server.waiting)
        server.waiting[0].settle(1)
        server.waiting[2].settle(1)
        completed(rig, ring, 4)
        server.waiting[3].settle(1)
        completed(rig, ring, 5)
    assert device.exhaustions == [Exhaustion("queued_requests", 3, 2)]
    assert device.meter.snapshot().held_back == 2
    assert device.used() == 0


def test_a_ring_with_what_would_make_room_is_read_on_after_a_while(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request behind the one that waits ends the other waits, as one that unlocks does."""
    monkeypatch.setattr(deferral, "ROOM_DEADLINE_S", 0.05)
    ring = rig.ring(64)
    device = Device(rig, 1)
    with served(rig.queue(ring), queued=device.queued) as server:
        for head in (0, 8, 16, 24):
            offer(rig, ring, head, waits=True)
        offer(rig, ring, 32, waits=False)
        assert completed(rig, ring, 4) == [(8, 1), (16, 1), (24, 1), (32, 0)]
        assert [later.result for later in server.waiting] == [0, GIVEN_UP, GIVEN_UP, GIVEN_UP]
        server.waiting[0].settle(1)
        completed(rig, ring, 5)
    assert len(device.exhaustions) == 1, "once per episode"
    assert device.meter.snapshot().held_back == 1, "no more once it is known to be in vain"


def test_the_bound_is_the_devices_and_room_on_one_queue_helps_another(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferral, "ROOM_DEADLINE_S", 60.0)
    device = Device(rig, 1)
    other_rig = type(rig)()
    ring, other_ring = rig.ring(64), other_rig.ring(64)
    with (
        closing(other_rig),
        served(rig.queue(ring), queued=device.queued) as server,
        served(other_rig.queue(other_ring), queued=device.queued) as other,
    ):
        offer(rig, ring, 0, waits=True)
        device.until(lambda: device.used() == 1)
        offer(other_rig, other_ring, 0, waits=True)
        offer(other_rig, other_ring, 8, waits=False)
        device.until(lambda: device.meter.snapshot().held_back == 1)
        assert other_ring.completions() == []
        server.waiting[0].settle(1)
        assert completed(other_rig, other_ring, 1) == [(8, 0)]
        assert not other.waiting[0].given_up.is_set()


def test_a_queue_that_waits_for_room_stops_when_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferral, "ROOM_DEADLINE_S", 60.0)
    ring = rig.ring(64)
    device = Device(rig, 1)
    with served(rig.queue(ring), queued=device.queued) as server:
        for head in (0, 8):
            offer(rig, ring, head, waits=True)
            assert server.arrived.acquire(timeout=10)
    assert sorted(ring.completions()) == [(0, 1), (8, 1)]
    assert device.used() == 0


def test_queues_that_wait_for_room_are_woken_without_a_lock(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued = Device(rig, 0).queued
    kept = KeptChains(rig.queue(rig.ring()), queued)
    locked: list[bool] = []
    monkeypatch.setattr(kept, "wake", lambda: locked.append(queued._lock.locked()))
    queued.take()
    assert queued.begin_wait(kept)
    queued.give(1)
    assert locked == [False]


def test_waiting_for_an_answer_ends_with_the_time_or_the_answer(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, writable=[(DATA, 4)])
    ring.offer(0)
    chain = rig.queue(ring).pop()
    assert chain is not None
    later = Later(chain)
    assert not later.wait(0.001)
    later.settle(1)
    assert later.wait(0.001)
    chain.lease.close()


def test_room_is_waited_for_until_it_is_known_to_be_in_vain(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued = Device(rig, 0).queued
    kept = KeptChains(rig.queue(rig.ring()), queued)
    woken: list[None] = []
    monkeypatch.setattr(kept, "wake", lambda: woken.append(None))
    queued.take()
    assert queued.begin_wait(kept)
    queued.end_wait(kept, in_vain=False)
    queued.give(0)
    assert woken == [], "it waits no more"
    assert queued.begin_wait(kept)
    queued.end_wait(kept, in_vain=True)
    assert not queued.begin_wait(kept)
    queued.give(1)
    assert woken == []


def test_a_queue_that_got_room_in_time_waits_the_next_time_as_well(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferral, "ROOM_DEADLINE_S", 0.9)
    ring = rig.ring(32)
    ring.chain(0, writable=[(DATA, 4)])
    ring.offer(0, 0)
    queue = rig.queue(ring)
    queued = Device(rig, 0).queued
    kept = KeptChains(queue, queued)
    for _ in range(2):
        chain = queue.pop()
        assert chain is not None
        later = Later(chain)
        later.settle(1)
        kept.keep(chain, later)
    assert rig.meter.snapshot().held_back == 2
    assert ring.completions() == [(0, 1), (0, 1)]
    woken: list[None] = []
    monkeypatch.setattr(kept, "wake", lambda: woken.append(None))
    queued.give(0)
    assert woken == [], "it waits no more"
    kept.close()


def test_a_queue_that_waits_for_room_sleeps_whatever_is_in_its_ring(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferral, "ROOM_DEADLINE_S", 0.05)
    ring = rig.ring(32)
    ring.chain(0, writable=[(DATA, 4)])
    ring.offer(0, 0, 0)
    queue = rig.queue(ring)
    kept = KeptChains(queue, Device(rig, 0).queued)
    chain = queue.pop()
    assert chain is not None
    waits: list[None] = []
    wait = queue.wait

    def counted(*fds: int, **how: Any) -> set[int]:
        waits.append(None)
        return wait(*fds, **how)

    monkeypatch.setattr(queue, "wait", counted)
    kept.keep(chain, Later(chain))
    assert 1 <= len(waits) <= 3, "not again and again for the buffers that it may not take"
    kept.close()


def taken(rig: Rig, ring: GuestRing, queue: Queue, count: int) -> list[Chain]:
    """So many chains of one writable buffer, taken off the ring."""
    ring.chain(0, writable=[(DATA, 4)])
    ring.offer(*[0] * count)
    chains = [queue.pop() for _ in range(count)]
    return [chain for chain in chains if chain is not None]


def test_what_other_queues_hold_takes_no_room(rig: Rig) -> None:
    queued = Device(rig, 1).queued
    first, second = (KeptChains(rig.queue(rig.ring()), queued) for _ in range(2))
    queued.take()
    for kept in (first, second):
        queued.take()
        assert queued.lacks_room(kept)
        assert queued.begin_wait(kept)
    queued.give(1)
    assert not queued.lacks_room(first)


def test_what_is_refused_has_a_short_time_to_be_settled(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferral, "ROOM_DEADLINE_S", 0.01)
    deadlines: list[float] = []
    monkeypatch.setattr(Later, "expire", lambda _, deadline: deadlines.append(deadline))
    ring = rig.ring(32)
    queue = rig.queue(ring)
    kept = KeptChains(queue, Device(rig, 0).queued)
    (chain,) = taken(rig, ring, queue, 1)
    begun = time.monotonic()
    kept.keep(chain, Later(chain))
    assert begun < deadlines[0] - deferral.REFUSE_DEADLINE_S <= time.monotonic()
    kept.close()


def test_a_small_ring_keeps_one_chain(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferral, "ROOM_DEADLINE_S", 0.01)
    ring = rig.ring(4)
    queue = rig.queue(ring)
    kept = KeptChains(queue, Device(rig, 8).queued)
    later = [Later(chain) for chain in taken(rig, ring, queue, 2)]
    for each in later:
        kept.keep(each.chain, each)
    assert [each.given_up.is_set() for each in later] == [False, True]
    kept.close()


def test_what_was_pushed_wakes_a_queue_no_more(rig: Rig) -> None:
    ring = rig.ring(32)
    queue = rig.queue(ring)
    kept = KeptChains(queue)
    later = [Later(chain) for chain in taken(rig, ring, queue, 2)]
    for each in later:
        kept.keep(each.chain, each)
    later[0].settle(1)
    assert queue.wait(*kept.fds, buffers=False, timeout_s=1) == set(kept.fds)
    kept.push_settled()
    assert queue.wait(*kept.fds, buffers=False, timeout_s=0.001) == set()
    kept.close()


class Slow(Later):
    """Is settled by another thread, some time after it expired."""

    def give_up(self) -> None:
        self.given_up.set()

    def expire(self, deadline: float) -> None:
        self.deadline = deadline
        self.timer = threading.Timer(0.05, self.settle, (EXPIRED,))
        self.timer.start()


def test_a_queue_that_stops_waits_asleep_for_what_it_gave_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = rig.ring(32)
    queue = rig.queue(ring)
    kept = KeptChains(queue)
    (chain,) = taken(rig, ring, queue, 1)
    slow = Slow(chain)
    kept.keep(chain, slow)
    pushes: list[None] = []
    push_settled = kept.push_settled

    def counted() -> None:
        pushes.append(None)
        push_settled()

    monkeypatch.setattr(kept, "push_settled", counted)
    begun = time.monotonic()
    kept.close()
    slow.timer.join()
    assert begun < slow.deadline - deferral.GIVE_UP_DEADLINE_S <= time.monotonic()
    assert len(pushes) == 1
    assert ring.completions() == [(0, 1)]


def test_a_queue_that_has_ended_may_be_woken(rig: Rig) -> None:
    ring = rig.ring(32)
    queue = rig.queue(ring)
    kept = KeptChains(queue)
    (chain,) = taken(rig, ring, queue, 1)
    kept.keep(chain, Later(chain))
    kept.close()
    kept.wake()
    assert kept.fds == ()
