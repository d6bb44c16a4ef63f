"""A command in the guest, attached to this process: streams, terminal, signals, and its end.

Owns what each of them means for the command. Must not know gRPC, or how the guest was made.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from services.cli.console import fail
from services.cli.guest_control import Ended
from services.cli.run.signals import stop_this_process
from services.cli.run.streams import StandardStreams, streams
from services.cli.run.terminal import Escapes
from services.handshake.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from services.cli.guest_control import Output
    from services.cli.requests import WindowSize
    from services.cli.run.terminal import Terminal

GRACE_S: Final = 5.0
"""How long a command may take to end after SIGTERM or SIGHUP; then it is killed."""

ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
"""Signals after which this process ends within GRACE_S, whatever the command does."""

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class Command(Protocol):
    """A command that runs; see services.cli.guest_control.RunningCommand."""

    async def write(self, data: bytes) -> None:
        """Send input."""

    async def end_input(self) -> None:
        """Say that there is no further input."""

    async def resize(self, window: WindowSize) -> None:
        """Change the size of its terminal."""

    async def signal(self, number: int) -> None:
        """Send a signal to its process group."""

    async def close_output(self, *, error: bool) -> None:
        """Say that nobody reads its output any more, or its standard error."""

    def said(self) -> AsyncIterator[Output | Ended]:
        """Yield what it writes, and at last its end."""

    def kill(self) -> None:
        """End it."""


class Attachment:
    """The connection of one command with this process.

    Args:
        command: The command.
        terminal: The caller's terminal, which the command has; None: it has pipes.
    """

    def __init__(self, command: Command, terminal: Terminal | None) -> None:
        self._command = command
        self._terminal = terminal
        self._escapes = Escapes()
        self._killed_by: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed: set[int] = set()

    async def run(self) -> int:
        """Pass everything in both directions until the end.

        Returns:
            Its exit code; 128 and the number of the signal, if one ended it or this process.

        Raises:
            PortholeError: The guest is gone.
        """
        raw = self._terminal.raw() if self._terminal else contextlib.nullcontext()
        with streams() as standard, raw:
            self._start(self._feed(standard))
            if self._terminal:
                # Its size may have changed while the guest was booting.
                self._start(self._command.resize(self._terminal.size))
            reading = asyncio.create_task(self._hand_on(standard))
            try:
                await asyncio.wait([reading, self._killed_by], return_when=asyncio.FIRST_COMPLETED)
                if self._killed_by.done():
                    self._command.kill()
                    return 128 + self._killed_by.result()
                return await reading
            finally:
                standard.stop()
                await self._end([reading, *self._tasks])

    def take_signal(self, number: int) -> None:
        """Do for the command what a signal to this process means."""
        match number:
            case signal.SIGWINCH:
                self._resize()
            case signal.SIGTSTP:
                self._pause()
            case _:
                self._start(self._pass_on(number))

    def _pause(self) -> None:
        """Stop this process, with its terminal as it was, until somebody continues it."""
        if self._terminal:
            self._terminal.restore()
        stop_this_process()
        if self._terminal:
            with contextlib.suppress(OSError):
                self._terminal.make_raw()
            self._resize()

    async def _hand_on(self, standard: StandardStreams) -> int:
        async for said in self._command.said():
            if isinstance(said, Ended):
                return 128 + said.signal if said.signal else said.exit_code
            await self._write(standard, _STDERR if said.error else _STDOUT, said.data)
        raise UnavailableError("GUEST_UNREACHABLE", "the guest said nothing of the command's end")

    async def _write(self, standard: StandardStreams, fd: int, data: bytes) -> None:
        if fd in self._closed:
            return
        try:
            await standard.write(fd, data)
        except OSError as error:
            self._closed.add(fd)
            if not isinstance(error, BrokenPipeError):
                fail(f"standard {'error' if fd == _STDERR else 'output'}: {error.strerror}")
            if self._terminal:  # it is gone
                self.take_signal(signal.SIGHUP)
            else:
                self._start(self._command.close_output(error=fd == _STDERR))

    async def _feed(self, standard: StandardStreams) -> None:
        try:
            while data := await standard.read(_STDIN):
                if self._terminal and self._escapes.complete(data, time.monotonic()):
                    self._give_up(signal.SIGKILL)
                await self._command.write(data)
        except OSError as error:
            fail(f"standard input: {error.strerror}")
        await self._command.end_input()

    async def _pass_on(self, number: int) -> None:
        # A guest that is stuck takes no signal.
        passing = asyncio.ensure_future(self._command.signal(number))
        _, waiting = await asyncio.wait([passing], timeout=GRACE_S)
        if not waiting:
            if number not in ENDING:
                return
            await asyncio.sleep(GRACE_S)
        self._give_up(number)
        passing.cancel()

    def _give_up(self, number: int) -> None:
        if not self._killed_by.done():
            self._killed_by.set_result(number)

    def _resize(self) -> None:
        if self._terminal:
            self._start(self._command.resize(self._terminal.size))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _end(tasks: list[asyncio.Task[int] | asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        # What one of them failed with is not the result any more.
        await asyncio.gather(*tasks, return_exceptions=True)
