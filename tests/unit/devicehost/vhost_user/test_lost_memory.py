"""A device whose guest memory is lost under it: it fails, and takes new memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from services.devicehost import fastpath
from services.devicehost.memory import OwnRisk, RegionTable
from services.devicehost.vhost_user import Backend, Listener, ListeningSocket
from services.wire.vhost_user import Request
from tests.support.front_end import RawFrontEnd, RingEvents
from tests.support.guest_ring import GuestRam, GuestRing
from tests.unit.devicehost.vhost_user.conftest import MIB, eventually, workers
from tests.unit.devicehost.vhost_user.test_backend import INSIDE, OUTSIDE, echo

if TYPE_CHECKING:
    from tests.unit.devicehost.vhost_user.conftest import Service

pytestmark = pytest.mark.skipif(
    fastpath.library is None, reason="the native fast path was not built"
)


@pytest.mark.parametrize("place", [INSIDE, OUTSIDE], ids=["in the aperture", "beside it"])
def test_it_fails_until_it_has_new_memory(
    service: Service, caplog: pytest.LogCaptureFixture, place: int
) -> None:
    service.listener.close()
    service.backend = Backend(
        *(service.device, service.access, service.meter, service.watcher),
        table=RegionTable(OwnRisk()),
    )
    service.listener = Listener(ListeningSocket.at(service.path), service.backend)
    lost = GuestRam(32 * MIB, sealed=False)
    with RawFrontEnd(service.path) as front, RingEvents() as events, RingEvents() as others:
        front.negotiate()
        assert front.attach(lost) == 0
        front.start(0, GuestRing(lost, place, 16), events)
        front.start(1, GuestRing(lost, place + MIB, 16), others)
        os.ftruncate(lost.fd, 0)
        os.eventfd_write(events.kick, 1)
        service.watcher.wait_for("failed GUEST_MEMORY_LOST")
        assert eventually(lambda: not workers()), "also the one that sleeps, and touches nothing"
        if place == INSIDE:  # beside the aperture it maps no ring a second time
            assert front.command(Request.RESET_DEVICE) == 0
            front.start(0, GuestRing(lost, place, 16), events)
            service.watcher.wait_for("failed GUEST_MEMORY_LOST", 2)
        assert front.command(Request.RESET_DEVICE) == 0
        assert front.attach(service.ram) == 0
        fresh = GuestRing(service.ram, INSIDE, 16)
        front.start(0, fresh, events)
        assert echo(fresh, events) == b"HELLO"
    service.watcher.wait_for("disconnected")
    lost.close()
