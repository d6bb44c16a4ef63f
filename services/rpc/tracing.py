"""Traces and metrics of one process: set-up, exporters, and the operations that others use.

Owns the contact with OpenTelemetry. All spans of a VM are in one trace: the VM keeps the context of
its CreateVm as a W3C traceparent, and `operation` continues that context even if its caller has
another one.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
)
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.handshake.errors import PortholeError
from services.rpc.otlp_file import FileMetricExporter, FileSpanExporter, LineFile
from services.rpc.version import SOFTWARE_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.trace import Span, Tracer

    from services.handshake.events import Event
    from services.rpc.settings import ServiceSettings

logger = logging.getLogger(__name__)

TRACEPARENT: Final = "traceparent"
"""Name of the header and of the gRPC metadata that carry a context (W3C Trace Context)."""

METRICS_INTERVAL_S: Final = 10.0
"""Seconds between two exports of metrics; the last export is at shutdown."""

EXPORT_DEADLINE_S: Final = 5
"""Longest that one export to an OTLP endpoint takes, also at shutdown."""

SCOPE: Final = "porthole"
"""Name of the instrumentation scope of every span and metric."""

_PROPAGATOR: Final = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class _Telemetry:
    tracer_provider: TracerProvider
    meter_provider: MeterProvider


_active: _Telemetry | None = None


def setup(service_name: str, settings: ServiceSettings) -> None:
    """Begin to log to stderr, to trace and to measure.

    A second call before `shutdown` does nothing. A span is written to a file and the console as
    soon as it ends; an OTLP endpoint gets spans in batches.

    Args:
        service_name: The resource attribute `service.name`.
        settings: Where spans and metrics are exported.

    Raises:
        OSError: trace_file or metrics_file cannot be opened.
    """
    global _active
    if _active is not None:
        return
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format=f"%(asctime)s {service_name} %(levelname)s %(name)s: %(message)s",
    )
    resource = Resource.create({"service.name": service_name, "service.version": SOFTWARE_VERSION})
    _active = _Telemetry(_tracer_provider(resource, settings), _meter_provider(resource, settings))


def shutdown() -> None:
    """Export the rest and stop; a second call does nothing."""
    global _active
    if _active is None:
        return
    ended, _active = _active, None
    ended.tracer_provider.shutdown()
    ended.meter_provider.shutdown()


def tracer() -> Tracer:
    """Return the tracer of this process; before `setup`, one that records nothing."""
    if _active is None:
        return trace.NoOpTracer()
    return _active.tracer_provider.get_tracer(SCOPE, SOFTWARE_VERSION)


def meter() -> metrics.Meter:
    """Return the meter of this process; before `setup`, one that records nothing."""
    if _active is None:
        return metrics.NoOpMeter(SCOPE)
    return _active.meter_provider.get_meter(SCOPE, SOFTWARE_VERSION)


def emit(event: Event) -> None:
    """Add an event to the current span, or to a span of its own when there is none."""
    span = trace.get_current_span()
    if span.is_recording():
        span.add_event(event.name, dict(event.attributes))
        return
    with tracer().start_as_current_span(event.name) as own:
        own.add_event(event.name, dict(event.attributes))


def emit_under(traceparent: str, span_name: str, event: Event) -> None:
    """Add an event to a span of its own below `traceparent`. May be called on any thread.

    Args:
        traceparent: W3C traceparent, usually the VM's; empty: the span begins a trace.
        span_name: Name of the span.
        event: The event.
    """
    with tracer().start_as_current_span(span_name, context=_context(traceparent)) as span:
        span.add_event(event.name, dict(event.attributes))


def record(
    name: str,
    started_unix_ns: int,
    ended_unix_ns: int,
    *,
    vm_traceparent: str,
    attributes: Mapping[str, str],
) -> None:
    """Record a span whose time is over, of something that could not record it itself.

    Args:
        name: Name of the span.
        started_unix_ns: When it started.
        ended_unix_ns: When it ended.
        vm_traceparent: Context of the VM, which becomes the parent; empty: the span begins a trace.
        attributes: Its attributes.
    """
    span = tracer().start_span(
        name,
        context=_context(vm_traceparent),
        attributes=dict(attributes),
        start_time=started_unix_ns,
    )
    span.end(end_time=ended_unix_ns)


@contextmanager
def operation(name: str, *, vm_traceparent: str | None = None) -> Iterator[Span]:
    """Run the body in a span of the VM's trace.

    An exception that leaves the body marks the span as failed.

    Args:
        name: Name of the span, for instance "AddShare".
        vm_traceparent: Context of the VM. It becomes the parent, and the caller's span is linked
            when it is in another trace. None or empty: the caller's span is the parent.
    """
    caller = trace.get_current_span().get_span_context()
    context = _context(vm_traceparent) if vm_traceparent else None
    parent = trace.get_current_span(context).get_span_context()
    links = [Link(caller)] if caller.is_valid and caller.trace_id != parent.trace_id else []
    with tracer().start_as_current_span(
        name, context=context, links=links, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except BaseException as error:
            mark_failed(span, error)
            raise


@contextmanager
def server_span(service: str, method: str, carrier: Mapping[str, str]) -> Iterator[Span]:
    """Run the body in the span of one incoming call.

    Args:
        service: Full name of the gRPC service.
        method: Name of the method.
        carrier: Metadata of the call; its traceparent becomes the parent.
    """
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    with tracer().start_as_current_span(
        f"{service}/{method}",
        context=_PROPAGATOR.extract(dict(carrier), context=Context()),
        kind=SpanKind.SERVER,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def mark_failed(span: Span, error: BaseException) -> None:
    """Mark a span as failed, with the reason."""
    if isinstance(error, PortholeError):
        span.set_attribute("porthole.reason", error.reason)
        span.set_status(Status(StatusCode.ERROR, error.message))
    else:
        span.set_status(Status(StatusCode.ERROR, type(error).__name__))


def current_traceparent() -> str:
    """Return the W3C traceparent of the current span; empty when there is none."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get(TRACEPARENT, "")


