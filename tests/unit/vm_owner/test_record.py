"""Applying capabilities and latching: handshake.md section 4, rule by rule."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.handshake import events
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError, PortholeError
from services.handshake.events import Event
from services.handshake.pool import Gpa, SwiotlbPool
from services.handshake.trace.judgement import EVENTS_KEPT
from services.vm_owner import warnings
from services.vm_owner.manifest import load_manifest
from services.vm_owner.record import VmFacts, VmKind, VmRecord
from services.vm_owner.states import VmEvent, VmState
from services.vm_owner.watch_items import PoolLatched
from services.vm_owner.wslconfig import WslConfig
from tests.support.reports import UNKNOWN_FIELD, reported

if TYPE_CHECKING:
    from services.vm_owner.reports import Report

MIB = 1 << 20
GOOD = reported(0x3C00_0000, 64 * MIB, "6.18.26.3-microsoft", True, UNKNOWN_FIELD)
NONE = reported(kernel_release="5.15.167.4-microsoft")


class Traced(list[Event]):
    @property
    def names(self) -> list[str]:
        return [event.name for event in self]


def make(kind: VmKind = VmKind.WSL2, requested_bytes: int = 64 * MIB) -> tuple[VmRecord, Traced]:
    facts = VmFacts(
        vm_id="vm-1",
        kind=kind,
        ram_bytes=2048 * MIB,
        low_ram_bytes=2048 * MIB,
        requested_bytes=requested_bytes,
        kernel_command_line="",
        config=WslConfig(),
        traceparent="",
    )
    trace = Traced()
    record = VmRecord(facts, load_manifest(), trace.append)
    record.fire(VmEvent.BOOT)
    return record, trace


def warned(record: VmRecord) -> list[str]:
    return [warning.id for warning in record.warnings]


def test_a_pool_is_latched_and_the_token_formatted_once() -> None:
    record, trace = make()
    assert record.apply_capabilities(GOOD) is False
    assert record.state is VmState.RUNNING
    assert record.pool == SwiotlbPool(Gpa(0x3C00_0000), 64 * MIB)
    token = record.token
    assert token == "swiotlb=0x3c000000,67108864"
    assert record.apply_capabilities(GOOD) is True
    assert record.token is token
    assert trace.names == [
        events.GUEST_KERNEL_INFO,
        events.POOL_LATCHED,
        events.GUEST_KERNEL_INFO,
    ]
    assert trace[0].attributes[events.KERNEL_PATCH] == 26
    assert trace[0].attributes[events.SECCOMP] is True
    assert trace[1].attributes[events.TOKEN] == token
    assert record.warnings == []


@pytest.mark.parametrize(
    "other",
    [
        reported(0x3C00_0000, 32 * MIB),
        reported(0x1000_0000, 64 * MIB),
        reported(),
    ],
)
def test_other_values_than_the_latched_change_nothing(other: Report) -> None:
    record, trace = make(VmKind.WSLC)
    record.apply_capabilities(GOOD)
    pool, token = record.pool, record.token
    with pytest.raises(FailedPreconditionError) as refused:
        record.apply_capabilities(other)
    assert refused.value.reason == "SWIOTLB_ALREADY_LATCHED"
    assert "0x3c000000" in refused.value.message
    assert (record.pool, record.report, record.state) == (pool, GOOD, VmState.RUNNING)
    assert record.token is token
    assert record.warnings == []
    assert trace.names[-2:] == [events.WSLC_APPLY, events.POOL_REFUSED]


OTHERWISE = [
    (reported(0x3C00_0000, 64 * MIB, "6.18.26.4", True, UNKNOWN_FIELD), "kernel_release"),
    (reported(0x3C00_0000, 64 * MIB, "", True, UNKNOWN_FIELD), "kernel_release"),
    (reported(0x3C00_0000, 64 * MIB, "6.18.26.3-microsoft", True), "unknown fields"),
    (
        reported(0x3C00_0000, 64 * MIB, "6.18.26.3-microsoft", False, b"\x82\x7d\x03old"),
        "unknown fields",
    ),
    (
        # One more field in the pool itself.
        reported(
            0x3C00_0000,
            64 * MIB,
            "6.18.26.3-microsoft",
            True,
            b"\x0a\x03\xe8\x04\x04" + UNKNOWN_FIELD,
        ),
        "swiotlb_pool",
    ),
    (reported(0x3C00_0000, 64 * MIB), "kernel_release, unknown fields"),
]


def test_a_pool_is_where_the_machine_has_ram() -> None:
    record, _ = make()
    record.ram_base = 1 << 30
    with pytest.raises(InvalidArgumentError, match="begins at 0x40000000"):
        record.apply_capabilities(GOOD)
    record, _ = make()
    record.ram_base = 1 << 30
    record.apply_capabilities(reported((3 << 30) - 64 * MIB, 64 * MIB))
    assert record.pool == SwiotlbPool(Gpa((3 << 30) - 64 * MIB), 64 * MIB)


@pytest.mark.parametrize("kind", VmKind)
@pytest.mark.parametrize(("other", "differences"), OTHERWISE)
def test_the_whole_message_is_latched_with_a_pool(
    kind: VmKind, other: Report, differences: str
) -> None:
    record, trace = make(kind)
    record.apply_capabilities(GOOD)
    trace.clear()
    with pytest.raises(FailedPreconditionError, match=f"differ in {differences},") as refused:
        record.apply_capabilities(other)
    assert refused.value.reason == "CAPABILITIES_ALREADY_LATCHED"
    assert refused.value.metadata["fields"] == differences
    assert record.report is GOOD
    assert events.POOL_REFUSED not in trace.names


@pytest.mark.parametrize(("later", "seccomp"), [(False, False), (True, True), (None, True)])
def test_a_refreshable_field_follows_the_guest_and_is_kept_when_it_says_nothing(
    later: bool | None, seccomp: bool
) -> None:
    record, _ = make(VmKind.WSLC)
    record.apply_capabilities(GOOD)
    again = reported(0x3C00_0000, 64 * MIB, "6.18.26.3-microsoft", later, UNKNOWN_FIELD)
    assert record.apply_capabilities(again) is True
    due = reported(0x3C00_0000, 64 * MIB, "6.18.26.3-microsoft", seccomp, UNKNOWN_FIELD)
    assert record.report == due
    assert record.report.message == due.message


def test_nothing_is_latched_without_a_pool() -> None:
    record, _ = make(VmKind.WSLC)
    for each in (reported(kernel_release="1.2.3", unknown=UNKNOWN_FIELD), NONE, NONE):
        assert record.apply_capabilities(each) is False
        assert record.report == each


BAD = [
    (reported(0, 64 * MIB), "SWIOTLB_HALF_POOL"),
    (reported(0x1000, 0), "SWIOTLB_HALF_POOL"),
    (reported(0x1001, 64 * MIB), "SWIOTLB_BASE_UNALIGNED"),
    (reported(0x1000, 4097), "SWIOTLB_SIZE_UNALIGNED"),
    (reported((1 << 64) - 4096, 8192), "SWIOTLB_OVERFLOW"),
    (reported((1 << 32) - 4096, 8192), "SWIOTLB_ABOVE_4G"),
    (reported(2048 * MIB - 4096, 8192), "SWIOTLB_OUTSIDE_RAM"),
]


@pytest.mark.parametrize("kind", VmKind)
@pytest.mark.parametrize(("report", "reason"), BAD)
def test_a_bad_pool_is_refused_and_the_vm_runs_without(
    kind: VmKind, report: Report, reason: str
) -> None:
    record, trace = make(kind)
    with pytest.raises(InvalidArgumentError) as refused:
        record.apply_capabilities(report)
    assert refused.value.reason == reason
    assert (record.state, record.pool, record.token) == (VmState.RUNNING, None, None)
    assert record.report == reported()
    assert trace.names[-1] == events.POOL_REFUSED
    assert trace[-1].attributes[events.REASON] == reason
    assert warned(record) == [warnings.POOL_REFUSED]
    assert reason in record.warnings[0].text


def test_a_guest_that_repeats_itself_is_warned_of_once() -> None:
    record, _ = make()
    for _ in range(5):
        with pytest.raises(InvalidArgumentError):
            record.apply_capabilities(reported(0x1001, 64 * MIB, "no version here"))
    assert warned(record) == [warnings.KERNEL_RELEASE_UNREADABLE, warnings.POOL_REFUSED]


def test_a_bad_pool_does_not_shake_a_latched_one() -> None:
    record, _ = make()
    record.apply_capabilities(GOOD)
    with pytest.raises(InvalidArgumentError):
        record.apply_capabilities(reported(0x1001, 64 * MIB))
    assert record.report is GOOD
    assert record.token == "swiotlb=0x3c000000,67108864"
    assert record.warnings == []


@pytest.mark.parametrize("first", [reported(), BAD[0][0]])
def test_no_pool_may_be_followed_by_a_pool(first: Report) -> None:
    record, _ = make(VmKind.WSLC)
    try:
        assert record.apply_capabilities(first) is False
    except PortholeError:
        assert record.pool is None
    assert record.token is None
    assert record.apply_capabilities(GOOD) is False
    assert record.token == "swiotlb=0x3c000000,67108864"


@pytest.mark.parametrize(
    ("kind", "requested_bytes", "due"),
    [
        (VmKind.WSL2, 64 * MIB, True),
        (VmKind.WSL2, 0, False),
        (VmKind.WSLC, 64 * MIB, False),
    ],
)
def test_the_old_kernel_warning_comes_once_and_only_when_due(
    kind: VmKind, requested_bytes: int, due: bool
) -> None:
    record, trace = make(kind, requested_bytes)
    record.apply_capabilities(NONE)
    record.apply_capabilities(NONE)
    assert warned(record) == [warnings.KERNEL_UNSUPPORTED] * due
    assert trace.names.count(events.KERNEL_UNSUPPORTED) == due
    if due:
        assert "5.15.167.4" in record.warnings[0].text
        assert "slower" in record.warnings[0].text


@pytest.mark.parametrize("kind", VmKind)
@pytest.mark.parametrize(
    ("requested_bytes", "size_bytes", "due"),
    [
        (64 * MIB, 64 * MIB, False),
        (64 * MIB, MIB, True),
        (32 * MIB, 64 * MIB, True),
        (0, 64 * MIB, True),
        (3 * MIB + 1, 4 * MIB, False),
        (3 * MIB + 1, 3 * MIB, True),
    ],
)
def test_a_valid_pool_that_is_not_what_was_asked_for_is_latched_with_a_warning(
    kind: VmKind, requested_bytes: int, size_bytes: int, due: bool
) -> None:
    record, trace = make(kind, requested_bytes)
    for _ in range(2):
        record.apply_capabilities(reported(0x10_0000, size_bytes))
    assert record.token == f"swiotlb=0x100000,{size_bytes}"
    assert warned(record) == [warnings.POOL_NOT_AS_REQUESTED] * due
    found = [event for event in trace if event.name == events.POOL_NOT_AS_REQUESTED]
    assert [event.attributes for event in found] == [
        {
            events.VM_ID: "vm-1",
            events.POOL_BASE: 0x10_0000,
            events.POOL_SIZE_BYTES: size_bytes,
            events.REQUESTED_BYTES: requested_bytes,
        }
    ] * due
    if due:
        text = record.warnings[0].text
        assert f"{size_bytes} bytes" in text
        assert (f"{requested_bytes} bytes" if requested_bytes else "no pool") in text


def test_a_vm_keeps_its_last_warnings_and_each_is_short() -> None:
    record, _ = make()
    for number in range(300):
        failure = PortholeError("SHARED_DIR_MISSING", f"{number}: {'p' * 5000}")
        record.warn(warnings.share_failed("/" + "p" * 5000, failure))
    assert len(record.warnings) == 256
    assert ": 44: ppp" in record.warnings[0].text
    assert ": 299: ppp" in record.warnings[-1].text
    assert max(len(warning.text) for warning in record.warnings) < 1500


def test_capabilities_are_not_read_before_boot_nor_after_the_end() -> None:
    facts = make()[0].facts
    record = VmRecord(facts, load_manifest(), Traced().append)
    with pytest.raises(FailedPreconditionError, match="ApplyGuestCapabilities") as early:
        record.apply_capabilities(GOOD)
    record.fire(VmEvent.BOOT)
    record.fire(VmEvent.SHUT_DOWN)
    with pytest.raises(FailedPreconditionError) as late:
        record.apply_capabilities(GOOD)
    assert (early.value.reason, late.value.reason) == ("VM_NOT_BOOTED", "VM_SHUTTING_DOWN")
    assert record.token is None


async def test_a_watcher_sees_the_present_first_then_everything_in_order() -> None:
    record, _ = make()
    with record.watch() as early:
        record.apply_capabilities(GOOD)
        record.apply_capabilities(GOOD)  # changes nothing, so there is nothing to see
        with record.watch() as late:
            record.fire(VmEvent.SHUT_DOWN)
            record.fire(VmEvent.TERMINATE)
            latched = PoolLatched(SwiotlbPool(Gpa(0x3C00_0000), 64 * MIB))
            ending = [VmState.SHUTTING_DOWN, VmState.TERMINATED]
            assert [item async for item in early] == [
                VmState.BOOTED,
                latched,
                VmState.RUNNING,
                *ending,
            ]
            assert [item async for item in late] == [VmState.RUNNING, latched, *ending]


def judged(requested_bytes: int = 64 * MIB) -> tuple[VmRecord, list[tuple[str, str, str]], Traced]:
    """A record whose verdicts are kept, with what happened before."""
    record, trace = make(requested_bytes=requested_bytes)
    verdicts: list[tuple[str, str, str]] = []

    def keep(verdict: Event) -> None:
        shown = (events.STAGE, events.VERDICT, events.BROKEN_RULES)
        stage, result, rules = (str(verdict.attributes[key]) for key in shown)
        verdicts.append((stage, result, rules))

    watched = VmRecord(record.facts, load_manifest(), trace.append, on_verdict=keep)
    watched.emit(record.facts.created_event())
    watched.emit(events.guest_booted("vm-1", 0))
    watched.fire(VmEvent.BOOT)
    return watched, verdicts, trace


def test_a_handshake_is_judged_once_it_runs_and_at_its_end() -> None:
    record, verdicts, trace = judged()
    assert verdicts == []
    record.apply_capabilities(GOOD)
    assert verdicts == [("running", "valid", "")]
    record.apply_capabilities(GOOD)
    record.fire(VmEvent.SHUT_DOWN)
    assert len(verdicts) == 1
    record.emit_end()
    assert verdicts[1:] == [("ended", "valid", "")]
    assert trace.names[-1] == "VmTerminated"


def test_a_verdict_names_the_rules_that_a_guest_breaks() -> None:
    record, verdicts, _ = judged(requested_bytes=32 * MIB)
    record.apply_capabilities(GOOD)
    [(stage, verdict, rules)] = verdicts
    assert (stage, verdict) == ("running", "broken")
    assert "POOL_NOT_AS_REQUESTED" in rules.split()


def test_a_guest_that_reports_nothing_breaks_the_handshake_until_it_does() -> None:
    record, verdicts, _ = judged()
    record.fire(VmEvent.MISS_CAPABILITIES)
    assert verdicts == [("running", "broken", "CAPABILITIES_MISSING")]
    record.apply_capabilities(GOOD)
    assert len(verdicts) == 1
    record.emit_end()
    assert verdicts[1:] == [("ended", "valid", "")]


def test_a_vm_that_never_booted_is_not_judged() -> None:
    record, _ = make()
    verdicts: list[Event] = []
    unborn = VmRecord(record.facts, load_manifest(), Traced().append, on_verdict=verdicts.append)
    unborn.emit(record.facts.created_event())
    unborn.fire(VmEvent.SHUT_DOWN)
    unborn.emit_end()
    assert verdicts == []


def test_a_refused_pool_is_judged_too() -> None:
    record, verdicts, _ = judged()
    with pytest.raises(InvalidArgumentError):
        record.apply_capabilities(replace(GOOD, base=GOOD.base + 1))
    assert verdicts == [("running", "valid", "")]


def test_a_record_keeps_no_more_events_than_are_judged() -> None:
    record, verdicts, trace = judged()
    record.apply_capabilities(GOOD)
    for _ in range(EVENTS_KEPT + 10):
        record.apply_capabilities(GOOD)
    record.emit_end()
    assert verdicts[-1] == ("ended", "unknown", "")
    assert len(trace) > EVENTS_KEPT
