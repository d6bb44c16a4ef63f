"""Log events that are made of spans, and OpenTelemetry's exporter of logs, which sends them.

Owns what a log event is. To import it takes its time, so services.rpc.exporters does it when the
first event is sent. Must not know links, queues or threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import SEVERITY_NUMBER_INFO, LogRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan


class EventExporter(OTLPLogExporter):
    """Sends the events of spans as log events; its arguments are those of OTLPSpanExporter."""

    def export_of(self, spans: Any) -> bool:
        """Send the events of spans; returns whether the collector took them."""
        return self.export(spans).name == "SUCCESS"

    def _translate_data(self, data: Any) -> ExportLogsServiceRequest:
        # OpenTelemetry's API of log records, which the exporter is made for, is not stable yet.
        return log_events(data)


def log_events(spans: Sequence[ReadableSpan]) -> ExportLogsServiceRequest:
    """Return the events of spans as log events (opentelemetry-proto, LogRecord.event_name)."""
    request = ExportLogsServiceRequest()
    for of_resource in encode_spans(spans).resource_spans:
        resource_logs = request.resource_logs.add(resource=of_resource.resource)
        for of_scope in of_resource.scope_spans:
            resource_logs.scope_logs.add(
                scope=of_scope.scope,
                log_records=[
                    LogRecord(
                        event_name=event.name,
                        time_unix_nano=event.time_unix_nano,
                        observed_time_unix_nano=event.time_unix_nano,
                        severity_number=SEVERITY_NUMBER_INFO,
                        attributes=event.attributes,
                        trace_id=span.trace_id,
                        span_id=span.span_id,
                    )
                    for span in of_scope.spans
                    for event in span.events
                ],
            )
    return request
