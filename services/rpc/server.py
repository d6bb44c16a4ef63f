"""The life of a gRPC server: addresses, health, reflection, start, and shutdown in order.

Owns everything between a process's main coroutine and its servicers.

The order of shutdown on SIGTERM or SIGINT: health reports NOT_SERVING; the service's `on_shutdown`
runs while calls are still answered; the server refuses new calls and gives running calls `GRACE_S`
to end; sockets are removed; telemetry is flushed. A second signal, `SAME_SIGNAL_S` later or more,
ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import stat
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from services.handshake.errors import FailedPreconditionError, PortholeError
from services.rpc import run_directory, tracing
from services.rpc.address import (
    Address,
    TcpAddress,
    UnixAddress,
    numeric,
    parse_address,
    require_local,
)
from services.rpc.interceptor import CallInterceptor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from services.rpc.settings import ServiceSettings

logger = logging.getLogger(__name__)

GRACE_S: Final = 2.0
"""Longest time that running calls get to end after the server has begun to stop."""

SAME_SIGNAL_S: Final = 1.0
"""How long a further signal means no more than the first. A service is tied to its parent: when
that is killed, Linux sends the signal anew as each of its threads ends (services/rpc/tether.py)."""

SHUTDOWN_DEADLINE_S: Final = 30.0
"""Longest time that a service's `on_shutdown` gets; then the server stops without it."""

# Time for the failures of cancelled calls to reach their callers.
_ABORT_S: Final = 1.0
_PORT_REFUSED: Final = (
    "another process listens there, or this machine does not allow it; choose another port, or "
    "port 0, for which the kernel chooses a free one"
)
SOCKET_MODE: Final = 0o600
"""Mode of a Unix socket: it is its user's alone."""

