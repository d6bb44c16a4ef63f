"""The loop of a request queue whose ring the native loop serves in between."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.devicehost import fastpath
from services.devicehost.virtio.deferral import Deferred, QueuedRequests
from services.devicehost.virtio.device import serve_natively
from services.devicehost.virtio.native_queue import NativeQueue, make_queue
from services.devicehost.virtio.queue_setup import QueueState
from tests.unit.devicehost.virtio.conftest import DATA
from tests.unit.devicehost.virtio.test_deferral import Later

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.devicehost.virtio.chain import Chain
    from tests.support.guest_ring import GuestRing
    from tests.unit.devicehost.virtio.conftest import Rig

pytestmark = pytest.mark.skipif(
    fastpath.library is None, reason="the native fast path was not built"
)


@pytest.fixture
def ring(rig: Rig) -> GuestRing:
    ring = rig.ring()
    for head in (0, 2):
        ring.chain(head, readable=[(DATA, 4)], writable=[(DATA + 64, 4)])
    return ring


@pytest.fixture
def reported() -> list[str]:
    return []


@pytest.fixture
def queue(rig: Rig, ring: GuestRing, reported: list[str]) -> Iterator[NativeQueue]:
    setup = replace(rig.setup(ring), on_first_request=lambda: reported.append("first"))
    queue = make_queue(setup, QueueState(), natively=True)
    assert isinstance(queue, NativeQueue)
    yield queue
    queue.close()


def stop_when_served(ring: GuestRing, queue: NativeQueue, count: int) -> Callable[[int], int]:
    """A native loop that serves nothing itself."""

    def loop(_: int) -> int:
        if ring.used_idx < count:
            return fastpath.Outcome.PYTHON
        queue.stop()
        return fastpath.Outcome.STOPPED

    return loop


def test_what_the_loop_leaves_is_handled_and_the_first_request_always_is(
    ring: GuestRing, queue: NativeQueue, reported: list[str]
) -> None:
    ring.offer(0, 2, 0)
    lent_at: list[int] = []
    handled: list[int] = []
    stop = stop_when_served(ring, queue, 3)

    def loop(pointer: int) -> int:
        lent_at.append(ring.used_idx)
        return stop(pointer)

    def handle(chain: Chain) -> int:
        handled.append(chain.head)
        return 3

    serve_natively(queue, loop, handle)
    assert handled == [0, 2, 0]
    assert ring.completions() == [(0, 3), (2, 3), (0, 3)]
    assert lent_at == [1, 2, 3], "not before the first request"
    assert reported == ["first"]


def test_what_the_loop_does_not_leave_is_not_taken(ring: GuestRing, queue: NativeQueue) -> None:
    ring.offer(0, 2)

    def loop(_: int) -> int:
        queue.stop()
        return fastpath.Outcome.STOPPED

    serve_natively(queue, loop, lambda chain: 1)
    assert ring.completions() == [(0, 1)]


def test_a_loop_that_comes_back_for_nothing_is_entered_again(
    ring: GuestRing, queue: NativeQueue
) -> None:
    ring.offer(0)
    turns = 0

    def loop(_: int) -> int:
        nonlocal turns
        turns += 1
        if turns == 3:
            queue.stop()
        return fastpath.Outcome.PYTHON

    serve_natively(queue, loop, lambda chain: 0)
    assert turns == 3


def test_the_first_request_is_waited_for_asleep(
    rig: Rig, ring: GuestRing, queue: NativeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = threading.Event()
    wait = queue.wait

    def noting(*fds: int) -> set[int]:
        slept.set()
        return wait(*fds)

    monkeypatch.setattr(queue, "wait", noting)
    loop = stop_when_served(ring, queue, 1)
    worker = threading.Thread(target=serve_natively, args=(queue, loop, lambda chain: 0))
    worker.start()
    assert slept.wait(10)
    ring.offer(0)
    rig.kick()
    worker.join(10)
    assert not worker.is_alive()
    assert ring.completions() == [(0, 0)]


def test_an_answer_that_comes_later_calls_the_loop_back(
    rig: Rig, ring: GuestRing, queue: NativeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring.offer(0, 2)
    later: list[Later] = []
    wakes: list[tuple[int, ...]] = []
    used: list[int] = []

    def handle(chain: Chain) -> int | Deferred:
        if chain.head == 0:
            return 0
        later.append(Later(chain))
        return later[0]

    def lend(loop: Callable[[int], int], *wake_fd: int) -> int:
        wakes.append(wake_fd)
        (usage,) = rig.meter.bounds.usage()
        used.append(usage.used)
        if not later:
            return fastpath.Outcome.PYTHON
        if not later[0].settle(1):
            queue.stop()
        return fastpath.Outcome.WOKEN

    monkeypatch.setattr(queue, "lend", lend)
    queued = QueuedRequests(rig.meter)
    serve_natively(queue, lambda pointer: 0, handle, queued)
    assert ring.completions() == [(0, 0), (2, 1)]
    assert [len(wake_fd) for wake_fd in wakes] == [0, 1, 0], "while an answer is due"
    assert used == [0, 1, 0], "of the device"
