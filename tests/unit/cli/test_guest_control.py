"""The client of a Linux guest's init, against guest init's own service; a test plays the guest."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from porthole.guest.v1 import guest_control_pb2, mini_init_pb2

from services.cli.guest_control import (
    INPUT_WINDOW_BYTES,
    Ended,
    GuestClient,
    Output,
    errno_of,
    guest_control,
)
from services.cli.requests import GuestCommand, GuestMount, WindowSize
from services.guest_init.channel.mini_init import MiniInit
from services.guest_init.channel.run import WINDOW_BYTES
from services.guest_init.control_servicer import control_servicer
from services.handshake.errors import FailedPreconditionError, UnavailableError
from services.rpc.server import start_server
from tests.support.fake_mini_init import done, ended, failure, fake_mini_init, hello, output

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.fake_mini_init import FakeMiniInit

LIMIT_S = 20
COMMAND = GuestCommand(("sh", "-c", "caf\udce9"), {"PATH": "/bin"}, "/work", 1000, 100, (4, 24))


def starts(message: mini_init_pb2.ToMiniInit) -> list[mini_init_pb2.FromMiniInit]:
    """Greet back, and start what is asked for; the test says what a command does."""
    match message.WhichOneof("message"):
        case "greeting":
            return [hello(message.request_id)]
        case "input" | "credit":
            return []
        case _:
            return [done(message.request_id)]


@asynccontextmanager
async def connected(run_dir: Path) -> AsyncIterator[tuple[FakeMiniInit, GuestClient]]:
    address = f"unix:{run_dir}/guest-init.sock"
    async with fake_mini_init(run_dir / "channel.sock") as guest:
        guest.answer = starts
        mini_init = MiniInit(run_dir / "channel.sock")
        mini_init.start()
        server = await start_server([address], [control_servicer(mini_init, "")])
        try:
            async with asyncio.timeout(LIMIT_S), guest_control(address, LIMIT_S) as client:
                yield guest, client
        finally:
            await server.stop(0)
            await mini_init.close()


async def test_requests_reach_the_guest(run_dir: Path) -> None:
    async with connected(run_dir) as (guest, client):
        await client.mount(
            GuestMount("overlay", "root", "/new", True, "lowerdir=/mnt/root", ("/a/b",))
        )
        mount = (await guest.next("mount")).mount
        assert mount == guest_control_pb2.MountRequest(
            fs_type="overlay",
            source=b"root",
            target=b"/new",
            read_only=True,
            options=b"lowerdir=/mnt/root",
            directories=[b"/a/b"],
        )
        await client.enter_root("/new")
        assert (await guest.next("enter_root")).enter_root.path == b"/new"
        await client.power_off(LIMIT_S)
        await guest.next("power_off")


async def test_a_command_has_its_arguments_user_and_streams(run_dir: Path) -> None:
    async with connected(run_dir) as (guest, client):
        running = await client.run(COMMAND)
        started = await guest.next("run")
        assert started.run == guest_control_pb2.Command(
            arguments=[b"sh", b"-c", b"caf\xe9"],
            environment=[b"PATH=/bin"],
            working_directory=b"/work",
            uid=1000,
            gid=100,
            groups=[4, 24],
        )
        run_id = started.request_id
        await running.write(b"typed")
        assert (await guest.next("input")).input.standard_input == b"typed"
        await running.signal(signal.SIGUSR1)
        assert (await guest.next("input")).input.signal == signal.SIGUSR1
        await running.end_input()
        assert (await guest.next("input")).input.HasField("end_of_input")
        await running.signal(signal.SIGTERM)  # the end of input is not the end of signals
        assert (await guest.next("input")).input.signal == signal.SIGTERM
        error = mini_init_pb2.RunOutput(run_id=run_id, standard_error=b"err")
        guest.say(
            output(run_id, b"out"), mini_init_pb2.FromMiniInit(output=error), ended(run_id, 7)
        )
        said = [item async for item in running.said()]
        assert said == [Output(b"out"), Output(b"err", error=True), Ended(exit_code=7)]
        await running.signal(signal.SIGTERM)  # it is over, and that is no error


@pytest.mark.parametrize("error", [False, True])
async def test_an_output_that_nobody_reads_is_closed(run_dir: Path, error: bool) -> None:
    async with connected(run_dir) as (guest, client):
        running = await client.run(COMMAND)
        await running.close_output(error=error)
        closed = (await guest.next("input")).input
        assert closed.HasField("standard_error_closed") is error
        assert closed.HasField("standard_output_closed") is not error


async def test_a_terminal_has_its_size(run_dir: Path) -> None:
    async with connected(run_dir) as (guest, client):
        running = await client.run(GuestCommand(("sh",), {}, terminal=WindowSize(24, 80)))
        terminal = (await guest.next("run")).run.terminal
        assert (terminal.rows, terminal.columns) == (24, 80)
        await running.resize(WindowSize(50, 132))
        window = (await guest.next("input")).input.window
        assert (window.rows, window.columns) == (50, 132)


async def test_a_program_that_is_not_there_is_named_by_errno(run_dir: Path) -> None:
    async with connected(run_dir) as (guest, client):
        guest.answer = lambda message: (
            [failure(message.request_id, 2, "the program: No such file or directory")]
            if message.HasField("run")
            else starts(message)
        )
        with pytest.raises(FailedPreconditionError, match="the program") as refused:
            await client.run(COMMAND)
        assert errno_of(refused.value) == "ENOENT"


async def test_a_lost_guest_fails_the_command_and_later_input_does_not(run_dir: Path) -> None:
    async with connected(run_dir) as (guest, client):
        running = await client.run(COMMAND)
        guest.hang_up()
        with pytest.raises(UnavailableError) as lost:
            [item async for item in running.said()]
        assert lost.value.reason == "GUEST_UNREACHABLE"
        await running.write(b"too late")


async def test_a_command_that_is_killed_is_killed_in_the_guest(run_dir: Path) -> None:
    async with connected(run_dir) as (guest, client):
        running = await client.run(COMMAND)
        running.kill()
        while (await guest.next("input")).input.signal != signal.SIGKILL:
            pass


def input_credit(run_id: int, count: int) -> mini_init_pb2.FromMiniInit:
    credit = mini_init_pb2.InputCredit(run_id=run_id, bytes=count)
    return mini_init_pb2.FromMiniInit(credit=credit)


async def test_input_waits_for_room_in_the_guest_and_signals_do_not(run_dir: Path) -> None:
    assert INPUT_WINDOW_BYTES == WINDOW_BYTES
    sent = bytes(range(256)) * 4096
    async with connected(run_dir) as (guest, client):
        running = await client.run(COMMAND)
        run_id = (await guest.next("run")).request_id

        async def send() -> None:
            await running.write(sent)
            await running.end_input()

        async def listen() -> list[Output | Ended]:
            return [item async for item in running.said()]

        sending, listening = asyncio.create_task(send()), asyncio.create_task(listen())
        got = b""
        while len(got) < WINDOW_BYTES:
            got += (await guest.next("input")).input.standard_input
        await asyncio.sleep(0.2)
        assert guest.received.empty()
        assert not sending.done()
        await running.signal(signal.SIGINT)
        assert (await guest.next("input")).input.signal == signal.SIGINT
        guest.say(input_credit(run_id, WINDOW_BYTES))
        while len(got) < len(sent):
            piece = (await guest.next("input")).input.standard_input
            guest.say(input_credit(run_id, len(piece)))
            got += piece
        assert got == sent
        await sending
        assert (await guest.next("input")).input.HasField("end_of_input")
        guest.say(ended(run_id, 0))
        assert await listening == [Ended()]
