"""Protobuf at the edge: requests of OTLP become values, values and errors become its answers.

Owns which attributes of OTLP say what. services.rpc.otlp_json owns the JSON form. Must not know how
a request has come, or what becomes of it.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    DataPointFlags,
    Metric,
    NumberDataPoint,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from services.dashboard.records import (
    TIME_LIMIT_MS,
    VM_ID_LIMIT,
    Point,
    Points,
    ReceivedSpan,
    Series,
    Source,
    Spans,
)
from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.vocabulary import VOCABULARY
from services.rpc.otlp_json import from_otlp_json, to_otlp_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics

M = TypeVar("M", bound=Message)

_TRACE_ID_BYTES: Final = 16
_SPAN_ID_BYTES: Final = 8
_SERVICE: Final = "service.name"
_KINDS: Final = {
    "string_value": ("stringValue", "string_value"),
    "bool_value": ("boolValue", "bool_value"),
    "int_value": ("intValue", "int_value"),
}
_NO_VALUE: Final = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
_OWN_MEMBERS: Final = (events.VM_ID, events.DEVICE_ID, events.DEVICE_CLASS, events.DEVICE_TAG)


def read_spans(body: bytes, *, as_json: bool) -> Spans:
    """Read an ExportTraceServiceRequest.

    Raises:
        InvalidArgumentError: OTLP_SYNTAX when it is none, or no span of it has valid ids.
    """
    request = _message(body, ExportTraceServiceRequest(), as_json=as_json)
    found: list[ReceivedSpan] = []
    rejected = 0
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            source = _source(resource_spans, scope_spans)
            for span in scope_spans.spans:
                if _has_ids(span):
                    found.append(
                        ReceivedSpan(
                            span.trace_id,
                            span.span_id,
                            source,
                            _vm_ids(span),
                            span.SerializeToString(),
                        )
                    )
                else:
                    rejected += 1
    why = "a span needs a trace id of 16 bytes and a span id of 8 bytes, not all zero"
    if rejected and not found:
        raise InvalidArgumentError("OTLP_SYNTAX", f"no span can be kept: {why}")
    return Spans(tuple(found), rejected, why if rejected else "", len(body))


def read_points(body: bytes, *, as_json: bool) -> Points:
    """Read what an ExportMetricsServiceRequest has of VMs: the points of gauges and sums.

    Raises:
        InvalidArgumentError: OTLP_SYNTAX.
    """
    request = _message(body, ExportMetricsServiceRequest(), as_json=as_json)
    found = tuple(point for resource in request.resource_metrics for point in _points_of(resource))
    return Points(found, len(body))


def check_logs(body: bytes, *, as_json: bool) -> None:
    """Check that a body is an ExportLogsServiceRequest; nothing of it is kept.

    Raises:
        InvalidArgumentError: OTLP_SYNTAX.
    """
    _message(body, ExportLogsServiceRequest(), as_json=as_json)


def logs_answer(*, as_json: bool) -> bytes:
    """Return the ExportLogsServiceResponse to logs that are OTLP."""
    return _written(ExportLogsServiceResponse(), as_json=as_json)


def trace_answer(spans: Spans, *, as_json: bool) -> bytes:
    """Return the ExportTraceServiceResponse to spans that have been kept."""
    answer = ExportTraceServiceResponse()
    if spans.rejected:
        answer.partial_success.rejected_spans = spans.rejected
        answer.partial_success.error_message = spans.why
    return _written(answer, as_json=as_json)


def metrics_answer(*, as_json: bool) -> bytes:
    """Return the ExportMetricsServiceResponse to points that have been kept."""
    return _written(ExportMetricsServiceResponse(), as_json=as_json)


def error_answer(code: int, message: str, *, as_json: bool) -> bytes:
    """Return the body of a refusal over HTTP, a google.rpc.Status."""
    return _written(status_pb2.Status(code=code, message=message), as_json=as_json)


def span_document(source_body: bytes, span_body: bytes) -> dict[str, Any]:
    """Return a stored span and its source as ResourceSpans, in the JSON form of OTLP."""
    whole = ResourceSpans.FromString(source_body)
    whole.scope_spans[0].spans.append(Span.FromString(span_body))
    document: dict[str, Any] = to_otlp_json(whole)
    return document


class Frames:
    """Spans as they are judged and drawn; the resource of each source is made once.

    A handshake has few sources and many spans.
    """

    def __init__(self) -> None:
        self._made: dict[bytes, dict[str, Any]] = {}

    def short_document(self, source_body: bytes, span_body: bytes) -> dict[str, Any]:
        """Return what is judged and drawn of a span, in the form of `span_document`.

        It has no links, and no attributes of other types than text, whole number and truth: the
        checker leaves them out as well. That takes a sixth of the time of the whole form.
        """
        resource = self._made.get(source_body)
        if resource is None:
            message = ResourceSpans.FromString(source_body).resource
            resource = self._made[source_body] = {"attributes": _pairs(message.attributes)}
        span = Span.FromString(span_body)
        shown: dict[str, Any] = {
            "traceId": span.trace_id.hex(),
            "spanId": span.span_id.hex(),
            "parentSpanId": span.parent_span_id.hex(),
            "name": span.name,
            "kind": span.kind,
            "startTimeUnixNano": span.start_time_unix_nano,
            "endTimeUnixNano": span.end_time_unix_nano,
            "status": {"code": span.status.code, "message": span.status.message},
            "attributes": _pairs(span.attributes),
            "events": [
                {
                    "name": event.name,
                    "timeUnixNano": event.time_unix_nano,
                    "attributes": _pairs(event.attributes),
                }
                for event in span.events
            ],
        }
        return {"resource": resource, "scopeSpans": [{"spans": [shown]}]}


def _pairs(attributes: Iterable[KeyValue]) -> list[dict[str, Any]]:
    pairs = []
    for pair in attributes:
        value = pair.value
        kind = _KINDS.get(value.WhichOneof("value") or "")
        if kind is not None:
            member, field = kind
            pairs.append({"key": pair.key, "value": {member: getattr(value, field)}})
    return pairs


def _message(body: bytes, message: M, *, as_json: bool) -> M:
    try:
        if as_json:
            return from_otlp_json(json.loads(body), message)
        message.ParseFromString(body)
    except (DecodeError, ValueError, RecursionError) as error:
        # A quotation of the body may be long.
        raise InvalidArgumentError(
            "OTLP_SYNTAX", f"not an {type(message).__name__}: {str(error)[:200]}"
        ) from None
    return message


def _written(message: Message, *, as_json: bool) -> bytes:
    if as_json:
        return json.dumps(to_otlp_json(message)).encode()
    return message.SerializeToString()


def _has_ids(span: Span) -> bool:
    return (
        len(span.trace_id) == _TRACE_ID_BYTES
        and len(span.span_id) == _SPAN_ID_BYTES
        and any(span.trace_id)
        and any(span.span_id)
        and (not span.parent_span_id or _is_parent(span.parent_span_id))
    )


def _is_parent(span_id: bytes) -> bool:
    return len(span_id) == _SPAN_ID_BYTES and any(span_id)


def _vm_ids(span: Span) -> tuple[str, ...]:
    """Return the VMs of a span, by the events and the attribute that the checker groups by."""
    found: dict[str, None] = {}
    for event in span.events:
        if event.name in VOCABULARY:
            vm_id = _text(event.attributes, events.VM_ID)
            if 0 < len(vm_id) <= VM_ID_LIMIT:
                found[vm_id] = None
    return tuple(found)


def _source(resource_spans: ResourceSpans, scope_spans: ScopeSpans) -> Source:
    frame = ResourceSpans(
        resource=resource_spans.resource,
        scope_spans=[ScopeSpans(scope=scope_spans.scope, schema_url=scope_spans.schema_url)],
        schema_url=resource_spans.schema_url,
    )
    body = frame.SerializeToString()
    service = _text(resource_spans.resource.attributes, _SERVICE)
    return Source(_digest(body), service, body)


def _points_of(resource_metrics: ResourceMetrics) -> Iterator[Point]:
    resource = resource_metrics.resource.attributes
    service = _text(resource, _SERVICE)
    vm_of_resource = _text(resource, events.VM_ID)
    for scope_metrics in resource_metrics.scope_metrics:
        for metric in scope_metrics.metrics:
            kind, points = _numbers(metric)
            for point in points:
                vm_id = _text(point.attributes, events.VM_ID) or vm_of_resource
                if 0 < len(vm_id) <= VM_ID_LIMIT and not point.flags & _NO_VALUE:
                    yield Point(
                        _series(metric, kind, point, vm_id, service),
                        min(point.time_unix_nano // 1_000_000, TIME_LIMIT_MS),
                        point.as_int if point.HasField("as_int") else point.as_double,
                    )


def _numbers(metric: Metric) -> tuple[str, Iterable[NumberDataPoint]]:
    if metric.HasField("gauge"):
        return "gauge", metric.gauge.data_points
    if metric.HasField("sum"):
        if metric.sum.aggregation_temporality != AGGREGATION_TEMPORALITY_CUMULATIVE:
            return "delta", metric.sum.data_points
        return "counter" if metric.sum.is_monotonic else "gauge", metric.sum.data_points
    return "", ()


def _series(metric: Metric, kind: str, point: NumberDataPoint, vm_id: str, service: str) -> Series:
    others = {
        pair.key: _shown(pair.value) for pair in point.attributes if pair.key not in _OWN_MEMBERS
    }
    attributes = json.dumps(others, sort_keys=True)
    device_id = _text(point.attributes, events.DEVICE_ID)
    identity = json.dumps([vm_id, metric.name, metric.unit, kind, service, device_id, attributes])
    return Series(
        digest=_digest(identity.encode()),
        vm_id=vm_id,
        name=metric.name,
        unit=metric.unit,
        kind=kind,
        description=metric.description,
        service=service,
        device_id=device_id,
        device_class=_text(point.attributes, events.DEVICE_CLASS),
        tag=_text(point.attributes, events.DEVICE_TAG),
        attributes=attributes,
    )


def _text(attributes: Iterable[KeyValue], key: str) -> str:
    """Return a text attribute; empty when there is none of that name and type."""
    return next((pair.value.string_value for pair in attributes if pair.key == key), "")


def _shown(value: AnyValue) -> str:
    kind = value.WhichOneof("value")
    match kind:
        case "string_value":
            return value.string_value
        case "bool_value":
            return "true" if value.bool_value else "false"
        case "int_value" | "double_value":
            return str(getattr(value, kind))
        case None:
            return ""
        case _:
            return json.dumps(to_otlp_json(value))


def _digest(body: bytes) -> bytes:
    return sha256(body).digest()[:16]
