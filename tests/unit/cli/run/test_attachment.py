"""A command in the guest, attached to this process's streams, terminal and signals."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from typing import TYPE_CHECKING

import pytest

from services.cli.guest_control import Ended, Output
from services.cli.requests import WindowSize
from services.cli.run import attachment as module
from services.cli.run.attachment import Attachment
from services.cli.run.terminal import Terminal
from services.handshake.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

LIMIT_S = 10
SHORT_S = 0.1


class FakeCommand:
    """A command that a test plays."""

    def __init__(self) -> None:
        self.saying: asyncio.Queue[Output | Ended | UnavailableError] = asyncio.Queue()
        self.input = b""
        self.got: list[object] = []
        self.changed = asyncio.Event()
        self.takes_input = asyncio.Event()
        self.takes_input.set()
        self.killed = False

    def _note(self, what: object) -> None:
        self.got.append(what)
        self.changed.set()

    async def until(self, what: object) -> None:
        async with asyncio.timeout(LIMIT_S):
            while what not in self.got:
                self.changed.clear()
                await self.changed.wait()

    async def write(self, data: bytes) -> None:
        await self.takes_input.wait()
        self.input += data
        self._note("input")

    async def end_input(self) -> None:
        self._note("end of input")

    async def resize(self, window: WindowSize) -> None:
        self._note(window)

    async def signal(self, number: int) -> None:
        await self.takes_input.wait()
        self._note(signal.Signals(number))

    async def close_output(self, *, error: bool) -> None:
        self._note(("closed", error))

    async def said(self) -> AsyncIterator[Output | Ended]:
        while True:
            item = await self.saying.get()
            if isinstance(item, UnavailableError):
                raise item
            yield item

    def kill(self) -> None:
        self.killed = True


class Pipes:
    """The standard streams of the attachment, as pipes: what a caller has is `theirs`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.input = os.pipe()
        self.output = os.pipe()
        self.error = os.pipe()
        monkeypatch.setattr(module, "_STDIN", self.input[0])
        monkeypatch.setattr(module, "_STDOUT", self.output[1])
        monkeypatch.setattr(module, "_STDERR", self.error[1])

    def close(self) -> None:
        for fd in (*self.input, *self.output, *self.error):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def pipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipes]:
    made = Pipes(monkeypatch)
    yield made
    made.close()


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", SHORT_S)


async def test_streams_stay_apart_and_the_code_is_the_commands(pipes: Pipes) -> None:
    command = FakeCommand()
    for said in (Output(b"out"), Output(b"err", error=True), Output(b"put"), Ended(exit_code=7)):
        command.saying.put_nowait(said)
    assert await asyncio.wait_for(Attachment(command, None).run(), LIMIT_S) == 7
    assert os.read(pipes.output[0], 100) == b"output"
    assert os.read(pipes.error[0], 100) == b"err"


async def test_a_signal_that_ended_it_is_128_and_more(pipes: Pipes) -> None:
    command = FakeCommand()
    command.saying.put_nowait(Ended(signal=signal.SIGSEGV))
    assert await asyncio.wait_for(Attachment(command, None).run(), LIMIT_S) == 139


async def test_input_and_its_end_pass(pipes: Pipes) -> None:
    command = FakeCommand()
    running = asyncio.create_task(Attachment(command, None).run())
    os.write(pipes.input[1], b"typed")
    await command.until("input")
    assert command.input == b"typed"
    os.close(pipes.input[1])
    await command.until("end of input")
    command.saying.put_nowait(Ended())
    assert await asyncio.wait_for(running, LIMIT_S) == 0


async def test_its_end_is_not_held_up_by_input_that_never_comes(pipes: Pipes) -> None:
    command = FakeCommand()
    running = asyncio.create_task(Attachment(command, None).run())
    await asyncio.sleep(0.05)
    command.saying.put_nowait(Ended())
    assert await asyncio.wait_for(running, LIMIT_S) == 0
    os.write(pipes.input[1], b"for the shell")
    assert os.read(pipes.input[0], 100) == b"for the shell"


@pytest.mark.parametrize("error", [False, True])
async def test_an_output_that_nobody_reads_is_closed_in_the_guest(
    pipes: Pipes, error: bool
) -> None:
    command = FakeCommand()
    read, other = (pipes.error[0], pipes.output[0]) if error else (pipes.output[0], pipes.error[0])
    os.close(read)
    running = asyncio.create_task(Attachment(command, None).run())
    command.saying.put_nowait(Output(b"x", error))
    await command.until(("closed", error))
    command.saying.put_nowait(Output(b"under way", error))
    command.saying.put_nowait(Output(b"still heard", not error))
    command.saying.put_nowait(Ended(signal=signal.SIGPIPE))
    assert await asyncio.wait_for(running, LIMIT_S) == 141
    assert command.got.count(("closed", error)) == 1
    assert os.read(other, 100) == b"still heard"


