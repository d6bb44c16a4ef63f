"""The reader of trace files: from OTLP JSON lines to the events of the trace checker.

Owns the syntax (opentelemetry-proto, docs/specification.md, "JSON Protobuf Encoding") and the place
of an error. It takes text; its caller reads the file.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from services.handshake.errors import InvalidArgumentError
from services.handshake.trace_events import TraceEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.handshake.events import Attribute


def parse_otlp_lines(text: str, name: str) -> list[TraceEvent]:
    """Read every event of every span.

    Args:
        text: Lines, each one ExportTraceServiceRequest ({"resourceSpans": [...]}).
        name: Name of the file, for errors and for TraceEvent.where.

    Raises:
        InvalidArgumentError: TRACE_SYNTAX when a line is not JSON or not OTLP, or the last line has
            no end; the message names file and line.
    """
    found: list[TraceEvent] = []
    *lines, rest = text.split("\n")
    for number, line in enumerate(lines, start=1):
        where = f"{name} line {number}"
        if line.strip():
            found += _events(_parse(line, where), where)
    if rest:
        raise _refusal(f"{name} line {len(lines) + 1}", "the line has no end; the file was cut off")
    return found


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _refusal(where, f"not JSON: {error}") from None


def _events(request: Any, where: str) -> Iterator[TraceEvent]:
    try:
        for resource_spans in request["resourceSpans"]:
            for scope_spans in resource_spans.get("scopeSpans", ()):
                for span in scope_spans.get("spans", ()):
                    yield from _events_of_span(span, where)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise _refusal(
            where, f"not an OTLP trace export: {type(error).__name__}: {error}"
        ) from None


def _events_of_span(span: dict[str, Any], where: str) -> Iterator[TraceEvent]:
    trace_id, span_id = _hex(span["traceId"], 32), _hex(span["spanId"], 16)
    for event in span.get("events", ()):
        yield TraceEvent(
            name=str(event["name"]),
            attributes=dict(_attributes(event.get("attributes", ()))),
            trace_id=trace_id,
            span_id=span_id,
            time_unix_nano=int(event["timeUnixNano"]),
            where=where,
        )


def _hex(value: str, length: int) -> str:
    if len(value) != length or int(value, 16) == 0:
        raise ValueError(f"{value!r} is not an id of {length} hexadecimal digits")
    return value.lower()


def _attributes(pairs: Any) -> Iterator[tuple[str, Attribute]]:
    # The vocabulary has neither arrays nor floats.
    for pair in pairs:
        match pair["value"]:
            case {"stringValue": str(text)}:
                yield pair["key"], text
            case {"boolValue": bool(truth)}:
                yield pair["key"], truth
            case {"intValue": str() | int() as number}:  # 64-bit integers are strings in JSON
                yield pair["key"], int(number)


def _refusal(where: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError("TRACE_SYNTAX", f"{where}: {why}", where=where)
