"""Where a breach shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.dashboard.judging.hops import parties
from services.dashboard.judging.places import Missing, Place, place_of
from services.handshake import events
from services.handshake.trace.checker import IDLE_TAGS, judge
from services.handshake.trace.table import CLAUSES
from services.handshake.trace.vm_trace import group_by_vm
from tests.support import handshake_traces as traces
from tests.support.handshake_traces import OTHER, change, index, move, record, repeat, without
from tests.support.trace_mutants import mutants

if TYPE_CHECKING:
    from services.handshake.trace.clause import Read
    from tests.support.handshake_traces import Steps

READS = list(dict.fromkeys(read for clause in CLAUSES for read in clause.reads))


def places(steps: Steps, rule: str) -> list[Place]:
    [life] = group_by_vm(record(steps), IDLE_TAGS)
    lanes = parties(life)
    return [
        place_of(violation, life, lanes)
        for violation in judge(life).violations
        if violation.rule == rule
    ]


def test_an_aperture_that_is_missing() -> None:
    steps = without(traces.wsl2(), events.APERTURE_CREATED, tag="eth0")
    assert places(steps, "APERTURE_MISSING") == [
        Place(
            events=(index(steps, events.DEVICE_ADDED, "eth0"),),
            missing=(Missing(events.APERTURE_CREATED, "device:id-eth0", "id-eth0"),),
        )
    ]


def test_an_aperture_of_another_pool() -> None:
    steps = change(
        traces.wsl2(), events.APERTURE_CREATED, {events.POOL_BASE: OTHER.base}, "loopback0"
    )
    [place] = places(steps, "APERTURE_MISMATCH")
    assert index(steps, events.APERTURE_CREATED, "loopback0") in place.events
    assert index(steps, events.APERTURE_CREATED, "src") not in place.events
    assert place.missing == ()


def test_a_token_that_is_missing_shows_at_its_device() -> None:
    steps = change(traces.wslc(), events.DEVICE_ADDED, {events.DEVICE_OPTIONS: "src;vm_id=x"})
    [place] = places(steps, "TOKEN_MISSING")
    assert place.events == (index(steps, events.DEVICE_ADDED),)


def test_an_answer_that_is_missing() -> None:
    steps = without(traces.wsl2(), events.POOL_LATCHED)
    [place] = places(steps, "POOL_UNANSWERED")
    assert place.events == (index(steps, events.GUEST_KERNEL_INFO),)
    assert Missing(events.POOL_LATCHED, "owner") in place.missing


def test_an_event_that_happened_twice() -> None:
    steps = repeat(traces.wsl2(), events.GUEST_BOOTED)
    [place] = places(steps, "EVENT_REPEATED")
    assert place.events == (1, 2)


def test_a_warning_that_is_missing() -> None:
    steps = without(traces.old_kernel(), events.KERNEL_UNSUPPORTED)
    [place] = places(steps, "WARNING_MISSING")
    assert Missing(events.KERNEL_UNSUPPORTED, "owner") in place.missing


def test_a_pool_that_is_latched_too_early() -> None:
    steps = move(traces.wsl2(), events.POOL_LATCHED, before=events.GUEST_KERNEL_INFO)
    [place] = places(steps, "ORDER_POOL")
    assert place.events == (
        index(steps, events.POOL_LATCHED),
        index(steps, events.GUEST_KERNEL_INFO),
    )
    assert place.missing == ()


def test_capabilities_are_missing_where_the_kind_of_vm_has_them() -> None:
    [place] = places(without(traces.wsl2(), events.GUEST_KERNEL_INFO), "CAPABILITIES_MISSING")
    assert place.missing == (Missing(events.GUEST_KERNEL_INFO, "guest-init"),)
    [place] = places(without(traces.wslc(), events.WSLC_APPLY), "CAPABILITIES_MISSING")
    assert place.missing == (Missing(events.WSLC_APPLY, "session"),)


def test_only_what_comes_after_the_end_is_wrong() -> None:
    steps = move(traces.wsl2(), events.VM_TERMINATED, before=events.DEVICE_REMOVED)
    shown = [place.events for place in places(steps, "ORDER_TERMINATED")]
    end = index(steps, events.VM_TERMINATED)
    assert shown
    assert all(min(each) == end for each in shown)


@pytest.mark.parametrize("read", READS, ids=str)
@pytest.mark.parametrize("name", ["wsl2", "wslc", "old_kernel"])
def test_almost_every_breach_shows_somewhere(name: str, read: Read) -> None:
    for label, mutant in mutants(read, record(traces.VALID[name]())):
        for life in group_by_vm(mutant, IDLE_TAGS):
            lanes = parties(life)
            for violation in judge(life).violations:
                place = place_of(violation, life, lanes)
                assert set(place.events) <= set(range(len(life.events))), label
                assert {item.party for item in place.missing} <= {lane.ident for lane in lanes}
                # The one is about the whole, the other about spans, whose ids are not real here.
                if violation.rule not in ("TRACE_SPLIT", "PARENT_MISSING"):
                    assert place != Place(), (label, violation)
