"""Channels to peers: waiting for a peer, its version, deadlines, trace context, errors.

Owns every outgoing call. Each has a deadline, except a stream, which lasts as long as its reader;
keep-alive ends the stream of a peer that dies or hangs.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import grpc
from google.protobuf import descriptor_pool, message_factory

from services.handshake.errors import FailedPreconditionError, UnavailableError
from services.rpc import calls, tracing
from services.rpc.address import numeric, parse_address
from services.rpc.status import error_from_rpc
from services.rpc.version import API_VERSIONS, SOFTWARE_VERSION, check_version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

    from porthole.handshake.v1.guest_capabilities_pb2 import ServiceVersion

    from services.rpc.address import Address
    from services.rpc.calls import Call

logger = logging.getLogger(__name__)

T = TypeVar("T")

OPTIONS: Final = (
    # The environment's proxy is for the internet; calls to peers must not go through it.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),
)


class Peer(Generic[T]):
    """A connected peer whose version fits.

    Attributes:
        address: Its address.
        stub: The generated stub; a failed call raises a PortholeError.
        version: The version that it announced.
    """

    def __init__(
        self, address: str, stub: T, version: ServiceVersion, channel: grpc.aio.Channel
    ) -> None:
        self.address = address
        self.stub = stub
        self.version = version
        self._channel = channel

    async def close(self) -> None:
        """Cancel running calls and disconnect."""
        await self._channel.close()


async def connect(
    address: str,
    stub_factory: Callable[[grpc.aio.Channel], T],
    service: str,
    *,
    wait_s: float = 30.0,
    default_deadline_s: float = 10.0,
) -> Peer[T]:
    """Wait for a peer, check its version, and return its stub.

    Args:
        address: "unix:/path" or "host:port".
        stub_factory: The generated stub class.
        service: Full name of the service, for instance "porthole.vmowner.v1.VmOwner".
        wait_s: Longest wait for a peer that is not up yet; pauses between attempts grow from 50 ms
            to 2 s.
        default_deadline_s: Deadline of a unary call that gives no `timeout`.

    Raises:
        InvalidArgumentError: The address is wrong.
        UnavailableError: PEER_UNAVAILABLE after `wait_s`.
        FailedPreconditionError: API_VERSION_MISMATCH, naming the versions of both sides.
    """
    target = numeric(parse_address(address))
    peer = _Callee(f"{service} at {address}", target)
    interceptors = [_UnaryCalls(peer, default_deadline_s), _StreamingCalls(peer)]
    channel = grpc.aio.insecure_channel(str(target), options=OPTIONS, interceptors=interceptors)
    try:
        await ready(channel, service, address, wait_s)
        stub = stub_factory(channel)
        version = await _version(stub, service, address)
        check_version(service, version)
    except BaseException:
        await channel.close()
        raise
    return Peer(address, stub, version, channel)


async def ready(channel: grpc.aio.Channel, service: str, address: str, wait_s: float) -> None:
    """Wait until a channel is connected.

    Raises:
        UnavailableError: PEER_UNAVAILABLE after `wait_s`.
    """
    said = False
    try:
        async with asyncio.timeout(wait_s):
            while (state := channel.get_state(try_to_connect=True)) != _READY:
                if state == _FAILED and not said:
                    logger.info("waiting for %s at %s", service, address)
                    said = True
                await channel.wait_for_state_change(state)
    except TimeoutError:
        raise UnavailableError(
            "PEER_UNAVAILABLE",
            f"{service} at {address} did not come up within {wait_s:g} s; start it, or correct "
            "the address",
            service=service,
            address=address,
        ) from None


async def _version(stub: Any, service: str, address: str) -> ServiceVersion:
    # Every service has a GetVersion in its own package, and all have the same shape.
    method = descriptor_pool.Default().FindServiceByName(service).methods_by_name["GetVersion"]
    request = message_factory.GetMessageClass(method.input_type)()
    try:
        version: ServiceVersion = (await stub.GetVersion(request)).version
    except FailedPreconditionError as error:
        if error.reason != "METHOD_UNIMPLEMENTED":
            raise
        raise FailedPreconditionError(
            "API_VERSION_MISMATCH",
            f"the peer at {address} does not serve {service} (porthole {SOFTWARE_VERSION}, "
            f"API versions {', '.join(API_VERSIONS)}) and announces no versions",
            service=service,
            address=address,
        ) from None
    return version


_READY: Final = grpc.ChannelConnectivity.READY
_FAILED: Final = grpc.ChannelConnectivity.TRANSIENT_FAILURE


@dataclass(frozen=True, slots=True)
class _Callee:
    """The other side of a channel: its name for errors, and its address."""

    name: str
    address: Address

    def call(self, details: grpc.aio.ClientCallDetails) -> Call | None:
        """Begin the span of a call; None: it has none."""
        raw: Any = details.method  # bytes, whatever the annotation says
        method = (raw.decode() if isinstance(raw, bytes) else str(raw)).lstrip("/")
        return calls.outgoing(method, self.address) if calls.is_traced(method) else None


class _UnaryCalls(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, callee: _Callee, default_deadline_s: float) -> None:
        self._callee = callee
        self._default_deadline_s = default_deadline_s

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        traced = self._callee.call(client_call_details)
        details = _details(client_call_details, traced, self._default_deadline_s)
        call = await continuation(details, request)
        return _UnaryCall(call, self._callee.name, traced)


class _UnaryCall(grpc.aio.UnaryUnaryCall[Any, Any]):
    """A call whose failure is a PortholeError.

    An interceptor must not raise one itself: grpcio before 1.83 prints it again when the call is
    forgotten.
    """

    def __init__(self, call: Any, peer: str, traced: Call | None) -> None:
        self._call = call
        self._peer = peer
        self._traced = traced

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        with _mapped_errors(self._peer, self._traced):
            return await self._call

    def cancelled(self) -> bool:
        return bool(self._call.cancelled())

    def done(self) -> bool:
        return bool(self._call.done())

    def time_remaining(self) -> float | None:
        remaining: float | None = self._call.time_remaining()
        return remaining

    def cancel(self) -> bool:
        return bool(self._call.cancel())

    def add_done_callback(self, callback: Any) -> None:
        self._call.add_done_callback(callback)

    async def initial_metadata(self) -> Any:
        return await self._call.initial_metadata()

    async def trailing_metadata(self) -> Any:
        return await self._call.trailing_metadata()

    async def code(self) -> Any:
        return await self._call.code()

    async def details(self) -> Any:
        return await self._call.details()

    async def wait_for_connection(self) -> None:
        await self._call.wait_for_connection()


class _StreamingCalls(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, callee: _Callee) -> None:
        self._callee = callee

    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        traced = self._callee.call(client_call_details)
        call = await continuation(_details(client_call_details, traced, None), request)
        return _mapped(call, self._callee.name, traced)


async def _mapped(call: Any, peer: str, traced: Call | None) -> AsyncIterator[Any]:
    with _mapped_errors(peer, traced):
        async for item in call:
            yield item


@contextmanager
def _mapped_errors(peer: str, traced: Call | None) -> Iterator[None]:
    """Raise the failure of a call as the error that the peer raised, and end the call's span."""
    code, why, cancelled_here = grpc.StatusCode.OK, "", False
    try:
        yield
    except grpc.aio.AioRpcError as failure:
        error = error_from_rpc(failure, peer)
        code, why = failure.code(), error.message
        if traced is not None:
            traced.span.set_attribute(tracing.REASON, error.reason)
        raise error from None
    except (asyncio.CancelledError, GeneratorExit):
        # Whoever reads a stream need not read it to its end.
        code, cancelled_here = grpc.StatusCode.CANCELLED, True
        raise
    except BaseException:
        code = grpc.StatusCode.UNKNOWN
        raise
    finally:
        if traced is not None:
            traced.end(code, why, cancelled_here=cancelled_here)


def _details(
    details: grpc.aio.ClientCallDetails, traced: Call | None, default_deadline_s: float | None
) -> grpc.aio.ClientCallDetails:
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    traceparent = traced.traceparent if traced is not None else tracing.current_traceparent()
    if traceparent:
        metadata.add(tracing.TRACEPARENT, traceparent)
    timeout = details.timeout if details.timeout is not None else default_deadline_s
    return grpc.aio.ClientCallDetails(
        details.method, timeout, metadata, details.credentials, details.wait_for_ready
    )
