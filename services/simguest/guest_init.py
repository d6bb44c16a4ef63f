"""Guest init: process 1 of a VM, here a child process that lives as long as the guest.

Owns starting and ending services.guest_init. Must not import it: it is another program, which takes
flags.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake.errors import DeadlineExceededError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

READY_DEADLINE_S: Final = 20.0
"""Time for guest init to serve after its start; an end before that is noticed at once."""

END_DEADLINE_S: Final = 5.0
"""Time for guest init to end after SIGTERM, before it is killed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InitBoot:
    """The inputs of guest init.

    Attributes:
        publish_dir: Directory in which the kernel published its pool.
        cmdline_file: The guest's /proc/cmdline.
        kernel_release: `uname -r`.
        listen: Address where it serves GuestInit.
        owner: Address that it reports to; empty when it must not report.
        telemetry: The flags for telemetry.
        network_fd: A socket over which it gets the tables of the guest's network; None: it gets
            none.
    """

    publish_dir: Path
    cmdline_file: Path
    kernel_release: str
    listen: str
    owner: str
    telemetry: tuple[str, ...]
    network_fd: int | None = None

    def flags(self) -> list[str]:
        """Return the flags that pass these inputs."""
        flags = [
            f"--publish-dir={self.publish_dir}",
            f"--cmdline-file={self.cmdline_file}",
            f"--kernel-release={self.kernel_release}",
            f"--listen={self.listen}",
            *([] if self.network_fd is None else [f"--network-fd={self.network_fd}"]),
            *self.telemetry,
        ]
        return [*flags, f"--owner={self.owner}"] if self.owner else flags


def _is_ours(variable: str) -> bool:
    return variable.startswith("PORTHOLE_")


class GuestInitProcess:
    """Guest init, running."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ending = False
        self._cause = ""
        self._on_end: Callable[[str], None] | None = None
        self._watch = asyncio.create_task(self._report_end())

    @classmethod
    async def start(cls, boot: InitBoot) -> GuestInitProcess:
        """Start guest init and wait until it serves; after a failure it has ended.

        It ends with this process, even when this one is killed.

        Raises:
            OSError: The program cannot be started.
            UnavailableError: GUEST_INIT_ENDED before it served.
            DeadlineExceededError: GUEST_INIT_NOT_READY after READY_DEADLINE_S.
        """
        python = [sys.executable, "-m"]
        tether = [*python, "services.rpc.tether", str(os.getpid())]
        program = [*tether, *python, "services.guest_init", *boot.flags()]
        process = await asyncio.create_subprocess_exec(
            *program,
            # Variables for other processes, such as PORTHOLE_OWNER, must not reach the guest.
            env={name: text for name, text in os.environ.items() if not _is_ours(name)},
            pass_fds=() if boot.network_fd is None else (boot.network_fd,),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        started = cls(process)
        try:
            await started._until_ready(boot.listen)
        except BaseException:
            await started.end()
            raise
        return started

    def watch(self, on_end: Callable[[str], None]) -> None:
        """Have its end reported, once, unless it is ended here.

        Args:
            on_end: Called with the exit status or signal; at once if it has ended already.
        """
        self._on_end = on_end
        if self._cause:
            on_end(self._cause)

    async def end(self) -> None:
        """Terminate guest init, and kill it if it does not end in time."""
        self.dismiss()
        await self.ended()

    def dismiss(self) -> None:
        """Terminate guest init without waiting for its end, which comes when it has exported."""
        self._ending = True
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    async def ended(self) -> None:
        """Wait for its end after `dismiss`; it is killed if it does not end in time."""
        try:
            await asyncio.wait_for(self._process.wait(), END_DEADLINE_S)
        except TimeoutError:
            _log.warning("guest init did not end within %s s; killing it", END_DEADLINE_S)
            self._process.kill()
            await self._process.wait()
        await self._watch

    async def _until_ready(self, address: str) -> None:
        # Its first line of output is the ready line; the output ends when the process does.
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), READY_DEADLINE_S)
        except TimeoutError:
            raise DeadlineExceededError(
                "GUEST_INIT_NOT_READY",
                f"guest init does not serve at {address} after {READY_DEADLINE_S:g} s",
                address=address,
            ) from None
        if not line:
            status = await self._process.wait()
            raise UnavailableError(
                "GUEST_INIT_ENDED",
                f"guest init ended with status {status} before it served at {address}; its log "
                "says why",
                address=address,
                status=status,
            )

    async def _report_end(self) -> None:
        code = await self._process.wait()
        if self._ending:
            return
        self._cause = f"signal {_signal_name(-code)}" if code < 0 else f"status {code}"
        _log.error("guest init ended by itself with %s; its log says why", self._cause)
        if self._on_end is not None:
            self._on_end(self._cause)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return str(number)
