"""What an owner makes of its own events, and that the checker compares its verdicts with them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.handshake import events
from services.handshake.ports import PortProtocol
from services.handshake.trace.checker import verify
from services.handshake.trace.judgement import EVENTS_KEPT, OF_OWNER, judge_owner
from services.handshake.trace.vocabulary import ANNOUNCEMENTS, OWNER
from tests.support.handshake_traces import (
    OTHER,
    TOKEN,
    VALID,
    VM,
    change,
    device,
    judged,
    judged_alive,
    judged_broken,
    networked_without_a_pool,
    not_as_requested,
    old_kernel,
    record,
    repeat,
    without,
    wsl2,
)
from tests.unit.handshake.trace.test_checker import BROKEN

if TYPE_CHECKING:
    from services.handshake.events import Event
    from services.handshake.trace.recorded import Recording
    from tests.support.handshake_traces import Steps


def of_owner(recorded: Recording) -> list[Event]:
    """The events that the owner of a recording has emitted, without its verdicts and its end."""
    ordered = sorted(recorded.events, key=lambda event: event.time_unix_nano)
    return [
        events.Event(event.name, event.attributes)
        for event in ordered
        if event.span.service == OWNER
        and event.name not in (events.HANDSHAKE_VERDICT, events.VM_TERMINATED)
    ]


def rules(recorded: Recording) -> set[str]:
    [verdict] = verify(recorded)
    return {violation.rule for violation in verdict.violations}


def broken(stage: str, listed: list[Event]) -> set[str]:
    verdict = judge_owner(VM, stage, listed)
    return set(str(verdict.attributes[events.BROKEN_RULES]).split())


@pytest.mark.parametrize("case", sorted(VALID))
def test_a_valid_handshake_is_valid_for_its_owner_at_both_stages(case: str) -> None:
    known = of_owner(record(VALID[case]()))
    assert broken(events.ENDED, known) == set()
    names = [event.name for event in known]
    announced = next(place for place, name in enumerate(names) if name in ANNOUNCEMENTS)
    answers = 1 + names[announced + 1].startswith(("Pool", "MessageSwiotlb"))
    assert broken(events.RUNNING, known[: announced + answers]) == set()


@pytest.mark.parametrize(("named", "recorded"), BROKEN, ids=[named for named, _ in BROKEN])
def test_an_owner_finds_nothing_that_the_checker_does_not(named: str, recorded: Recording) -> None:
    if not any(event.name == events.VM_TERMINATED for event in recorded.events):
        return  # its owner has not judged at its end
    assert broken(events.ENDED, of_owner(recorded)) <= set(named.split())


def test_an_owner_finds_what_its_events_show() -> None:
    assert broken(events.RUNNING, of_owner(record(not_as_requested()))[:5]) == {
        "POOL_NOT_AS_REQUESTED"
    }
    unwarned = without(old_kernel(), events.KERNEL_UNSUPPORTED)
    assert broken(events.ENDED, of_owner(record(unwarned))) == {"WARNING_MISSING"}
    left = without(wsl2(), events.DEVICE_REMOVED, tag="src")
    assert broken(events.ENDED, of_owner(record(left))) == {"DEVICE_LEFT"}
    assert broken(events.RUNNING, of_owner(record(left))) == set()


def test_an_owner_leaves_to_the_checker_what_others_record() -> None:
    assert {clause.rule for clause in OF_OWNER}.isdisjoint(
        {"APERTURE_MISSING", "FIRST_REQUEST_MISSING", "PARENT_MISSING", "READ_MISMATCH"}
    )
    unattached = without(wsl2(), events.APERTURE_CREATED, events.FIRST_REQUEST)
    assert broken(events.ENDED, of_owner(record(unattached))) == set()


def crowded(devices: int) -> list[Event]:
    listed = of_owner(record(wsl2()))[:4]
    for number in range(devices):
        listed += [event for _, event in device(f"d{number}", events.FS, TOKEN)[::3]]
    return listed


def test_an_owner_judges_no_more_events_than_it_keeps() -> None:
    most = crowded((EVENTS_KEPT - 4) // 2)
    assert len(most) == EVENTS_KEPT
    assert judge_owner(VM, events.ENDED, most).attributes[events.VERDICT] == events.VALID
    more = judge_owner(VM, events.ENDED, crowded(EVENTS_KEPT // 2)).attributes
    assert (more[events.VERDICT], more[events.BROKEN_RULES]) == (events.UNKNOWN, "")
    assert (more[events.VM_ID], more[events.STAGE]) == (VM, events.ENDED)


def test_a_member_of_an_enumeration_is_the_text_that_a_trace_has() -> None:
    known = of_owner(record(networked_without_a_pool()))
    at = [event.name for event in known].index(events.PORT_MAPPED)
    protocol = {events.PORT_PROTOCOL: PortProtocol.TCP}
    known[at] = replace(known[at], attributes={**known[at].attributes, **protocol})
    assert broken(events.ENDED, known) == set()


def test_a_handshake_with_verdicts_is_valid() -> None:
    assert rules(record(judged())) == set()
    assert rules(record(judged_alive())) <= {"FIRST_REQUEST_MISSING"}


def test_a_verdict_that_the_events_do_not_show_is_broken() -> None:
    lies = {events.VERDICT: events.VALID, events.BROKEN_RULES: ""}
    steps = change(judged_broken(), events.HANDSHAKE_VERDICT, lies)
    assert rules(record(steps)) == {"POOL_NOT_AS_REQUESTED", "VERDICT_MISMATCH"}
    [verdict] = verify(record(steps))
    [detail] = [each.detail for each in verdict.violations if each.rule == "VERDICT_MISMATCH"]
    assert "'running' is 'valid', and its events show 'broken' (POOL_NOT_AS_REQUESTED)" in detail


def test_an_owner_that_overlooks_a_breach_is_found() -> None:
    numbers = {events.POOL_BASE: OTHER.base, events.POOL_SIZE_BYTES: OTHER.size_bytes}
    steps = change(judged(), events.GUEST_KERNEL_INFO, numbers)
    assert rules(record(steps)) == {"POOL_MISMATCH", "VERDICT_MISMATCH"}


def test_a_verdict_of_another_stage_is_none() -> None:
    steps = change(judged(), events.HANDSHAKE_VERDICT, {events.STAGE: "asleep"})
    assert rules(record(steps)) == {"VERDICT_MISMATCH", "VERDICT_MISCOUNTED"}


def test_every_verdict_is_compared() -> None:
    lies = {events.VERDICT: events.VALID, events.BROKEN_RULES: ""}
    steps = change(judged_broken(), events.HANDSHAKE_VERDICT, lies)
    ended = next(place for place, step in enumerate(steps) if step[0] == "judge")
    steps[ended:ended] = [("judge", events.handshake_verdict(VM, "asleep", []))]
    [verdict] = verify(record(steps))
    said = [each.detail for each in verdict.violations if each.rule == "VERDICT_MISMATCH"]
    assert [("asleep" in detail, "'running'" in detail) for detail in said[:2]] == [
        (True, False),
        (False, True),
    ]


def test_the_verdict_at_the_end_includes_the_end() -> None:
    left = without(wsl2(), events.DEVICE_REMOVED, tag="src")
    known = of_owner(record(left))
    assert broken(events.RUNNING, known) == set()
    assert broken(events.ENDED, known) == {"DEVICE_LEFT"}
    verdicts = [
        ("judge", judge_owner(VM, events.RUNNING, known)),
        ("judge", judge_owner(VM, events.ENDED, known)),
    ]
    assert rules(record([*left[:-1], *verdicts, left[-1]])) == {"DEVICE_LEFT"}


@pytest.mark.parametrize("stage", [events.RUNNING, events.ENDED])
def test_an_owner_that_judges_once_judges_at_both_stages(stage: str) -> None:
    whole = record(judged())
    kept = tuple(
        event
        for event in whole.events
        if event.name != events.HANDSHAKE_VERDICT or event.attributes[events.STAGE] == stage
    )
    assert rules(replace(whole, events=kept)) == {"VERDICT_MISCOUNTED"}


def test_a_vm_whose_guest_is_silent_is_judged_broken_once_it_runs_or_at_its_end_alone() -> None:
    created, booted, ended = *wsl2()[:2], wsl2()[-1]
    known = of_owner(record([created, booted, ended]))
    verdicts = [
        ("judge", judge_owner(VM, stage, known)) for stage in (events.RUNNING, events.ENDED)
    ]
    unjudged = rules(record([created, booted, ended]))
    assert broken(events.RUNNING, known) == {"CAPABILITIES_MISSING"}
    assert rules(record([created, booted, *verdicts, ended])) == unjudged
    assert rules(record([created, booted, verdicts[1], ended])) == unjudged
    twice = [created, booted, verdicts[0], *verdicts, ended]
    assert rules(record(twice)) == {*unjudged, "VERDICT_MISCOUNTED"}


def test_an_owner_judges_once_at_each_stage() -> None:
    assert "VERDICT_MISCOUNTED" in rules(record(repeat(judged(), events.HANDSHAKE_VERDICT)))


def test_a_vm_that_never_booted_stays_one_with_a_verdict() -> None:
    steps: Steps = [
        ("create", wsl2()[0][1]),
        ("judge", events.handshake_verdict(VM, events.ENDED, ["BOOTED_MISSING"])),
        ("end", events.vm_terminated(VM)),
    ]
    other = record(judged(), "e" * 32)
    moved = [replace(event, time_unix_nano=event.time_unix_nano + 10**12) for event in other.events]
    assert len(verify(record(steps) + replace(other, events=tuple(moved)))) == 1
