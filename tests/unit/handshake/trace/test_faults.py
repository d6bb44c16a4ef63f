"""Faults that an earlier checker called valid: each is named by the rule that it breaks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.handshake import events
from services.handshake.events import FS, Sizing
from services.handshake.pool import Gpa, SwiotlbPool, format_aperture, format_token
from services.handshake.trace.checker import verify
from services.handshake.trace.recorded import Recording
from tests.support.handshake_traces import (
    CONFLICT,
    MIB64,
    POOL,
    TOKEN,
    VM,
    applied,
    change,
    device,
    index,
    not_as_requested,
    pool_came_late,
    pulled,
    pushed,
    read_by_several,
    record,
    repeat,
    sizing,
    strict,
    without,
    wsl2,
    wslc,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.handshake_traces import Steps

MIB = 1 << 20
KINDS = pytest.mark.parametrize("kind", ["WSL2", "WSLC"])


def rules(recording: Recording) -> set[str]:
    [verdict] = verify(recording)
    return {violation.rule for violation in verdict.violations}


def handshake(
    kind: str, pool: SwiotlbPool, requested: Sizing, release: str = "6.18.26.3-microsoft"
) -> Steps:
    """A handshake whose hops all agree, right or wrong."""
    told = [pushed(pool, release)] if kind == "WSL2" else pulled(pool, release)
    token = format_token(pool)
    return [
        ("create", events.vm_created(VM, kind, requested)),
        ("create", events.guest_booted(VM, 0)),
        *told,
        (told[-1][0], events.pool_latched(VM, pool, token)),
        *device("src", FS, token, pool=pool),
        ("terminate", events.vm_terminated(VM)),
    ]


@KINDS
def test_a_handshake_whose_hops_agree_on_what_is_right_is_valid(kind: str) -> None:
    assert rules(record(handshake(kind, POOL, sizing(MIB64)))) == set()


@KINDS
def test_more_than_was_requested_is_announced(kind: str) -> None:
    requested = Sizing(2 << 30, True, True, 32 * MIB, 32 * MIB)
    found = rules(record(handshake(kind, POOL, requested)))
    assert found == {"POOL_NOT_AS_REQUESTED", "NOT_AS_REQUESTED_MISREPORTED"}


@KINDS
def test_nothing_is_requested_and_a_pool_is_latched(kind: str) -> None:
    found = rules(record(handshake(kind, POOL, sizing(0))))
    assert found == {"POOL_NOT_AS_REQUESTED", "NOT_AS_REQUESTED_MISREPORTED"}


def test_a_pool_that_is_not_what_was_requested_is_a_breach_though_it_is_reported() -> None:
    assert rules(record(not_as_requested())) == {"POOL_NOT_AS_REQUESTED"}
    [verdict] = verify(record(not_as_requested()))
    assert "1048576 bytes" in verdict.violations[0].detail
    assert "67108864 bytes" in verdict.violations[0].detail


@KINDS
@pytest.mark.parametrize(
    ("base", "size_bytes", "reason"),
    [
        (2 << 30, MIB64, "SWIOTLB_OUTSIDE_RAM"),
        ((2 << 30) - 4096, MIB64, "SWIOTLB_OUTSIDE_RAM"),
        (4 << 30, MIB64, "SWIOTLB_ABOVE_4G"),
        (0x3C000001, MIB64, "SWIOTLB_BASE_UNALIGNED"),
        (0x3C000000, MIB64 + 1, "SWIOTLB_SIZE_UNALIGNED"),
    ],
)
def test_a_pool_that_the_vm_cannot_have_is_at_every_hop(
    kind: str, base: int, size_bytes: int, reason: str
) -> None:
    pool = SwiotlbPool(Gpa(base), size_bytes)
    [verdict] = verify(record(handshake(kind, pool, sizing(MIB64))))
    details = [item.detail for item in verdict.violations if item.rule == "POOL_INVALID"]
    hops = ("PoolLatched", "the token has", "the token of device", "the aperture of device")
    for hop in hops:
        assert any(hop in detail and reason in detail for detail in details)
    assert "ANSWER_MISMATCH" in {item.rule for item in verdict.violations}


@KINDS
@pytest.mark.parametrize("release", ["5.15.1", "6.18.26.1-microsoft-standard-WSL2", "6.18.26.2-1"])
def test_a_kernel_that_is_too_old_publishes_a_pool(kind: str, release: str) -> None:
    assert rules(record(handshake(kind, POOL, sizing(MIB64), release))) == {"KERNEL_TOO_OLD"}


@KINDS
@pytest.mark.parametrize("release", ["6.18.26.3", "6.18.26.4-1", "6.18.27", "7.0.0-rc1"])
def test_a_kernel_that_is_new_enough_publishes_a_pool(kind: str, release: str) -> None:
    assert rules(record(handshake(kind, POOL, sizing(MIB64), release))) == set()


@pytest.mark.parametrize(
    "changes",
    [
        {events.KERNEL_MAJOR: 5},
        {events.KERNEL_PATCH: 0},
        {events.KERNEL_MAJOR: 0, events.KERNEL_MINOR: 0, events.KERNEL_PATCH: 0},
        {events.KERNEL_RELEASE: "6.18.27.1-microsoft"},
    ],
)
def test_a_version_triple_contradicts_the_release(changes: dict[str, events.Attribute]) -> None:
    assert rules(record(change(wsl2(), events.GUEST_KERNEL_INFO, changes))) == {"VERSION_MISMATCH"}


def test_a_release_without_a_version_has_the_triple_0() -> None:
    odd: dict[str, events.Attribute] = {events.KERNEL_RELEASE: "weird"}
    odd |= {events.KERNEL_MAJOR: 0, events.KERNEL_MINOR: 0, events.KERNEL_PATCH: 0}
    assert rules(record(change(wsl2(), events.GUEST_KERNEL_INFO, odd))) == {"KERNEL_TOO_OLD"}


def test_one_device_has_51_apertures() -> None:
    steps = wsl2()
    for _ in range(50):
        steps = repeat(steps, events.APERTURE_CREATED)
    assert rules(record(steps)) == {"DEVICE_REPEATED"}


@pytest.mark.parametrize("make", [wsl2, wslc])
@pytest.mark.parametrize(
    ("service", "named"), [("guest-init", "guest-init"), ("devicehost", "devicehost")]
)
def test_all_spans_of_a_service_are_gone(
    make: Callable[[], Steps], service: str, named: str
) -> None:
    whole = record(make())
    left = Recording(
        tuple(span for span in whole.spans if span.service != service),
        tuple(event for event in whole.events if event.span.service != service),
    )
    [verdict] = verify(left)
    [missing] = [item for item in verdict.violations if item.rule == "SERVICE_MISSING"]
    assert named in missing.detail


def test_spans_of_a_service_in_another_trace_are_not_this_vms() -> None:
    whole = record(wsl2())
    moved = tuple(
        replace(span, trace_id="e" * 32) if span.service == "guest-init" else span
        for span in whole.spans
    )
    assert rules(replace(whole, spans=moved)) == {"SERVICE_MISSING"}


@pytest.mark.parametrize("make", [wsl2, wslc])
def test_the_parents_of_the_device_hosts_spans_do_not_exist(make: Callable[[], Steps]) -> None:
    whole = record(make())
    for span in whole.spans:
        if span.service == "devicehost":
            orphan = replace(span, parent_id="0123456789abcdef")
            spans = tuple(orphan if each == span else each for each in whole.spans)
            changed = tuple(
                replace(each, span=orphan) if each.span == span else each for each in whole.events
            )
            assert "PARENT_MISSING" in rules(Recording(spans, changed))


def test_a_caller_of_a_client_service_need_not_be_recorded_and_others_must() -> None:
    whole = record(wsl2())
    call = whole.spans[0]
    assert call.called == "porthole.vmowner.v1.VmOwner"
    assert call.parent_id not in {span.span_id for span in whole.spans}
    assert rules(whole) == set()
    other = replace(call, called="porthole.devicehost.v1.DeviceHost")
    assert rules(replace(whole, spans=(other, *whole.spans[1:]))) == {"PARENT_MISSING"}


def test_equal_reads_of_several_services_are_valid_and_others_are_not() -> None:
    assert rules(record(read_by_several())) == set()
    wrong = change(read_by_several(), events.WSLC_READ, {events.POOL_BASE: POOL.base + 4096})
    assert rules(record(wrong)) == {"READ_MISMATCH"}


@pytest.mark.parametrize("service", ["guest-init", "owner"])
def test_a_clients_own_read_may_come_on_top_but_does_not_stand_alone(service: str) -> None:
    left = without(read_by_several(), events.WSLC_READ)
    reads = [step for step in read_by_several() if step[1].name == events.WSLC_READ]
    by_service = dict(zip(("guest-init", "owner", "client"), reads, strict=True))
    client = by_service["client"]
    assert rules(record([*left[:2], by_service[service], client, *left[2:]])) == set()
    assert rules(record([*left[:2], client, *left[2:]])) == {"READ_MISSING"}


def test_a_read_after_the_pool_was_latched_is_of_that_pool() -> None:
    late = [*wslc()[:5], ("answer late", wslc()[2][1]), *wslc()[5:]]
    assert rules(record(late)) == set()
    other = SwiotlbPool(Gpa(POOL.base - MIB), POOL.size_bytes)
    late[5] = ("answer late", pulled(other)[0][1])
    assert rules(record(late)) == {"READ_MISMATCH"}


UNALIGNED = SwiotlbPool(Gpa(0x1001), 4096)
REFUSAL = ("again", events.pool_refused(VM, 0x1001, 4096, "SWIOTLB_BASE_UNALIGNED", "why"))


def test_a_read_may_be_of_what_is_applied_after_a_refusal() -> None:
    begun = [*wslc()[:3], applied(UNALIGNED), REFUSAL]
    assert rules(record([*begun, *wslc()[3:]])) == set()
    other = pulled(SwiotlbPool(Gpa(POOL.base - MIB64), MIB64))[0]
    begun[2] = other
    assert rules(record([*begun, *wslc()[3:]])) == {"READ_MISMATCH"}


def test_a_read_after_a_refusal_is_of_the_pool() -> None:
    steps = [*wslc()[:5], applied(UNALIGNED), ("again", REFUSAL[1]), *wslc()[5:]]
    refusal = ("again", events.pool_refused(VM, 0x1001, 4096, CONFLICT, "differs"))
    steps[6] = refusal
    late = [*steps[:7], ("answer late", wslc()[2][1]), *steps[7:]]
    assert rules(record(late)) == rules(record(steps))


def test_a_late_read_is_of_the_last_application() -> None:
    steps = pool_came_late()
    late = index(steps, events.VM_TERMINATED)
    stale = ("answer late", pulled(None)[0][1])
    assert rules(record([*steps[:late], stale, *steps[late:]])) == {"READ_MISMATCH"}


def never_applied(steps: Steps) -> list[bool]:
    """Whether each breach of READ_MISMATCH is that of a read whose value was not applied next."""
    [verdict] = verify(record(steps))
    found = [each for each in verdict.violations if each.rule == "READ_MISMATCH"]
    return ["never applied" in each.detail for each in found]


@pytest.mark.parametrize("refused", [False, True])
def test_an_application_after_the_next_one_is_not_of_the_read(refused: bool) -> None:
    between = [applied(UNALIGNED), REFUSAL] if refused else []
    steps = [*wslc()[:3], *between, applied(None), *wslc()[3:]]
    assert never_applied(steps) == [False, True]


def on_a_span(event_name: str, **changed: str) -> Recording:
    """A whole handshake with an event on another span."""
    whole = record(wsl2())
    place = next(at for at, event in enumerate(whole.events) if event.name == event_name)
    moved = replace(whole.events[place], span=replace(whole.events[place].span, **changed))
    return replace(whole, events=(*whole.events[:place], moved, *whole.events[place + 1 :]))


def test_an_event_is_on_a_span_of_the_service_that_emits_it() -> None:
    assert rules(on_a_span(events.POOL_LATCHED, service="guest-init")) == {"SERVICE_MISMATCH"}


def test_what_a_device_does_is_below_the_span_that_added_it() -> None:
    """And not merely below the one that created the VM."""
    stray = on_a_span(events.APERTURE_CREATED, span_id="stray", parent_id="create")
    assert rules(stray) == {"SPAN_STRAY"}


def test_a_refusal_has_its_due_reason() -> None:
    steps = [*wslc()[:5], applied(SwiotlbPool(Gpa(0x1001), 4096)), *wslc()[5:]]
    for reason, named in (
        ("SWIOTLB_BASE_UNALIGNED", set()),
        ("SWIOTLB_ALREADY_LATCHED", {"ANSWER_MISMATCH"}),
    ):
        refusal = ("again", events.pool_refused(VM, 0x1001, 4096, reason, "why"))
        assert rules(record([*steps[:6], refusal, *steps[6:]])) == named


def test_an_application_after_a_pool_was_latched_changes_nothing() -> None:
    steps = [*wslc()[:5], applied(POOL, "6.18.27.1-microsoft"), *wslc()[5:]]
    assert rules(record(steps)) == set()
    late = [*steps[:6], ("answer late", wslc()[2][1]), *steps[6:]]
    assert rules(record(late)) == set()


def test_a_number_that_a_trace_cannot_have_is_refused_for_any_reason() -> None:
    base = (1 << 64) - 4096
    bad = SwiotlbPool(Gpa(base), MIB64)
    steps = [*wsl2()[:2], pushed(bad)]
    refusal = ("report", events.pool_refused(VM, base, MIB64, "SWIOTLB_OVERFLOW", "why"))
    assert rules(record([*steps, refusal])) == set()
    assert rules(record(steps)) == {"POOL_UNANSWERED"}


def test_ram_that_begins_at_1_gib_has_no_pool_below() -> None:
    arm64 = ("create", events.guest_booted(VM, 1 << 30))
    assert rules(record([wsl2()[0], arm64, *wsl2()[2:]])) == {"ANSWER_MISMATCH", "POOL_INVALID"}
    high = SwiotlbPool(Gpa((3 << 30) - MIB64), MIB64)
    steps = handshake("WSL2", high, sizing(MIB64))
    assert rules(record(steps)) == {"ANSWER_MISMATCH", "POOL_INVALID"}
    assert rules(record([steps[0], arm64, *steps[2:]])) == set()
    nowhere = ("create", events.guest_booted(VM, 1 << 20))
    assert "RAM_INVALID" in rules(record([steps[0], nowhere, *steps[2:]]))


def test_a_vm_without_virtio_has_no_devices() -> None:
    off = Sizing(2 << 30, False, False, None, 0)
    steps = [("create", events.vm_created(VM, "WSL2", off)), ("create", events.guest_booted(VM, 0))]
    steps.append(pushed(None))
    assert rules(record(steps)) == set()
    assert rules(record([*steps, *device("src", FS, None)])) == {"DEVICE_UNEXPECTED"}


@pytest.mark.parametrize(
    ("created", "named"),
    [
        (Sizing(2 << 30, True, True, None, 0), {"REQUESTED_MISMATCH"}),
        (Sizing(1 << 30, True, True, None, MIB64), {"REQUESTED_MISMATCH"}),
        (Sizing(1 << 30, True, False, MIB64, MIB64), set()),
        (Sizing((2 << 30) + 1, True, True, None, MIB64), {"RAM_INVALID"}),
        (Sizing(2 << 30, False, True, MIB64, MIB64), {"VIRTIO_OFF"}),
    ],
)
def test_the_request_follows_from_ram_and_configuration(created: Sizing, named: set[str]) -> None:
    steps = without(wsl2(), *NO_DEVICES)
    steps[0] = ("create", events.vm_created(VM, "WSL2", created))
    found = rules(record(steps))
    assert found - {"POOL_NOT_AS_REQUESTED", "NOT_AS_REQUESTED_MISREPORTED"} == named


NO_DEVICES = (
    events.DEVICE_ADDED,
    events.APERTURE_CREATED,
    events.FIRST_REQUEST,
    events.DEVICE_REMOVED,
)


def test_a_device_without_a_part_beside_one_that_has_one() -> None:
    options = f"b;{TOKEN};vm_id={VM}"
    steps = change(strict(), events.DEVICE_ADDED, {events.DEVICE_OPTIONS: options}, tag="b")
    place = index(steps, events.APERTURE_CREATED, tag="b")
    whole = events.aperture_created(VM, "id-b", FS, "b", POOL)
    steps[place] = (steps[place][0], whole)
    assert rules(record(steps)) == {"APERTURE_SHARED"}


def test_a_device_by_windows_beside_one_that_has_a_part() -> None:
    steps = strict()
    steps[index(steps, events.DEVICE_ADDED) : index(steps, events.DEVICE_ADDED)] = device(
        "w", FS, None, features=()
    )[:-1]
    assert "APERTURE_SHARED" in rules(record(steps))


@pytest.mark.parametrize(("pages", "broken"), [(0, set()), (-1, {"APERTURE_SHARED"})])
def test_parts_touch_and_do_not_overlap(pages: int, broken: set[str]) -> None:
    part = SwiotlbPool(Gpa(POOL.base + 8 * MIB + pages * 4096), 8 * MIB)
    options = f"b;{TOKEN};{format_aperture(part)};vm_id={VM}"
    numbers = {events.POOL_BASE: part.base, events.POOL_SIZE_BYTES: part.size_bytes}
    steps = change(strict(), events.DEVICE_ADDED, {events.DEVICE_OPTIONS: options}, tag="b")
    steps = change(steps, events.APERTURE_CREATED, numbers, tag="b")
    assert rules(record(steps)) == broken


def test_a_part_is_another_devices_only_after_its_removal() -> None:
    steps = strict()
    removed = steps[index(steps, events.DEVICE_REMOVED, tag="a")]
    steps.remove(removed)
    steps.insert(index(steps, events.DEVICE_REMOVED, tag="b"), removed)
    assert rules(record(steps)) == {"APERTURE_SHARED"}


def test_a_part_outside_the_pool_is_invalid_although_the_device_maps_it() -> None:
    part = SwiotlbPool(Gpa(POOL.base - 8 * MIB), 8 * MIB)
    options = f"b;{TOKEN};{format_aperture(part)};vm_id={VM}"
    numbers = {events.POOL_BASE: part.base, events.POOL_SIZE_BYTES: part.size_bytes}
    steps = change(strict(), events.DEVICE_ADDED, {events.DEVICE_OPTIONS: options}, tag="b")
    steps = change(steps, events.APERTURE_CREATED, numbers, tag="b")
    assert rules(record(steps)) == {"APERTURE_INVALID"}
