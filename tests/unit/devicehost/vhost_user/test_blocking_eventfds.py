"""A front-end that makes our writes to its eventfds block, or that waits in reads of them."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from services.devicehost import peer_writes
from services.devicehost.vhost_user import Listener, ListeningSocket, worker
from services.wire.vhost_user import U64, Request
from tests.support.descriptors import open_fds
from tests.support.front_end import RawFrontEnd, RingEvents
from tests.support.guest_ring import GuestRing
from tests.unit.devicehost.memory.test_aperture import mapped_bytes
from tests.unit.devicehost.vhost_user.conftest import MIB, eventually, workers
from tests.unit.devicehost.vhost_user.test_backend import DATA, INSIDE, OUTSIDE, echo
from tests.unit.devicehost.virtio.conftest import full_and_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.devicehost.vhost_user.conftest import Service


@pytest.fixture
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STOP_DEADLINE_S", 0.05)
    monkeypatch.setattr(worker, "STOP_LEAST_S", 0.05)


@pytest.fixture
def _nobody_is_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    said = [record.getMessage() for record in caplog.get_records("call")]
    assert not [line for line in said if "leaving it behind" in line]
    assert not workers()


def block_a_worker(front: RawFrontEnd, ring: GuestRing, events: RingEvents) -> None:
    """Have the worker of a ring, which was started, write to a call descriptor that blocks."""
    before = ring.used_idx
    ring.chain(0, readable=[(DATA, 4)], writable=[(DATA + 4096, 4)])
    ring.set_used_event(before)
    ring.offer(0)
    os.eventfd_write(events.kick, 1)
    assert eventually(lambda: ring.used_idx != before)


@pytest.mark.usefixtures("interrupts", "_nobody_is_left_behind")
class TestTeardownNeedsNobodysGoodwill:
    def test_a_ring_is_stopped_while_its_call_blocks(self, service: Service) -> None:
        with RawFrontEnd(service.path) as front, RingEvents() as events:
            front.negotiate()
            front.attach(service.ram)
            for _ in range(3):
                ring = GuestRing(service.ram, INSIDE, 16)
                service.ram.write(INSIDE, bytes(ring.end - INSIDE))
                front.start(0, ring, events)
                with full_and_blocking(events.call):
                    block_a_worker(front, ring, events)
                    assert front.get_base(0) == 1

    def test_a_table_is_replaced_while_a_call_blocks(self, service: Service) -> None:
        with RawFrontEnd(service.path) as front, RingEvents() as events:
            front.negotiate()
            front.attach(service.ram)
            ring = GuestRing(service.ram, INSIDE, 16)
            front.start(0, ring, events)
            with full_and_blocking(events.call):
                block_a_worker(front, ring, events)
                assert front.attach(service.ram) == 0
            assert echo(ring, events) == b"HELLO"

    @pytest.mark.parametrize("how", ["the front-end goes", "the device is closed"])
    def test_a_device_ends_while_all_its_writes_block(self, service: Service, how: str) -> None:
        front = RawFrontEnd(service.path)
        with front, RingEvents() as events, RingEvents() as others:
            front.negotiate()
            front.attach(service.ram)
            rings = GuestRing(service.ram, INSIDE, 16), GuestRing(service.ram, INSIDE + MIB, 16)
            for index, (ring, own) in enumerate(zip(rings, (events, others), strict=True)):
                front.start(index, ring, own)
            with (
                full_and_blocking(events.call),
                full_and_blocking(others.call),
                full_and_blocking(events.err),
                full_and_blocking(others.err),
            ):
                block_a_worker(front, rings[0], events)
                rings[1].describe(0, DATA, 8, flags=1, following=0)
                rings[1].offer(0)
                os.eventfd_write(others.kick, 1)
                service.watcher.wait_for("failed DESCRIPTOR_LOOP")
                if how == "the device is closed":
                    service.listener.close()
                else:
                    front.socket.close()
                service.watcher.wait_for("disconnected")
                assert not workers()
        if how == "the device is closed":
            service.listener = Listener(ListeningSocket.at(service.path), service.backend)

    def test_the_front_end_thread_ends_while_it_notifies(self, service: Service) -> None:
        """A new call descriptor is notified once at once, by the thread that reads messages."""
        with RawFrontEnd(service.path) as front, RingEvents() as events, RingEvents() as others:
            front.negotiate()
            front.attach(service.ram)
            front.start(0, GuestRing(service.ram, INSIDE, 16), events)
            with full_and_blocking(others.call):
                front.send(Request.SET_VRING_CALL, U64.pack(0), [others.call])
                assert eventually(lambda: bool(peer_writes._writing))
                service.listener.close()
        service.listener = Listener(ListeningSocket.at(service.path), service.backend)


def test_a_front_end_may_wait_in_a_read_of_its_call_descriptor(service: Service) -> None:
    """Its read would fail if we had set O_NONBLOCK, which it shares."""
    seen: list[int] = []
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        front.attach(service.ram)
        ring = GuestRing(service.ram, INSIDE, 16)
        front.start(0, ring, events)
        while os.get_blocking(events.call) and len(seen) < 3:
            reader = threading.Thread(target=lambda: seen.append(os.eventfd_read(events.call)))
            reader.start()
            block_a_worker(front, ring, events)
            reader.join(10)
    assert seen == [1, 1, 1]


@pytest.mark.usefixtures("_little_patience")
def test_a_call_descriptor_that_blocks_holds_up_its_worker_alone(service: Service) -> None:
    """So it is in a process in which nothing can be interrupted."""
    before = open_fds(), mapped_bytes()
    with RawFrontEnd(service.path) as front, RingEvents() as events, RingEvents() as others:
        front.negotiate()
        front.attach(service.ram)
        ring = GuestRing(service.ram, OUTSIDE, 16)
        front.start(0, ring, events)
        with full_and_blocking(events.call):
            ring.chain(0, readable=[(DATA, 4)], writable=[(DATA + 4096, 4)])
            ring.set_used_event(0)
            ring.offer(0)
            os.eventfd_write(events.kick, 1)
            assert eventually(lambda: ring.used_idx == 1)
            assert front.command(Request.SET_VRING_CALL, U64.pack(0), [others.call]) == 0
            assert front.get_base(0) == 1
            # The worker that was left behind does not hold up the next one.
            fresh = GuestRing(service.ram, INSIDE, 16)
            front.start(0, fresh, others)
            assert echo(fresh, others) == b"HELLO"
        assert front.get_base(0) == 1
    service.watcher.wait_for("disconnected")
    assert eventually(lambda: (open_fds(), mapped_bytes()) == before)


@pytest.mark.usefixtures("_little_patience")
def test_an_err_descriptor_that_blocks_does_not_keep_a_device_from_its_reset(
    service: Service,
) -> None:
    before = open_fds()
    with RawFrontEnd(service.path) as front, RingEvents() as events, RingEvents() as others:
        front.negotiate()
        front.attach(service.ram)
        ring = GuestRing(service.ram, INSIDE, 16)
        front.start(0, ring, events)
        with full_and_blocking(events.err):
            ring.describe(0, DATA, 8, flags=1, following=0)
            ring.offer(0)
            os.eventfd_write(events.kick, 1)
            service.watcher.wait_for("failed DESCRIPTOR_LOOP")
            assert front.command(Request.SET_VRING_ERR, U64.pack(0), [others.err]) == 0
            assert front.command(Request.RESET_DEVICE) == 0
            service.watcher.wait_for("was reset")
            fresh = GuestRing(service.ram, INSIDE + MIB, 16)
            front.start(0, fresh, others)
            assert echo(fresh, others) == b"HELLO"
    service.watcher.wait_for("disconnected")
    assert eventually(lambda: open_fds() == before)


def test_the_observer_may_ask_the_back_end_to_stop_when_a_device_fails(service: Service) -> None:
    """It is called without a lock, also by the thread of the worker that failed."""
    seen: list[bool] = []
    failed = service.watcher.failed

    def failed_and_looks(error: object) -> None:
        seen.append(service.backend._failing.locked())
        failed(error)  # type: ignore[arg-type]

    service.watcher.failed = failed_and_looks  # type: ignore[method-assign]
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        front.attach(service.ram)
        ring = GuestRing(service.ram, INSIDE, 16)
        front.start(0, ring, events)
        ring.describe(0, DATA, 8, flags=1, following=0)
        ring.offer(0)
        os.eventfd_write(events.kick, 1)
        service.watcher.wait_for("failed DESCRIPTOR_LOOP")
    assert seen == [False]
