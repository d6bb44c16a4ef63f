"""Where a violation shows: at which events, at which spans, and which events are missing.

A violation is a rule and a sentence. What the rule reads of a trace (clause.py) is data, and the
sentence names devices, events and spans; the place follows from both. Must not know a single rule.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.dashboard.judging.hops import (
    DEVICE,
    DEVICE_HOST_PARTY,
    GUEST_INIT_PARTY,
    OWNER_PARTY,
    Party,
    kind_of,
)
from services.handshake import events
from services.handshake.trace.clause import (
    Absence,
    Ancestry,
    Emitter,
    Form,
    Hops,
    Last,
    Once,
    OneTrace,
    Order,
    Participation,
    Presence,
    Tags,
    Value,
)
from services.handshake.trace.table import RULES
from services.handshake.trace.vocabulary import (
    DEVICE_HOST,
    GUEST_INIT,
    OF_OTHER_KIND,
    OWNER,
    VOCABULARY,
)

if TYPE_CHECKING:
    from services.handshake.trace.checker import Violation
    from services.handshake.trace.recorded import TraceEvent
    from services.handshake.trace.vm_trace import VmTrace

_WORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_SPAN: Final = re.compile(r"\bspan ([0-9a-f]{16})\b")

_PARTIES: Final = {
    OWNER: OWNER_PARTY,
    GUEST_INIT: GUEST_INIT_PARTY,
    DEVICE_HOST: DEVICE_HOST_PARTY,
}
"""The parties by the names of their services."""

_HOPS: Final = (
    events.GUEST_KERNEL_INFO,
    events.WSLC_APPLY,
    events.POOL_LATCHED,
    events.DEVICE_ADDED,
    events.APERTURE_CREATED,
)
"""The events at which the pool passes."""


@dataclass(frozen=True, slots=True)
class Missing:
    """An event that should be there.

    Attributes:
        event: Its name; empty: the party took no part at all.
        party: The id of the lane in which it would be.
        device_id: The device of which it would be; empty: none.
    """

    event: str
    party: str
    device_id: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a violation shows.

    Attributes:
        events: Indices of the events of the life, in their order.
        span_ids: The ids of spans.
        missing: The events that should be there.
    """

    events: tuple[int, ...] = ()
    span_ids: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()


def place_of(violation: Violation, life: VmTrace, lanes: list[Party]) -> Place:
    """Return where a violation shows in a life that has these lanes."""
    clause = RULES[violation.rule]
    read = [name for item in clause.reads for name in _events_of(item)]
    named = [word for word in _WORD.findall(violation.detail) if word in VOCABULARY]
    devices = [lane for lane in lanes if lane.device and _names(violation.detail, lane)]
    # The sentence is more exact than the table; what it does not name, the rule reads.
    wanted = dict.fromkeys(named or read)
    present = _at_fault(
        clause.reads,
        life,
        [
            index
            for index, event in enumerate(life.events)
            if event.name in wanted and (not devices or _is_of(event, devices))
        ],
    )
    # What others are to come after is not missing: one of the alternatives is there.
    alternatives = {name for item in clause.reads if isinstance(item, Order) for name in item.after}
    due = [*_due(clause.reads, wanted), *(name for name in named if name not in alternatives)]
    foreign = OF_OTHER_KIND.get(life.kind, ())
    absent = [
        name for name in dict.fromkeys(due) if name not in foreign and not _has(life, name, devices)
    ]
    missing = [
        Missing(name, *_lane_of(name, lanes, lane))
        for name in absent
        for lane in (*devices,) or (None,)
    ]
    missing += [Missing("", party) for party in _silent(clause.reads, violation.detail)]
    if not present and not missing:
        # The rule compares something of the VM; what it says is about these devices.
        first = [lane.device.events[0] for lane in devices if lane.device]
        present = [
            index
            for index, event in enumerate(life.events)
            if any(event is other for other in first)
        ]
    spans = dict.fromkeys(_SPAN.findall(violation.detail))
    return Place(tuple(present), tuple(spans), tuple(missing))


def _events_of(item: object) -> tuple[str, ...]:
    match item:
        case Order(event=event, after=after):
            return event, *after
        case (
            Value(event=event)
            | Form(event=event)
            | Presence(event=event)
            | Absence(event=event)
            | Once(event=event)
            | Last(event=event)
            | Emitter(event=event)
            | Ancestry(event=event)
        ):
            return (event,)
        case Hops():
            return _HOPS
        case Tags():
            return (events.DEVICE_ADDED,)
        case _:
            return ()


def _at_fault(reads: tuple[object, ...], life: VmTrace, present: list[int]) -> list[int]:
    """Return those of the events that are in the wrong place, where the rule is about places."""
    names = {index: life.events[index].name for index in present}
    if any(isinstance(item, OneTrace) for item in reads):
        trace_ids = [event.span.trace_id for event in life.events]
        return [index for index, trace_id in enumerate(trace_ids) if trace_id != trace_ids[0]]
    orders = [item for item in reads if isinstance(item, Order)]
    if len(orders) == len(reads):
        needed = {name for item in orders for name in item.after}
        first = next((index for index in present if names[index] in needed), len(life.events))
        return [index for index in present if index <= first]
    ends = {item.event for item in reads if isinstance(item, Last)}
    if len(ends) == len(reads):
        end = next((index for index in present if names[index] in ends), 0)
        return [index for index in present if index >= end]
    return present


def _due(reads: tuple[object, ...], wanted: dict[str, None]) -> list[str]:
    """Return the events of which the rule reads that they are there."""
    return [item.event for item in reads if isinstance(item, Presence) and item.event in wanted]


def _silent(reads: tuple[object, ...], detail: str) -> list[str]:
    """Return the parties that took no part, of which a sentence says so."""
    return [
        _PARTIES[item.service]
        for item in reads
        if isinstance(item, Participation) and item.service in detail.split()
    ]


def _names(detail: str, lane: Party) -> bool:
    device = lane.device
    return device is not None and (
        str(device) in detail or (bool(device.device_id) and device.device_id in detail)
    )


def _is_of(event: TraceEvent, devices: list[Party]) -> bool:
    if events.DEVICE_ID not in VOCABULARY[event.name]:
        # The pool of the VM is what a device's is compared with; its own hop is in question.
        return False
    return any(event is other for lane in devices if lane.device for other in lane.device.events)


def _has(life: VmTrace, name: str, devices: list[Party]) -> bool:
    if devices and events.DEVICE_ID in VOCABULARY[name]:
        return all(lane.device and lane.device.first(name) for lane in devices)
    return life.first(name) is not None


def _lane_of(name: str, lanes: list[Party], lane: Party | None) -> tuple[str, str]:
    kind = kind_of(name)
    device_id = lane.device.device_id if lane is not None and lane.device else ""
    if kind == DEVICE:
        return (lane.ident, device_id) if lane is not None else (DEVICE_HOST_PARTY, "")
    found = next((each.ident for each in lanes if each.kind == kind), lanes[0].ident)
    return found, device_id
