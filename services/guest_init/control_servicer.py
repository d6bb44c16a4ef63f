"""GuestControl over gRPC, for a guest whose process 1 is mini_init.

Owns the edge: which requests are allowed, and how a call of Run becomes a command.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from porthole.guest.v1 import guest_control_pb2, guest_control_pb2_grpc, mini_init_pb2

from services.handshake.errors import InvalidArgumentError, PortholeError
from services.rpc import tracing
from services.rpc.server import Servicer
from services.rpc.version import service_version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    import grpc

    from services.guest_init.channel.mini_init import MiniInit
    from services.guest_init.channel.run import Run

    Context = grpc.aio.ServicerContext[Any, Any]

GUEST_CONTROL: Final = "porthole.guest.v1.GuestControl"

_WAIT_LIMIT_MS: Final = 60_000
_SIGNAL_LIMIT: Final = 64
_SIDE_LIMIT: Final = 65_535


class GuestControlServicer(guest_control_pb2_grpc.GuestControlServicer):
    """Serves porthole.guest.v1.GuestControl for one guest.

    Args:
        mini_init: The guest's process 1.
        traceparent: W3C context of the VM, empty if there is none.
    """

    def __init__(self, mini_init: MiniInit, traceparent: str) -> None:
        self._mini_init = mini_init
        self._traceparent = traceparent

    async def GetVersion(  # noqa: N802
        self, request: guest_control_pb2.GuestControlGetVersionRequest, context: Context
    ) -> guest_control_pb2.GuestControlGetVersionResponse:
        """Announce API versions."""
        version = service_version(GUEST_CONTROL)
        return guest_control_pb2.GuestControlGetVersionResponse(version=version)

    async def Mount(  # noqa: N802
        self, request: guest_control_pb2.MountRequest, context: Context
    ) -> guest_control_pb2.MountResponse:
        """Mount a file system."""
        _check_wait(request.wait_ms)
        _check_paths(target=request.target)
        for directory in request.directories:
            _check_paths(directories=directory)
        _check_bytes(source=[request.source], options=[request.options])
        message = mini_init_pb2.ToMiniInit(mount=request)
        await self._carry_out("Mount", message, request.wait_ms)
        return guest_control_pb2.MountResponse()

    async def Unmount(  # noqa: N802
        self, request: guest_control_pb2.UnmountRequest, context: Context
    ) -> guest_control_pb2.UnmountResponse:
        """Unmount a file system."""
        _check_paths(target=request.target)
        await self._carry_out("Unmount", mini_init_pb2.ToMiniInit(unmount=request))
        return guest_control_pb2.UnmountResponse()

    async def ConfigureAdapter(  # noqa: N802
        self, request: guest_control_pb2.ConfigureAdapterRequest, context: Context
    ) -> guest_control_pb2.ConfigureAdapterResponse:
        """Configure an adapter."""
        _check_wait(request.wait_ms)
        message = mini_init_pb2.ToMiniInit(configure_adapter=request)
        await self._carry_out("ConfigureAdapter", message, request.wait_ms)
        return guest_control_pb2.ConfigureAdapterResponse()

    async def EnterRoot(  # noqa: N802
        self, request: guest_control_pb2.EnterRootRequest, context: Context
    ) -> guest_control_pb2.EnterRootResponse:
        """Enter a root."""
        _check_paths(path=request.path)
        await self._carry_out("EnterRoot", mini_init_pb2.ToMiniInit(enter_root=request))
        return guest_control_pb2.EnterRootResponse()

    async def Run(  # noqa: N802
        self, request_iterator: AsyncIterator[guest_control_pb2.RunRequest], context: Context
    ) -> AsyncIterator[guest_control_pb2.RunResponse]:
        """Run a command."""
        run = await self._mini_init.run(await _command(request_iterator))
        feeding = asyncio.create_task(_feed(run, request_iterator))
        try:
            yield guest_control_pb2.RunResponse(started=guest_control_pb2.Started())
            async with contextlib.aclosing(run.responses()) as responses:
                async for response in responses:
                    yield response
        finally:
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeding
            await self._mini_init.give_up(run)

    async def PowerOff(  # noqa: N802
        self, request: guest_control_pb2.PowerOffRequest, context: Context
    ) -> guest_control_pb2.PowerOffResponse:
        """End the guest."""
        await self._carry_out("PowerOff", mini_init_pb2.ToMiniInit(power_off=request))
        return guest_control_pb2.PowerOffResponse()

    async def _carry_out(
        self, name: str, message: mini_init_pb2.ToMiniInit, wait_ms: int = 0
    ) -> None:
        with tracing.operation(name, vm_traceparent=self._traceparent):
            await self._mini_init.request(message, wait_ms / 1000)


async def _command(
    requests: AsyncIterator[guest_control_pb2.RunRequest],
) -> guest_control_pb2.Command:
    request = await anext(aiter(requests), guest_control_pb2.RunRequest())
    if request.WhichOneof("request") != "command":
        raise _wrong_field("request", "the first request of Run must have the command")
    command = request.command
    if not command.arguments:
        raise _wrong_field("arguments", "a command needs at least one argument, its program")
    _check_bytes(arguments=command.arguments, environment=command.environment)
    if command.working_directory:
        _check_paths(working_directory=command.working_directory)
    _check_window(command.terminal)
    return command


async def _feed(run: Run, requests: AsyncIterator[guest_control_pb2.RunRequest]) -> None:
    try:
        async for request in requests:
            await _give(run, request)
        await run.end_input()
    except PortholeError as error:
        run.fail(error)


async def _give(run: Run, request: guest_control_pb2.RunRequest) -> None:
    match request.WhichOneof("request"):
        case "standard_input":
            await run.write(request.standard_input)
        case "end_of_input":
            await run.end_input()
        case "window":
            _check_window(request.window)
            await run.resize(request.window)
        case "signal":
            if not 1 <= request.signal <= _SIGNAL_LIMIT:
                raise _wrong_field(
                    "signal", f"signal {request.signal}; it must be 1 to {_SIGNAL_LIMIT}"
                )
            await run.signal(request.signal)
        case "standard_output_closed":
            await run.close_output("standard_output")
        case "standard_error_closed":
            await run.close_output("standard_error")
        case _:
            raise _wrong_field("request", "the command is in the first request of Run only")


def _check_wait(wait_ms: int) -> None:
    if wait_ms > _WAIT_LIMIT_MS:
        raise _wrong_field("wait_ms", f"a wait of {wait_ms} ms; at most {_WAIT_LIMIT_MS} ms")


def _check_paths(**paths: bytes) -> None:
    for field, path in paths.items():
        if not path.startswith(b"/"):
            raise _wrong_field(field, f"{field} {path!r} is not an absolute path")
        _check_bytes(**{field: [path]})


def _check_bytes(**texts: Iterable[bytes]) -> None:
    for field, values in texts.items():
        for text in values:
            if b"\0" in text:
                raise _wrong_field(field, f"{field} {text[:80]!r} has a byte 0")


def _check_window(window: guest_control_pb2.WindowSize) -> None:
    for field, count in (("rows", window.rows), ("columns", window.columns)):
        if count > _SIDE_LIMIT:
            raise _wrong_field(field, f"{count} {field}; at most {_SIDE_LIMIT}")


def _wrong_field(field: str, message: str) -> InvalidArgumentError:
    return InvalidArgumentError("GUEST_REQUEST_FIELD", message, field=field)


def control_servicer(mini_init: MiniInit, traceparent: str) -> Servicer:
    """Make the service of one guest; see GuestControlServicer."""
    add = guest_control_pb2_grpc.add_GuestControlServicer_to_server
    return Servicer(add, GuestControlServicer(mini_init, traceparent), GUEST_CONTROL)
