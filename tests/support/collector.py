"""Collectors that answer, refuse, are slow, or are silent. Tests await what they have seen."""

from __future__ import annotations

import socket
import threading
from concurrent import futures
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord


class Collector:
    """Keeps the log events, and the names of all else, that it gets.

    Args:
        fails: Whether every export fails, with a status that is not repeated.
        fails_logs: Whether those of logs do.

    Attributes:
        may_answer: Exports wait for it; set from the beginning.
        asked: Set once an export has arrived.
        exports: Number of exports that have arrived.
        log_exports: Number of those of logs.
        temporalities: Aggregation temporality of each sum, by its name (OTLP's numbers).
    """

    def __init__(self, *, fails: bool = False, fails_logs: bool = False) -> None:
        self.spans: list[str] = []
        self.metrics: list[str] = []
        self.temporalities: dict[str, int] = {}
        self.logs: list[LogRecord] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = threading.Event()
        self.exports = 0
        self.log_exports = 0
        self._fails = fails
        self._fails_logs = fails_logs

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.exports += 1
        self.asked.set()
        self.may_answer.wait()
        if self._fails:
            context.abort(grpc.StatusCode.INTERNAL, "it always fails")
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            for spans_of in request.resource_spans:
                self.spans += [s.name for scope in spans_of.scope_spans for s in scope.spans]
            return trace_service_pb2.ExportTraceServiceResponse()
        if isinstance(request, logs_service_pb2.ExportLogsServiceRequest):
            self.log_exports += 1
            if self._fails_logs:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "it takes no logs")
            for logs_of in request.resource_logs:
                self.logs += [log for scope in logs_of.scope_logs for log in scope.log_records]
            return logs_service_pb2.ExportLogsServiceResponse()
        for metrics_of in request.resource_metrics:
            metrics = [m for scope in metrics_of.scope_metrics for m in scope.metrics]
            self.metrics += [m.name for m in metrics]
            self.temporalities |= {
                m.name: m.sum.aggregation_temporality for m in metrics if m.HasField("sum")
            }
        return metrics_service_pb2.ExportMetricsServiceResponse()


@contextmanager
def serving(collector: Collector) -> Iterator[str]:
    """Serve a collector; yields its endpoint. What waits in it is let go at the end."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    for add in (
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server,
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server,
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server,
    ):
        cast("Any", add)(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        collector.may_answer.set()
        server.stop(None).wait()


@contextmanager
def refusing() -> Iterator[str]:
    """Yield an endpoint that refuses connections: its port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def silent() -> Iterator[str]:
    """Yield an endpoint that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
