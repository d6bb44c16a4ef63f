"""A front-end that makes our writes to its eventfds block: only the thread that writes waits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from services.devicehost.vhost_user import worker
from services.wire.vhost_user import U64, Request
from tests.support.descriptors import open_fds
from tests.support.front_end import RawFrontEnd, RingEvents
from tests.support.guest_ring import GuestRing
from tests.unit.devicehost.memory.test_aperture import mapped_bytes
from tests.unit.devicehost.vhost_user.conftest import MIB, eventually
from tests.unit.devicehost.vhost_user.test_backend import DATA, INSIDE, OUTSIDE, echo
from tests.unit.devicehost.virtio.conftest import full_and_blocking

if TYPE_CHECKING:
    from tests.unit.devicehost.vhost_user.conftest import Service


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STOP_DEADLINE_S", 0.05)


def test_a_call_descriptor_that_blocks_holds_up_its_worker_alone(service: Service) -> None:
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
