"""OTLP over HTTP: what is taken, and the status of what is not."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from services.dashboard.access import Access
from services.dashboard.receiver import web
from services.dashboard.receiver.inflation import INFLATED_LIMIT_BYTES, REQUEST_LIMIT_BYTES
from services.dashboard.receiver.intake import Intake
from services.dashboard.receiver.web import DRAIN_LIMIT_BYTES, JSON, PROTOBUF, otlp_app
from services.dashboard.store import Kept
from services.handshake.errors import UnavailableError
from tests.support.asgi import Answer, request
from tests.support.handshake_traces import wslc
from tests.support.otlp_requests import (
    logs_document,
    logs_request,
    metrics_document,
    metrics_request,
    spans_of,
    trace_document,
    trace_request,
    vm_id,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.dashboard.records import Points, Spans


class FakeKeeper:
    """Keeps in memory, or fails."""

    def __init__(self) -> None:
        self.spans: list[Spans] = []
        self.points: list[Points] = []
        self.error: Exception | None = None

    def put_spans(self, spans: Spans) -> Future[Kept]:
        if self.error is not None:
            raise self.error
        self.spans.append(spans)
        answer: Future[Kept] = Future()
        answer.set_result(Kept(frozenset(vm for span in spans.spans for vm in span.vm_ids)))
        return answer

    def put_points(self, points: Points) -> Future[Kept]:
        self.points.append(points)
        answer: Future[Kept] = Future()
        answer.set_result(Kept(frozenset(point.series.vm_id for point in points.points)))
        return answer


class Receiver:
    def __init__(self, token: str = "") -> None:
        self.keeper = FakeKeeper()
        self.touched: list[frozenset[str]] = []
        self.measured: list[frozenset[str]] = []
        self.intake = Intake(self.keeper, self.touched.append, self.measured.append)
        self.app = otlp_app(self.intake, Access(token))

    async def post(
        self,
        body: bytes | AsyncIterator[bytes],
        path: str = "/v1/traces",
        media_type: str = PROTOBUF,
        **headers: str,
    ) -> Answer:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await request(
            self.app,
            path,
            method="POST",
            headers={"content-type": media_type, **given},
            body=body,
        )


@pytest.fixture
async def receiver() -> Receiver:
    return Receiver()


async def test_protobuf(receiver: Receiver) -> None:
    answer = await receiver.post(trace_request(wslc(), 1))
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, PROTOBUF, b"")
    [spans] = receiver.keeper.spans
    assert spans.spans == spans_of(wslc(), 1).spans
    assert receiver.touched == [{vm_id(1)}]
    assert receiver.intake.received.spans == len(spans.spans)


async def test_json(receiver: Receiver) -> None:
    body = json.dumps(trace_document(wslc(), 1)).encode()
    answer = await receiver.post(body, media_type="application/json; charset=utf-8")
    assert (answer.status, answer.headers["content-type"], answer.json()) == (200, JSON, {})
    assert receiver.keeper.spans[0].spans == spans_of(wslc(), 1).spans


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZip", gzip.compress)],
)
async def test_packed(receiver: Receiver, encoding: str, pack: Any) -> None:
    answer = await receiver.post(pack(trace_request(wslc(), 1)), content_encoding=encoding)
    assert answer.status == 200
    assert receiver.keeper.spans[0].spans == spans_of(wslc(), 1).spans


async def test_metrics(receiver: Receiver) -> None:
    body = metrics_request(metrics_document(1, [(1, 5)]))
    answer = await receiver.post(body, "/v1/metrics")
    assert (answer.status, answer.body) == (200, b"")
    assert receiver.measured == [{vm_id(1)}]
    assert receiver.intake.received.points == 1


@pytest.mark.parametrize("media_type", [PROTOBUF, JSON])
async def test_logs_are_taken_and_nothing_of_them_is_kept(
    receiver: Receiver, media_type: str
) -> None:
    document = logs_document()
    body = json.dumps(document).encode() if media_type == JSON else logs_request(document)
    answer = await receiver.post(body, "/v1/logs", media_type=media_type)
    assert (answer.status, answer.body) == (200, b"{}" if media_type == JSON else b"")
    assert (receiver.keeper.spans, receiver.keeper.points) == ([], [])
    assert (await receiver.post(b"garbage", "/v1/logs", media_type=media_type)).status == 400


async def test_some_spans_are_rejected(receiver: Receiver) -> None:
    document = trace_document(wslc(), 1)
    document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["spanId"] = ""
    answer = await receiver.post(json.dumps(document).encode(), media_type=JSON)
    assert answer.status == 200
    assert answer.json()["partialSuccess"]["rejectedSpans"] == "1"
    assert receiver.intake.received.rejected == 1


async def chunks(size: int, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(size)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"garbage", {}, 400),
        (b"garbage", {"content_encoding": "gzip"}, 400),
        (gzip.compress(b"x" * 100)[:-3], {"content_encoding": "gzip"}, 400),
        (bytes(REQUEST_LIMIT_BYTES + 1), {}, 413),
        (b"", {"content_length": str(DRAIN_LIMIT_BYTES + 1)}, 413),
        (gzip.compress(bytes(INFLATED_LIMIT_BYTES + 1)), {"content_encoding": "gzip"}, 413),
        (b"{}", {"content_encoding": "br"}, 415),
        (b"{}", {"host": "evil.example"}, 403),
    ],
)
async def test_the_status_of_a_refusal(
    receiver: Receiver, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = await receiver.post(body, **headers)
    assert (answer.status, answer.headers["content-type"]) == (status, PROTOBUF)
    assert Status.FromString(answer.body).message
    assert receiver.keeper.spans == []
    # It keeps serving.
    assert (await receiver.post(trace_request(wslc()))).status == 200


async def test_a_body_without_an_end_is_refused_at_a_bound(receiver: Receiver) -> None:
    size = 1 << 20
    answer = await receiver.post(chunks(size, 10 * DRAIN_LIMIT_BYTES // size))
    assert (answer.status, answer.headers["connection"]) == (413, "close")


async def test_a_body_that_stops_is_refused(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "BODY_S", 0.01)

    async def stuck() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(60)

    answer = await receiver.post(stuck())
    assert (answer.status, answer.headers["connection"]) == (408, "close")


async def test_another_content_type(receiver: Receiver) -> None:
    for media_type in ("text/plain", "", "application/x-www-form-urlencoded"):
        answer = await receiver.post(b"{}", media_type=media_type)
        assert (answer.status, answer.headers["content-type"]) == (415, JSON)
        assert answer.json()["code"] == 12


async def test_a_busy_store_asks_to_try_again(receiver: Receiver) -> None:
    receiver.keeper.error = UnavailableError("STORE_BUSY", "busy")
    answer = await receiver.post(trace_request(wslc()))
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert Status.FromString(answer.body).code == 14
    receiver.keeper.error = None
    assert (await receiver.post(trace_request(wslc()))).status == 200


async def test_the_token() -> None:
    receiver = Receiver("0123456789abcdef")
    body = trace_request(wslc())
    answer = await receiver.post(body)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    answer = await receiver.post(body, authorization="Bearer 0123456789abcdef", host="a.example")
    assert answer.status == 200


async def test_other_paths_and_methods(receiver: Receiver) -> None:
    assert (await receiver.post(b"{}", "/v1/profiles")).status == 404
    assert (await request(receiver.app, "/v1/traces")).status == 405
    assert (await request(receiver.app, "/v1/traces", method="OPTIONS")).status == 405


async def test_a_long_body_is_read_beside_the_loop(receiver: Receiver) -> None:
    body = b"".join(trace_request(wslc(), number) for number in range(100))
    assert len(body) > 64 << 10
    answer = await receiver.post(body)
    assert answer.status == 200
    assert not ExportTraceServiceResponse.FromString(answer.body).HasField("partial_success")
    assert len(receiver.touched[0]) == 100
