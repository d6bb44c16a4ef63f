"""The document of a VM."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dashboard.judging.details import SPANS_SHOWN, VIOLATIONS_SHOWN, details_of
from services.dashboard.judging.recording import VmRecording, record
from services.dashboard.judging.verdict import judge_lives
from services.handshake import events
from services.handshake.events import Event
from services.handshake.trace.checker import IDLE_TAGS
from services.handshake.trace.table import CLAUSES
from services.handshake.trace.vm_trace import group_by_vm
from tests.support.handshake_traces import TOKEN, change, without, wsl2, wslc
from tests.support.handshake_traces import record as record_steps
from tests.support.otlp_requests import vm_id
from tests.support.trace_mutants import mutants
from tests.unit.dashboard.judging.test_verdict import documents

if TYPE_CHECKING:
    from services.handshake.trace.clause import Read
    from tests.support.handshake_traces import Steps

READS = list(dict.fromkeys(read for clause in CLAUSES for read in clause.reads))


def details(steps: Steps, *, more: bool = False) -> dict[str, Any]:
    vm = record(vm_id(0), documents(steps), more=more)
    found = details_of(vm, judge_lives(vm), settled=True)
    json.dumps(found, allow_nan=False)
    return found


def test_a_valid_handshake() -> None:
    found = details(wslc())
    [life] = found["lives"]
    assert (life["verdict"], life["violations"]) == ("valid", [])
    assert [rule["rule"] for rule in life["rules"]] == [clause.rule for clause in CLAUSES]
    assert {rule["verdict"] for rule in life["rules"]} == {"kept"}
    assert [event["index"] for event in life["events"]] == list(range(len(life["events"])))
    assert {event["party"] for event in life["events"]} <= {
        party["id"] for party in life["parties"]
    }
    assert life["parties"][-1]["device"] == {
        "device_id": "id-src",
        "class": "virtio-fs",
        "tag": "src",
        "removed": True,
    }
    assert found["origin_ms"] == life["started_ms"] == 1000
    assert found["trace_ids"] == [f"{1:032x}"]
    added = next(event for event in life["events"] if event["name"] == events.DEVICE_ADDED)
    assert added["hop"]["base"] == "0x3c000000"
    assert added["hop"]["size"] == "67108864"
    assert added["hop"]["token"] == TOKEN
    assert added["hop"]["same"] == {"base": True, "size": True, "token": True}
    assert added["hop"]["compared_with"] == 4
    assert {"key": "porthole.device.tag", "value": {"stringValue": "src"}} in added["attributes"]


def test_a_broken_rule_is_marked_where_it_broke() -> None:
    [life] = details(without(wslc(), events.APERTURE_CREATED))["lives"]
    assert life["verdict"] == "broken"
    [violation] = life["violations"]
    assert violation["rule"] == "APERTURE_MISSING"
    [event] = violation["events"]
    assert life["events"][event]["name"] == events.DEVICE_ADDED
    assert life["events"][event]["broken"] == [violation["index"]]
    assert violation["missing"] == [
        {"event": "ApertureCreated", "party": "device:id-src", "device_id": "id-src"}
    ]
    [broken] = [rule for rule in life["rules"] if rule["verdict"] == "broken"]
    assert (broken["rule"], broken["violations"]) == ("APERTURE_MISSING", [0])


def test_a_breach_of_spans_names_them() -> None:
    found = documents(wslc())
    lost = found[1]["scopeSpans"][0]["spans"][0]
    vm = record(vm_id(0), [document for document in found if document is not found[1]])
    shown = details_of(vm, judge_lives(vm), settled=True)
    spans = {
        span
        for life in shown["lives"]
        for violation in life["violations"]
        if violation["rule"] == "PARENT_MISSING"
        for span in violation["spans"]
    }
    assert spans
    below = {row["id"] for row in shown["spans"] if row["parent_id"] == lost["spanId"]}
    assert spans <= below


def test_the_waterfall_is_depth_first() -> None:
    rows = details(wslc())["spans"]
    assert [rows[0]["depth"], rows[1]["depth"]] == [0, 1]
    for before, row in pairwise(rows):
        assert row["depth"] <= before["depth"] + 1
        if row["depth"] == before["depth"] + 1:
            assert row["parent_id"] == before["span_id"]
    assert {row["service"] for row in rows} == {"owner", "guest-init", "devicehost"}


def _spans(parents: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "resource": {},
            "scopeSpans": [
                {
                    "spans": [
                        {
                            "traceId": "ab" * 16,
                            "spanId": span,
                            "startTimeUnixNano": "18446744073709551615",
                            "kind": 99,
                            "status": {"code": 77},
                            **({"parentSpanId": parent} if parent else {}),
                        }
                    ]
                }
            ],
        }
        for span, parent in parents
    ]


def test_spans_that_are_each_others_parents_are_shown_once() -> None:
    one, two, three = ("a1" * 8, "a2" * 8, "a3" * 8)
    found = [*documents(wslc()), *_spans([(one, two), (two, one), (three, three)])]
    vm = record(vm_id(0), found)
    rows = details_of(vm, judge_lives(vm), settled=True)["spans"]
    assert sorted(row["span_id"] for row in rows if row["trace_id"] == "ab" * 16) == [
        one,
        two,
        three,
    ]
    [strange] = [row for row in rows if row["span_id"] == three]
    assert (strange["kind"], strange["status"]) == ("internal", "unset")
    json.dumps(rows)


def test_deep_trees_need_no_recursion_and_many_spans_are_cut() -> None:
    chain = [(f"{number:016x}", f"{number - 1:016x}") for number in range(2, 5000)]
    vm = record(vm_id(0), [*documents(wslc()), *_spans(chain)])
    found = details_of(vm, judge_lives(vm), settled=True)
    assert len(found["spans"]) == SPANS_SHOWN
    assert found["spans_left_out"] == len(chain) + len(documents(wslc())) - SPANS_SHOWN


def test_many_breaches_are_cut_and_their_rules_are_named() -> None:
    strays = [(f"{number:016x}", "ff" * 8) for number in range(1, VIOLATIONS_SHOWN + 11)]
    found = [*documents(wslc()), *_spans(strays)]
    for document in found[-len(strays) :]:
        document["scopeSpans"][0]["spans"][0]["traceId"] = f"{1:032x}"
        document["scopeSpans"][0]["spans"][0]["spanId"] = (
            "ee" + document["scopeSpans"][0]["spans"][0]["spanId"][2:]
        )
    vm = record(vm_id(0), found)
    [life] = details_of(vm, judge_lives(vm), settled=True)["lives"]
    assert len(life["violations"]) == VIOLATIONS_SHOWN
    assert life["violations_left_out"] == 10
    assert [rule["rule"] for rule in life["rules"] if rule["verdict"] == "broken"] == [
        "PARENT_MISSING"
    ]


def test_a_vm_that_is_not_judged_has_no_rules() -> None:
    [life] = details(wsl2(), more=True)["lives"]
    assert (life["verdict"], life["rules"], life["violations"]) == ("unjudged", [], [])


def test_a_negative_number_is_shown() -> None:
    steps = change(wslc(), events.APERTURE_CREATED, {events.POOL_BASE: -4096})
    [life] = details(steps)["lives"]
    bases = [event["hop"]["base"] for event in life["events"] if event["hop"]]
    assert "-0x1000" in bases


@pytest.mark.parametrize("read", READS, ids=str)
def test_every_broken_handshake_can_be_shown(read: Read) -> None:
    for label, mutant in mutants(read, record_steps(wslc())):
        lives = tuple(group_by_vm(mutant, IDLE_TAGS))
        vm = VmRecording("vm", tuple(documents(wslc())), mutant, lives)
        found = details_of(vm, judge_lives(vm), settled=True)
        assert json.loads(json.dumps(found, allow_nan=False)) == found, label
        for life in found["lives"]:
            parties = {party["id"] for party in life["parties"]}
            assert {event["party"] for event in life["events"]} <= parties


_strange = st.one_of(st.text(max_size=8), st.integers(-(1 << 63), (1 << 63) - 1), st.booleans())


@given(st.data())
def test_events_with_any_attributes_can_be_shown(data: st.DataObject) -> None:
    steps = wsl2()
    for _ in range(3):
        place = data.draw(st.integers(0, len(steps) - 1))
        span, event = steps[place]
        keys = [key for key in event.attributes if key != events.VM_ID]
        if keys:
            key = data.draw(st.sampled_from(keys))
            attributes = {**event.attributes, key: data.draw(_strange)}
            steps[place] = span, Event(event.name, attributes)
    recording = record_steps(data.draw(st.permutations(steps)))
    lives = tuple(group_by_vm(recording, IDLE_TAGS))
    vm = VmRecording("vm", (), recording, lives)
    found = details_of(vm, judge_lives(vm), settled=True)
    json.dumps(found, allow_nan=False)
