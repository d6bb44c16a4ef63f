"""The reader of Jaeger's JSON, as its page downloads it and its API (/api/traces) answers.

Owns the syntax and the place of an error. It differs from OTLP: times are in microseconds, so
events of the same microsecond keep their order only within a span; an event's name is the field
`event` of a log; the parent is the reference CHILD_OF; and ids may lack their leading zeros. It
takes values; its caller reads the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from services.handshake.trace.recorded import Recording, Span, TraceEvent
from services.handshake.trace.syntax import WRONG_FORM, called_service, refusal, unpadded_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.handshake.events import Attribute

_NANOSECONDS: Final = 1000
"""In a microsecond."""

_EVENT_NAME: Final = "event"


def parse_jaeger_traces(traces: Any, name: str) -> Recording:
    """Read every span, and every event on one.

    Args:
        traces: [{"traceID": …, "spans": […], "processes": {…}}, …], as json.loads returns it.
        name: Name of the document, for errors and for Span.where, which has the number of the span.

    Raises:
        InvalidArgumentError: TRACE_SYNTAX; the message has the name, and the number of the span.
    """
    spans: list[Span] = []
    events: list[TraceEvent] = []
    try:
        for trace in traces:
            processes = trace.get("processes") or {}
            for raw in trace.get("spans") or ():
                # Elasticsearch's documents have the process in the span.
                process = raw.get("process") or processes.get(raw.get("processID")) or {}
                span = _span(raw, str(process.get("serviceName", "")), _place(name, spans))
                events += _events(raw, span)
                spans.append(span)
    except WRONG_FORM as error:
        raise refusal(
            _place(name, spans), f"not Jaeger's JSON: {type(error).__name__}: {error}"
        ) from None
    return Recording(tuple(spans), tuple(events))


def _place(name: str, before: list[Span]) -> str:
    return f"{name} span {len(before) + 1}"


def _span(raw: dict[str, Any], service: str, where: str) -> Span:
    trace_id = unpadded_id(raw["traceID"], 32)
    attributes = dict(_attributes(raw.get("tags") or ()))
    return Span(
        trace_id=trace_id,
        span_id=unpadded_id(raw["spanID"], 16),
        parent_id=_parent(raw, trace_id),
        name=str(raw.get("operationName", "")),
        service=service,
        called=called_service(attributes),
        where=where,
    )


def _parent(raw: dict[str, Any], trace_id: str) -> str:
    for reference in raw.get("references") or ():
        same_trace = unpadded_id(reference["traceID"], 32) == trace_id
        if reference.get("refType") == "CHILD_OF" and same_trace:
            return unpadded_id(reference["spanID"], 16)
    return ""


def _events(raw: dict[str, Any], span: Span) -> Iterator[TraceEvent]:
    for log in raw.get("logs") or ():
        attributes = dict(_attributes(log.get("fields") or ()))
        yield TraceEvent(
            name=str(attributes.pop(_EVENT_NAME, "")),
            attributes=attributes,
            span=span,
            time_unix_nano=int(log["timestamp"]) * _NANOSECONDS,
        )


def _attributes(fields: Any) -> Iterator[tuple[str, Attribute]]:
    # The vocabulary has neither floats nor bytes. An integer is text beyond JavaScript's numbers.
    for field in fields:
        match field["type"], field["value"]:
            case "string", str(text):
                yield field["key"], text
            case "bool", bool(truth):
                yield field["key"], truth
            case "int64", str() | int() as number:
                yield field["key"], int(number)
