"""The launcher: starts the services as processes, waits until they are ready, ends them in order.

Owns the child processes of `porthole up` and `porthole demo`. The VM owner starts the guests, and a
guest starts its guest init. The launcher must not import a service, only run it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.handshake.errors import FailedPreconditionError, UnavailableError
from services.rpc import run_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

START_DEADLINE_S: Final = 30.0
"""Longest time that a service gets until it is ready."""

STOP_DEADLINE_S: Final = 40.0
"""Longest time that a service gets to end after SIGTERM; longer than its own deadline."""

TETHER: Final = "services.rpc.tether"
"""Program that runs a service and ends it with this process."""

LINE_LIMIT_BYTES: Final = 1 << 20
"""Longest line of output of a service."""


@dataclass(frozen=True, slots=True)
class ServiceProgram:
    """A service that runs as a process.

    Attributes:
        for_clients: Whether clients call it, so that it listens at the addresses of `--listen`.
    """

    name: str
    module: str
    socket: str
    for_clients: bool = False


DEVICE_HOST: Final = ServiceProgram("device host", "services.devicehost", "devicehost.sock")
DASHBOARD: Final = ServiceProgram("dashboard", "services.dashboard", "dashboard.sock")
VM_OWNER: Final = ServiceProgram("VM owner", "services.vm_owner", "owner.sock", for_clients=True)

START_ORDER: Final = (DEVICE_HOST, VM_OWNER)
"""The order of starting. Stopping is reversed: the owner needs the device host for its last VM."""

OF_ONE_PROCESS: Final = ("PORTHOLE_LISTEN", "PORTHOLE_OWNER")
"""Variables that a process of a set must not inherit: they are for one process, and every service
would take them for its own."""

_READY: Final = re.compile(r"porthole \S+ ready on (?P<addresses>.+)")


def ready_addresses(line: str) -> tuple[str, ...]:
    """Return the addresses that a service says it listens on; none: it says something else."""
    match = _READY.fullmatch(line)
    return tuple(match["addresses"].split(", ")) if match else ()


def dashboard_environment(directory: Path) -> dict[str, str]:
    """Return the variables by which a dashboard and those who send to it meet in a directory.

    They meet at Unix sockets, which are reached from every network namespace, and whose addresses
    nobody else has. What the user says of OTLP at other addresses stands.
    """
    sockets = {"GRPC": DASHBOARD.socket, "HTTP": "dashboard-http.sock"}
    met = {"PORTHOLE_OTLP_ENDPOINT": f"unix:{directory / DASHBOARD.socket}"}
    for protocol, socket in sockets.items():
        name = f"PORTHOLE_DASHBOARD_OTLP_{protocol}"
        given = os.environ.get(name, "")
        met[name] = ",".join(filter(None, (f"unix:{directory / socket}", given)))
    return met


class Running:
    """A running service process, whose output is read.

    Attributes:
        addresses: The addresses that it listens on, as soon as it is ready.
    """

    def __init__(self, program: ServiceProgram, process: asyncio.subprocess.Process) -> None:
        self.program = program
        self.process = process
        self.last_line = ""
        self.addresses: tuple[str, ...] = ()
        self._ready = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def until_ready(self, log: Callable[[str, str], None]) -> None:
        """Wait for the ready line.

        Raises:
            UnavailableError: SERVICE_START_FAILED when the process ends, or is not ready in time.
        """
        self._reader = asyncio.create_task(self._read(log))
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait(
            (ready, self._reader),
            timeout=START_DEADLINE_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        ready.cancel()
        if self._ready.is_set():
            return
        if self._reader.done():
            status = await self.process.wait()
            what = f"ended with status {status} before it was ready"
        else:
            what = f"was not ready after {START_DEADLINE_S:.0f} s"
        raise UnavailableError(
            "SERVICE_START_FAILED",
            f"the {self.program.name} {what}: {self.last_line or 'it printed nothing'}",
            service=self.program.module,
        )

    async def stop(self) -> int:
        """End the process with SIGTERM, or SIGKILL if need be; returns its exit status."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), STOP_DEADLINE_S)
            except TimeoutError:
                self.process.kill()
        status = await self.process.wait()
        if self._reader is not None:
            # A guest that outlives its owner would keep the pipe open.
            await asyncio.wait((self._reader,), timeout=1.0)
            self._reader.cancel()
        return status

    async def _read(self, log: Callable[[str, str], None]) -> None:
        stream = self.process.stdout
        if stream is None:
            return
        while raw := await stream.readline():
            line = raw.decode(errors="backslashreplace").rstrip()
            self.last_line = line or self.last_line
            log(self.program.name, line)
            if addresses := ready_addresses(line):
                self.addresses = addresses
                self._ready.set()


