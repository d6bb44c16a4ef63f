"""A recording: the spans of a trace file, and the events on them.

Must not know what an event means, or how a file is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake.events import POOL_BASE, POOL_SIZE_BYTES, VM_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from services.handshake.events import Attribute

Numbers = tuple[int, int]
"""Base and size of a pool in an event; (0, 0) for none."""

NO_POOL: Final[Numbers] = (0, 0)


@dataclass(frozen=True, slots=True)
class Span:
    """One recorded span.

    Attributes:
        trace_id: The trace that has it.
        span_id: Its id in that trace.
        parent_id: The id of its parent; empty for a root.
        name: Its name.
        service: `service.name` of the process that recorded it; empty when not recorded.
        called: Full name of the gRPC service whose call it is, at either side; empty when it is no
            such span.
        where: Its place, for people, for instance "trace.jsonl line 12".
    """

    trace_id: str
    span_id: str
    parent_id: str = ""
    name: str = ""
    service: str = ""
    called: str = ""
    where: str = ""

    def __str__(self) -> str:
        return f"span {self.name!r} of {self.service or 'nobody'} ({self.where})"


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One recorded event.

    Attributes:
        name: Name of the event, one of services.handshake.events.
        attributes: Its attributes.
        span: The span that has it.
        time_unix_nano: Its time in nanoseconds since 1970.
    """

    name: str
    attributes: Mapping[str, Attribute]
    span: Span
    time_unix_nano: int

    @property
    def where(self) -> str:
        """Its place, for people."""
        return self.span.where

    @property
    def vm_id(self) -> str:
        """Id of its VM; empty when it has none."""
        return self.text(VM_ID)

    @property
    def numbers(self) -> Numbers:
        """Its base and size; 0 for an attribute that it does not have."""
        return self.number(POOL_BASE), self.number(POOL_SIZE_BYTES)

    def text(self, key: str) -> str:
        """Return a text attribute; empty when it has none of that name and type."""
        value = self.attributes.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int:
        """Return an integer attribute; 0 when it has none of that name and type."""
        value = self.attributes.get(key)
        return value if type(value) is int else 0

    def truth(self, key: str) -> bool:
        """Return a boolean attribute; False when it has none of that name and type."""
        return self.attributes.get(key) is True


@dataclass(frozen=True, slots=True)
class Recording:
    """All that was recorded, in any order.

    Attributes:
        spans: All spans, with events or without.
        events: All events; the span of each is one of `spans`.
    """

    spans: tuple[Span, ...] = ()
    events: tuple[TraceEvent, ...] = ()

    def __add__(self, other: Recording) -> Recording:
        return Recording(self.spans + other.spans, self.events + other.events)


def joined(recordings: Iterable[Recording]) -> Recording:
    """Put the recordings of several inputs together.

    A span that a recording has and one before it had, too, counts once: people name a file and its
    copy.
    """
    spans: list[Span] = []
    events: list[TraceEvent] = []
    known: set[tuple[str, str]] = set()
    for recording in recordings:
        new = [span for span in recording.spans if (span.trace_id, span.span_id) not in known]
        events += [
            event
            for event in recording.events
            if (event.span.trace_id, event.span.span_id) not in known
        ]
        known |= {(span.trace_id, span.span_id) for span in new}
        spans += new
    return Recording(tuple(spans), tuple(events))
