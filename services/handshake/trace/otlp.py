"""The reader of OTLP JSON, as lines or as one document, to a recording.

Owns the syntax (opentelemetry-proto, docs/specification.md, "JSON Protobuf Encoding") and the place
of an error. Ids may also be in base64, as in the JSON form of all protobuf messages. It takes text
or values; its caller reads the file.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from services.handshake.trace.recorded import Recording, Span, TraceEvent
from services.handshake.trace.syntax import WRONG_FORM, called_service, checked_id, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
            _read(_parse(line, where), partial(_at, where), spans, events)
    if rest:
        raise refusal(f"{name} line {len(lines) + 1}", "the line has no end; the file was cut off")
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
    _read(request, partial(_at, where), spans, events)
    return Recording(tuple(spans), tuple(events))


def parse_otlp_document(document: Any, name: str) -> Recording:
    """Read every span of a document with many spans, and every event on one.

    Args:
        document: ExportTraceServiceRequest or TracesData, as for `parse_otlp_request`.
        name: Name of the document, for errors and for Span.where, which has the number of the span.

    Raises:
        InvalidArgumentError: TRACE_SYNTAX; the message has the name, and the number of the span.
    """
    spans: list[Span] = []
    events: list[TraceEvent] = []
    _read(document, lambda number: f"{name} span {number}", spans, events)
    return Recording(tuple(spans), tuple(events))


def _at(where: str, number: int) -> str:
    return where


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise refusal(where, f"not JSON: {error}") from None


def _read(
    request: Any, place: Callable[[int], str], spans: list[Span], events: list[TraceEvent]
) -> None:
    """Read a request; `place` returns the place of a span by its number in `spans`, from 1."""
    try:
        for resource_spans in request["resourceSpans"]:
            resource = dict(_attributes(resource_spans.get("resource", {}).get("attributes", ())))
            service = str(resource.get("service.name", ""))
            for scope_spans in _scopes(resource_spans):
                for raw in scope_spans.get("spans", ()):
                    span = _span(raw, service, place(len(spans) + 1))
                    events += _events(raw, span)
                    spans.append(span)
    except WRONG_FORM as error:
        raise refusal(
            place(len(spans) + 1), f"not an OTLP trace export: {type(error).__name__}: {error}"
        ) from None


def _scopes(resource_spans: dict[str, Any]) -> Any:
    # Tempo has traces from before OTLP 1.0, in which the list had another name.
    return resource_spans.get("scopeSpans", resource_spans.get("instrumentationLibrarySpans", ()))


def _span(raw: dict[str, Any], service: str, where: str) -> Span:
    attributes = dict(_attributes(raw.get("attributes", ())))
    parent_id = raw.get("parentSpanId", "")
    return Span(
        trace_id=checked_id(raw["traceId"], 32),
        span_id=checked_id(raw["spanId"], 16),
        # An empty string stands for no parent in the encoding.
        parent_id=checked_id(parent_id, 16) if parent_id else "",
        name=str(raw.get("name", "")),
        service=service,
        called=called_service(attributes),
        where=where,
    )


def _events(raw: dict[str, Any], span: Span) -> Iterator[TraceEvent]:
    for event in raw.get("events", ()):
        yield TraceEvent(
            name=str(event.get("name", "")),
            attributes=dict(_attributes(event.get("attributes", ()))),
            span=span,
            time_unix_nano=int(event.get("timeUnixNano", 0)),
        )


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
