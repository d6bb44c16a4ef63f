"""Servers over HTTP: on loopback, answering as they were told, or of a directory."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.simguest.net.namespace import NetworkNamespace


@dataclass
class Answer:
    """An answer: what is sent of the body, and how long it is said to be."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    then_wait: threading.Event | None = None


@dataclass
class Server:
    """A running server.

    Attributes:
        answers: The answer to each path, with its query; others get 404.
        asked: Path and headers of each request.
    """

    url: str
    port: int
    answers: dict[str, Answer]
    asked: list[tuple[str, dict[str, str]]]


@contextmanager
def serving(answers: dict[str, Answer], address: str = "127.0.0.1") -> Iterator[Server]:
    asked: list[tuple[str, dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, dict(self.headers.items())))
            answer = answers.get(self.path, Answer(b"trace not found\n", 404))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            length = len(answer.body) if answer.length is None else answer.length
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(answer.body)
            self.wfile.flush()
            if answer.then_wait is not None:
                answer.then_wait.wait(30)

        def log_message(self, *_: object) -> None:
            pass

    class Listener(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    server = Listener((address, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        host = f"[{address}]" if ":" in address else address
        yield Server(f"http://{host}:{server.server_port}", server.server_port, answers, asked)
    finally:
        for answer in answers.values():
            if answer.then_wait is not None:
                answer.then_wait.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serving_directory(
    namespace: NetworkNamespace, address: str, port: int, directory: Path
) -> Iterator[None]:
    """Serve the files of a directory inside a network namespace."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Handler, directory=str(directory))
    server = namespace.run(lambda: ThreadingHTTPServer((address, port), handler))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
