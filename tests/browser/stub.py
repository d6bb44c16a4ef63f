"""A server with the files of the page, and with answers of the API that a test chooses.

It sends the page with the content security policy of the dashboard (docs/dashboard.md). It answers
one test at a time.
"""

from __future__ import annotations

import json
import queue
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.browser import answers

if TYPE_CHECKING:
    from types import TracebackType

PAGE = Path(__file__).resolve().parents[2] / "services" / "dashboard" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
LIMIT = 100
VERDICTS = ("valid", "broken", "open", "unstarted", "unjudged")
HELLO: answers.Json = {"version": "0.1.0", "instance": "one"}
_END = object()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    """A browser asks for all modules of the page at once."""


@dataclass
class Stub:
    """The server, and what it answers.

    Attributes:
        vms: The answer for each VM; the list has their rows.
        metrics: The answer for the metrics of every VM.
        fails_with: Status with which every request of the API fails; 0: none.
        greets: Whether a stream begins by itself; else when the test pushes its first event.
        asked: The paths of the API that were asked for, with their queries.
    """

    vms: dict[str, answers.Json] = field(default_factory=dict)
    metrics: answers.Json = field(default_factory=answers.metrics)
    fails_with: int = 0
    greets: bool = True
    asked: list[str] = field(default_factory=list)
    _streams: list[queue.Queue[Any]] = field(default_factory=list)
    _has_ended: bool = False

    def __enter__(self) -> Stub:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stub._get(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Nothing: stderr is that of the test."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="stub")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._has_ended = True
        for stream in [*self._streams]:
            stream.put(_END)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        """Its address, without a slash at the end."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def add(self, answer: answers.Json, **changes: Any) -> answers.Json:
        """Have one more VM, without a word to those who listen; its row is changed."""
        answer["vm"] |= changes
        self.vms[answer["vm"]["vm_id"]] = answer
        return answer

    def push(self, event: str, data: answers.Json) -> None:
        """Send an event to all who listen."""
        for stream in [*self._streams]:
            stream.put(_written(event, data))

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        if url.path.startswith("/api/v1/"):
            path = url.path.removeprefix("/api/v1")
            self.asked.append(f"{path}?{url.query}")
            if path == "/events":
                self._stream(request)
            elif self.fails_with:
                error = {"error": {"reason": "TEST", "message": "The test has it fail."}}
                self._json(request, error, self.fails_with)
            else:
                self._json(request, *self._answer(path, parse_qs(url.query)))
            return
        name = url.path.removeprefix("/page/") if url.path.startswith("/page/") else "index.html"
        file = PAGE / name
        if file.parent != PAGE or not file.is_file():
            request.send_error(404)
            return
        self._send(request, file.read_bytes(), TYPES[file.suffix])

    def _answer(self, path: str, query: dict[str, list[str]]) -> tuple[answers.Json, int]:
        match [unquote(part) for part in path.split("/")[1:]]:
            case ["vms"]:
                return self._list(query), 200
            case ["filters"]:
                rules = [
                    {"rule": rule, "section": section, "says": says, "vms": 1}
                    for rule, section, says in answers.RULES
                ]
                return {"kinds": ["WSL2", "WSLC"], "kernels": ["6.18.26.3-1"], "rules": rules}, 200
            case ["about"]:
                return answers.about(), 200
            case ["vms", vm_id] if vm_id in self.vms:
                return self.vms[vm_id], 200
            case ["vms", vm_id, "metrics"] if vm_id in self.vms:
                return self.metrics, 200
            case ["vms", vm_id, "spans", trace_id, span_id] if vm_id in self.vms:
                return answers.whole_span(trace_id, span_id), 200
        return {"error": {"reason": "NOT_FOUND", "message": "There is none."}}, 404

    def _list(self, query: dict[str, list[str]]) -> answers.Json:
        rows = [answer["vm"] for answer in self.vms.values()]
        rows.sort(key=lambda each: (each["started_ms"], each["vm_id"]), reverse=True)
        counts = {name: sum(each["verdict"] == name for each in rows) for name in VERDICTS}
        for key in ("verdict", "kind"):
            if key in query:
                rows = [each for each in rows if each[key] == query[key][0]]
        if "rule" in query:
            rows = [each for each in rows if query["rule"][0] in each["rules"]]
        first = int(query.get("page", ["0"])[0])
        limit = int(query.get("limit", [str(LIMIT)])[0])
        following = first + limit
        return {
            "vms": rows[first:following],
            "next": str(following) if following < len(rows) else None,
            "counts": counts,
        }

    def _stream(self, request: BaseHTTPRequestHandler) -> None:
        stream: queue.Queue[Any] = queue.Queue()
        if self.greets:
            stream.put(_written("hello", HELLO))
        self._streams.append(stream)
        if self._has_ended:
            stream.put(_END)
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.end_headers()
        try:
            while (text := stream.get()) is not _END:
                request.wfile.write(text.encode())
                request.wfile.flush()
        except OSError:
            pass  # the reader has gone
        finally:
            self._streams.remove(stream)

    def _json(self, request: BaseHTTPRequestHandler, body: answers.Json, status: int) -> None:
        self._send(request, json.dumps(body).encode(), "application/json", status)

    def _send(
        self, request: BaseHTTPRequestHandler, body: bytes, kind: str, status: int = 200
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Content-Security-Policy", POLICY)
        request.end_headers()
        request.wfile.write(body)


def _written(event: str, data: answers.Json) -> str:
    return f"retry: 200\nevent: {event}\ndata: {json.dumps(data)}\n\n"
