"""What spans and metrics of this process go through: its resource, its limits, its exporters.

Owns what is taken of the settings and of OpenTelemetry's own variables. A file and the console get
a span as soon as it ends; a collector gets it by way of `services.rpc.exporters`, for which nothing
waits. Must not know what is traced or measured.

Of OpenTelemetry's variables, OTEL_SDK_DISABLED, OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_*,
OTEL_BSP_*, OTEL_METRIC_EXPORT_INTERVAL and OTEL_LOGS_EXPORTER=none count. Those that would make a
hole in a handshake do not: every span is sampled, with all of its events; and `service.name` is the
name of the service, because processes inherit the variables and the trace checker reads the name.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from services.rpc.collector import (
    EXPORT_DEADLINE_S,
    CollectorLink,
    end_within,
    positive,
    queue_spans,
)
from services.rpc.exporters import (
    Destination,
    LinkedMetricExporter,
    LinkedSpanExporter,
    QueuedSpans,
)
from services.rpc.metrics import Kind, Metric, observe
from services.rpc.version import SOFTWARE_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.sdk.metrics.export import MetricExporter

    from services.rpc.settings import ServiceSettings

logger = logging.getLogger(__name__)

SCOPE: Final = "porthole"
"""Name of the instrumentation scope of every span and metric."""

NAMESPACE: Final = "porthole"
"""The resource attribute `service.namespace`, unless OTEL_RESOURCE_ATTRIBUTES has another."""

METRICS_INTERVAL_S: Final = 10.0
"""Seconds between two exports of metrics; OTEL_METRIC_EXPORT_INTERVAL changes it."""

LOST_SPANS: Final = Metric(
    "porthole.telemetry.spans_lost",
    Kind.COUNTER,
    "{span}",
    "spans that the collector did not get, by the reason",
    ("error.type",),
)
LOST_METRICS: Final = Metric(
    "porthole.telemetry.metric_exports_failed",
    Kind.COUNTER,
    "{export}",
    "exports of metrics that failed; a later one has their sums",
)
LOST_EVENTS: Final = Metric(
    "porthole.telemetry.log_events_lost",
    Kind.COUNTER,
    "{event}",
    "log events that the collector did not get; it has them as events of their spans",
)
METRICS: Final = (LOST_SPANS, LOST_METRICS, LOST_EVENTS)

_NO_LIMITS: Final = SpanLimits(
    max_attributes=SpanLimits.UNSET,
    max_events=SpanLimits.UNSET,
    max_links=SpanLimits.UNSET,
    max_span_attributes=SpanLimits.UNSET,
    max_event_attributes=SpanLimits.UNSET,
    max_attribute_length=SpanLimits.UNSET,
    max_span_attribute_length=SpanLimits.UNSET,
)
"""A span keeps what it is given: what a guest may say is bounded before."""

_ENDPOINTS: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
_PROTOCOLS: Final = (
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
)


@dataclass(frozen=True, slots=True)
class Providers:
    """The providers of this process.

    Attributes:
        exporter: Sends spans to the collector; None: there is none.
    """

    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    exporter: LinkedSpanExporter | None

    @property
    def link(self) -> CollectorLink | None:
        """What is known of the collector; None: there is none."""
        return None if self.exporter is None else self.exporter.link

    def end(self, flush_s: float, unheard_s: float = inf) -> None:
        """Export the rest and stop.

        Args:
            flush_s: Longest time that a collector gets; files get what is due.
            unheard_s: The same for one that has not answered by then. What this process has to do
                before it can send does not count.
        """
        ends: tuple[Callable[[], object], ...] = (
            self.tracer_provider.shutdown,
            self.meter_provider.shutdown,
        )
        if self.exporter is not None:
            link = self.exporter.link
            if link.waiting and link.answers():
                self.exporter.prepare()
            end_within(flush_s, link, ends, unheard_s)
            return
        for end in ends:
            end()


def make_providers(
    service_name: str, settings: ServiceSettings, is_command: bool = False
) -> Providers | None:
    """Make the providers of a service; None if OTEL_SDK_DISABLED is true.

    Args:
        service_name: The resource attribute `service.name`.
        settings: Where spans and metrics are exported.
        is_command: Whether this process ends soon. It asks the collector for an answer as soon as
            a span begins, so that it knows at its end whether to wait; and it sends no metrics,
            which would make new series for each command.

    Raises:
        OSError: trace_file or metrics_file cannot be opened.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    resource = _resource(service_name)
    exporter = _exporter(settings) if _has_collector(settings) else None
    providers = Providers(
        _tracer_provider(resource, settings, exporter, greets=is_command),
        _meter_provider(resource, settings, None if is_command else exporter),
        exporter,
    )
    if exporter is not None:
        _count_losses(providers.meter_provider, exporter.link)
    return providers