def _context(traceparent: str | None) -> Context:
    # Without a traceparent the context is empty, not the current one: the span begins a trace.
    return _PROPAGATOR.extract({TRACEPARENT: traceparent or ""})


def _tracer_provider(resource: Resource, settings: ServiceSettings) -> TracerProvider:
    # All spans are sampled, even if the caller's is not: a checked trace must have no hole.
    provider = TracerProvider(resource=resource, sampler=ALWAYS_ON, shutdown_on_exit=False)
    if settings.trace_file is not None:
        exporter = FileSpanExporter(LineFile(settings.trace_file))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    if settings.trace_console:
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
    if settings.otlp_endpoint is not None:
        otlp = OTLPSpanExporter(settings.otlp_endpoint, insecure=True, timeout=EXPORT_DEADLINE_S)
        provider.add_span_processor(BatchSpanProcessor(otlp))
    return provider


def _meter_provider(resource: Resource, settings: ServiceSettings) -> MeterProvider:
    readers: list[MetricReader] = []
    if settings.metrics_file is not None:
        readers.append(_periodic(FileMetricExporter(LineFile(settings.metrics_file))))
    if settings.otlp_endpoint is not None:
        readers.append(
            _periodic(
                OTLPMetricExporter(settings.otlp_endpoint, insecure=True, timeout=EXPORT_DEADLINE_S)
            )
        )
    return MeterProvider(
        readers,
        resource=resource,
        shutdown_on_exit=False,
        exemplar_filter=AlwaysOffExemplarFilter(),
    )


def _periodic(exporter: FileMetricExporter | OTLPMetricExporter) -> MetricReader:
    return PeriodicExportingMetricReader(
        exporter,
        export_interval_millis=METRICS_INTERVAL_S * 1000,
        export_timeout_millis=EXPORT_DEADLINE_S * 1000,
    )
