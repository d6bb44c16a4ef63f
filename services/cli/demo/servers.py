"""What the guests of the demonstration find in its network: files over HTTP, and a name.

Owns both servers, on addresses of the namespace that this process is in (namespace.py).
"""

from __future__ import annotations

import contextlib
import functools
import socket
import socketserver
import struct
import threading
import urllib.parse
import urllib.request
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST: Final = "192.0.2.1"
"""The address of the network's one interface (RFC 5737)."""

NAME: Final = "files.porthole.test"
"""The name of HOST (RFC 6761)."""

_DNS: Final = ("127.0.0.1", 53)
_HEADER: Final = struct.Struct("!6H")
_ANSWER: Final = struct.Struct("!HHHIH4s")
_AUTHORITATIVE: Final = 0x8400
_REFUSED: Final = 0x8005
_A_IN: Final = struct.pack("!2H", 1, 1)
_LONGEST_QUERY: Final = 512


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base's
        """Log nothing: the demonstration reports the guest's requests."""


class _Server(ThreadingHTTPServer):
    def server_bind(self) -> None:
        """Listen, without asking for the name of the address, as the base does."""
        socketserver.TCPServer.server_bind(self)


@contextlib.contextmanager
def http_server(address: str, directory: Path) -> Iterator[int]:
    """Serve a directory on an address of this namespace; yields the port.

    Raises:
        OSError: No interface has the address.
    """
    handler = functools.partial(_QuietHandler, directory=str(directory))
    with _Server((address, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="demo-http")
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def quote(path: bytes) -> str:
    """Quote the path of a file for a URL."""
    return urllib.parse.quote(path)


def fetch(url: str, timeout_s: float) -> tuple[int, bytes]:
    """Fetch a URL from this namespace; returns the status and the body.

    Raises:
        OSError: It cannot be fetched.
    """
    # The demonstration's own port.
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310
        return answer.status, answer.read()


@contextlib.contextmanager
def name_server() -> Iterator[None]:
    """Answer queries for NAME on the loopback of this namespace; others are refused.

    Raises:
        OSError: The port is taken.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(_DNS)
        thread = threading.Thread(target=_answer, args=(server,), name="demo-dns")
        thread.start()
        try:
            yield
        finally:
            # A datagram of no bytes is no query: it ends the thread.
            server.sendto(b"", _DNS)
            thread.join()


def _answer(server: socket.socket) -> None:
    name = b"".join(bytes([len(label)]) + label.encode() for label in NAME.split(".")) + b"\0"
    while True:
        query, asker = server.recvfrom(_LONGEST_QUERY)
        if not query:
            return
        question = query[_HEADER.size : _HEADER.size + len(name) + len(_A_IN)]
        is_ours = question[: len(name)].lower() == name
        answers = int(is_ours and question.endswith(_A_IN))
        if is_ours:
            reply = query[:2] + _HEADER.pack(0, _AUTHORITATIVE, 1, answers, 0, 0)[2:] + question
        else:
            reply = query[:2] + _HEADER.pack(0, _REFUSED, 0, 0, 0, 0)[2:]
        if answers:
            # The name is that of the question, at offset 12 (RFC 1035, section 4.1.4).
            reply += _ANSWER.pack(0xC00C, 1, 1, 60, 4, socket.inet_aton(HOST))
        server.sendto(reply, asker)
