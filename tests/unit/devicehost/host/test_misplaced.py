"""Guest memory where a device does not reach it: what its owner is told, and when."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.devicehost.host.misplaced import failed, refused
from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.wire.vhost_user import Request
from tests.support.front_end import RawFrontEnd, RingEvents
from tests.support.guest_ring import GuestRam, GuestRing
from tests.unit.devicehost.host.conftest import MIB, POOL, TOKEN, VM, spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.devicehost.host.conftest import Rig

CAUSES = "Likely causes"


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    ram = GuestRam(32 * MIB)
    yield ram
    ram.close()


def explained(rig: Rig) -> list[str]:
    return [detail for detail in rig.details if CAUSES in detail]


def gone(rig: Rig) -> str:
    """Return what the event says that a front-end which has just left gives rise to."""
    rig.wait_for("d1 listening")
    return rig.details[-1]


def test_a_ring_that_is_refused_is_reported_while_the_front_end_stays(
    rig: Rig, ram: GuestRam
) -> None:
    with RawFrontEnd(rig.create().socket_path) as front:
        front.negotiate()
        assert front.attach(ram) == 0
        front.state(Request.SET_VRING_NUM, 0, 16)
        for _ in range(2):
            assert front.set_addr(0, GuestRing(ram, 2**40, 16)) == 1
        (said,) = explained(rig)
        assert said.startswith("keeps its guest out, and no ring was ever served: ")
        assert "wait for the device for ever" in said
    assert gone(rig).endswith("[ADDRESS_OUT_OF_BOUNDS] [RINGS_NEVER_SERVED]")


def test_a_ring_outside_of_a_pool_that_has_to_have_it_is_explained_by_that(
    rig: Rig, ram: GuestRam
) -> None:
    options = f"share;rings=inside;{TOKEN};vm_id={VM}"
    info = rig.host.create_device(replace(spec(), options=options), lambda _: None)
    with RawFrontEnd(info.socket_path) as front:
        front.negotiate()
        assert front.attach(ram) == 0
        front.state(Request.SET_VRING_NUM, 0, 16)
        assert front.set_addr(0, GuestRing(ram, POOL.end, 16)) == 1
        (said,) = explained(rig)
        assert "the guest keeps its rings outside its pool" in said
    assert gone(rig).endswith("[RING_OUTSIDE_APERTURE] [RINGS_NEVER_SERVED]")


def test_refusals_that_have_other_causes_are_not_explained_by_the_pool(
    rig: Rig, ram: GuestRam
) -> None:
    with RawFrontEnd(rig.create().socket_path) as front:
        front.negotiate()
        assert front.attach(ram) == 0
        assert front.set_addr(0, GuestRing(ram, POOL.base, 16)) == 1, "no size yet"
    assert gone(rig).endswith("[RING_SIZE_FIRST] [RINGS_NEVER_SERVED]")
    assert explained(rig) == []


@pytest.mark.parametrize("answers", [False, True])
def test_a_first_request_that_fails_is_why_nothing_was_served(
    rig: Rig, ram: GuestRam, answers: bool
) -> None:
    with RawFrontEnd(rig.create().socket_path) as front, RingEvents() as ring_events:
        front.negotiate()
        assert front.attach(ram) == 0
        ring = GuestRing(ram, 16 * MIB, 16)
        front.start(0, ring, ring_events)
        if answers:
            ring.chain(0, readable=[(POOL.base, 64)])
            ring.offer(0)
            os.eventfd_write(ring_events.kick, 1)
            rig.wait_for(events.FIRST_REQUEST)
        ring.chain(1, readable=[(POOL.base - 64, 64)])
        ring.offer(1)
        os.eventfd_write(ring_events.kick, 1)
        rig.wait_for("d1 needs_reset")
    said = gone(rig)
    if answers:
        assert said == "the front-end has gone"
        assert explained(rig) == []
    else:
        (why,) = explained(rig)
        assert "'Connection refused'" in why
        assert said.endswith("[ADDRESS_OUT_OF_BOUNDS] [RINGS_NEVER_SERVED]")
        assert "no request was ever served" in said


def test_the_next_front_end_begins_anew(rig: Rig, ram: GuestRam) -> None:
    path = rig.create().socket_path
    for _ in range(2):
        with RawFrontEnd(path) as front:
            front.negotiate()
            assert front.attach(ram) == 0
            front.state(Request.SET_VRING_NUM, 0, 16)
            assert front.set_addr(0, GuestRing(ram, 2**40, 16)) == 1
        gone(rig)
        rig.changes.clear()
    assert len(explained(rig)) == 2
    with RawFrontEnd(path) as front:
        front.negotiate()
    assert gone(rig) == "the front-end has gone"


def test_the_causes_are_those_of_the_refusal() -> None:
    outside = InvalidArgumentError("ADDRESS_OUT_OF_BOUNDS", "it is outside")
    no_pool = InvalidArgumentError("POOL_NOT_IN_GUEST_MEMORY", "it is not there")
    assert "iommu_platform=off" in refused(outside, has_pool=True)
    assert "iommu_platform" not in refused(outside, has_pool=False)
    assert "iommu_platform" not in refused(no_pool, has_pool=True)
    assert "no frame passes" in failed(outside, events.NET, has_pool=True)
