"""The formats in which tools write traces, recognized by their content.

Owns which format a text has. Their readers are otlp and jaeger. It takes bytes; its caller reads
the file.

    OTLP                     {"resourceSpans": […]} in each line, as one document, or as an array
    Tempo                    {"batches": […]}, {"trace": {"resourceSpans": […]}}
    Jaeger                   {"data": [{"traceID": …, "spans": […], "processes": {…}}]}, or a trace
    Jaeger, /api/v3/traces   {"result": {"resourceSpans": […]}}
"""

from __future__ import annotations

import json
from typing import Any, Final

from services.handshake.trace.jaeger import parse_jaeger_traces
from services.handshake.trace.otlp import parse_otlp_document, parse_otlp_lines
from services.handshake.trace.recorded import Recording, joined
from services.handshake.trace.syntax import refusal

_KNOWN: Final = "known are OTLP JSON (lines, or a document), Jaeger's JSON, and Tempo's"
_SHOWN_MEMBERS: Final = 5
"""Names of members that an error shows."""


def parse_trace(content: bytes, name: str) -> Recording:
    """Read every span, and every event on one.

    Args:
        content: A trace in one of the known formats, in UTF-8; empty: no spans.
        name: Name of the file, for errors and for Span.where.

    Raises:
        InvalidArgumentError: TRACE_SYNTAX; the message has file and line, or span.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refusal(name, f"not UTF-8 at byte {error.start}; {_KNOWN}") from None
    begin = len(text) - len(text.lstrip())
    if begin == len(text):
        return Recording()
    try:
        document, end = json.JSONDecoder().raw_decode(text, begin)
    except json.JSONDecodeError as error:
        cut = "; the file was cut off" if error.pos >= len(text.rstrip()) else ""
        where = f"{name} line {error.lineno}"
        raise refusal(
            where, f"not JSON: {error.msg} (column {error.colno}){cut}; {_KNOWN}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise refusal(f"{name} line 1", f"not JSON: {error}") from None
    if not text[end:].strip():
        return _parse_document(document, name)
    if "\n" not in text[begin:end]:
        return parse_otlp_lines(text, name)
    line = text.count("\n", 0, end) + 1
    raise refusal(
        f"{name} line {line}", "more follows the JSON document; give each a file of its own"
    )


def _parse_document(document: Any, name: str) -> Recording:
    if not isinstance(document, list):
        return _parse_object(document, name)
    if all(isinstance(item, dict) and "scopeSpans" in item for item in document):
        return parse_otlp_document({"resourceSpans": document}, name)
    return joined(
        _parse_object(item, f"{name} document {number}")
        for number, item in enumerate(document, start=1)
    )


def _parse_object(document: Any, name: str) -> Recording:
    match document:
        case {"resourceSpans": _}:
            return parse_otlp_document(document, name)
        case {"batches": batches}:
            return parse_otlp_document({"resourceSpans": batches}, name)
        case {"status": "PARTIAL" | 1 as status, "trace": _}:
            why = document.get("message", "no reason")
            raise refusal(name, f"Tempo has a part of the trace only (status {status}): {why}")
        case {"trace": dict(inner)} | {"result": dict(inner)} if inner.keys() & _LISTS:
            return _parse_object(inner, name)
        case {"trace": dict(empty)} | {"result": dict(empty)} if not empty:
            return Recording()
        case {"data": list(traces)}:
            return parse_jaeger_traces(traces, name)
        case {"spans": list(), "processes": dict()}:
            return parse_jaeger_traces([document], name)
        case {"data": None, "errors": errors}:
            raise refusal(name, f"an error of Jaeger, and no trace: {errors}")
    raise refusal(name, f"no trace: {_described(document)}; {_KNOWN}")


_LISTS: Final = frozenset({"resourceSpans", "batches"})


def _described(document: Any) -> str:
    if not isinstance(document, dict):
        return f"JSON's {type(document).__name__}"
    names = ", ".join(map(repr, list(document)[:_SHOWN_MEMBERS]))
    return f"a JSON object with {names or 'nothing in it'}"
