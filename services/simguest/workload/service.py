"""A small HTTP service of the guest, for whom comes from outside.

Owns its listening socket and its threads. It listens in the network namespace of the thread that
makes it, and any thread may serve from there. Must not know virtio.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from services.handshake.errors import FailedPreconditionError, InvalidArgumentError

MAX_BODY_BYTES: Final = 1 << 20

_SILENCE_S: Final = 10.0
"""Longest time that a client may take for its request."""


class HttpService:
    """Answers every GET with the same body, until `close`.

    Attributes:
        port: The TCP port on which it listens.
    """

    def __init__(self, address: str, port: int, body: bytes) -> None:
        """Listen.

        Args:
            address: Of the guest; empty: every IPv4 address.
            port: 0 to 65535; 0: a free one.
            body: At most MAX_BODY_BYTES.

        Raises:
            InvalidArgumentError: SERVE_BODY.
            FailedPreconditionError: SERVE_FAILED.
        """
        if len(body) > MAX_BODY_BYTES:
            raise InvalidArgumentError(
                "SERVE_BODY",
                f"a body of {len(body)} bytes is too long; serve {MAX_BODY_BYTES} bytes at most",
                length=len(body),
                bound=MAX_BODY_BYTES,
            )

        class Handler(BaseHTTPRequestHandler):
            timeout = _SILENCE_S

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Log nothing: who asked knows it."""

        class Listener(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
            daemon_threads = True

            def server_bind(self) -> None:
                # Without asking for the name of the address, as the base does.
                socketserver.TCPServer.server_bind(self)

        try:
            self._server = Listener((address, port), Handler)
        except (OSError, OverflowError) as error:
            raise FailedPreconditionError(
                "SERVE_FAILED",
                f"the guest cannot listen on port {port} of {address or 'every address'}: {error}; "
                "take another port, or 0 for a free one, and an address of the guest",
                port=port,
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="guest-http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; may be called once."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
