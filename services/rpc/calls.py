"""The span and the duration of one gRPC call, on both sides of it.

Owns the attributes and the meaning of statuses, which are those of OpenTelemetry's semantic
conventions for RPC and gRPC (1.45, stable). The server has failed only with a status of
`SERVER_FAULTS`: a client that asks for what does not exist is no error of the server. The client's
call has failed with every status but OK, and CANCELLED if it was cancelled here. Must not know
servers or channels.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import grpc
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.rpc import tracing
from services.rpc.address import TcpAddress
from services.rpc.metrics import Kind, Metric

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.trace import Span

    from services.handshake.events import Attribute
    from services.rpc.address import Address

SERVER_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""The statuses with which a server has failed; the others are its client's doing."""

BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Upper bounds of the buckets of both durations, in seconds, as the conventions advise."""

SYSTEM: Final = "rpc.system.name"
METHOD: Final = "rpc.method"
STATUS: Final = "rpc.response.status_code"
ERROR_TYPE: Final = "error.type"

_COUNTED_BY: Final = (SYSTEM, METHOD, STATUS, ERROR_TYPE)

SERVER_DURATION: Final = Metric(
    "rpc.server.call.duration",
    Kind.HISTOGRAM,
    "s",
    "duration of incoming calls",
    _COUNTED_BY,
    BOUNDS_S,
)
CLIENT_DURATION: Final = Metric(
    "rpc.client.call.duration",
    Kind.HISTOGRAM,
    "s",
    "duration of outgoing calls",
    _COUNTED_BY,
    BOUNDS_S,
)
METRICS: Final = (SERVER_DURATION, CLIENT_DURATION)

# Health checks, reflection and GetVersion are frequent, and no part of the handshake.
_TRACED_PREFIX: Final = "porthole."
_UNTRACED_METHOD: Final = "GetVersion"


def is_traced(method: str) -> bool:
    """Return whether the calls of a method have spans; `method` is "package.Service/Method"."""
    return method.startswith(_TRACED_PREFIX) and not method.endswith(f"/{_UNTRACED_METHOD}")


class Call:
    """A call that runs. It is ended once; a second end does nothing.

    Attributes:
        span: Its span.
    """

    def __init__(self, span: Span, method: str, *, serves: bool) -> None:
        self.span = span
        self._method = method
        self._serves = serves
        self._began_s = time.monotonic()
        self._ended = False

    @property
    def traceparent(self) -> str:
        """The context for the other side; empty when nothing is recorded."""
        return tracing.traceparent_of(self.span)

    def end(self, code: grpc.StatusCode, why: str = "", *, cancelled_here: bool = False) -> None:
        """End the span and record the duration.

        Args:
            code: The status.
            why: The message of a status that is an error.
            cancelled_here: Whether this side cancelled the call, as it does not need the answer.
        """
        if self._ended:
            return
        self._ended = True
        outcome: dict[str, Attribute] = {STATUS: code.name}
        if self._failed(code, cancelled_here=cancelled_here):
            outcome[ERROR_TYPE] = code.name
            self.span.set_status(Status(StatusCode.ERROR, why or code.name))
        self.span.set_attributes(outcome)
        self.span.end()
        tracing.measure(
            SERVER_DURATION if self._serves else CLIENT_DURATION,
            time.monotonic() - self._began_s,
            {SYSTEM: "grpc", METHOD: self._method, **outcome},
        )

    def _failed(self, code: grpc.StatusCode, *, cancelled_here: bool) -> bool:
        if self._serves:
            return code in SERVER_FAULTS
        is_ours = cancelled_here and code is grpc.StatusCode.CANCELLED
        return code is not grpc.StatusCode.OK and not is_ours


@contextmanager
def incoming(
    method: str, metadata: Mapping[str, str], listens_on: Address | None
) -> Iterator[Call]:
    """Run the body in the span of one incoming call, which the body ends.

    Args:
        method: "package.Service/Method".
        metadata: Metadata of the call; its traceparent becomes the parent.
        listens_on: Where the server listens; None: at several addresses.
    """
    span = tracing.tracer().start_span(
        method,
        context=tracing.context_in(metadata),
        kind=SpanKind.SERVER,
        attributes=_attributes(method, listens_on),
    )
    call = Call(span, method, serves=True)
    with trace.use_span(
        span, end_on_exit=False, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield call
        finally:
            call.end(grpc.StatusCode.UNKNOWN)


def outgoing(method: str, peer: Address | None) -> Call:
    """Begin the span of one outgoing call, below the current span; the caller ends it.

    Args:
        method: "package.Service/Method".
        peer: Address of the other side.
    """
    span = tracing.tracer().start_span(
        method, kind=SpanKind.CLIENT, attributes=_attributes(method, peer)
    )
    return Call(span, method, serves=False)


def _attributes(method: str, server: Address | None) -> dict[str, Attribute]:
    attributes: dict[str, Attribute] = {SYSTEM: "grpc", METHOD: method}
    if isinstance(server, TcpAddress):
        attributes["server.address"] = server.host.strip("[]")
        attributes["server.port"] = server.port
        attributes["network.transport"] = "tcp"
    elif server is not None:
        attributes["server.address"] = str(server.path)
        attributes["network.transport"] = "unix"
    return attributes
