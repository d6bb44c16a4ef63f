"""What sends to a collector: OpenTelemetry's exporters of spans, events and metrics, over a link.

Owns the queue of spans, and when it is sent. Each export passes the link, which counts it and ends
it when the collector is given up. Must not know what a span or a metric means.

An event of a span is sent as a log event too, right after its span: OpenTelemetry moves events
there. So the queue of spans bounds both, and no event is sent twice or without its span.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import SEVERITY_NUMBER_INFO, LogRecord
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from services.rpc.collector import positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span

    from services.rpc.collector import CollectorLink

# The exporter warns of each repetition. What is lost in the end is an error of its own, and a line
# of ours when the process ends.
logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").setLevel(logging.ERROR)

SEND_AFTER_S: Final = 0.5
"""Longest time that a span which has ended waits until it is sent."""

BATCH_SPANS: Final = 512
"""Most spans of one export; OTEL_BSP_MAX_EXPORT_BATCH_SIZE changes it."""


class LinkedSpanExporter(OTLPSpanExporter):
    """Sends spans to the collector of a link.

    Args:
        link: The link.
        endpoint: URL of the collector, or host:port; None: that of OpenTelemetry's variables.
        insecure: Whether the connection is without TLS; None: as the URL and variables say.
        timeout_s: Longest time that one export takes; None: that of OpenTelemetry's variables.
        events: Sends the events of spans; None: they are in their spans only.
    """

    def __init__(
        self,
        link: CollectorLink,
        endpoint: str | None,
        insecure: bool | None,
        timeout_s: int | None,
        events: LinkedEventExporter | None = None,
    ) -> None:
        super().__init__(endpoint=endpoint, insecure=insecure, timeout=timeout_s)
        self._link = link
        self._events = events
        self._once = threading.Lock()
        # An export that fails makes a new channel, under the feet of another one.
        self._alone = threading.Lock()
        link.on_abandon(self.shutdown)

    def greet(self) -> None:
        """Find out, on a thread, whether the collector answers: it gets an export without spans.

        A process that ends soon, such as a command, knows then whether to wait.
        """
        threading.Thread(target=self.export, args=((),), daemon=True).start()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch."""
        send = super().export

        def taken() -> bool:
            return send(spans) is SpanExportResult.SUCCESS

        with self._alone:
            done = self._link.send_spans(len(spans), taken)
            if done and self._events is not None:
                self._events.export_of(spans)
        return SpanExportResult.SUCCESS if done else SpanExportResult.FAILURE

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        """Disconnect, which ends an export that runs; a second call does nothing."""
        if self._once.acquire(blocking=False):
            super().shutdown()  # in older versions it takes no time for spans
            if self._events is not None:
                self._events.shutdown()


class LinkedEventExporter(OTLPLogExporter):
    """Sends the events of spans as log events to the collector of a link.

    Its arguments are those of LinkedSpanExporter, which shuts it down.
    """

    def __init__(
        self,
        link: CollectorLink,
        endpoint: str | None,
        insecure: bool | None,
        timeout_s: int | None,
    ) -> None:
        super().__init__(endpoint=endpoint, insecure=insecure, timeout=timeout_s)
        self._link = link

    def export_of(self, spans: Sequence[ReadableSpan]) -> None:
        """Send the events of spans that the collector has, if there are any."""
        count = sum(len(span.events) for span in spans)
        if count:
            self._link.send_events(count, lambda: self._taken(spans))

    def _taken(self, spans: Any) -> bool:
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


class LinkedMetricExporter(OTLPMetricExporter):
    """Sends metrics to the collector of a link; its arguments are those of LinkedSpanExporter."""

    def __init__(
        self,
        link: CollectorLink,
        endpoint: str | None,
        insecure: bool | None,
        timeout_s: int | None,
    ) -> None:
        super().__init__(endpoint=endpoint, insecure=insecure, timeout=timeout_s)
        self._link = link
        self._once = threading.Lock()
        link.on_abandon(self.shutdown)

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any
    ) -> MetricExportResult:
        """Send a collection."""
        send = super().export

        def taken() -> bool:
            return send(metrics_data, timeout_millis) is MetricExportResult.SUCCESS

        done = self._link.send_metrics(taken)
        return MetricExportResult.SUCCESS if done else MetricExportResult.FAILURE

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        """Disconnect, which ends an export that runs; a second call does nothing."""
        if self._once.acquire(blocking=False):
            super().shutdown(timeout_millis)


class QueuedSpans(SpanProcessor):
    """The spans that wait for a collector: as many as its link admits, in the queue of the SDK."""

    def __init__(self, link: CollectorLink, exporter: LinkedSpanExporter, queue_spans: int) -> None:
        self._link = link
        batch_spans = positive("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_SPANS)
        self._queue: SpanProcessor = BatchSpanProcessor(
            exporter,
            # The link admits no more, so that this queue never drops what nobody counts.
            max_queue_size=queue_spans,
            max_export_batch_size=min(batch_spans, queue_spans),
            schedule_delay_millis=positive("OTEL_BSP_SCHEDULE_DELAY", int(SEND_AFTER_S * 1000)),
        )

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span, or drop it; never waits."""
        if self._link.admit_span():
            self._queue.on_end(span)

    def shutdown(self) -> None:
        """Send the rest, until the link is abandoned."""
        self._queue.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits."""
        return self._queue.force_flush(timeout_millis)