def metrics_interval_s() -> float:
    """Return the seconds between two exports of metrics; the last export is at shutdown."""
    return positive("OTEL_METRIC_EXPORT_INTERVAL", int(METRICS_INTERVAL_S * 1000)) / 1000


def _resource(service_name: str) -> Resource:
    own = {
        "service.name": service_name,
        "service.version": SOFTWARE_VERSION,
        "service.instance.id": str(uuid.uuid4()),
    }
    # Of two resources the second one counts: `own` over the environment over the namespace.
    return Resource({"service.namespace": NAMESPACE}).merge(Resource.create(own))


def _has_collector(settings: ServiceSettings) -> bool:
    if settings.otlp_endpoint is None and not any(os.environ.get(name) for name in _ENDPOINTS):
        return False
    for name in _PROTOCOLS:
        protocol = os.environ.get(name, "grpc").strip() or "grpc"
        if protocol != "grpc":
            logger.warning(
                "%s=%s is not served; spans and metrics are exported over gRPC", name, protocol
            )
    return True


def _exporter(settings: ServiceSettings) -> LinkedSpanExporter:
    link = CollectorLink(queue_spans())
    return LinkedSpanExporter(link, _destination(settings), _sends_events())


def _tracer_provider(
    resource: Resource,
    settings: ServiceSettings,
    exporter: LinkedSpanExporter | None,
    greets: bool,
) -> TracerProvider:
    # All spans are sampled, even if the caller's is not: a checked trace must have no hole.
    provider = TracerProvider(
        resource=resource,
        sampler=ALWAYS_ON,
        shutdown_on_exit=False,
        span_limits=_NO_LIMITS,
    )
    if settings.trace_file is not None:
        from services.rpc.otlp_file import FileSpanExporter, LineFile

        file_exporter = FileSpanExporter(LineFile(settings.trace_file))
        provider.add_span_processor(SimpleSpanProcessor(file_exporter))
    if settings.trace_console:
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
    if exporter is not None:
        provider.add_span_processor(QueuedSpans(exporter, queue_spans(), greets))
    return provider


def _meter_provider(
    resource: Resource, settings: ServiceSettings, exporter: LinkedSpanExporter | None
) -> MeterProvider:
    readers: list[MetricReader] = []
    if settings.metrics_file is not None:
        from services.rpc.otlp_file import FileMetricExporter, LineFile

        readers.append(_periodic(FileMetricExporter(LineFile(settings.metrics_file))))
    if exporter is not None:
        readers.append(_periodic(LinkedMetricExporter(exporter.link, _destination(settings))))
    return MeterProvider(
        readers,
        resource=resource,
        shutdown_on_exit=False,
        exemplar_filter=AlwaysOffExemplarFilter(),
    )


def _destination(settings: ServiceSettings) -> Destination:
    deadline_s = None if os.environ.get("OTEL_EXPORTER_OTLP_TIMEOUT") else EXPORT_DEADLINE_S
    endpoint = settings.otlp_endpoint
    return Destination(endpoint, None if endpoint is None else True, deadline_s)


def _sends_events() -> bool:
    return os.environ.get("OTEL_LOGS_EXPORTER", "").strip().lower() != "none"


def _periodic(exporter: MetricExporter) -> MetricReader:
    return PeriodicExportingMetricReader(
        exporter,
        export_interval_millis=metrics_interval_s() * 1000,
        export_timeout_millis=EXPORT_DEADLINE_S * 1000,
    )


def _count_losses(provider: MeterProvider, link: CollectorLink) -> None:
    meter = provider.get_meter(SCOPE, SOFTWARE_VERSION)
    observe(meter, LOST_SPANS, partial(_lost_spans, link))
    observe(meter, LOST_METRICS, partial(_failed_exports, link))
    observe(meter, LOST_EVENTS, partial(_lost_events, link))


def _lost_spans(link: CollectorLink) -> Iterable[Observation]:
    return [
        Observation(count, {"error.type": reason}) for reason, count in link.losses().spans.items()
    ]


def _failed_exports(link: CollectorLink) -> Iterable[Observation]:
    return [Observation(link.losses().metric_exports)]


def _lost_events(link: CollectorLink) -> Iterable[Observation]:
    return [Observation(link.losses().events)]
