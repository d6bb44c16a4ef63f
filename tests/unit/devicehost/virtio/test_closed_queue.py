"""A queue that was stopped or closed: what its thread may still do, if it was left behind."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

import pytest

from services.devicehost.memory import TranslationError
from services.devicehost.virtio.queue import Queue
from services.devicehost.virtio.queue_setup import QueueState
from services.handshake.errors import DeadlineExceededError, PortholeError
from services.wire.virtio_ring import USED_F_NO_NOTIFY
from tests.unit.devicehost.virtio.conftest import DATA, CountingLease, eventually

if TYPE_CHECKING:
    from services.devicehost.virtio.chain import Chain
    from tests.support.guest_ring import GuestRing
    from tests.unit.devicehost.virtio.conftest import Rig


def content(ring: GuestRing) -> bytes:
    return ring.ram.read(ring.desc, ring.end - ring.desc)


def closed_with_chains(rig: Rig, ring: GuestRing, count: int) -> tuple[Queue, list[Chain]]:
    """Take chains and close the queue, as is done when its thread is stuck."""
    ring.chain(0, writable=[(DATA, 4)])
    ring.offer(*[0] * count)
    queue = Queue(rig.setup(ring), QueueState())
    chains = []
    for _ in range(count):
        chain = queue.pop()
        assert chain is not None
        chain.lease = CountingLease()
        chains.append(chain)
    queue.stop()
    queue.close()
    return queue, chains


def closings(chain: Chain) -> int:
    assert isinstance(chain.lease, CountingLease)
    return chain.lease.closed


@pytest.mark.parametrize("together", [False, True])
def test_giving_chains_back_touches_neither_the_ring_nor_a_descriptor(
    rig: Rig, together: bool
) -> None:
    ring = rig.ring()
    queue, chains = closed_with_chains(rig, ring, 2)
    before = content(ring)
    if together:
        queue.push_together([(chain, 4) for chain in chains])
    else:
        for chain in chains:
            queue.push(chain, 4)
    queue.notify()
    assert content(ring) == before
    assert rig.calls() == 0
    assert [closings(chain) for chain in chains] == [1, 1], "the buffers are given up all the same"


@pytest.mark.parametrize(
    "error",
    [TranslationError(0, 1, "the pool"), DeadlineExceededError("WINDOW_DEADLINE", "no window")],
)
def test_a_request_that_fails_too_late_touches_neither_the_ring_nor_a_descriptor(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, error: PortholeError
) -> None:
    ring = rig.ring()
    ring.chain(0, writable=[(DATA, 4)])
    ring.offer(0)
    queue = Queue(rig.setup(ring), QueueState())
    before = content(ring)

    def lease(*_: object) -> None:
        queue.stop()
        queue.close()
        raise error

    monkeypatch.setattr(rig.memory, "lease", lease)
    with contextlib.suppress(TranslationError):
        assert queue.pop() is None
    assert content(ring) == before
    assert rig.calls() == 0


def test_a_queue_that_was_stopped_does_not_ask_for_a_kick(rig: Rig) -> None:
    ring = rig.ring()
    queue = rig.queue(ring)
    rig.kick()
    queue.wait()
    assert ring.used_flags == USED_F_NO_NOTIFY
    queue.stop()
    before = content(ring)
    assert queue.wait() == set()
    assert content(ring) == before


def test_a_sleeping_queue_that_is_stopped_leaves_the_ring_as_it_is(rig: Rig) -> None:
    ring = rig.ring()
    queue = rig.queue(ring)
    rig.kick()
    queue.wait()
    sleeper = threading.Thread(target=queue.wait)
    sleeper.start()
    assert eventually(lambda: ring.used_flags == 0), "it asks for a kick"
    before = content(ring)
    queue.stop()
    sleeper.join(10)
    assert not sleeper.is_alive()
    assert content(ring) == before


def test_a_polled_queue_that_was_stopped_does_not_look_at_the_ring(rig: Rig) -> None:
    ring = rig.ring()
    queue = rig.queue(ring, polled=True)
    outcomes: list[object] = []

    def sleep() -> None:
        try:
            outcomes.append(queue.wait())
        except PortholeError as error:
            outcomes.append(error)

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    queue.stopped = True
    ring.set_avail_idx(0x8000)  # a look would refuse this
    sleeper.join(10)
    assert outcomes == [set()]


def test_stopping_a_closed_queue_signals_nobody(rig: Rig) -> None:
    queue = Queue(rig.setup(rig.ring()), QueueState())
    number = queue._wake_ups.stop_fd
    queue.stop()
    queue.close()
    other = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        if other != number:
            os.dup2(other, number)
        queue.stop()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(number)
    finally:
        for fd in {other, number}:
            os.close(fd)


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
