"""Spans and metrics reach an OTLP endpoint, a gRPC collector that keeps everything."""

from __future__ import annotations

from concurrent import futures
from typing import TYPE_CHECKING, Any, cast

import grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.handshake.events import Event
from services.rpc import tracing
from services.rpc.settings import ServiceSettings

if TYPE_CHECKING:
    from pathlib import Path


class Collector:
    def __init__(self) -> None:
        self.spans: list[str] = []
        self.metrics: list[str] = []

    def Export(self, request: Any, _: object) -> Any:  # noqa: N802
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            for resource in request.resource_spans:
                self.spans += [s.name for scope in resource.scope_spans for s in scope.spans]
            return trace_service_pb2.ExportTraceServiceResponse()
        for resource in request.resource_metrics:
            self.metrics += [m.name for scope in resource.scope_metrics for m in scope.metrics]
        return metrics_service_pb2.ExportMetricsServiceResponse()


def test_everything_has_arrived_when_telemetry_is_shut_down(run_dir: Path) -> None:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    for add in (
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server,
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server,
    ):
        cast("Any", add)(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    settings = ServiceSettings(run_dir=run_dir, otlp_endpoint=f"127.0.0.1:{port}")

    tracing.setup("unit", settings)
    with tracing.operation("CreateVm"):
        tracing.emit(Event("VmCreated"))
    tracing.meter().create_counter("porthole.requests").add(1)
    tracing.shutdown()

    server.stop(None).wait()
    assert collector.spans == ["CreateVm"]
    assert "porthole.requests" in collector.metrics
