from __future__ import annotations

import gzip
import json
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from porthole.testing import collector as module
from porthole.testing.collector import Collector, collecting
from porthole.testing.spans import BOOTED, ENDED, Batch, from_document, from_message

from services.handshake.trace.checker import verify
from services.handshake.trace.formats import parse_trace
from tests.support.handshake_traces import TRACE, VM, record, wsl2
from tests.support.trace_formats import otlp_document, to_messages

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE = "/opentelemetry.proto.collector.{}.v1.{}Service/Export"
TRACES = SERVICE.format("trace", "Trace")
REQUEST = ExportTraceServiceRequest(resource_spans=to_messages(record(wsl2())).resource_spans)
PROTOBUF, JSON = "application/x-protobuf", "application/json"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


def post(collector: Collector, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = Request(collector.http_endpoint + path, body, named)
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def call(
    collector: Collector, request: bytes, method: str = SERVICE.format("trace", "Trace")
) -> bytes:
    with grpc.insecure_channel(collector.endpoint) as channel:
        method_of_bytes: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        return method_of_bytes(request, timeout=30, wait_for_ready=True)


def kept(collector: Collector) -> bool:
    """Whether what has arrived is the handshake, whole."""
    text = "".join(batch.line for batch in collector.batches())
    [verdict] = verify(parse_trace(text.encode(), "kept"))
    return verdict.valid


def test_spans_arrive_over_grpc(collector: Collector) -> None:
    assert call(collector, REQUEST.SerializeToString()) == b""
    [batch] = collector.batches()
    assert batch.trace_ids == {TRACE}
    assert (BOOTED, VM, TRACE) in batch.events
    assert (ENDED, VM, TRACE) in batch.events
    assert kept(collector)


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_spans_arrive_over_http(collector: Collector, kind: str, pack: bool) -> None:
    body = (
        REQUEST.SerializeToString() if kind == PROTOBUF else otlp_document(record(wsl2())).encode()
    )
    headers = {"Content_Encoding": "gzip"} if pack else {}
    body = gzip.compress(body) if pack else body
    assert post(collector, "/v1/traces", body, Content_Type=kind, **headers) == (
        200,
        b"" if kind == PROTOBUF else b"{}",
    )
    assert kept(collector)


def test_metrics_and_logs_are_taken_and_dropped(collector: Collector) -> None:
    for lower, upper in (("metrics", "Metrics"), ("logs", "Logs")):
        assert call(collector, b"anything", SERVICE.format(lower, upper)) == b""
        assert post(collector, f"/v1/{lower}", b"x", Content_Type=PROTOBUF) == (200, b"")
    assert collector.batches() == []
    with pytest.raises(grpc.RpcError) as caught:
        call(collector, b"", "/other.Service/Export")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/traces", b"garbage", {"Content_Type": PROTOBUF}, 400),
        ("/v1/traces", b"garbage", {"Content_Type": JSON}, 400),
        ("/v1/traces", b"[" * 100_000, {"Content_Type": JSON}, 400),
        ("/v1/traces", b'{"resourceSpans": 7}', {"Content_Type": JSON}, 400),
        ("/v1/traces", b"garbage", {"Content_Encoding": "gzip"}, 400),
        ("/v1/traces", gzip.compress(b"{}")[:-4], {"Content_Encoding": "gzip"}, 400),
        ("/v1/traces", gzip.compress(b"\0" * (17 << 20)), {"Content_Encoding": "gzip"}, 413),
        ("/v1/traces", b"", {"Content_Length": "99999999999"}, 413),
        ("/v1/traces", b"", {"Content_Length": "-1"}, 413),
        ("/v1/traces", b"", {"Content_Length": "some"}, 400),
        ("/elsewhere", b"x", {"Content_Type": PROTOBUF}, 404),
    ],
)
def test_what_is_no_export_is_refused(
    collector: Collector, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    assert post(collector, path, body, **headers)[0] == status
    assert call(collector, REQUEST.SerializeToString()) == b""
    assert len(collector.batches()) == 1


def test_what_is_no_export_is_refused_over_grpc(collector: Collector) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(collector, b"garbage")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_what_is_kept_has_a_bound(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    request = REQUEST.SerializeToString()
    call(collector, request)
    monkeypatch.setattr(module, "KEPT_BYTES", len(collector.batches()[0].line) + 1)
    with pytest.raises(grpc.RpcError) as caught:
        call(collector, request)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert post(collector, "/v1/traces", request, Content_Type=PROTOBUF)[0] == 429
    assert collector.is_full
    assert len(collector.batches()) == 1


def test_waiting_ends_with_an_arrival_or_at_the_deadline(collector: Collector) -> None:
    def some(batches: list[Batch]) -> bool:
        return bool(batches)

    assert not collector.wait(some, time.monotonic() - 1)
    assert not collector.wait(some, time.monotonic() + 0.05)
    call(collector, REQUEST.SerializeToString())
    assert collector.wait(some, time.monotonic() - 1)


def test_the_variables_are_those_of_the_services(collector: Collector) -> None:
    host, _, port = collector.endpoint.rpartition(":")
    assert (host, int(port) > 0) == ("127.0.0.1", True)
    assert collector.environment["PORTHOLE_OTLP_ENDPOINT"] == collector.endpoint
    assert collector.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://{collector.endpoint}"


def test_an_address_may_be_chosen_and_must_be_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(OSError, match="is another pytest or collector there"),
            collecting(f"127.0.0.1:{port}"),
        ):
            pass
    with collecting(f"127.0.0.1:{port}") as collector:
        assert collector.endpoint == f"127.0.0.1:{port}"


def test_ids_of_links_are_hexadecimal_as_well() -> None:
    request = ExportTraceServiceRequest()
    request.CopyFrom(REQUEST)
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.links.add(trace_id=b"\xab" * 16, span_id=b"\xcd" * 8)
    document = json.loads(from_message(request).line)
    [link] = document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["links"]
    assert link == {"traceId": "ab" * 16, "spanId": "cd" * 8}


_NAMES = ("resourceSpans", "scopeSpans", "spans", "events", "attributes", "key", "value", "traceId")
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=4)
    ),
)


@given(_json)
def test_any_json_is_kept_or_refused(document: object) -> None:
    with suppress(ValueError):
        assert from_document(document).line.endswith("\n")
