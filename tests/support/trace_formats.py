"""Writes recordings as other tools do, from the messages of opentelemetry-proto.

The mapping to Jaeger is that of the OpenTelemetry specification (trace/sdk_exporters/jaeger.md).
"""

from __future__ import annotations

import gzip
import hashlib
import json
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from tests.support.handshake_traces import to_otlp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from services.handshake.events import Attribute
    from services.handshake.trace.recorded import Recording

FIRST_UNSAFE = 1 << 53
"""From here on JavaScript does not have every integer, so Jaeger writes a text."""


def to_messages(recording: Recording) -> TracesData:
    """A resource for each service, as a collector puts it together."""
    data = TracesData()
    services: dict[str, Any] = {}
    for span in recording.spans:
        if span.service not in services:
            resource_spans = data.resource_spans.add()
            resource_spans.resource.attributes.extend(_pairs({"service.name": span.service}))
            services[span.service] = resource_spans.scope_spans.add()
            services[span.service].scope.name = "porthole"
        written = services[span.service].spans.add(
            trace_id=bytes.fromhex(span.trace_id),
            span_id=_span_id(span.span_id),
            parent_span_id=_span_id(span.parent_id) if span.parent_id else b"",
            name=span.name,
            kind=OtlpSpan.SPAN_KIND_SERVER,
            attributes=_pairs({"rpc.service": span.called} if span.called else {}),
        )
        for event in recording.events:
            if event.span == span:
                written.events.add(
                    name=event.name,
                    time_unix_nano=event.time_unix_nano,
                    attributes=_pairs(event.attributes),
                )
    return data


def _span_id(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:8]


def _pairs(attributes: Mapping[str, Attribute]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_value(value)) for key, value in attributes.items()]


def _value(value: Attribute) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case _:
            return AnyValue(string_value=str(value))


def otlp_lines(recording: Recording) -> str:
    """As our services write it."""
    return to_otlp(recording)


def otlp_document(recording: Recording) -> str:
    """The same as one indented document."""
    requests = map(json.loads, to_otlp(recording).splitlines())
    listed = [item for request in requests for item in request["resourceSpans"]]
    return json.dumps({"resourceSpans": listed}, indent=2)


def otlp_requests(recording: Recording) -> str:
    """An array of requests, as `jq --slurp` writes it."""
    return json.dumps([json.loads(line) for line in to_otlp(recording).splitlines()], indent=1)


def tempo(recording: Recording) -> str:
    """/api/traces of Tempo."""
    data = MessageToDict(to_messages(recording))
    return json.dumps({"batches": data["resourceSpans"]})


def tempo_old(recording: Recording) -> str:
    """The same of a trace that a Tempo before version 2 has stored."""
    return tempo(recording).replace('"scopeSpans"', '"instrumentationLibrarySpans"')


def tempo_2(recording: Recording) -> str:
    """/api/v2/traces of Tempo."""
    return json.dumps({"trace": MessageToDict(to_messages(recording)), "metrics": {}}, indent=2)


def jaeger_3(recording: Recording) -> str:
    """/api/v3/traces of Jaeger: OTLP with hexadecimal ids."""
    return json.dumps({"result": json.loads(otlp_document(recording))})


def jaeger(recording: Recording) -> str:
    """/api/traces of Jaeger, and what its page downloads."""
    traces: dict[str, dict[str, Any]] = {}
    for number, resource_spans in enumerate(to_messages(recording).resource_spans, start=1):
        [service] = [pair.value.string_value for pair in resource_spans.resource.attributes]
        for span in resource_spans.scope_spans[0].spans:
            trace_id = span.trace_id.hex()
            trace = traces.setdefault(
                trace_id,
                {"traceID": trace_id, "spans": [], "processes": {}, "warnings": None},
            )
            trace["processes"][f"p{number}"] = {"serviceName": service, "tags": []}
            trace["spans"].append(_jaeger_span(span, f"p{number}"))
    return json.dumps(
        {"data": list(traces.values()), "total": 0, "limit": 0, "offset": 0, "errors": None}
    )


def jaeger_short_ids(recording: Recording) -> str:
    """The same by an old Jaeger, which leaves out leading zeros and empty lists."""
    document = json.loads(jaeger(recording))
    for trace in document["data"]:
        trace["traceID"] = trace["traceID"].lstrip("0")
        for span in trace["spans"]:
            for holder in (span, *span["references"]):
                holder["traceID"] = holder["traceID"].lstrip("0")
                holder["spanID"] = holder["spanID"].lstrip("0")
            span["logs"] = span["logs"] or None
            span["references"] = span["references"] or None
    return json.dumps(document, indent=4)


def _jaeger_span(span: OtlpSpan, process_id: str) -> dict[str, Any]:
    trace_id = span.trace_id.hex()
    parent = {"refType": "CHILD_OF", "traceID": trace_id, "spanID": span.parent_span_id.hex()}
    # A link, to a span of another trace.
    link = {"refType": "FOLLOWS_FROM", "traceID": "12" * 16, "spanID": "34" * 8}
    return {
        "traceID": trace_id,
        "spanID": span.span_id.hex(),
        "flags": 1,
        "operationName": span.name,
        "references": [link, parent] if span.parent_span_id else [],
        "startTime": 1,
        "duration": 2,
        "tags": [
            *_jaeger_fields(span.attributes),
            {"key": "span.kind", "type": "string", "value": "server"},
            {"key": "sampling", "type": "float64", "value": 0.5},
        ],
        "logs": [
            {
                "timestamp": event.time_unix_nano // 1000,
                "fields": [
                    {"key": "event", "type": "string", "value": event.name},
                    *_jaeger_fields(event.attributes),
                ],
            }
            for event in span.events
        ],
        "processID": process_id,
        "warnings": None,
    }


def _jaeger_fields(pairs: Iterable[KeyValue]) -> list[dict[str, Any]]:
    fields = []
    for pair in pairs:
        kind = str(pair.value.WhichOneof("value"))
        value = getattr(pair.value, kind)
        if kind == "int_value" and abs(value) >= FIRST_UNSAFE:
            value = str(value)
        name = {"int_value": "int64", "bool_value": "bool", "string_value": "string"}[kind]
        fields.append({"key": pair.key, "type": name, "value": value})
    return fields


def packed(text: str) -> bytes:
    """The text as gzip."""
    return gzip.compress(text.encode())


FORMATS: dict[str, Callable[[Recording], str]] = {
    write.__name__: write
    for write in (
        otlp_lines,
        otlp_document,
        otlp_requests,
        tempo,
        tempo_old,
        tempo_2,
        jaeger,
        jaeger_3,
        jaeger_short_ids,
    )
}
