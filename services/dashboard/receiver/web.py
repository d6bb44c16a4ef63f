"""OTLP over HTTP: POST /v1/traces, /v1/metrics and /v1/logs, as protobuf or JSON, also with gzip.

Owns the statuses of refusals (opentelemetry-proto, docs/specification.md, "OTLP/HTTP"). Must not
know what becomes of a request.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from services.dashboard import otlp
from services.dashboard.receiver.inflation import (
    REQUEST_LIMIT_BYTES,
    TooLargeError,
    inflate,
    too_large,
)
from services.handshake.errors import InvalidArgumentError, PortholeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from services.dashboard.access import Access
    from services.dashboard.receiver.intake import Intake

BODY_S: Final = 30.0
"""Longest time in which a body comes whole."""

DRAIN_LIMIT_BYTES: Final = 16 * REQUEST_LIMIT_BYTES
"""A body that is too long is read up to this, and dropped: most clients write it whole before they
read an answer, and see a broken connection instead."""

RETRY_S: Final = 1
"""Time after which an exporter may try again when the store is busy."""

JSON: Final = "application/json"
PROTOBUF: Final = "application/x-protobuf"

_PACKED: Final = frozenset({"gzip", "deflate"})
_PLAIN: Final = frozenset({"", "identity"})

# google.rpc.Code, by the status of HTTP.
_CODES: Final = {400: 3, 401: 16, 403: 7, 408: 4, 413: 8, 415: 12, 503: 14}
_STATUSES: Final = ((InvalidArgumentError, 400), (TooLargeError, 413), (PortholeError, 503))


def otlp_app(intake: Intake, access: Access) -> Starlette:
    """Return the application.

    Args:
        intake: Where requests go.
        access: Who may send.
    """

    async def traces(request: Request) -> Response:
        return await _export(request, intake.take_traces, access)

    async def metrics(request: Request) -> Response:
        return await _export(request, intake.take_metrics, access)

    async def logs(request: Request) -> Response:
        return await _export(request, intake.take_logs, access)

    return Starlette(
        routes=[
            Route("/v1/traces", traces, methods=["POST"]),
            Route("/v1/metrics", metrics, methods=["POST"]),
            Route("/v1/logs", logs, methods=["POST"]),
        ]
    )


async def _export(
    request: Request, take: Callable[..., Awaitable[bytes]], access: Access
) -> Response:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    as_json = media_type != PROTOBUF
    refusal = access.refusal(request.headers)
    if refusal is not None:
        return _refused(refusal.status, refusal.message, as_json=as_json)
    if media_type not in (JSON, PROTOBUF):
        return _refused(415, f"send {PROTOBUF} or {JSON}", as_json=True)
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in _PACKED | _PLAIN:
        return _refused(415, "send gzip, deflate or no encoding", as_json=as_json)
    try:
        body = await _body(request)
        if encoding in _PACKED:
            body = await asyncio.to_thread(inflate, body)
        answer = await take(body, as_json=as_json)
    except PortholeError as error:
        status = next(status for kind, status in _STATUSES if isinstance(error, kind))
        return _refused(status, error.message, as_json=as_json)
    except TimeoutError:
        return _refused(408, f"the body did not end within {BODY_S:g} s", as_json=as_json)
    except ClientDisconnect:
        return Response(status_code=400)
    return Response(answer, media_type=JSON if as_json else PROTOBUF)


async def _body(request: Request) -> bytes:
    """Return the whole body.

    Raises:
        TooLargeError: OTLP_TOO_LARGE.
        TimeoutError: It did not end in time.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > DRAIN_LIMIT_BYTES:
        raise too_large()
    parts: list[bytes] = []
    size = 0
    async with asyncio.timeout(BODY_S):
        async for part in request.stream():
            size += len(part)
            if size > DRAIN_LIMIT_BYTES:
                break
            if size > REQUEST_LIMIT_BYTES:
                parts.clear()
            else:
                parts.append(part)
    if size > REQUEST_LIMIT_BYTES:
        raise too_large()
    return b"".join(parts)


def _refused(status: int, message: str, *, as_json: bool) -> Response:
    # What is left of the body would be read as the next request, or for ever.
    headers = {"connection": "close"} if status != 503 else {"retry-after": str(RETRY_S)}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(
        otlp.error_answer(_CODES[status], message, as_json=as_json),
        status_code=status,
        headers=headers,
        media_type=JSON if as_json else PROTOBUF,
    )
