"""Traces and metrics of one process: the operations that others use, and their set-up.

Owns the contact with OpenTelemetry. All spans of a VM are in one trace: the VM keeps the context of
its CreateVm as a W3C traceparent, and `operation` continues that context even if its caller has
another one; it links its caller, whose span may end before the work does.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.handshake.errors import PortholeError
from services.rpc.collector import FLUSH_S
from services.rpc.metrics import counter, histogram
from services.rpc.providers import SCOPE, make_providers
from services.rpc.version import SOFTWARE_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.trace import Span, Tracer

    from services.handshake.events import Attribute, Event
    from services.rpc.metrics import Metric
    from services.rpc.providers import Providers
    from services.rpc.settings import ServiceSettings

TRACEPARENT: Final = "traceparent"
"""Name of the header and of the gRPC metadata that carry a context (W3C Trace Context)."""

REASON: Final = "porthole.reason"
"""Attribute of a span that failed: the reason of its error."""

_PROPAGATOR: Final = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class _Telemetry:
    providers: Providers
    # An instrument must be made once per meter.
    instruments: dict[str, Any] = field(default_factory=dict)


_active: _Telemetry | None = None


def setup(service_name: str, settings: ServiceSettings, is_command: bool = False) -> None:
    """Begin to log to stderr, to trace and to measure.

    A second call before `shutdown` does nothing. A span is written to a file and the console as
    soon as it ends; a collector gets spans in batches.

    Args:
        service_name: The resource attribute `service.name`.
        settings: Where spans and metrics are exported.
        is_command: Whether this process ends soon: see `make_providers`.

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
    providers = make_providers(service_name, settings, is_command)
    _active = None if providers is None else _Telemetry(providers)


def shutdown(unheard_s: float = FLUSH_S) -> None:
    """Export the rest and stop; a second call does nothing.

    Args:
        unheard_s: Longest time that a collector gets for the rest if it has not answered by then.
            One that has gets FLUSH_S, and one that has failed none.
    """
    global _active
    if _active is None:
        return
    ended, _active = _active, None
    ended.providers.end(FLUSH_S, unheard_s)


def tracer() -> Tracer:
    """Return the tracer of this process; before `setup`, one that records nothing."""
    if _active is None:
        return trace.NoOpTracer()
    return _active.providers.tracer_provider.get_tracer(SCOPE, SOFTWARE_VERSION)


def meter() -> metrics.Meter:
    """Return the meter of this process; before `setup`, one that records nothing."""
    if _active is None:
        return metrics.NoOpMeter(SCOPE)
    return _active.providers.meter_provider.get_meter(SCOPE, SOFTWARE_VERSION)


def count(metric: Metric, attributes: Mapping[str, Attribute]) -> None:
    """Add one to a counter, whose instrument is made when it is first needed."""
    if _active is None:
        return
    made = _active.instruments.get(metric.name)
    if made is None:
        made = _active.instruments[metric.name] = counter(meter(), metric)
    made.add(1, dict(attributes))


def measure(metric: Metric, value: float, attributes: Mapping[str, Attribute]) -> None:
    """Record a value in a histogram, whose instrument is made when it is first needed.

    Args:
        metric: The histogram.
        value: The value, in the metric's unit.
        attributes: What it is counted by; of few values each.
    """
    if _active is None:
        return
    made = _active.instruments.get(metric.name)
    if made is None:
        made = _active.instruments[metric.name] = histogram(meter(), metric)
    made.record(value, dict(attributes))


def emit(event: Event) -> None:
    """Add an event to the current span, or to a span of its own when there is none."""
    span = trace.get_current_span()
    if span.is_recording():
        span.add_event(event.name, dict(event.attributes))
        return
    with tracer().start_as_current_span(event.name) as own:
        own.add_event(event.name, dict(event.attributes))


def emit_as_span(event: Event, failed: str = "") -> None:
    """Add an event to a span of its own below the current one, which has its attributes.

    Backends search spans by their attributes, and few search events.

    Args:
        event: The event.
        failed: Why the span is an error; empty: it is none.
    """
    attributes = dict(event.attributes)
    with tracer().start_as_current_span(event.name, attributes=attributes) as span:
        span.add_event(event.name, attributes)
        if failed:
            span.set_status(Status(StatusCode.ERROR, failed))


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

    An exception that leaves the body marks the span as failed; a cancellation does not.

    Args:
        name: Name of the span, for instance "AddShare".
        vm_traceparent: Context of the VM. It becomes the parent, and the caller's span is linked,
            which may end before the body does. None or empty: the caller's span is the parent.
    """
    caller = trace.get_current_span().get_span_context()
    context = _context(vm_traceparent) if vm_traceparent else None
    parent = trace.get_current_span(context).get_span_context()
    links = [Link(caller)] if caller.is_valid and caller.span_id != parent.span_id else []
    with tracer().start_as_current_span(
        name, context=context, links=links, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except BaseException as error:
            mark_failed(span, error)
            raise


def mark_failed(span: Span, error: BaseException) -> None:
    """Mark a span as failed, with the reason; one that was cancelled has not failed."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return
    if isinstance(error, PortholeError):
        span.set_attribute(REASON, error.reason)
        span.set_status(Status(StatusCode.ERROR, error.message))
    else:
        span.set_status(Status(StatusCode.ERROR, type(error).__name__))


def current_traceparent() -> str:
    """Return the W3C traceparent of the current span; empty when there is none."""
    return traceparent_of(trace.get_current_span())


def traceparent_of(span: Span) -> str:
    """Return the W3C traceparent of a span; empty for one that is not recorded."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier.get(TRACEPARENT, "")


def context_in(carrier: Mapping[str, str]) -> Context:
    """Return the context that the metadata of a call carries; empty if they carry none."""
    return _PROPAGATOR.extract(dict(carrier), context=Context())


def _context(traceparent: str | None) -> Context:
    # Without a traceparent the context is empty, not the current one: the span begins a trace.
    return _PROPAGATOR.extract({TRACEPARENT: traceparent or ""})
