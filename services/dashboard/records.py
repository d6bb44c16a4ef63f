"""What is received and kept, as values: spans, points of metrics, and the row of a VM.

Must not know protobuf, SQL or HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SPANS_PER_VM: Final = 20_000
"""Most spans of a VM that are judged."""

EVENTS_PER_VM: Final = 2_000
"""Most events of a VM that are judged; some rules compare each event with each other one."""

VM_ID_LIMIT: Final = 128
"""Longest id of a VM, in characters; events with longer ones belong to no VM."""

TIME_LIMIT_MS: Final = (1 << 53) - 1
"""The latest time that is told apart: JavaScript's largest exact integer."""


class Verdict(StrEnum):
    """The verdict on a VM; docs/dashboard.md has their meanings."""

    VALID = "valid"
    BROKEN = "broken"
    OPEN = "open"
    UNSTARTED = "unstarted"
    UNJUDGED = "unjudged"


@dataclass(frozen=True, slots=True)
class Source:
    """Who recorded spans: a resource and a scope.

    Attributes:
        digest: Identifies equal ones.
        service: `service.name`; empty when it has none.
        body: The ResourceSpans message with one ScopeSpans, without spans.
    """

    digest: bytes
    service: str
    body: bytes


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span.

    Attributes:
        trace_id: 16 bytes.
        span_id: 8 bytes.
        source: Who recorded it.
        vm_ids: The VMs of which it has events.
        body: The Span message.
    """

    trace_id: bytes
    span_id: bytes
    source: Source
    vm_ids: tuple[str, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Series:
    """What the points of a metric have in common.

    Attributes:
        digest: Identifies equal ones.
        kind: "counter", "gauge", or "delta" for a sum since the point before.
        device_id: Id of the device; empty: the metric is of the VM.
        attributes: The other attributes, as an object of JSON with strings.
    """

    digest: bytes
    vm_id: str
    name: str
    unit: str
    kind: str
    description: str
    service: str
    device_id: str
    device_class: str
    tag: str
    attributes: str


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a series, at a time in milliseconds since 1970."""

    series: Series
    at_ms: int
    value: int | float


@dataclass(frozen=True, slots=True)
class Spans:
    """The spans of one request.

    Attributes:
        spans: Those that can be kept.
        rejected: How many cannot.
        why: Why not; empty when all can.
        size_bytes: Size of the request.
    """

    spans: tuple[ReceivedSpan, ...]
    rejected: int = 0
    why: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Points:
    """The points of one request that are of a VM.

    Attributes:
        points: The points.
        size_bytes: Size of the request.
    """

    points: tuple[Point, ...]
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known of a VM from its spans.

    Attributes:
        verdict: See Verdict.
        rules: The broken rules, each once.
        problem: Why it was not judged; empty when it was.
        kind: WSL2 or WSLC; empty when the trace does not say.
        kernel: The release of its kernel; empty when the trace does not say.
        token: The latched token; empty when no pool was latched.
        devices: Number of devices, of all lives.
        lives: How often its id was used.
        spans: Number of spans of its traces.
        services: Who recorded them, sorted.
        started_ms: Time of its first event.
        ended_ms: Time of its end; None: it has none.
        latched_us: Time from its creation to the latching of its pool; None: it has none.
    """

    verdict: Verdict
    rules: tuple[str, ...] = ()
    problem: str = ""
    kind: str = ""
    kernel: str = ""
    token: str = ""
    devices: int = 0
    lives: int = 0
    spans: int = 0
    services: tuple[str, ...] = ()
    started_ms: int | None = None
    ended_ms: int | None = None
    latched_us: int | None = None


@dataclass(frozen=True, slots=True)
class VmRow:
    """A VM in the list: the judgement on it, and what the store adds.

    Attributes:
        last_ms: When its last span was received.
        revision: How often the row has changed.
    """

    vm_id: str
    judgement: Judgement
    started_ms: int
    last_ms: int
    revision: int
