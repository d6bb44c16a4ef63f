"""OTLP over gRPC, on a server as the dashboard starts it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from services.dashboard.access import Access
from services.dashboard.receiver.inflation import REQUEST_LIMIT_BYTES
from services.dashboard.receiver.intake import Intake
from services.dashboard.receiver.servicer import LOGS, METRICS, OPTIONS, TRACES, servicers
from services.handshake.errors import InvalidArgumentError, UnavailableError
from services.rpc.server import start_server
from tests.support.handshake_traces import wslc
from tests.support.otlp_requests import (
    logs_document,
    logs_request,
    metrics_document,
    metrics_request,
    spans_of,
    trace_request,
    vm_id,
)
from tests.unit.dashboard.receiver.test_web import FakeKeeper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TOKEN = "0123456789abcdef"


class Receiver:
    def __init__(self, channel: grpc.aio.Channel, keeper: FakeKeeper) -> None:
        self.keeper = keeper
        self.traces: Any = channel.unary_unary(f"/{TRACES}/Export")
        self.logs: Any = channel.unary_unary(f"/{LOGS}/Export")
        self.metrics: Any = channel.unary_unary(f"/{METRICS}/Export")


async def receive(token: str) -> AsyncIterator[Receiver]:
    keeper = FakeKeeper()
    intake = Intake(keeper, lambda _: None, lambda _: None)
    handle = await start_server(
        ["127.0.0.1:0"],
        servicers(intake, Access(token)),
        options=OPTIONS,
        authenticated=bool(token),
    )
    try:
        async with grpc.aio.insecure_channel(handle.addresses[0]) as channel:
            yield Receiver(channel, keeper)
    finally:
        await handle.stop(0)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async for each in receive(""):
        yield each


@pytest.fixture
async def guarded() -> AsyncIterator[Receiver]:
    async for each in receive(TOKEN):
        yield each


@pytest.mark.parametrize(
    "compression", [None, grpc.Compression.Gzip, grpc.Compression.Deflate], ids=str
)
async def test_traces_are_taken(receiver: Receiver, compression: grpc.Compression | None) -> None:
    answer = await receiver.traces(trace_request(wslc(), 1), compression=compression)
    assert ExportTraceServiceResponse.FromString(answer) == ExportTraceServiceResponse()
    assert receiver.keeper.spans[0].spans == spans_of(wslc(), 1).spans


async def test_metrics_are_taken(receiver: Receiver) -> None:
    await receiver.metrics(metrics_request(metrics_document(1, [(1, 5)])))
    assert receiver.keeper.points[0].points[0].series.vm_id == vm_id(1)


async def test_logs_are_taken_and_nothing_of_them_is_kept(receiver: Receiver) -> None:
    answer = await receiver.logs(logs_request(logs_document()))
    assert ExportLogsServiceResponse.FromString(answer) == ExportLogsServiceResponse()
    assert (receiver.keeper.spans, receiver.keeper.points) == ([], [])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await receiver.logs(b"garbage")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("body", "compression", "code"),
    [
        (b"garbage", None, grpc.StatusCode.INVALID_ARGUMENT),
        (b"\x1f\x8bgarbage", None, grpc.StatusCode.INVALID_ARGUMENT),
        (bytes(REQUEST_LIMIT_BYTES + 1), None, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (b"\n" * (64 << 20), grpc.Compression.Gzip, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_the_status_of_a_refusal(
    receiver: Receiver, body: bytes, compression: grpc.Compression | None, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await receiver.traces(body, compression=compression)
    assert caught.value.code() is code
    # It keeps serving.
    await receiver.traces(trace_request(wslc(), 1))


async def test_a_bomb_is_not_inflated_whole(receiver: Receiver) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await receiver.traces(b"\n" * (64 << 20), compression=grpc.Compression.Gzip)
    # The words are ours: gRPC would have inflated it before it refused it.
    assert "when it is unpacked" in str(caught.value.details())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnavailableError("STORE_BUSY", "busy"), grpc.StatusCode.UNAVAILABLE),
        (InvalidArgumentError("OTLP_SYNTAX", "no"), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_errors_of_the_store(
    receiver: Receiver, error: Exception, code: grpc.StatusCode
) -> None:
    receiver.keeper.error = error
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await receiver.traces(trace_request(wslc(), 1))
    assert caught.value.code() is code


async def test_the_token(guarded: Receiver) -> None:
    body = trace_request(wslc(), 1)
    for metadata in (None, (("authorization", "Bearer wrong"),)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await guarded.traces(body, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert guarded.keeper.spans == []
    await guarded.traces(body, metadata=(("authorization", f"Bearer {TOKEN}"),))
    assert len(guarded.keeper.spans) == 1
