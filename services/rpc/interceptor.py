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
from services.rpc import calls, tracing
from services.rpc.status import DETAILS_KEY, code_of, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractContextManager

    from services.rpc.address import Address
    from services.rpc.calls import Call

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

DEADLINE_SLACK_S: Final = 0.02
"""A call that is cancelled with less time left than this has exceeded its deadline."""

INTERNAL_TEXT: Final = "internal error; the log of this service has the details"
"""The message that a caller gets for an unforeseen exception."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of every service of one server.

    Attributes:
        listens_on: The address of the server; None: several, or not known yet.
    """

    def __init__(self) -> None:
        self.listens_on: Address | None = None
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
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine always runs in a task
        self._calls.add(task)
        try:
            with self._traced(name, context) as call:
                try:
                    yield
                except BaseException as error:
                    # Before the answer, so that the span is exported when the caller has it.
                    if call is not None:
                        self._end(call, context, error)
                    await self._fail(name, context, error)
                if call is not None:
                    call.end(grpc.StatusCode.OK)
        finally:
            self._calls.discard(task)

    def _traced(self, name: str, context: Context) -> AbstractContextManager[Call | None]:
        if not calls.is_traced(name):
            return nullcontext()
        metadata = context.invocation_metadata() or ()
        texts = {key: value for key, value in metadata if isinstance(value, str)}
        return calls.incoming(name, texts, self.listens_on)

    def _end(self, call: Call, context: Context, error: BaseException) -> None:
        """End a call that fails, with the status that its client gets."""
        if isinstance(error, PortholeError):
            call.span.set_attribute(tracing.REASON, error.reason)
            call.end(code_of(error), error.message)
        elif isinstance(error, asyncio.CancelledError):
            call.end(self._status_of_cancelled(context))
        elif isinstance(error, grpc.aio.AbortError):
            call.end(_given(context))
        else:
            call.end(grpc.StatusCode.INTERNAL, type(error).__name__)

    def _status_of_cancelled(self, context: Context) -> grpc.StatusCode:
        if self._ending:
            return grpc.StatusCode.UNAVAILABLE
        # A client whose deadline is over cancels the call, a little before it is over here.
        left_s = context.time_remaining()
        if left_s is not None and left_s <= DEADLINE_SLACK_S:
            return grpc.StatusCode.DEADLINE_EXCEEDED
        return grpc.StatusCode.CANCELLED

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


def _given(context: Context) -> grpc.StatusCode:
    # It is a number here, although gRPC annotates it otherwise.
    number: Any = context.code()
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


async def _abort(context: Context, error: PortholeError) -> NoReturn:
    status = status_of(error)
    details = ((DETAILS_KEY, status.SerializeToString()),)
    await context.abort(code_of(error), status.message, details)
