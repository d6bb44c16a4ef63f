"""Requests of OTLP with the handshakes of handshake_traces, as exporters send them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from services.dashboard.otlp import read_spans
from services.rpc.otlp_json import from_otlp_json
from tests.support.handshake_traces import TRACE, VM, record, to_otlp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.dashboard.records import Spans
    from services.handshake.events import Event


def vm_id(number: int) -> str:
    return f"{number:08x}-2222-4333-8444-555555555555"


def trace_document(steps: Sequence[tuple[str, Event]], number: int = 0) -> dict[str, Any]:
    """The handshake of a VM with this number, in a trace of its own."""
    text = to_otlp(record(steps))
    text = text.replace(VM, vm_id(number)).replace(TRACE, f"{number + 1:032x}")
    lines = [json.loads(line) for line in text.splitlines()]
    return {"resourceSpans": [each for line in lines for each in line["resourceSpans"]]}


def trace_request(steps: Sequence[tuple[str, Event]], number: int = 0) -> bytes:
    document = trace_document(steps, number)
    return from_otlp_json(document, ExportTraceServiceRequest()).SerializeToString()


def spans_of(steps: Sequence[tuple[str, Event]], number: int = 0) -> Spans:
    return read_spans(trace_request(steps, number), as_json=False)


def metrics_document(
    number: int,
    values: Sequence[tuple[int, int | float]],
    *,
    name: str = "porthole.device.bytes",
    kind: str = "sum",
    attributes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Points of one metric of a VM: pairs of milliseconds and values."""
    pairs = {"porthole.vm.id": vm_id(number), "porthole.device.id": "d", **(attributes or {})}
    points = [
        {
            "timeUnixNano": str(at_ms * 1_000_000),
            "attributes": [
                {"key": key, "value": {"stringValue": value}} for key, value in pairs.items()
            ],
            **_number(value),
        }
        for at_ms, value in values
    ]
    data: dict[str, Any] = {"dataPoints": points}
    if kind == "sum":
        data |= {"aggregationTemporality": 2, "isMonotonic": True}
    metric = {"name": name, "unit": "By", "description": "bytes", kind: data}
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "devicehost"}}]}
    return {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": [metric]}]}]}


def _number(value: float) -> dict[str, object]:
    if isinstance(value, int):
        return {"asInt": str(value)}
    return {"asDouble": value if math.isfinite(value) else "Infinity"}


def metrics_request(document: dict[str, Any]) -> bytes:
    return from_otlp_json(document, ExportMetricsServiceRequest()).SerializeToString()


def logs_document() -> dict[str, Any]:
    """An event of a VM as a log record."""
    pair = {"key": "porthole.vm.id", "value": {"stringValue": vm_id(1)}}
    record_of_event = {"eventName": "VmCreated", "attributes": [pair]}
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": [record_of_event]}]}]}


def logs_request(document: dict[str, Any]) -> bytes:
    return from_otlp_json(document, ExportLogsServiceRequest()).SerializeToString()
