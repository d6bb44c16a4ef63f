"""The interceptor of incoming calls: a span, gRPC statuses of errors, and an end at shutdown.

Owns the edge between servicers, which raise PortholeError, and gRPC. A handler of any shape runs
inside one coroutine per call, so that the span's context is entered and left in the same task even
when a stream is cancelled.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import aclosing, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc

from services.handshake.errors import PortholeError, UnavailableError
from services.rpc import tracing
from services.rpc.status import DETAILS_KEY, code_of, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

# Health checks, reflection and GetVersion are frequent, and no part of the handshake.
_TRACED_PREFIX: Final = "porthole."
_UNTRACED_METHOD: Final = "GetVersion"

INTERNAL_TEXT: Final = "internal error; the log of this service has the details"
"""The message that a caller gets for an unforeseen exception."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of every service of one server."""

    def __init__(self) -> None:
        self._calls: set[asyncio.Task[Any]] = set()
        self._ending = False

    async def end_calls(self, grace_s: float) -> None:
        """Wait `grace_s` seconds for running calls to end, then fail them with UNAVAILABLE."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=grace_s)
        self._ending = True
        for call in self._calls:
            call.cancel()

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap one handler; returns None for a method that does not exist."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        name = handler_call_details.method.lstrip("/")
        asks, answers = (
            "stream" if streaming else "unary"
            for streaming in (handler.request_streaming, handler.response_streaming)
        )
        shape = f"{asks}_{answers}"
        wrap = self._streaming if handler.response_streaming else self._unary
        wrapped: grpc.RpcMethodHandler[Any, Any] = handler._replace(
            **{shape: wrap(getattr(handler, shape), name)}
        )
        return wrapped

    def _unary(self, behaviour: Any, name: str) -> Any:
        async def handle(request: Any, context: Context) -> Any:
            async with self._edge(name, context):
                return await behaviour(request, context)

        return handle

    def _streaming(self, behaviour: Any, name: str) -> Any:
        async def handle(request: Any, context: Context) -> None:
            async with self._edge(name, context):
                answers = behaviour(request, context)
                if not inspect.isasyncgen(answers):
                    await answers
                    return
                async with aclosing(answers):
                    async for answer in answers:
                        await context.write(answer)

        return handle

    @asynccontextmanager
    async def _edge(self, name: str, context: Context) -> AsyncIterator[None]:
        call = asyncio.current_task()
        assert call is not None  # noqa: S101 - a coroutine always runs in a task
        self._calls.add(call)
        failure: BaseException | None = None
        try:
            with _span(name, context) as span:
                try:
                    yield
                except BaseException as error:
                    failure = error
                    if span is not None:
                        tracing.mark_failed(span, error)
            # After the span, so that it is exported when the caller has its answer.
            if failure is not None:
                await self._fail(name, context, failure)
        finally:
            self._calls.discard(call)

    async def _fail(self, name: str, context: Context, error: BaseException) -> NoReturn:
        if isinstance(error, PortholeError):
            logger.debug("%s: %s: %s", name, error.reason, error.message)
            await _abort(context, error)
        if isinstance(error, asyncio.CancelledError) and self._ending:
            await _abort(context, UnavailableError("SERVICE_STOPPING", "the service is stopping"))
        if isinstance(error, grpc.aio.AbortError) or not isinstance(error, Exception):
            raise error
        logger.error("%s failed", name, exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, INTERNAL_TEXT)


def _span(name: str, context: Context) -> AbstractContextManager[Span | None]:
    service, _, method = name.rpartition("/")
    if method == _UNTRACED_METHOD or not service.startswith(_TRACED_PREFIX):
        return nullcontext()
    metadata = context.invocation_metadata() or ()
    carrier = {key: value for key, value in metadata if isinstance(value, str)}
    return tracing.server_span(service, method, carrier)


async def _abort(context: Context, error: PortholeError) -> NoReturn:
    status = status_of(error)
    details = ((DETAILS_KEY, status.SerializeToString()),)
    await context.abort(code_of(error), status.message, details)
