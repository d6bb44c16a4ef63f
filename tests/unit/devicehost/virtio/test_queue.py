"""Chains are taken from a ring and given back; tests of notifications and sleep stand beside."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.devicehost.memory import WindowMemory, WindowQuota
from services.devicehost.virtio.device import serve_requests
from services.devicehost.virtio.queue import (
    Queue,
    QueueError,
)
from services.devicehost.virtio.queue_setup import QueueState
from services.handshake.errors import DeadlineExceededError
from services.handshake.exhaustion import Exhaustion
from tests.unit.devicehost.virtio.conftest import (
    DATA,
    POOL,
    CountingLease,
    push_bytes,
    serve_all,
)

if TYPE_CHECKING:
    from services.devicehost.virtio.chain import Chain
    from tests.unit.devicehost.virtio.conftest import Rig


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


def test_an_answer_may_be_longer_than_31_bits(rig: Rig) -> None:
    ring = rig.ring(2048)
    room = POOL.end - ring.end
    pieces = (1 << 31) // room + 1
    ring.chain(0, writable=[(ring.end, room)] * pieces)
    ring.offer(0)
    push_bytes(rig.queue(ring), 1 << 31)
    assert ring.completions() == [(0, 1 << 31)]


class RecordedHead:
    """The head of a used ring, which records what is stored to the index."""

    def __init__(self, head: memoryview) -> None:
        self._head = head
        self.indices: list[int] = []

    def __getitem__(self, place: int) -> int:
        value: int = self._head[place]
        return value

    def __setitem__(self, place: int, value: int) -> None:
        if place == 1:
            self.indices.append(value)
        self._head[place] = value


def test_the_driver_sees_chains_that_are_pushed_together_all_at_once(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, writable=[(DATA, 8)])
    ring.offer(0, 0, 0)
    queue = rig.queue(ring)
    chains = [queue.pop() for _ in range(3)]
    queue._used_head = head = RecordedHead(queue._used_head)  # type: ignore[assignment]
    queue.push_together([(chain, 8) for chain in chains if chain is not None])
    assert head.indices == [3]


@pytest.mark.parametrize("written", [-1, 5])
def test_a_wrong_number_of_bytes_leaves_the_ring_as_it_is(rig: Rig, written: int) -> None:
    ring = rig.ring()
    ring.chain(0, writable=[(DATA, 4)])
    ring.offer(0)
    queue = rig.queue(ring)
    chain = queue.pop()
    assert chain is not None
    before = ring.ram.read(ring.used, ring.end - ring.used)
    with pytest.raises(ValueError, match="bytes written"):
        queue.push(chain, written)
    assert ring.ram.read(ring.used, ring.end - ring.used) == before
    queue.push(chain, 4)


def test_the_buffers_of_a_chain_are_given_up_once_it_is_pushed_or_put_back(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, writable=[(DATA, 4)])
    ring.offer(0)
    queue = rig.queue(ring)
    chain = queue.pop()
    assert chain is not None
    chain.lease = put_back = CountingLease()
    queue.put_back(chain)
    again = queue.pop()
    assert again is not None
    again.lease = pushed = CountingLease()
    queue.push(again, 0)
    assert [put_back.closed, pushed.closed] == [1, 1]


def test_requests_that_are_given_back_unserved_are_logged_once_a_second(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lease(*_: object) -> None:
        raise DeadlineExceededError("WINDOW_DEADLINE", "no window")

    ring = rig.ring(64)
    ring.chain(0, writable=[(DATA, 4)])
    ring.offer(*[0] * 64)
    queue = rig.queue(ring)
    monkeypatch.setattr(rig.memory, "lease", lease)
    assert queue.pop() is None
    assert ring.used_idx == 64
    logged = [each.getMessage() for each in caplog.records if "unserved" in each.getMessage()]
    assert 1 <= len(logged) <= 3
    assert logged[0].startswith("queue 0 gives a request back unserved: ")
    assert logged[0].endswith(" [0 more not logged]")
