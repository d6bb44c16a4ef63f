"""The pool at each hop, compared with the hop before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from services.dashboard.judging.hops import Hop, Same, hops, parties, party_of
from services.handshake import events
from services.handshake.events import FS
from services.handshake.trace.checker import IDLE_TAGS
from services.handshake.trace.vm_trace import group_by_vm
from tests.support import handshake_traces as traces
from tests.support.handshake_traces import MIB64, OTHER, POOL, TOKEN, change, device, record

if TYPE_CHECKING:
    from services.handshake.trace.vm_trace import VmTrace
    from tests.support.handshake_traces import Steps


def life_of(steps: Steps) -> VmTrace:
    [life] = group_by_vm(record(steps), IDLE_TAGS)
    return life


def hop_of(steps: Steps, name: str, tag: str = "") -> Hop | None:
    life = life_of(steps)
    return next(
        hop
        for event, hop in zip(life.events, hops(life), strict=True)
        if event.name == name and tag in ("", event.text(events.DEVICE_TAG))
    )


def differences(steps: Steps) -> list[str]:
    """The names of the events whose hop differs from the one before."""
    life = life_of(steps)
    return [
        event.name
        for event, hop in zip(life.events, hops(life), strict=True)
        if hop and False in (hop.same.base, hop.same.size, hop.same.token)
    ]


SAME_EVERYWHERE = (
    "wsl2",
    "wslc",
    "nothing_requested",
    "repeated",
    "read_by_several",
    "configured",
    "failed_add",
    "added_again",
    "old_device_host",
    "idle_adapters",
    "strict",
    "init_ended",
)


@pytest.mark.parametrize("name", SAME_EVERYWHERE)
def test_a_handshake_with_a_pool_has_it_at_every_hop(name: str) -> None:
    assert differences(traces.VALID[name]()) == []


def test_the_hops_of_a_push() -> None:
    life = life_of(traces.wsl2())
    found = dict(zip([event.name for event in life.events[:5]], hops(life)[:5], strict=True))
    assert found == {
        events.VM_CREATED: Hop(size=MIB64),
        events.GUEST_BOOTED: None,
        events.GUEST_KERNEL_INFO: Hop(
            POOL.base, POOL.size_bytes, compared_with=0, same=Same(size=True)
        ),
        events.POOL_LATCHED: Hop(
            POOL.base, POOL.size_bytes, TOKEN, compared_with=2, same=Same(base=True, size=True)
        ),
        events.DEVICE_ADDED: Hop(
            POOL.base, POOL.size_bytes, TOKEN, compared_with=3, same=Same(True, True, True)
        ),
    }


def test_what_is_applied_is_compared_with_what_was_read() -> None:
    other = {events.POOL_BASE: OTHER.base}
    hop = hop_of(change(traces.wslc(), events.WSLC_APPLY, other), events.WSLC_APPLY)
    assert hop == Hop(
        OTHER.base, POOL.size_bytes, compared_with=2, same=Same(base=False, size=True)
    )


def test_a_pool_of_another_size_than_requested_differs() -> None:
    hop = hop_of(traces.not_as_requested(), events.GUEST_KERNEL_INFO)
    assert hop is not None
    assert (hop.compared_with, hop.same) == (0, Same(size=False))


def test_a_kernel_without_a_pool_differs_from_what_was_requested() -> None:
    assert differences(traces.old_kernel()) == [events.GUEST_KERNEL_INFO]


def test_a_token_of_another_pool_differs() -> None:
    steps = change(
        traces.wslc(),
        events.DEVICE_ADDED,
        {events.DEVICE_OPTIONS: f"src;swiotlb=0x{OTHER.base:x},{OTHER.size_bytes};vm_id=x"},
    )
    hop = hop_of(steps, events.DEVICE_ADDED)
    assert hop is not None
    assert hop.same == Same(base=False, size=True, token=False)
    # The aperture is what the owner latched, not what the device was given.
    assert differences(steps) == [events.DEVICE_ADDED, events.APERTURE_CREATED]


def test_a_token_that_is_due_and_missing_differs() -> None:
    steps = change(traces.wslc(), events.DEVICE_ADDED, {events.DEVICE_OPTIONS: "src;vm_id=x"})
    hop = hop_of(steps, events.DEVICE_ADDED)
    assert hop == Hop(token="", compared_with=4, same=Same(token=False))


def test_a_device_that_takes_no_token_has_no_hop() -> None:
    steps = traces.old_device_host()
    assert hop_of(steps, events.DEVICE_ADDED, "old") is None
    assert hop_of(steps, events.WINDOWS_ENABLED, "old") == Hop(0, 0)


def test_a_token_that_cannot_be_read_has_no_numbers() -> None:
    options = "src;swiotlb=nonsense;vm_id=x"
    steps = change(traces.wslc(), events.DEVICE_ADDED, {events.DEVICE_OPTIONS: options})
    hop = hop_of(steps, events.DEVICE_ADDED)
    assert hop is not None
    assert (hop.base, hop.size, hop.token) == (None, None, "swiotlb=nonsense")
    assert hop.same == Same(token=False)


def test_an_own_part_is_what_an_aperture_is_compared_with() -> None:
    hop = hop_of(traces.strict(), events.APERTURE_CREATED, "b")
    assert hop is not None
    assert hop.same == Same(base=True, size=True)
    whole = {events.POOL_BASE: POOL.base, events.POOL_SIZE_BYTES: POOL.size_bytes}
    hop = hop_of(
        change(traces.strict(), events.APERTURE_CREATED, whole, "b"), events.APERTURE_CREATED, "b"
    )
    assert hop is not None
    assert hop.same == Same(base=False, size=False)


def test_the_lanes() -> None:
    lanes = [(lane.ident, lane.name) for lane in parties(life_of(traces.wslc()))]
    assert lanes == [
        ("owner", "VM owner"),
        ("session", "session"),
        ("guest-kernel", "guest kernel"),
        ("guest-init", "guest init"),
        ("device-host", "device host"),
        ("device:id-src", "virtio-fs src"),
    ]
    assert "session" not in [lane.ident for lane in parties(life_of(traces.wsl2()))]


def test_a_device_that_is_added_again_has_a_lane_of_its_own() -> None:
    life = life_of(traces.added_again())
    lanes = parties(life)
    idents = [lane.ident for lane in lanes if lane.device]
    assert "device:id-src" in idents
    assert "device:id-src#2" in idents
    attached = next(event for event in life.events if event.name == events.APERTURE_CREATED)
    assert party_of(attached, lanes).ident == "device:id-src#2"


def test_the_party_of_a_read_is_who_answered_it() -> None:
    life = life_of(traces.read_by_several())
    lanes = parties(life)
    found = [party_of(event, lanes).ident for event in life.all(events.WSLC_READ)]
    assert found == ["guest-init", "owner", "session"]


@pytest.mark.parametrize("case", traces.VALID.values(), ids=traces.VALID)
def test_every_event_has_a_lane(case: Any) -> None:
    life = life_of(case())
    lanes = parties(life)
    idents = [lane.ident for lane in lanes]
    assert len(idents) == len(set(idents))
    for event in life.events:
        lane = party_of(event, lanes)
        assert (lane.device is None) == (lane.kind != "device")
        if lane.device:
            assert any(event is other for other in lane.device.events)


def test_an_application_to_a_wsl2_vm_has_a_lane() -> None:
    life = life_of([*traces.wsl2()[:-1], traces.applied(POOL), traces.wsl2()[-1]])
    lanes = parties(life)
    [event] = life.all(events.WSLC_APPLY)
    assert party_of(event, lanes).ident == "session"


def test_a_device_without_a_class_has_a_lane() -> None:
    steps = [*traces.wslc()[:-1], *device("x", FS, TOKEN)[2:3], traces.wslc()[-1]]
    steps = change(steps, events.FIRST_REQUEST, {events.DEVICE_TAG: None}, "x")
    assert parties(life_of(steps))[-1].name == "virtio-fs"
