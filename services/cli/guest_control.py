"""The client of a Linux guest's init, over gRPC: mounts, the root, commands, and the end.

Owns the translation between protobuf and the values of cli, and the calls of Run. Must not know
terminals or files.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
from porthole.guest.v1 import guest_control_pb2, guest_control_pb2_grpc

from services.cli.requests import GuestCommand, GuestMount, WindowSize
from services.handshake.errors import DeadlineExceededError, PortholeError, UnavailableError
from services.rpc.channel import connect
from services.rpc.status import error_from_rpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.cli.views import VmView

GUEST_CONTROL: Final = "porthole.guest.v1.GuestControl"

INPUT_WINDOW_BYTES: Final = 262_144
"""Most bytes of input that are under way. The guest takes as many that a command has not read, so
that what is sent after them is not held up by them."""

_PIECE_BYTES: Final = 32_768

CALL_DEADLINE_S: Final = 40.0
"""Longest that a mount and the like takes; longer than guest init gives the guest."""


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that a command wrote.

    Attributes:
        error: Whether it is its standard error.
    """

    data: bytes
    error: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a command: its exit code, or the number of the signal that ended it."""

    exit_code: int = 0
    signal: int = 0


class RunningCommand:
    """A command that runs in the guest, from `GuestClient.run`."""

    def __init__(self, call: grpc.aio.StreamStreamCall[Any, Any], peer: str) -> None:
        self._call = call
        self._peer = peer
        self._sending = asyncio.Lock()
        self._input_under_way = 0
        self._input_taken = asyncio.Event()

    async def write(self, data: bytes) -> None:
        """Send input; waits until there is room for it, which `said` notices."""
        for place in range(0, len(data), _PIECE_BYTES):
            piece = data[place : place + _PIECE_BYTES]
            while self._input_under_way + len(piece) > INPUT_WINDOW_BYTES:
                self._input_taken.clear()
                await self._input_taken.wait()
            self._input_under_way += len(piece)
            await self._send(guest_control_pb2.RunRequest(standard_input=piece))

    async def end_input(self) -> None:
        """Say that there is no further input."""
        end = guest_control_pb2.EndOfInput()
        await self._send(guest_control_pb2.RunRequest(end_of_input=end))

    async def resize(self, window: WindowSize) -> None:
        """Change the size of its terminal."""
        await self._send(guest_control_pb2.RunRequest(window=_window(window)))

    async def signal(self, number: int) -> None:
        """Send a signal to its process group."""
        await self._send(guest_control_pb2.RunRequest(signal=number))

    async def close_output(self, *, error: bool) -> None:
        """Say that nobody reads its output any more, or its standard error."""
        closed = guest_control_pb2.OutputClosed()
        if error:
            await self._send(guest_control_pb2.RunRequest(standard_error_closed=closed))
        else:
            await self._send(guest_control_pb2.RunRequest(standard_output_closed=closed))

    async def said(self) -> AsyncIterator[Output | Ended]:
        """Yield what it writes, and at last its end.

        Raises:
            PortholeError: The guest, or its init, is gone.
        """
        while True:
            answer = await self._read()
            match answer.WhichOneof("response"):
                case "standard_output":
                    yield Output(answer.standard_output)
                case "standard_error":
                    yield Output(answer.standard_error, error=True)
                case "input_taken":
                    self._input_under_way -= answer.input_taken
                    self._input_taken.set()
                case "ended":
                    yield Ended(answer.ended.exit_code, answer.ended.signal)
                    return
                case _:  # of a newer guest init
                    continue

    def kill(self) -> None:
        """End it, and drop what it says from now on."""
        self._call.cancel()

    async def started(self) -> None:
        """Wait until it runs.

        Raises:
            FailedPreconditionError: GUEST_REQUEST_REFUSED, with the errno.
            PortholeError: The guest cannot be reached, or does not answer.
        """
        await self._read()

    async def start(self, command: guest_control_pb2.Command) -> None:
        """Send the command itself, which is the first request."""
        await self._send(guest_control_pb2.RunRequest(command=command))

    async def _send(self, request: guest_control_pb2.RunRequest) -> None:
        # gRPC allows one message on its way at a time. A call that has ended tells its reader why.
        async with self._sending:
            try:
                await self._call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return

    async def _read(self) -> guest_control_pb2.RunResponse:
        try:
            answer: Any = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self._peer) from None
        if answer is grpc.aio.EOF:
            raise UnavailableError(
                "GUEST_UNREACHABLE", f"{self._peer} ended the call before the command's end"
            )
        response: guest_control_pb2.RunResponse = answer
        return response


class GuestClient:
    """A connected init of a guest. A method raises the PortholeError that it answered."""

    def __init__(self, stub: guest_control_pb2_grpc.GuestControlAsyncStub, address: str) -> None:
        self._stub = stub
        self._peer = f"{GUEST_CONTROL} at {address}"

    async def mount(self, mount: GuestMount) -> None:
        """Mount a file system."""
        request = guest_control_pb2.MountRequest(
            fs_type=mount.fs_type,
            source=os.fsencode(mount.source),
            target=os.fsencode(mount.target),
            read_only=mount.read_only,
            options=os.fsencode(mount.options),
            directories=[os.fsencode(path) for path in mount.directories],
        )
        await self._stub.Mount(request, timeout=CALL_DEADLINE_S)

    async def enter_root(self, path: str) -> None:
        """Make a mounted tree the root."""
        request = guest_control_pb2.EnterRootRequest(path=os.fsencode(path))
        await self._stub.EnterRoot(request, timeout=CALL_DEADLINE_S)

    async def power_off(self, deadline_s: float) -> None:
        """Begin the end of the guest, in which it writes everything back."""
        await self._stub.PowerOff(guest_control_pb2.PowerOffRequest(), timeout=deadline_s)

    async def run(self, command: GuestCommand) -> RunningCommand:
        """Run a command; it runs when this returns.

        Raises:
            FailedPreconditionError: GUEST_REQUEST_REFUSED, with the errno.
            InvalidArgumentError: GUEST_REQUEST_FIELD: it is too long, or has a byte 0.
            PortholeError: The guest cannot be reached, or does not answer.
        """
        message = guest_control_pb2.Command(
            arguments=[os.fsencode(word) for word in command.arguments],
            environment=[
                os.fsencode(f"{name}={value}") for name, value in command.environment.items()
            ],
            working_directory=os.fsencode(command.directory),
            uid=command.uid,
            gid=command.gid,
            groups=command.groups,
        )
        if command.terminal is not None:
            message.terminal.CopyFrom(_window(command.terminal))
        running = RunningCommand(self._stub.Run(), self._peer)
        try:
            await running.start(message)
            await running.started()
        except BaseException:
            running.kill()
            raise
        return running


@asynccontextmanager
async def guest_control(address: str, wait_s: float) -> AsyncIterator[GuestClient]:
    """Connect to the init of a guest.

    Raises:
        UnavailableError: PEER_UNAVAILABLE after `wait_s` seconds.
        FailedPreconditionError: API_VERSION_MISMATCH.
    """
    stub = guest_control_pb2_grpc.GuestControlStub
    peer = await connect(address, stub, GUEST_CONTROL, wait_s=wait_s)
    try:
        yield GuestClient(peer.stub, address)
    finally:
        await peer.close()


def require_init(vm: VmView) -> None:
    """Refuse to work in a Linux guest whose init did not speak when it booted.

    Raises:
        DeadlineExceededError: GUEST_INIT_SILENT, with the warning of its owner.
    """
    for warning in vm.warnings:
        if warning.id == "GuestInitSilent":
            raise DeadlineExceededError("GUEST_INIT_SILENT", warning.text, vm_id=vm.vm_id)


def errno_of(error: PortholeError) -> str:
    """Return the name of the errno with which the guest's kernel refused; empty: it did not."""
    return error.metadata.get("errno", "") if error.reason == "GUEST_REQUEST_REFUSED" else ""


def _window(size: WindowSize) -> guest_control_pb2.WindowSize:
    return guest_control_pb2.WindowSize(rows=size.rows, columns=size.columns)
