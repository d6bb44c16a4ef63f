"""The embedded machine: the user-space guest, a child process of the owner.

Owns the process: its start, its log, and its end, expected or not. It runs the guest and must not
import it; the guest is reached like an external machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Final

from services.handshake.errors import PortholeError, UnavailableError
from services.vm_owner.machines import Placement
from services.vm_owner.machines.bounded_log import TAIL_BYTES, quotation
from services.vm_owner.machines.external import ExternalMachine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from services.vm_owner.machines import AttachSpec, BootSpec, MachineReport
    from services.vm_owner.machines.external import MachineConnection

logger = logging.getLogger(__name__)

START_DEADLINE_S: Final = 30.0
"""Longest time that the process gets until it serves; an earlier end is noticed at once."""

STOP_DEADLINE_S: Final = 5.0
"""Longest time that the process gets to end after SIGTERM; then it is killed."""


class EmbeddedMachine:
    """A user-space guest that this owner runs.

    Args:
        vm_dir: Directory of the VM: socket, published files, log.
        environment: PORTHOLE_ variables for the process; they override those of this process.
        dial: Connects to a machine.
        command: How to run the guest, without its flags.
    """

    ram_base: Final = 0
    """The user-space guest is a PC."""

    def __init__(
        self,
        vm_dir: Path,
        environment: Mapping[str, str],
        dial: Callable[[str], Awaitable[MachineConnection]],
        command: tuple[str, ...] = (sys.executable, "-m", "services.simguest"),
    ) -> None:
        self._vm_dir = vm_dir
        self._environment = environment
        self._command = command
        self._external = ExternalMachine(f"unix:{vm_dir}/machine.sock", dial)
        self._process: asyncio.subprocess.Process | None = None
        self._monitor: asyncio.Task[None] | None = None
        self._collection: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def address(self) -> str:
        """Address at which it serves porthole.machine.v1.Machine."""
        return self._external.address

    async def start(self, on_end: Callable[[str], None]) -> None:
        """Run the process and connect to it.

        Raises:
            UnavailableError: GUEST_ENDED, with the end of its log, when the process ends first;
                PEER_UNAVAILABLE when it does not serve in time.
        """
        self._vm_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                *("--listen", self.address, "--vm-dir", str(self._vm_dir)),
                # Without its owner a guest is useless, so it ends even when the owner is killed.
                "--exit-with-parent",
                env={**os.environ, **self._environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal goes to the owner only, which ends its guests in order.
                process_group=0,
            )
        finally:
            os.close(log)
        await self._connect(self._process)
        self._monitor = asyncio.create_task(self._wait_for_end(self._process, on_end))

    async def boot(self, spec: BootSpec) -> str:
        """Boot the guest; returns the address at which its init serves GuestInit."""
        self._require_alive()
        return await self._external.boot(spec)

    def reserve(self, instance_id: str) -> Placement:
        """Do nothing: such a guest has a place for every device."""
        return Placement()

    def give_back(self, instance_id: str) -> None:
        """Do nothing."""

    async def attach_device(self, spec: AttachSpec) -> None:
        """Attach a device."""
        self._require_alive()
        await self._external.attach_device(spec)

    async def set_link(self, instance_id: str, is_up: bool) -> None:
        """Do nothing: the guest's front-end asks the device."""

    async def release_device(self, instance_id: str) -> None:
        """Do nothing: such a guest lets go of a device that has ended."""

    async def detach_device(self, instance_id: str) -> None:
        """Detach a device."""
        self._require_alive()
        await self._external.detach_device(instance_id)

    def watch(self) -> AsyncIterator[MachineReport]:
        """Stream exhaustions of the guest's kernel, and the end of guest init."""
        return self._external.watch()

    def last_words(self) -> str:
        """Return the end of the log of the guest's process; empty: it logged nothing."""
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
                return quotation(log.read())
        except OSError:
            return ""

    async def stop(self) -> None:
        """Power the guest off, and have its process end; it is waited for only if that fails."""
        self._stopping = True
        process = self._process
        if process is None or self._collection is not None:
            return
        is_off = True
        try:
            if process.returncode is None:
                is_off = await self._external.power_off()
            else:
                await self._external.disconnect()
        finally:
            # Also after a failure, or `ended` would wait for a process that nobody ends.
            self._collection = asyncio.create_task(self._collect(process))
        if not is_off:
            await self.ended()  # the guest's memory is gone when its process is

    async def ended(self) -> None:
        """Wait for the end of the process, which is killed if need be."""
        if self._collection is not None:
            await asyncio.shield(self._collection)
        if self._monitor is not None:
            await self._monitor

    @property
    def _log_path(self) -> Path:
        return self._vm_dir / "machine.log"

    async def _connect(self, process: asyncio.subprocess.Process) -> None:
        connecting = asyncio.create_task(self._external.start(lambda _: None))
        ending = asyncio.create_task(process.wait())
        try:
            await asyncio.wait((connecting, ending), return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise self._ended(process)
            await connecting
        finally:
            for task in (connecting, ending):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, PortholeError):
                    await task

    async def _wait_for_end(
        self, process: asyncio.subprocess.Process, on_end: Callable[[str], None]
    ) -> None:
        await process.wait()
        if not self._stopping:
            on_end(self._ended(process).message)

    async def _collect(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_DEADLINE_S)
            except TimeoutError:
                logger.warning("guest process %d does not end; killing it", process.pid)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        await process.wait()

    def _require_alive(self) -> None:
        if self._process is None or self._process.returncode is not None:
            raise self._ended(self._process)

    def _ended(self, process: asyncio.subprocess.Process | None) -> UnavailableError:
        status = process.returncode if process else None
        return UnavailableError(
            "GUEST_ENDED",
            f"the guest's process ended with status {status}: "
            f"{self.last_words() or 'it logged nothing'}",
            status=str(status),
        )
