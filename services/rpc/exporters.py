"""What sends to a collector: exporters of spans, events and metrics, over a link.

Owns the queue of spans, when it is sent, and when OpenTelemetry's exporters are made: by the thread
that first sends something, so that no process waits for their import. Each export passes the link,
which counts it and ends it when the collector is given up. Must not know what a span or a metric
means.

An event of a span is sent as a log event too, right after its span: OpenTelemetry moves events
there. So the queue of spans bounds both, and no event is sent twice or without its span.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from services.rpc.collector import positive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import ReadableSpan, Span

    from services.rpc.collector import CollectorLink
    from services.rpc.otlp_events import EventExporter

logger = logging.getLogger(__name__)

# The exporter warns of each repetition. What is lost in the end is an error of its own, and a line
# of ours when the process ends.
logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").setLevel(logging.ERROR)

SEND_AFTER_S: Final = 0.5
"""Longest time that a span which has ended waits until it is sent."""

BATCH_SPANS: Final = 512
"""Most spans of one export; OTEL_BSP_MAX_EXPORT_BATCH_SIZE changes it."""

_SWITCH_S: Final = 0.0005
"""How long a thread of a command keeps the interpreter while another one wants it; usually 5 ms."""

_METRIC_PREFERENCES: Final = (
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
)
"""What a reader of metrics asks its exporter for before anything is sent."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a collector is.

    Attributes:
        endpoint: URL of the collector, or host:port; None: that of OpenTelemetry's variables.
        insecure: Whether the connection is without TLS; None: as the URL and variables say.
        timeout_s: Longest time that one export takes; None: that of OpenTelemetry's variables.
    """

    endpoint: str | None
    insecure: bool | None
    timeout_s: int | None

    def spans(self) -> OTLPSpanExporter:
        """Make what sends spans."""
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(**self._arguments())

    def events(self) -> EventExporter:
        """Make what sends log events."""
        from services.rpc.otlp_events import EventExporter

        return EventExporter(**self._arguments())

    def metrics(self) -> OTLPMetricExporter:
        """Make what sends metrics."""
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        return OTLPMetricExporter(**self._arguments())

    def _arguments(self) -> dict[str, Any]:
        return {"endpoint": self.endpoint, "insecure": self.insecure, "timeout": self.timeout_s}


class _Exporter(Protocol):
    def shutdown(self) -> None: ...


_E = TypeVar("_E", bound=_Exporter)


class _Late(Generic[_E]):
    """An exporter that is made when something is first sent.

    Args:
        what: What it sends.
        make: Makes it, on the thread that sends.
    """

    def __init__(self, what: str, make: Callable[[], _E]) -> None:
        self._what = what
        self._make = make
        self._making = threading.Lock()
        self._ending = threading.Lock()
        self._made: _E | None = None
        self._closed = False

    def get(self) -> _E | None:
        """Return it; None: it cannot be made, or was shut down before it was."""
        with self._making:
            if self._made is None and not self._closed:
                try:
                    self._made = self._make()
                except Exception as failure:  # OpenTelemetry's settings, each with its own kind
                    self._closed = True
                    logger.error("the collector gets no %s: %s", self._what, failure)
        # It was shut down while it was made, and nobody else could end it.
        if self._closed:
            self.shutdown()
        return self._made

    def shutdown(self) -> None:
        """End an export that runs, and send nothing any more; a second call does nothing."""
        self._closed = True
        if self._made is not None and self._ending.acquire(blocking=False):
            self._made.shutdown()


class LinkedSpanExporter(SpanExporter):
    """Sends spans to the collector of a link.

    Args:
        link: The link.
        to: The collector.
        sends_events: Whether the events of spans are sent as log events, too.

    Attributes:
        link: The link.
    """

    def __init__(self, link: CollectorLink, to: Destination, sends_events: bool) -> None:
        self.link: Final = link
        self._spans = _Late("spans", to.spans)
        self._events = _Late("log events", to.events) if sends_events else None
        # An export that fails makes a new channel, under the feet of another one.
        self._alone = threading.Lock()
        link.on_abandon(self.shutdown)

    def greet(self) -> None:
        """Find out, on a thread, whether the collector answers: it gets an export without spans.

        A process that ends soon, such as a command, knows then whether to wait.
        """
        # The thread imports, and must not hold up what the main thread waits for meanwhile.
        sys.setswitchinterval(_SWITCH_S)
        threading.Thread(target=self.export, args=((),), daemon=True).start()

    def prepare(self) -> None:
        """Make what sends spans, or wait until the thread that makes it has."""
        self._spans.get()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch."""
        exporter = self._spans.get()

        def taken() -> bool:
            return exporter is not None and exporter.export(spans) is SpanExportResult.SUCCESS

        with self._alone:
            done = self.link.send_spans(len(spans), taken)
            if done:
                self._export_events(spans)
        return SpanExportResult.SUCCESS if done else SpanExportResult.FAILURE

    def _export_events(self, spans: Sequence[ReadableSpan]) -> None:
        events = self._events
        count = sum(len(span.events) for span in spans)
        if events is None or not count:
            return

        def taken() -> bool:
            exporter = events.get()
            return exporter is not None and exporter.export_of(spans)

        self.link.send_events(count, taken)

    def shutdown(self) -> None:
        """Disconnect, which ends an export that runs; a second call does nothing."""
        self._spans.shutdown()
        if self._events is not None:
            self._events.shutdown()


class LinkedMetricExporter(MetricExporter):
    """Sends metrics to the collector of a link.

    Args:
        link: The link.
        to: The collector.
    """

    def __init__(self, link: CollectorLink, to: Destination) -> None:
        self._link = link
        self._metrics = _Late("metrics", to.metrics)
        # What it prefers is asked before it sends, and is OpenTelemetry's default but for these.
        early = self._metrics.get() if any(map(os.environ.get, _METRIC_PREFERENCES)) else None
        super().__init__(
            preferred_temporality=None if early is None else early._preferred_temporality,
            preferred_aggregation=None if early is None else early._preferred_aggregation,
        )
        link.on_abandon(self.shutdown)

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any
    ) -> MetricExportResult:
        """Send a collection."""

        def taken() -> bool:
            exporter = self._metrics.get()
            return (
                exporter is not None
                and exporter.export(metrics_data, timeout_millis) is MetricExportResult.SUCCESS
            )

        done = self._link.send_metrics(taken)
        return MetricExportResult.SUCCESS if done else MetricExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Return True: nothing waits here."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        """Disconnect, which ends an export that runs; a second call does nothing."""
        self._metrics.shutdown()


class QueuedSpans(SpanProcessor):
    """The spans that wait for a collector: as many as its link admits, in the queue of the SDK.

    Args:
        exporter: Sends them.
        queue_spans: Most spans that wait.
        greets: Whether the collector is greeted when the first span begins.
    """

    def __init__(self, exporter: LinkedSpanExporter, queue_spans: int, greets: bool) -> None:
        self._link = exporter.link
        self._exporter = exporter
        self._greets = greets
        batch_spans = positive("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_SPANS)
        self._queue: SpanProcessor = BatchSpanProcessor(
            exporter,
            # The link admits no more, so that this queue never drops what nobody counts.
            max_queue_size=queue_spans,
            max_export_batch_size=min(batch_spans, queue_spans),
            schedule_delay_millis=positive("OTEL_BSP_SCHEDULE_DELAY", int(SEND_AFTER_S * 1000)),
        )

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Greet the collector, once, if that is asked for."""
        if self._greets:
            self._greets = False
            self._exporter.greet()

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
