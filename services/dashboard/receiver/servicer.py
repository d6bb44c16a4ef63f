"""OTLP over gRPC: Export of the services for traces, metrics and logs.

The handlers take bytes, because a message that does not parse is the client's fault
(INVALID_ARGUMENT), and gRPC's own deserializing reports INTERNAL. gRPC's own decompression would
inflate a message whole before it looks at the size, so it is off (`OPTIONS`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc

from services.dashboard.receiver.inflation import REQUEST_LIMIT_BYTES, inflate, is_packed
from services.rpc.server import Servicer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.dashboard.access import Access
    from services.dashboard.receiver.intake import Intake

TRACES: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
METRICS: Final = "opentelemetry.proto.collector.metrics.v1.MetricsService"
LOGS: Final = "opentelemetry.proto.collector.logs.v1.LogsService"

OPTIONS: Final = (
    ("grpc.max_receive_message_length", REQUEST_LIMIT_BYTES),
    ("grpc.per_message_decompression", 0),
    # An exporter needs one stream at a time, and few more when it retries.
    ("grpc.max_concurrent_streams", 16),
)
"""Options of the server."""

Context = grpc.aio.ServicerContext[bytes, bytes]


class OtlpServicer:
    """All services.

    Args:
        intake: Where requests go.
        access: Who may send.
    """

    def __init__(self, intake: Intake, access: Access) -> None:
        self._intake = intake
        self._access = access

    async def export_traces(self, message: bytes, context: Context) -> bytes:
        """Keep spans."""
        return await self._take(self._intake.take_traces, message, context)

    async def export_metrics(self, message: bytes, context: Context) -> bytes:
        """Keep points."""
        return await self._take(self._intake.take_metrics, message, context)

    async def export_logs(self, message: bytes, context: Context) -> bytes:
        """Take logs, and drop them."""
        return await self._take(self._intake.take_logs, message, context)

    async def _take(
        self,
        take: Callable[[bytes], Awaitable[bytes]],
        message: bytes,
        context: Context,
    ) -> bytes:
        # Without a token nothing is checked: no page of a browser can speak gRPC.
        if self._access.token:
            metadata = context.invocation_metadata() or ()
            headers = {key: value for key, value in metadata if isinstance(value, str)}
            refusal = self._access.refusal(headers)
            if refusal is not None:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, refusal.message)
        return await take(inflate(message) if is_packed(message) else message)


def servicers(intake: Intake, access: Access) -> list[Servicer]:
    """Return all services for `start_server`."""
    instance = OtlpServicer(intake, access)
    return [
        Servicer(_adding(TRACES, instance.export_traces), instance, TRACES),
        Servicer(_adding(METRICS, instance.export_metrics), instance, METRICS),
        Servicer(_adding(LOGS, instance.export_logs), instance, LOGS),
    ]


def _adding(service: str, export: Any) -> Callable[[Any, Any], None]:
    def add(_instance: object, server: Any) -> None:
        handler: Any = grpc.unary_unary_rpc_method_handler(export)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
        )

    return add
