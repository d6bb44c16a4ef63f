"""A clause of the requirement that a trace can show, and what its rule reads of a trace.

The reads are data: the tests make a mutation of a valid trace from each, and expect that none is
valid. Must not know the clauses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from services.handshake.trace.vm_trace import VmTrace

Check = Callable[[VmTrace], Iterator[str]]
"""Yields one sentence for each breach in the trace of one VM."""


@dataclass(frozen=True, slots=True)
class Value:
    """The value of an attribute: another one is wrong."""

    event: str
    key: str


@dataclass(frozen=True, slots=True)
class Form:
    """That an attribute is there, and its type."""

    event: str
    key: str


@dataclass(frozen=True, slots=True)
class Presence:
    """That events of a name are there, for each device if it is an event of a device.

    Attributes:
        device_class: The class of the devices that must have it; empty: any.
        given: The event without which it need not be there; empty: always.
    """

    event: str
    device_class: str = ""
    given: str = ""


@dataclass(frozen=True, slots=True)
class Absence:
    """That there is no event of a name where none is due."""

    event: str


@dataclass(frozen=True, slots=True)
class Once:
    """That an event happens once, for each device if it is an event of a device."""

    event: str


@dataclass(frozen=True, slots=True)
class Order:
    """That an event comes after the first of some others."""

    event: str
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Last:
    """That nothing comes after an event, of its device if it is an event of a device."""

    event: str


@dataclass(frozen=True, slots=True)
class Hops:
    """The pool at every hop, from the announcement to the apertures."""


@dataclass(frozen=True, slots=True)
class OneTrace:
    """That all events are in one trace."""


@dataclass(frozen=True, slots=True)
class Emitter:
    """The service whose span has an event."""

    event: str


@dataclass(frozen=True, slots=True)
class Participation:
    """That a service has spans of its own."""

    service: str


@dataclass(frozen=True, slots=True)
class Parents:
    """That the parents of spans were recorded."""


@dataclass(frozen=True, slots=True)
class Ancestry:
    """The span that the span of an event is below."""

    event: str


@dataclass(frozen=True, slots=True)
class Tags:
    """That no two devices have a tag at the same time."""


@dataclass(frozen=True, slots=True)
class EachStage:
    """That an owner that has judged a VM at one stage has at the other, too."""


Read = (
    Value
    | Form
    | Presence
    | Absence
    | Once
    | Order
    | Last
    | Hops
    | OneTrace
    | Emitter
    | Participation
    | Parents
    | Ancestry
    | Tags
    | EachStage
)


@dataclass(frozen=True, slots=True)
class Clause:
    """One clause of docs/handshake.md.

    Attributes:
        rule: Stable name of its rule, upper snake case.
        section: Section of docs/handshake.md, 1 to 10.
        says: The clause in one sentence.
        reads: What the rule reads of a trace.
        check: The rule.
    """

    rule: str
    section: int
    says: str
    reads: tuple[Read, ...]
    check: Check


def values(*events: str, keys: tuple[str, ...]) -> tuple[Value, ...]:
    """Return the reads of the same attributes of several events."""
    return tuple(Value(event, key) for event in events for key in keys)
