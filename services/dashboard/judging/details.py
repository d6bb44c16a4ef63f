"""The document of one VM: lanes, hops, rules in place, and the waterfall of spans.

Owns the form of `GET /vms/{vm_id}` (docs/dashboard.md), but for the row and the links. All text of
guests and exporters is plain strings in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from services.dashboard.judging.hops import Hop, Party, hops, parties, party_of
from services.dashboard.judging.places import place_of
from services.dashboard.judging.recording import VmRecording, span_of
from services.dashboard.judging.verdict import ended_ms, started_ms, verdict_on
from services.dashboard.records import TIME_LIMIT_MS, Verdict
from services.handshake import events
from services.handshake.trace.table import CLAUSES

if TYPE_CHECKING:
    from services.handshake.events import Attribute
    from services.handshake.trace.checker import VmVerdict
    from services.handshake.trace.vm_trace import VmTrace

SPANS_SHOWN: Final = 2_000
"""Most spans of the waterfall."""

VIOLATIONS_SHOWN: Final = 500
"""Most breaches of a life that are listed with their places."""

_KINDS: Final = ("internal", "internal", "server", "client", "producer", "consumer")
_STATUSES: Final = ("unset", "ok", "error")


def rules_table() -> list[dict[str, Any]]:
    """Return the checker's table."""
    return [
        {"rule": clause.rule, "section": clause.section, "says": clause.says} for clause in CLAUSES
    ]


def details_of(vm: VmRecording, checked: list[VmVerdict], *, settled: bool) -> dict[str, Any]:
    """Return the document of a VM.

    Args:
        vm: The VM.
        checked: What `judge_lives` returned; empty when the VM is not judged.
        settled: Whether no span has come for a while.
    """
    spans = [span_of(document) for document in vm.documents]
    origin_ns = _origin_ns(vm, spans)
    rows = _waterfall(vm, origin_ns)
    lives = []
    for number, life in enumerate(vm.lives):
        found = checked[number] if checked else None
        lives.append(_life(life, found, origin_ns, settled=settled))
    return {
        "lives": lives,
        "spans": rows[:SPANS_SHOWN],
        "spans_left_out": max(len(rows) - SPANS_SHOWN, 0),
        "origin_ms": min(origin_ns // 1_000_000, TIME_LIMIT_MS),
        "trace_ids": sorted({event.span.trace_id for life in vm.lives for event in life.events}),
    }


def _life(
    life: VmTrace, checked: VmVerdict | None, origin_ns: int, *, settled: bool
) -> dict[str, Any]:
    lanes = parties(life)
    found = checked.violations if checked else ()
    placed = [
        (violation, place_of(violation, life, lanes)) for violation in found[:VIOLATIONS_SHOWN]
    ]
    broken_rules = {violation.rule for violation in found}
    broken: dict[int, list[int]] = {}
    of_rule: dict[str, list[int]] = {}
    for number, (violation, place) in enumerate(placed):
        of_rule.setdefault(violation.rule, []).append(number)
        for at in place.events:
            broken.setdefault(at, []).append(number)
    ids = _span_ids(life)
    verdict = verdict_on(life, checked, settled=settled) if checked else Verdict.UNJUDGED
    return {
        "verdict": verdict,
        "started_ms": started_ms(life),
        "ended_ms": ended_ms(life),
        "parties": [_party(lane) for lane in lanes],
        "events": [
            {
                "index": index,
                "name": event.name,
                "party": party_of(event, lanes).ident,
                "service": event.span.service,
                "at_us": _us(event.time_unix_nano - origin_ns),
                "device_id": event.text(events.DEVICE_ID),
                "trace_id": event.span.trace_id,
                "span_id": event.span.span_id,
                "attributes": [_attribute(*item) for item in event.attributes.items()],
                "hop": _hop(hop),
                "broken": broken.get(index, []),
            }
            for index, (event, hop) in enumerate(zip(life.events, hops(life), strict=True))
        ],
        "rules": [
            {
                **row,
                "verdict": "broken" if row["rule"] in broken_rules else "kept",
                "violations": of_rule.get(row["rule"], []),
            }
            for row in (rules_table() if checked else ())
        ],
        "violations": [
            {
                "index": number,
                "rule": violation.rule,
                "detail": violation.detail,
                "events": list(place.events),
                "spans": [whole for span in place.span_ids for whole in ids.get(span, ())],
                "missing": [
                    {"event": item.event, "party": item.party, "device_id": item.device_id}
                    for item in place.missing
                ],
            }
            for number, (violation, place) in enumerate(placed)
        ],
        "violations_left_out": max(len(found) - VIOLATIONS_SHOWN, 0),
    }


def _party(lane: Party) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": lane.ident, "name": lane.name, "kind": lane.kind}
    if lane.device is not None:
        shown["device"] = {
            "device_id": lane.device.device_id,
            "class": lane.device.device_class,
            "tag": lane.device.tag,
            "removed": lane.device.first(events.DEVICE_REMOVED) is not None,
        }
    return shown


def _hop(hop: Hop | None) -> dict[str, Any] | None:
    if hop is None:
        return None
    return {
        "base": None if hop.base is None else f"{hop.base:#x}",
        "size": None if hop.size is None else str(hop.size),
        "token": hop.token,
        "own_part": hop.own_part,
        "compared_with": hop.compared_with,
        "same": {"base": hop.same.base, "size": hop.same.size, "token": hop.same.token},
    }


def _attribute(key: str, value: Attribute) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"key": key, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    return {"key": key, "value": {"stringValue": value}}


def _span_ids(life: VmTrace) -> dict[str, list[str]]:
    ids: dict[str, list[str]] = {}
    for span in life.tree.spans:
        ids.setdefault(span.span_id, []).append(f"{span.trace_id}/{span.span_id}")
    return ids


def _origin_ns(vm: VmRecording, spans: list[dict[str, Any]]) -> int:
    if vm.lives:
        return vm.lives[0].events[0].time_unix_nano
    return min((int(span.get("startTimeUnixNano", 0)) for span in spans), default=0)


def _waterfall(vm: VmRecording, origin_ns: int) -> list[dict[str, Any]]:
    """Return all spans as trees, depth first, without recursion: a guest may make them deep."""
    rows = [_row(document, origin_ns) for document in vm.documents]
    known = {row["id"] for row in rows}
    below: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["start_us"], row["id"]), reverse=True):
        parent = f"{row['trace_id']}/{row['parent_id']}"
        inside = parent in known and parent != row["id"]
        below.setdefault(parent if inside else "", []).append(row)
    ordered: list[dict[str, Any]] = []
    stack = [(row, 0) for row in below.pop("", [])]
    while stack or below:
        if not stack:
            # Spans that are each other's parents: one of them becomes a root.
            _, rest = below.popitem()
            stack = [(row, 0) for row in rest]
        row, depth = stack.pop()
        row["depth"] = depth
        ordered.append(row)
        stack += [(child, depth + 1) for child in below.pop(row["id"], ())]
    return ordered


