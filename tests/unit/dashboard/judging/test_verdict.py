"""The verdict on a VM, from its spans."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from services.dashboard.judging.recording import VmRecording, record
from services.dashboard.judging.verdict import judge_lives, judgement_on
from services.dashboard.otlp import span_document
from services.dashboard.records import EVENTS_PER_VM, Judgement, Verdict
from services.handshake import events
from tests.support.handshake_traces import (
    NEW,
    TOKEN,
    VALID,
    device,
    not_as_requested,
    repeat,
    sizing,
    without,
    wsl2,
    wslc,
)
from tests.support.otlp_requests import spans_of, vm_id

if TYPE_CHECKING:
    from tests.support.handshake_traces import Steps


def documents(steps: Steps, number: int = 0) -> list[dict[str, Any]]:
    return [span_document(span.source.body, span.body) for span in spans_of(steps, number).spans]


def recorded(steps: Steps) -> VmRecording:
    return record(vm_id(0), documents(steps))


def judged(vm: VmRecording, *, settled: bool = True) -> Judgement:
    return judgement_on(vm, judge_lives(vm), settled=settled)


@pytest.mark.parametrize("case", VALID.values(), ids=VALID)
def test_a_valid_handshake(case: Any) -> None:
    judgement = judged(recorded(case()), settled=False)
    assert (judgement.verdict, judgement.rules, judgement.problem) == (Verdict.VALID, (), "")


def test_what_the_row_says() -> None:
    assert judged(recorded(wsl2())) == Judgement(
        verdict=Verdict.VALID,
        kind="WSL2",
        kernel=NEW,
        token=TOKEN,
        devices=3,
        lives=1,
        spans=len(spans_of(wsl2()).spans),
        services=("devicehost", "guest-init", "owner"),
        started_ms=1_000,
        ended_ms=17_000,
        latched_us=3_000_000,
    )


def test_broken_rules_are_final_when_the_vm_has_settled() -> None:
    vm = recorded(without(wslc(), events.APERTURE_CREATED))
    assert judged(vm, settled=False).verdict is Verdict.OPEN
    judgement = judged(vm)
    assert (judgement.verdict, judgement.rules) == (Verdict.BROKEN, ("APERTURE_MISSING",))


def test_a_rule_that_is_broken_twice_is_named_once() -> None:
    steps = [*wsl2()[:-1], *device("b", events.FS, None), wsl2()[-1]]
    steps = [*steps[:-1], *device("c", events.FS, None), steps[-1]]
    assert judged(recorded(steps)).rules.count("TOKEN_MISSING") == 1


def test_a_breach_of_the_guest_is_one() -> None:
    assert judged(recorded(not_as_requested())).rules == ("POOL_NOT_AS_REQUESTED",)


def test_a_vm_that_never_booted_is_not_broken() -> None:
    created = ("create", events.vm_created(vm_id(0), "WSL2", sizing(64 << 20)))
    steps = [created, ("create", events.vm_terminated(vm_id(0)))]
    assert judged(recorded(steps)).verdict is Verdict.UNSTARTED


def _later(steps: Steps, seconds: int) -> list[dict[str, Any]]:
    found = documents(steps)
    for document in found:
        span = document["scopeSpans"][0]["spans"][0]
        span["traceId"] = "ef" * 16
        for event in span.get("events", ()):
            event["timeUnixNano"] = str(int(event["timeUnixNano"]) + seconds * 10**9)
    return found


@pytest.mark.parametrize("broken_first", [False, True])
def test_the_worst_of_several_lives_counts(broken_first: bool) -> None:
    broken, valid = without(wslc(), events.APERTURE_CREATED), wsl2()
    first, second = (broken, valid) if broken_first else (valid, broken)
    vm = record(vm_id(0), [*documents(first), *_later(second, 1000)])
    judgement = judged(vm)
    assert (judgement.verdict, judgement.lives) == (Verdict.BROKEN, 2)
    assert judgement.rules == ("APERTURE_MISSING",)
    # The row says what the VM is now.
    assert judgement.kind == ("WSL2" if broken_first else "WSLC")
    assert judgement.started_ms == 1000


def test_other_vms_of_a_trace_are_left_out() -> None:
    others = documents(without(wslc(), events.APERTURE_CREATED), 1)
    for document in others:
        document["scopeSpans"][0]["spans"][0]["traceId"] = f"{1:032x}"
        document["scopeSpans"][0]["spans"][0]["spanId"] = (
            "ff" + document["scopeSpans"][0]["spans"][0]["spanId"][2:]
        )
        parent = document["scopeSpans"][0]["spans"][0].get("parentSpanId", "")
        if parent:
            document["scopeSpans"][0]["spans"][0]["parentSpanId"] = "ff" + parent[2:]
    vm = record(vm_id(0), [*documents(wsl2()), *others])
    assert {life.vm_id for life in vm.lives} == {vm_id(0)}
    assert judged(vm).rules == ()


def test_a_vm_with_too_many_spans_is_not_judged() -> None:
    vm = record(vm_id(0), documents(wsl2()), more=True)
    judgement = judged(vm)
    assert judgement.verdict is Verdict.UNJUDGED
    assert "20000 spans" in judgement.problem
    assert judgement.rules == ()


def test_a_vm_with_too_many_events_is_not_judged() -> None:
    steps = wsl2()
    for _ in range(12):  # 2 ** 12 events
        steps = [*steps, *steps[-1:]] if len(steps) > EVENTS_PER_VM else [*steps, *steps]
    judgement = judged(recorded(steps))
    assert judgement.verdict is Verdict.UNJUDGED
    assert "2000 events" in judgement.problem


def test_a_vm_with_a_span_that_the_checker_cannot_read_is_not_judged() -> None:
    found = documents(wsl2())
    found[0]["scopeSpans"][0]["spans"][0]["parentSpanId"] = "00" * 8
    judgement = judged(record(vm_id(0), found))
    assert judgement.verdict is Verdict.UNJUDGED
    assert "cannot be read" in judgement.problem


def test_a_vm_of_which_no_event_is_left_is_not_judged() -> None:
    judgement = judged(record("another", documents(wsl2())))
    assert judgement == replace(
        Judgement(Verdict.UNJUDGED, problem="no event of it is left"),
        spans=judgement.spans,
        services=judgement.services,
    )


def test_times_that_no_clock_has_are_bounded() -> None:
    found = documents(repeat(wsl2(), events.VM_TERMINATED))
    for document in found:
        for event in document["scopeSpans"][0]["spans"][0].get("events", ()):
            event["timeUnixNano"] = str((1 << 64) - 1)
    judgement = judged(record(vm_id(0), found))
    assert judgement.started_ms == ((1 << 64) - 1) // 1_000_000
