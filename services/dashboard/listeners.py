"""The listeners over HTTP: sockets, and a server of uvicorn for each application.

Owns how an address becomes a socket, and the bounds of connections. Must not know what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from services.handshake.errors import FailedPreconditionError
from services.rpc.address import TcpAddress, UnixAddress, numeric, parse_address
from services.rpc.server import SOCKET_MODE, prepare_socket_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from starlette.types import ASGIApp

    from services.rpc.address import Address

CONNECTIONS: Final = 128
"""Most connections of an application; a request on a further one is answered with 503."""

BACKLOG: Final = 128
KEEP_ALIVE_S: Final = 15

REQUEST_S: Final = 30.0
"""A connection on which no request comes whole for this long is closed, at the latest after twice
this time."""

GRACE_S: Final = 2
"""Longest time that running requests get to end."""

HEADER_LIMIT_BYTES: Final = 16 << 10


class _Protocol(H11Protocol):
    """A connection that is closed when no request comes: uvicorn waits for the first for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look_after(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        super().connection_lost(exc)

    def _look_after(self, before: RequestResponseCycle | None) -> None:
        self._look = self.loop.call_later(REQUEST_S, self._close_if_idle, before)

    def _close_if_idle(self, before: RequestResponseCycle | None) -> None:
        waits = self.cycle is None or self.cycle.response_complete
        if waits and self.cycle is before:
            self.transport.close()
        else:
            self._look_after(self.cycle)


class _Server(uvicorn.Server):
    """A server that leaves signals to this process's main coroutine, and says when it serves."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serving.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class WebListener:
    """One application at one or several addresses.

    Attributes:
        addresses: The addresses, as text; port 0 is replaced by the port that it got.
    """

    def __init__(self, app: ASGIApp, addresses: Sequence[str]) -> None:
        self._sockets: list[socket.socket] = []
        self._paths: list[UnixAddress] = []
        bound = []
        try:
            for text in addresses:
                bound.append(self._bind(numeric(parse_address(text))))
        except BaseException:
            self._close_sockets()
            raise
        self.addresses = tuple(bound)
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=CONNECTIONS,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
                h11_max_incomplete_event_size=HEADER_LIMIT_BYTES,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to serve."""
        self._task = asyncio.create_task(self._server.serve(self._sockets))
        serving = asyncio.create_task(self._server.serving.wait())
        await asyncio.wait((self._task, serving), return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        if self._task.done():
            await self._task

    async def stop(self) -> None:
        """Refuse new requests, wait GRACE_S for running ones, and remove the sockets."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._close_sockets()

    def _bind(self, address: Address) -> str:
        """Bind and return an address as text.

        Raises:
            FailedPreconditionError: ADDRESS_IN_USE, ADDRESS_UNUSABLE.
        """
        try:
            if isinstance(address, UnixAddress):
                prepare_socket_path(address.path)
                self._listen(socket.AF_UNIX, str(address.path))
                self._paths.append(address)
                address.path.chmod(SOCKET_MODE)
                return str(address)
            host = address.host.strip("[]")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = self._listen(family, (host, address.port))
        except OSError as error:
            raise FailedPreconditionError(
                "ADDRESS_UNUSABLE",
                f"cannot listen on {address}: {error.strerror or error}; choose another port, or "
                "port 0, for which the kernel chooses a free one",
                address=str(address),
            ) from None
        return str(TcpAddress(address.host, listener.getsockname()[1]))

    def _listen(self, family: socket.AddressFamily, where: str | tuple[str, int]) -> socket.socket:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._sockets.append(listener)
        if family is not socket.AF_UNIX:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind(where)
        listener.listen(BACKLOG)
        return listener

    def _close_sockets(self) -> None:
        for listener in self._sockets:
            listener.close()
        for address in self._paths:
            address.path.unlink(missing_ok=True)
        self._paths.clear()
