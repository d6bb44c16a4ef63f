"""A device that has failed: it serves nothing until all of its rings have stopped."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

import pytest

from services.wire.vhost_user import U64, Request
from tests.support.front_end import RawFrontEnd, RingEvents
from tests.support.guest_ring import GuestRing
from tests.unit.devicehost.vhost_user.conftest import MIB, eventually, workers
from tests.unit.devicehost.vhost_user.test_backend import DATA, INSIDE, echo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.devicehost.vhost_user.conftest import Service


class TwoRings:
    """A guest with both rings of a device, in the pool."""

    def __init__(self, service: Service, front: RawFrontEnd, events: list[RingEvents]) -> None:
        self.service = service
        self.front = front
        self.events = events
        self.rings = [GuestRing(service.ram, INSIDE + n * MIB, 16) for n in range(2)]
        front.negotiate()
        front.attach(service.ram)
        for index in range(2):
            front.start(index, self.rings[index], events[index])

    def request(self, index: int, text: bytes) -> None:
        """Send what the device reads; nobody waits for the answer."""
        data = DATA + index * 8192
        self.rings[index].ram.write(data, text)
        self.rings[index].chain(0, readable=[(data, len(text))], writable=[(data + 4096, 64)])
        self.rings[index].offer(0)
        os.eventfd_write(self.events[index].kick, 1)

    def fail(self) -> None:
        """Make the device fail by its first ring."""
        self.request(0, b"fail")
        self.service.watcher.wait_for("failed DEVICE_FAILED")


@pytest.fixture
def guest(service: Service) -> Iterator[TwoRings]:
    with RawFrontEnd(service.path) as front, RingEvents() as first, RingEvents() as second:
        yield TwoRings(service, front, [first, second])


def test_the_workers_of_all_rings_end_and_the_front_end_is_notified_by_each_ring(
    guest: TwoRings,
) -> None:
    guest.fail()
    assert eventually(lambda: not workers())
    for events in guest.events:
        assert select.select([events.err], [], [], 10)[0]


def test_no_command_has_a_ring_served_again_before_the_reset(guest: TwoRings) -> None:
    guest.fail()
    assert eventually(lambda: not workers())
    kick = [guest.events[1].kick]
    assert guest.front.command(Request.SET_VRING_KICK, U64.pack(1), kick) == 0
    assert guest.front.state(Request.SET_VRING_ENABLE, 1, 1) == 0
    assert guest.front.attach(guest.service.ram) == 0
    assert not workers()
    assert guest.front.command(Request.RESET_DEVICE) == 0
    fresh = GuestRing(guest.service.ram, INSIDE + 3 * MIB, 16)
    guest.front.start(0, fresh, guest.events[0])
    assert echo(fresh, guest.events[0]) == b"HELLO"


def test_a_device_is_not_reset_while_one_of_its_rings_is_served(guest: TwoRings) -> None:
    device, watcher = guest.service.device, guest.service.watcher
    guest.request(1, b"block")
    assert device.blocked.wait(10)
    guest.fail()
    assert guest.front.get_base(0) == 1
    assert "reset" not in device.log
    assert "was reset" not in watcher.calls
    device.unblock.set()
    assert guest.front.get_base(1) == 1
    assert device.log[-1] == "reset"
    watcher.wait_for("was reset")


def test_a_failure_is_reported_once_however_many_rings_fail(guest: TwoRings) -> None:
    device = guest.service.device
    guest.request(1, b"block and fail")
    assert device.blocked.wait(10)
    guest.fail()
    device.unblock.set()
    assert eventually(lambda: not workers())
    assert guest.service.watcher.calls.count("failed DEVICE_FAILED") == 1


def test_a_device_whose_reset_fails_is_served_on(
    guest: TwoRings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def reset() -> None:
        raise OSError("a reset that fails, on purpose")

    monkeypatch.setattr(guest.service.device, "reset", reset)
    guest.fail()
    assert guest.front.command(Request.RESET_DEVICE) == 0
    assert "on purpose" in caplog.text
    fresh = GuestRing(guest.service.ram, INSIDE + 3 * MIB, 16)
    guest.front.start(0, fresh, guest.events[0])
    assert echo(fresh, guest.events[0]) == b"HELLO"
