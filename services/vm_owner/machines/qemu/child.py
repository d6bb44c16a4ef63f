"""A process of a machine: it ends with this one, even if this one is killed; its output is kept.

Owns its start, its end, and the quoting of its last lines. Must not know what it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from services.vm_owner.machines.bounded_log import BoundedLog

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 64 << 10


class Child:
    """A process that runs, or has ended.

    Attributes:
        name: What it is called in messages.
        log: Its output, both streams.
        ended: Completes when it has ended and its output is read; it is never cancelled.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: BoundedLog) -> None:
        self.name = name
        self.log = log
        self._process = process
        self.ended = asyncio.create_task(self._collect())

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        log_path: Path,
        *,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> Child:
        """Start a program.

        The kernel kills it when this process ends in whatever way. The thread that calls this must
        live as long: the main thread does.

        Args:
            name: What it is called in messages.
            command: The program, an absolute path, and its arguments.
            log_path: The file for its output.
            environment: Its whole environment.
            pass_fds: Descriptors that it inherits, with the same numbers.

        Raises:
            OSError: It cannot be started.
        """
        tether = (sys.executable, "-m", "services.rpc.tether", "--kill", str(os.getpid()))
        process = await asyncio.create_subprocess_exec(
            *tether,
            *command,
            env=dict(environment),
            pass_fds=tuple(pass_fds),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # Ctrl-C in a terminal goes to the owner only, which ends its guests in order.
            process_group=0,
        )
        return cls(name, process, BoundedLog(log_path))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return not self.ended.done()

    def how_it_ended(self) -> str:
        """Return its exit status or signal, and its last lines."""
        return f"{self.name} ended with {self._status()}{self.last_words()}"

    def last_words(self) -> str:
        """Return its last lines as the end of a sentence, or nothing."""
        said = self.log.last_lines()
        return f": {said}" if said else ""

    async def wait(self, deadline_s: float) -> bool:
        """Wait until it has ended; return whether it has within the deadline."""
        await asyncio.wait([self.ended], timeout=deadline_s)
        return not self.running

    async def end(self, deadline_s: float, *, ask: bool = True) -> None:
        """End it, and wait for its end.

        Args:
            deadline_s: Longest time that it gets after SIGTERM; then it is killed.
            ask: Whether it gets SIGTERM first.
        """
        if ask:
            self._send(signal.SIGTERM)
            if not await self.wait(deadline_s):
                logger.warning("%s, process %d, does not end; killing it", self.name, self.pid)
        self._send(signal.SIGKILL)
        await self.ended

    def _send(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _status(self) -> str:
        code = self._process.returncode
        if code is None:
            return "no status yet"
        if code >= 0:
            return f"status {code}"
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal
            return f"signal {-code}"

    async def _collect(self) -> None:
        output = self._process.stdout
        assert output is not None  # noqa: S101 - it was started with a pipe
        while data := await output.read(_CHUNK_BYTES):
            self.log.write(data)
        await self._process.wait()
        self.log.close()
