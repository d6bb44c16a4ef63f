"""A guest that runs: QEMU, guest init's process beside it, the console and the monitor.

Owns their start, the notice of their end with its cause, and their end in order. Must not know
devices.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from services.handshake.errors import DeadlineExceededError, PortholeError, UnavailableError
from services.vm_owner.machines.bounded_log import BoundedLog
from services.vm_owner.machines.qemu.child import Child
from services.vm_owner.machines.qemu.command_line import Wiring
from services.vm_owner.machines.qemu.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from pathlib import Path

    from services.vm_owner.machines.qemu.control import GuestControl

logger = logging.getLogger(__name__)

T = TypeVar("T")

POWER_OFF_DEADLINE_S: Final = 5.0
"""Longest that the guest gets to power off; then QEMU quits."""

QUIT_DEADLINE_S: Final = 2.0
"""Longest that QEMU gets to quit; then it is killed."""

INIT_END_DEADLINE_S: Final = 5.0
"""Longest that guest init's process gets to end after SIGTERM; then it is killed. It may flush."""

END_GRACE_S: Final = 0.5
"""How long the end of QEMU is waited for after that of guest init, which follows it."""

_CHUNK_BYTES: Final = 64 << 10
_PANIC: Final = "Kernel panic - not syncing"
_CAUSES: Final = {
    "guest-panic": "the guest's kernel panicked",
    "guest-reset": "the guest reset",
    "guest-shutdown": "the guest powered off",
}
"""What the reasons of QEMU's SHUTDOWN event mean; others are those of the host."""


@dataclass(frozen=True, slots=True)
class GuestPaths:
    """Where the files of a running guest are."""

    directory: Path

    @property
    def channel(self) -> Path:
        """The socket of the serial port that leads to process 1 of the guest."""
        return self.directory / "init-port.sock"

    @property
    def kernel_command_line(self) -> Path:
        """A copy of the kernel command line, as the owner wrote it."""
        return self.directory / "cmdline"

    @property
    def guest_init(self) -> str:
        """The address at which guest init's process serves."""
        return f"unix:{self.directory}/guest-init.sock"