def service_ended(service: Running) -> UnavailableError:
    """Return the error of a service that ended by itself, with its last line."""
    return UnavailableError(
        "SERVICE_ENDED",
        f"the {service.program.name} ended with status {service.process.returncode}: "
        f"{service.last_line}",
        service=service.program.module,
    )


class Services:
    """The services of one run directory; an async context manager.

    Args:
        run_dir: Directory of their sockets; made with mode 0700 if it does not exist.
        environment: PORTHOLE_ variables for them; they override those of this process.
        log: Called with the name of a service and each line that it prints.
        listen: Addresses at which the VM owner listens beside its socket.
        dashboard: Whether a dashboard runs with them, to which they send.

    Attributes:
        otlp_endpoint: Where that dashboard takes traces and metrics; empty: there is none.
    """

    def __init__(
        self,
        run_dir: Path,
        environment: Mapping[str, str],
        log: Callable[[str, str], None],
        listen: Sequence[str] = (),
        *,
        dashboard: bool = False,
    ) -> None:
        self.run_dir = run_dir.absolute()
        # It starts first and ends last: nothing that the others send is lost.
        self._programs = (DASHBOARD, *START_ORDER) if dashboard else START_ORDER
        met = dashboard_environment(self.run_dir) if dashboard else {}
        self.otlp_endpoint = met.get("PORTHOLE_OTLP_ENDPOINT", "")
        inherited = {name: text for name, text in os.environ.items() if name not in OF_ONE_PROCESS}
        self._environment = {
            **inherited,
            **environment,
            **met,
            "PORTHOLE_RUN_DIR": str(self.run_dir),
        }
        self._log = log
        self._listen = tuple(listen)
        self._lock: int | None = None
        self.running: list[Running] = []

    @property
    def owner_address(self) -> str:
        """Address of the VM owner."""
        return f"unix:{self.run_dir / VM_OWNER.socket}"

    @property
    def page(self) -> str:
        """URL of the page of the running dashboard; empty: there is none."""
        # It is the first of the addresses that a dashboard says it listens on.
        return next((each.addresses[0] for each in self.running if each.program is DASHBOARD), "")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses at which clients reach the running VM owner."""
        return tuple(
            address
            for service in self.running
            if service.program.for_clients
            for address in service.addresses
        )

    async def __aenter__(self) -> Self:
        """Start the services, each when the one before it is ready.

        Raises:
            FailedPreconditionError: RUN_DIR_IN_USE, or RUN_DIR_UNSAFE.
            UnavailableError: SERVICE_START_FAILED; the services that had started are ended.
        """
        self._claim()
        try:
            for program in self._programs:
                await self._start(program)
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the services, last started first."""
        await self.stop()

    async def stop(self) -> dict[str, int]:
        """End the services, last started first; returns the exit status of each by name."""
        statuses = {}
        while self.running:
            service = self.running.pop()
            statuses[service.program.name] = await service.stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        return statuses

    async def first_to_end(self) -> Running:
        """Wait until one of the services ends by itself."""
        waits = {asyncio.create_task(item.process.wait()): item for item in self.running}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        return waits[done.pop()]

    def _claim(self) -> None:
        run_directory.claim(self.run_dir)
        lock = os.open(self.run_dir / "up.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise FailedPreconditionError(
                "RUN_DIR_IN_USE",
                f"{self.run_dir} already has running services; end them or give another --run-dir",
                run_dir=str(self.run_dir),
            ) from None
        self._lock = lock

    def _environment_of(self, program: ServiceProgram) -> dict[str, str]:
        if not (program.for_clients and self._listen):
            return self._environment
        own = f"unix:{self.run_dir / program.socket}"
        listen = ",".join(dict.fromkeys((own, *self._listen)))
        return {**self._environment, "PORTHOLE_LISTEN": listen}

    async def _start(self, program: ServiceProgram) -> None:
        process = await asyncio.create_subprocess_exec(
            # Nobody would end the services, and their devices and mounts, after this process.
            *(sys.executable, "-m", TETHER, str(os.getpid())),
            *(sys.executable, "-m", program.module),
            env=self._environment_of(program),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LINE_LIMIT_BYTES,
            # Ctrl-C must reach only this process, which ends the others in order.
            start_new_session=True,
        )
        service = Running(program, process)
        self.running.append(service)
        await service.until_ready(self._log)
