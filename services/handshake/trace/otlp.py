"""The reader of traces: from OTLP JSON, as lines or parsed, to a recording.

Owns the syntax (opentelemetry-proto, docs/specification.md, "JSON Protobuf Encoding") and the place
of an error. It takes text or values; its caller reads the file, or has received them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.recorded import Recording, Span, TraceEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.handshake.events import Attribute


def parse_otlp_lines(text: str, name: str) -> Recording:
    """Read every span, and every event on one.

    Args:
        text: Lines, each one ExportTraceServiceRequest ({"resourceSpans": [...]}).
        name: Name of the file, for errors and for Span.where.

    Raises:
        InvalidArgumentError: TRACE_SYNTAX when a line is not JSON or not OTLP, or the last line has
            no end; the message names file and line.
    """
    spans: list[Span] = []
    events: list[TraceEvent] = []
    *lines, rest = text.split("\n")
    for number, line in enumerate(lines, start=1):
        where = f"{name} line {number}"
        if line.strip():
            _read(_parse(line, where), where, spans, events)
    if rest:
        raise _refusal(f"{name} line {len(lines) + 1}", "the line has no end; the file was cut off")
    return Recording(tuple(spans), tuple(events))


def parse_otlp_request(request: Any, where: str) -> Recording:
    """Read every span of one ExportTraceServiceRequest, and every event on one.

    Args:
        request: {"resourceSpans": [...]}, as json.loads returns it.
        where: Its place, for errors and for Span.where.

    Raises:
        InvalidArgumentError: TRACE_SYNTAX; the message has the place.
    """
    spans: list[Span] = []
    events: list[TraceEvent] = []
    _read(request, where, spans, events)
    return Recording(tuple(spans), tuple(events))


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _refusal(where, f"not JSON: {error}") from None


def _read(request: Any, where: str, spans: list[Span], events: list[TraceEvent]) -> None:
    try:
        for resource_spans in request["resourceSpans"]:
            resource = dict(_attributes(resource_spans.get("resource", {}).get("attributes", ())))
            service = str(resource.get("service.name", ""))
            for scope_spans in resource_spans.get("scopeSpans", ()):
                for raw in scope_spans.get("spans", ()):
                    span = _span(raw, service, where)
                    spans.append(span)
                    events += _events(raw, span)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise _refusal(
            where, f"not an OTLP trace export: {type(error).__name__}: {error}"
        ) from None


def _span(raw: dict[str, Any], service: str, where: str) -> Span:
    attributes = dict(_attributes(raw.get("attributes", ())))
    parent_id = raw.get("parentSpanId", "")
    return Span(
        trace_id=_hex(raw["traceId"], 32),
        span_id=_hex(raw["spanId"], 16),
        # An empty string stands for no parent in the encoding.
        parent_id=_hex(parent_id, 16) if parent_id else "",
        name=str(raw.get("name", "")),
        service=service,
        called=_called(attributes),
        where=where,
    )


def _called(attributes: dict[str, Attribute]) -> str:
    """Return the gRPC service whose call a span is."""
    # The method has its service in front; older conventions have it as an attribute of its own.
    service, slash, _ = str(attributes.get("rpc.method", "")).lstrip("/").rpartition("/")
    return service if slash else str(attributes.get("rpc.service", ""))


def _events(raw: dict[str, Any], span: Span) -> Iterator[TraceEvent]:
    for event in raw.get("events", ()):
        yield TraceEvent(
            name=str(event.get("name", "")),
            attributes=dict(_attributes(event.get("attributes", ()))),
            span=span,
            time_unix_nano=int(event.get("timeUnixNano", 0)),
        )


def _hex(value: str, length: int) -> str:
    if len(value) != length or int(value, 16) == 0:
        raise ValueError(f"{value!r} is not an id of {length} hexadecimal digits")
    return value.lower()


def _attributes(pairs: Any) -> Iterator[tuple[str, Attribute]]:
    # The vocabulary has neither arrays nor floats. Writers leave out members that are empty.
    for pair in pairs:
        key = pair.get("key", "")
        if not isinstance(key, str):
            raise TypeError(f"the key of an attribute is {key!r}")
        match pair.get("value"):
            case {"stringValue": str(text)}:
                yield key, text
            case {"boolValue": bool(truth)}:
                yield key, truth
            case {"intValue": str() | int() as number}:  # 64-bit integers are strings in JSON
                yield key, int(number)


def _refusal(where: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError("TRACE_SYNTAX", f"{where}: {why}", where=where)
