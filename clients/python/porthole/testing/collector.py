"""A small collector: takes OTLP over gRPC and HTTP on this machine, and keeps spans in memory.

Metrics and logs are taken and dropped, so that exporters have nothing to complain about. Must not
know what a handshake is.
"""

from __future__ import annotations

import gzip
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from porthole.testing.spans import Batch, from_document, from_message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

KEPT_BYTES: Final = 200 << 20
"""Most bytes of spans that are kept in a session; `porthole handshake verify` takes 256 MiB."""

REQUEST_BYTES: Final = 16 << 20
"""Longest request, also when it is unpacked."""

_SEND_AFTER_MS: Final = 100
_IDLE_S: Final = 30
_SERVICE: Final = "/opentelemetry.proto.collector.{0}.v1.{1}Service/Export"
_DROPPED: Final = (_SERVICE.format("metrics", "Metrics"), _SERVICE.format("logs", "Logs"))


class Collector:
    """The spans that have arrived.

    Attributes:
        endpoint: Address for OTLP over gRPC, host:port.
        http_endpoint: Base URL for OTLP over HTTP, protobuf or JSON.
    """

    def __init__(self) -> None:
        self.endpoint = ""
        self.http_endpoint = ""
        self._batches: list[Batch] = []
        self._kept_bytes = 0
        self._full = False
        self._arrived = threading.Condition()

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables with which services send their spans here, soon after they end."""
        return {
            "PORTHOLE_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{self.endpoint}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_BSP_SCHEDULE_DELAY": str(_SEND_AFTER_MS),
        }

    @property
    def is_full(self) -> bool:
        """Whether spans were refused because KEPT_BYTES are kept."""
        return self._full

    def add(self, batch: Batch) -> bool:
        """Keep the spans of a request; False: there is no room for them."""
        with self._arrived:
            self._kept_bytes += len(batch.line)
            self._full = self._full or self._kept_bytes > KEPT_BYTES
            if not self._full:
                self._batches.append(batch)
            self._arrived.notify_all()
            return not self._full

    def batches(self) -> list[Batch]:
        """Return what has arrived."""
        with self._arrived:
            return list(self._batches)

    def wait(self, until: Callable[[list[Batch]], bool], deadline_s: float) -> bool:
        """Wait for spans.

        Args:
            until: Whether what has arrived is enough; it is called again after each arrival.
            deadline_s: Time of time.monotonic() at which to stop.

        Returns:
            Whether enough has arrived.
        """
        with self._arrived:
            return self._arrived.wait_for(
                lambda: until(self._batches), max(0.0, deadline_s - time.monotonic())
            )


@contextmanager
def collecting(listen: str = "127.0.0.1:0") -> Iterator[Collector]:
    """Run a collector.

    Args:
        listen: Address for gRPC; that for HTTP is any free port of this machine.

    Raises:
        OSError: The address is taken, or none.
    """
    collector = Collector()
    server = grpc.server(
        ThreadPoolExecutor(4, thread_name_prefix="otlp"),
        options=(("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", REQUEST_BYTES)),
    )
    server.add_generic_rpc_handlers((_Services(collector),))
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        port = 0
    if not port:
        raise OSError(
            f"cannot listen on {listen!r} for OTLP; is another pytest or collector there?"
        )
    collector.endpoint = f"{listen.rpartition(':')[0]}:{port}"
    web = ThreadingHTTPServer(("127.0.0.1", 0), _handler(collector))
    web.daemon_threads = True
    collector.http_endpoint = f"http://127.0.0.1:{web.server_port}"
    thread = threading.Thread(target=web.serve_forever, args=(0.1,), name="otlp-http", daemon=True)
    server.start()
    thread.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
        web.shutdown()
        thread.join()
        web.server_close()


class _Services(grpc.GenericRpcHandler):
    """The three services of OTLP over gRPC. An empty answer is an answer without fields."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        if details.method == _SERVICE.format("trace", "Trace"):
            return grpc.unary_unary_rpc_method_handler(self._export)
        if details.method in _DROPPED:
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")
        return None

    def _export(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            batch = from_message(ExportTraceServiceRequest.FromString(request))
        except (DecodeError, ValueError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if not self._collector.add(batch):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {KEPT_BYTES} bytes")
        return b""


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _IDLE_S

        def do_POST(self) -> None:
            try:
                body = self._body()
                if self.path == "/v1/traces":
                    status = 200 if collector.add(self._batch(body)) else 429
                else:
                    status = 200 if self.path in ("/v1/metrics", "/v1/logs") else 404
            except OverflowError:
                status = 413
            except (DecodeError, EOFError, OSError, ValueError, RecursionError):
                status = 400
            # What is left of a refused body is no request.
            self.close_connection = status != 200
            self._answer(status)

        def _body(self) -> bytes:
            length = int(self.headers.get("Content-Length", ""))
            if not 0 <= length <= REQUEST_BYTES:
                raise OverflowError
            body = self.rfile.read(length)
            if self.headers.get("Content-Encoding") == "gzip":
                with gzip.GzipFile(fileobj=io.BytesIO(body)) as unpacked:
                    body = unpacked.read(REQUEST_BYTES + 1)
                if len(body) > REQUEST_BYTES:
                    raise OverflowError
            return body

        def _batch(self, body: bytes) -> Batch:
            if self._is_json:
                return from_document(json.loads(body))
            return from_message(ExportTraceServiceRequest.FromString(body))

        @property
        def _is_json(self) -> bool:
            return self.headers.get("Content-Type", "").startswith("application/json")

        def _answer(self, status: int) -> None:
            body = b"{}" if self._is_json else b""
            kind = "application/json" if self._is_json else "application/x-protobuf"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    return Handler