def _row(document: dict[str, Any], origin_ns: int) -> dict[str, Any]:
    span = span_of(document)
    start_ns = int(span.get("startTimeUnixNano", 0))
    end_ns = int(span.get("endTimeUnixNano", 0))
    status = span.get("status", {})
    return {
        "id": f"{span['traceId']}/{span['spanId']}",
        "trace_id": span["traceId"],
        "span_id": span["spanId"],
        "parent_id": span.get("parentSpanId", ""),
        "depth": 0,
        "name": span.get("name", ""),
        "kind": _named(_KINDS, span.get("kind", 0)),
        "service": _service(document),
        "start_us": _us(start_ns - origin_ns),
        "duration_us": _us(max(end_ns - start_ns, 0)),
        "status": _named(_STATUSES, status.get("code", 0)),
        "status_message": status.get("message", ""),
        "events": [
            {
                "name": event.get("name", ""),
                "at_us": _us(int(event.get("timeUnixNano", 0)) - origin_ns),
            }
            for event in span.get("events", ())
        ],
    }


def _service(document: dict[str, Any]) -> str:
    for pair in document.get("resource", {}).get("attributes", ()):
        if pair.get("key") == "service.name":
            return str(pair.get("value", {}).get("stringValue", ""))
    return ""


def _named(names: tuple[str, ...], number: int) -> str:
    return names[number] if 0 <= number < len(names) else names[0]


def _us(time_ns: int) -> int:
    return max(-TIME_LIMIT_MS, min(time_ns // 1000, TIME_LIMIT_MS))