class RunningGuest:
    """The processes of one guest.

    Args:
        paths: Where its files are.
        on_event: Called with each event of QEMU.
    """

    def __init__(
        self, paths: GuestPaths, on_event: Callable[[str, Mapping[str, Any]], None]
    ) -> None:
        self.monitor = Monitor(self._note_event)
        self.console = BoundedLog(paths.directory / "console.log")
        self._paths = paths
        self._on_event = on_event
        self._qemu: Child | None = None
        self._init: Child | None = None
        self._pump: asyncio.Task[None] | None = None
        self._init_end: asyncio.Task[None] | None = None
        self._reason = ""
        self._spoke = asyncio.Event()

    async def start(
        self,
        command: Callable[[Wiring], list[str]],
        init_command: list[str],
        environment: Mapping[str, str],
    ) -> None:
        """Start both processes.

        Args:
            command: Returns QEMU's command line.
            init_command: That of guest init, without the flags for its channel and its address.
            environment: PORTHOLE_ variables of guest init.

        Raises:
            UnavailableError: GUEST_ENDED, QEMU_GONE.
        """
        directory = self._paths.directory
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PORTHOLE_")}
        console, consoles_end = socket.socketpair()
        monitor, monitors_end = socket.socketpair()
        with consoles_end, monitors_end:
            wiring = Wiring(consoles_end.fileno(), monitors_end.fileno(), self._paths.channel)
            self._qemu = await Child.start(
                "QEMU",
                command(wiring),
                directory / "qemu.log",
                environment=inherited,
                pass_fds=(wiring.console_fd, wiring.monitor_fd),
            )
        self._pump = asyncio.create_task(self._keep_console(console))
        self._init = await Child.start(
            "guest init's process",
            [
                *init_command,
                f"--channel=unix:{self._paths.channel}",
                f"--listen={self._paths.guest_init}",
            ],
            directory / "guest-init.log",
            environment={**inherited, **environment},
        )
        await self._unless_ended(self.monitor.connect(monitor))

    async def await_init(
        self, dial: Callable[[str, float], Coroutine[Any, Any, GuestControl]], deadline_s: float
    ) -> GuestControl:
        """Wait until the guest's init speaks.

        Args:
            dial: Connects to guest init at an address within a time.
            deadline_s: Longest time until the guest has spoken.

        Raises:
            DeadlineExceededError: GUEST_BOOT_DEADLINE, with the last lines of the guest's console.
            UnavailableError: GUEST_ENDED, with the cause.
        """
        try:
            async with asyncio.timeout(deadline_s):
                control = await self._unless_ended(dial(self._paths.guest_init, deadline_s))
                try:
                    await self._unless_ended(control.make_ready(deadline_s))
                except BaseException:
                    await control.close()
                    raise
                return control
        except TimeoutError:
            pass
        except UnavailableError as failure:
            if failure.reason != "PEER_UNAVAILABLE":
                raise
        said = self.console.last_lines() or "nothing"
        raise DeadlineExceededError(
            "GUEST_BOOT_DEADLINE",
            f"the guest's init did not speak within {deadline_s:g} s of the start of QEMU. Its "
            f"console says: {said}",
            deadline_s=f"{deadline_s:g}",
        )

    async def await_words(self, limit_s: float) -> None:
        """Wait until the guest's console says anything.

        Args:
            limit_s: Longest time until it does.

        Raises:
            DeadlineExceededError: GUEST_BOOT_DEADLINE.
            UnavailableError: GUEST_ENDED, with the cause.
        """
        try:
            async with asyncio.timeout(limit_s):
                await self._unless_ended(self._spoke.wait())
        except TimeoutError:
            raise DeadlineExceededError(
                "GUEST_BOOT_DEADLINE",
                f"the guest's console says nothing within {limit_s:g} s of the start of QEMU",
                deadline_s=f"{limit_s:g}",
            ) from None

    async def wait_for_end(self) -> tuple[str, bool]:
        """Wait until one of the processes has ended by itself.

        Returns:
            The cause, and whether only guest init's process has ended.
        """
        qemu, init = self._started()
        await asyncio.wait([qemu.ended, init.ended], return_when=asyncio.FIRST_COMPLETED)
        await qemu.wait(END_GRACE_S)
        if qemu.running:
            return init.how_it_ended(), True
        return self._cause(), False

    @property
    def is_running(self) -> bool:
        """Whether both processes run."""
        return all(child is not None and child.running for child in (self._qemu, self._init))

    def require_running(self) -> None:
        """Refuse a call to a guest that has ended.

        Raises:
            UnavailableError: GUEST_ENDED.
        """
        if not self.is_running:
            raise self._ended()

    async def end(self, control: GuestControl | None) -> None:
        """End the guest, in order if it can be asked; a second call does nothing.

        Guest init's process is asked to end, and not waited for (`init_ended`).

        Args:
            control: The guest's init, to power it off; None: QEMU quits at once.
        """
        qemu, init = self._qemu, self._init
        if qemu is not None and qemu.running:
            if control is not None and await self._power_off(control):
                await qemu.wait(POWER_OFF_DEADLINE_S)
            if qemu.running:
                with contextlib.suppress(PortholeError):
                    await self.monitor.execute("quit", deadline_s=QUIT_DEADLINE_S)
                    await qemu.wait(QUIT_DEADLINE_S)
            await qemu.end(0.0, ask=False)
        await self.monitor.close()
        if init is not None and self._init_end is None:
            self._init_end = asyncio.create_task(init.end(INIT_END_DEADLINE_S))
        if self._pump is not None:
            await asyncio.wait([self._pump])  # the console has ended with QEMU
        self.console.close()

    async def init_ended(self) -> None:
        """Wait for the process of guest init, after `end`."""
        if self._init_end is not None:
            await asyncio.shield(self._init_end)

    async def _power_off(self, control: GuestControl) -> bool:
        try:
            await control.power_off(POWER_OFF_DEADLINE_S)
        except PortholeError as failure:
            logger.info("the guest was not powered off: %s; QEMU quits", failure.message)
            return False
        return True

    async def _unless_ended(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something, or the end of a process, which is an error."""
        task = asyncio.ensure_future(work)
        processes = [each.ended for each in (self._qemu, self._init) if each is not None]
        try:
            await asyncio.wait([task, *processes], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                if self._qemu is not None:
                    await self._qemu.wait(END_GRACE_S)
                raise self._ended()
            return await task
        except UnavailableError:
            # It is how the end of QEMU shows first.
            if self._qemu is not None and await self._qemu.wait(END_GRACE_S):
                raise self._ended() from None
            raise
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, PortholeError):
                await task

    def _ended(self) -> UnavailableError:
        return UnavailableError("GUEST_ENDED", f"the guest ended: {self._cause()}")

    def _cause(self) -> str:
        qemu, init = self._started()
        if qemu.running:
            return init.how_it_ended()
        reason, panic = self._reason, self.console.line_with(_PANIC)
        if panic:
            return f"{_CAUSES['guest-panic']}: {panic}"
        if reason not in _CAUSES:
            return qemu.how_it_ended()
        said = self.console.last_lines()
        return f"{_CAUSES[reason]}; its console says: {said}" if said else _CAUSES[reason]

    def _started(self) -> tuple[Child, Child]:
        if self._qemu is None or self._init is None:
            raise UnavailableError("GUEST_ENDED", "the guest was never booted")
        return self._qemu, self._init

    def _note_event(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "GUEST_PANICKED":
            self._reason = "guest-panic"
        elif name == "SHUTDOWN" and not self._reason:
            self._reason = str(data.get("reason", ""))
        self._on_event(name, data)

    async def _keep_console(self, console: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=console)
        try:
            while data := await reader.read(_CHUNK_BYTES):
                self.console.write(data)
                self._spoke.set()
        except OSError as error:
            logger.debug("the guest's console ended: %s", error)
        finally:
            writer.close()