async def test_an_end_signal_reaches_the_command_which_may_end_by_itself(pipes: Pipes) -> None:
    command = FakeCommand()
    attachment = Attachment(command, None)
    running = asyncio.create_task(attachment.run())
    attachment.take_signal(signal.SIGTERM)
    await command.until(signal.SIGTERM)
    command.saying.put_nowait(Ended(exit_code=3))
    assert await asyncio.wait_for(running, LIMIT_S) == 3
    assert not command.killed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_command_that_ignores_an_end_signal_is_killed(
    pipes: Pipes, short_grace: None, number: int
) -> None:
    command = FakeCommand()
    attachment = Attachment(command, None)
    running = asyncio.create_task(attachment.run())
    attachment.take_signal(number)
    assert await asyncio.wait_for(running, LIMIT_S) == 128 + number
    assert command.killed


async def test_a_command_may_go_on_after_sigint(pipes: Pipes, short_grace: None) -> None:
    command = FakeCommand()
    attachment = Attachment(command, None)
    running = asyncio.create_task(attachment.run())
    attachment.take_signal(signal.SIGINT)
    await command.until(signal.SIGINT)
    await asyncio.sleep(3 * SHORT_S)
    assert not running.done()
    command.saying.put_nowait(Ended())
    assert await asyncio.wait_for(running, LIMIT_S) == 0


async def test_a_guest_that_takes_no_signal_is_given_up(pipes: Pipes, short_grace: None) -> None:
    command = FakeCommand()
    command.takes_input.clear()
    attachment = Attachment(command, None)
    running = asyncio.create_task(attachment.run())
    os.write(pipes.input[1], b"not taken")
    attachment.take_signal(signal.SIGINT)
    assert await asyncio.wait_for(running, LIMIT_S) == 128 + signal.SIGINT


async def test_a_lost_guest_is_an_error_after_its_last_words(pipes: Pipes) -> None:
    command = FakeCommand()
    command.saying.put_nowait(Output(b"last words"))
    command.saying.put_nowait(UnavailableError("GUEST_UNREACHABLE", "gone"))
    with pytest.raises(UnavailableError, match="gone"):
        await asyncio.wait_for(Attachment(command, None).run(), LIMIT_S)
    assert os.read(pipes.output[0], 100) == b"last words"


class Screen:
    """The terminal of a caller, at whose other end is the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ours, self.theirs = os.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(self.theirs)
        for name in ("_STDIN", "_STDOUT", "_STDERR"):
            monkeypatch.setattr(module, name, self.theirs)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.theirs) == self.before


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    made = Screen(monkeypatch)
    yield made
    os.close(made.ours)
    os.close(made.theirs)


async def test_a_terminal_is_raw_has_its_size_and_is_restored(screen: Screen) -> None:
    command = FakeCommand()
    attachment = Attachment(command, Terminal(screen.theirs))
    running = asyncio.create_task(attachment.run())
    await command.until(WindowSize(24, 80))
    assert not screen.is_as_before()
    screen.resize(50, 132)
    attachment.take_signal(signal.SIGWINCH)
    await command.until(WindowSize(50, 132))
    os.write(screen.ours, b"\x03")  # Ctrl-C
    await command.until("input")
    assert command.input == b"\x03"
    command.saying.put_nowait(Output(b"bye\r\n"))
    command.saying.put_nowait(Ended())
    assert await asyncio.wait_for(running, LIMIT_S) == 0
    assert screen.is_as_before()
    assert os.read(screen.ours, 100) == b"bye\r\n"


async def test_a_terminal_is_restored_when_the_guest_is_lost(screen: Screen) -> None:
    command = FakeCommand()
    command.saying.put_nowait(UnavailableError("GUEST_UNREACHABLE", "gone"))
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(Attachment(command, Terminal(screen.theirs)).run(), LIMIT_S)
    assert screen.is_as_before()


async def test_a_terminal_is_restored_when_this_is_cancelled(screen: Screen) -> None:
    command = FakeCommand()
    running = asyncio.create_task(Attachment(command, Terminal(screen.theirs)).run())
    await command.until(WindowSize(24, 80))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert screen.is_as_before()


async def test_while_this_process_is_stopped_its_terminal_is_as_before(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(module, "stop_this_process", lambda: seen.append(screen.is_as_before()))
    command = FakeCommand()
    attachment = Attachment(command, Terminal(screen.theirs))
    running = asyncio.create_task(attachment.run())
    await command.until(WindowSize(24, 80))
    attachment.take_signal(signal.SIGTSTP)
    assert seen == [True]
    assert not screen.is_as_before()
    command.saying.put_nowait(Ended())
    await asyncio.wait_for(running, LIMIT_S)
    assert screen.is_as_before()


async def test_a_terminal_that_is_gone_is_the_end(
    screen: Screen, short_grace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(module, "_STDOUT", gone)
    command = FakeCommand()
    running = asyncio.create_task(Attachment(command, Terminal(screen.theirs)).run())
    command.saying.put_nowait(Output(b"x"))
    await command.until(signal.SIGHUP)
    assert await asyncio.wait_for(running, LIMIT_S) == 129
    os.close(gone)


async def test_the_keys_that_end_it_need_nothing_of_the_guest(screen: Screen) -> None:
    command = FakeCommand()
    running = asyncio.create_task(Attachment(command, Terminal(screen.theirs)).run())
    await command.until(WindowSize(24, 80))
    command.takes_input.clear()
    os.write(screen.ours, b"\x1d\x1d\x1d")
    assert await asyncio.wait_for(running, LIMIT_S) == 137
    assert command.killed