_OPTIONS: Final = (
    # With SO_REUSEPORT two services could listen on one TCP port, and each would get some calls.
    ("grpc.so_reuseport", 0),
    # Clients keep idle streams alive (channel.py); the server must not treat that as abuse.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class Servicer(NamedTuple):
    """One service of a server.

    Attributes:
        add_to_server: The generated `add_…Servicer_to_server`.
        instance: The servicer.
        service: Full name, for instance "porthole.vmowner.v1.VmOwner".
    """

    add_to_server: Callable[[Any, Any], None]
    instance: object
    service: str


class ServerHandle:
    """A running server.

    Attributes:
        addresses: The addresses that it listens on, as text; port 0 is replaced by the port it got.
    """

    def __init__(
        self, server: grpc.aio.Server, calls: CallInterceptor, addresses: Sequence[Address]
    ) -> None:
        self._server = server
        self._calls = calls
        self._addresses = tuple(addresses)
        self.addresses = tuple(str(address) for address in addresses)

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Refuse new calls, wait `grace_s` seconds for running ones, and remove the sockets.

        A call that still runs after that fails with UNAVAILABLE, SERVICE_STOPPING.
        """
        refusing = asyncio.create_task(self._server.stop(grace_s + _ABORT_S))
        await self._calls.end_calls(grace_s)
        await refusing
        for address in self._addresses:
            if isinstance(address, UnixAddress):
                address.path.unlink(missing_ok=True)


async def start_server(
    addresses: Sequence[str],
    servicers: Sequence[Servicer],
    *,
    options: Sequence[tuple[str, int]] = (),
    authenticated: bool = False,
) -> ServerHandle:
    """Serve exactly these servicers: with spans and mapped errors, without health and reflection.

    Unix sockets get mode 0600; their directories are made if they do not exist. The socket that a
    dead process left behind is replaced. A TCP port is on loopback, and a warning is logged,
    unless the servicers authenticate their callers.

    Args:
        addresses: See `parse_address`.
        servicers: The services.
        options: Further channel arguments of gRPC.
        authenticated: Whether the servicers authenticate their callers.

    Raises:
        InvalidArgumentError: ADDRESS_SYNTAX, SOCKET_PATH_TOO_LONG or ADDRESS_NOT_LOOPBACK.
        FailedPreconditionError: ADDRESS_IN_USE when another process listens there, or the path is
            not a socket; ADDRESS_UNUSABLE when the kernel refuses.
    """
    calls = CallInterceptor()
    server = grpc.aio.server(interceptors=[calls], options=(*_OPTIONS, *options))
    for add_to_server, instance, _ in servicers:
        add_to_server(instance, server)
    bound: list[Address] = []
    try:
        for text in addresses:
            bound.append(_bind(server, parse_address(text), authenticated=authenticated))
        if len(bound) == 1:
            calls.listens_on = bound[0]
        await server.start()
    except BaseException:
        await ServerHandle(server, calls, bound).stop(0)
        raise
    return ServerHandle(server, calls, bound)


async def start_described_server(
    addresses: Sequence[str], servicers: Sequence[Servicer]
) -> tuple[ServerHandle, health.aio.HealthServicer]:
    """Serve these servicers, reflection, and health, which reports SERVING for each of them.

    Raises:
        PortholeError: See start_server.
    """
    checker = health.aio.HealthServicer()
    names = [servicer.service for servicer in servicers]
    for service in names:
        await checker.set(service, health_pb2.HealthCheckResponse.SERVING)
    handle = await start_server(addresses, [*servicers, _health(checker), _reflection(names)])
    return handle, checker


async def serve(
    settings: ServiceSettings,
    *,
    name: str,
    servicers: Sequence[Servicer],
    on_shutdown: Callable[[], Awaitable[None]],
    ready_line: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT, then shut down in the order of this module's docstring.

    It sets telemetry up unless its caller has done so, and always shuts it down. A run directory
    that is not the user's alone is refused before anything is put there.

    Args:
        settings: The addresses to listen on, and where telemetry is exported.
        name: Name of the service in the ready line and in its traces.
        servicers: The services, without health and reflection.
        on_shutdown: Releases what the service owns. Calls are answered while it runs.
        ready_line: Whether to print `porthole <name> ready on <addresses>` to stdout.

    Raises:
        SystemExit: 1, with one line on stderr, when the service cannot listen.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def let_signals_end_this() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def stop() -> None:
        if not stopping.is_set():
            loop.call_later(SAME_SIGNAL_S, let_signals_end_this)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        tracing.setup(name, settings)
        if settings.uses_run_dir:
            run_directory.claim(settings.run_dir.absolute())
        handle, checker = await start_described_server(settings.addresses, servicers)
        if ready_line:
            print(f"porthole {name} ready on {', '.join(handle.addresses)}", flush=True)
        await stopping.wait()
        logger.info("shutting down")
        await checker.enter_graceful_shutdown()
        await _run_bounded(on_shutdown)
        await handle.stop()
    except (PortholeError, OSError) as error:
        raise SystemExit(f"porthole {name}: {error}") from None
    finally:
        tracing.shutdown()


async def _run_bounded(on_shutdown: Callable[[], Awaitable[None]]) -> None:
    # Even if `on_shutdown` fails, the server must stop and telemetry must be flushed.
    try:
        async with asyncio.timeout(SHUTDOWN_DEADLINE_S):
            await on_shutdown()
    except TimeoutError:
        logger.error("shutdown was not done after %g s; stopping without it", SHUTDOWN_DEADLINE_S)
    except Exception:
        logger.exception("shutdown failed; stopping nevertheless")


def _health(checker: health.aio.HealthServicer) -> Servicer:
    return Servicer(health_pb2_grpc.add_HealthServicer_to_server, checker, health.SERVICE_NAME)


def _reflection(services: Sequence[str]) -> Servicer:
    names = [*services, health.SERVICE_NAME, reflection.SERVICE_NAME]
    return Servicer(
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server,
        reflection.aio.ReflectionServicer(service_names=names),
        reflection.SERVICE_NAME,
    )


def _bind(server: grpc.aio.Server, address: Address, *, authenticated: bool) -> Address:
    if not authenticated:
        require_local(address)
    address = numeric(address)
    if isinstance(address, UnixAddress):
        prepare_socket_path(address.path)
    try:
        port = server.add_insecure_port(str(address))
    except RuntimeError as error:
        # For a port gRPC says no more than that it failed.
        why = error if isinstance(address, UnixAddress) else _PORT_REFUSED
        raise FailedPreconditionError(
            "ADDRESS_UNUSABLE", f"cannot listen on {address}: {why}", address=str(address)
        ) from None
    if isinstance(address, UnixAddress):
        address.path.chmod(SOCKET_MODE)
        return address
    bound = TcpAddress(address.host, port)
    if not authenticated:
        logger.warning(
            "%s has no authentication yet: every user and program of this machine can call it; "
            "a Unix socket is its user's alone",
            bound,
        )
    return bound


def prepare_socket_path(path: Path) -> None:
    """Make the directory of a Unix socket, and remove the socket that a dead process left there.

    gRPC, and others, would unlink the socket even of a live service.

    Raises:
        FailedPreconditionError: ADDRESS_IN_USE.
    """
    path.parent.mkdir(mode=run_directory.MODE, parents=True, exist_ok=True)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _in_use(path, "it is not a socket; move it away")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
        except BlockingIOError:  # its backlog is full, so a process listens
            pass
    raise _in_use(path, "a service listens there; stop it, or choose another run directory")


def _in_use(path: Path, why: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        "ADDRESS_IN_USE", f"cannot listen on unix:{path}: {why}", path=str(path)
    )
