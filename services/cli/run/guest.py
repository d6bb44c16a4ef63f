"""The guest of one `porthole run`: services of its own, a VM, its root and shares, and its end.

Owns the order of these. The services run in a directory that only they have, and end with this
process; the VM ends before they do, in order, so that what the command wrote is on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.cli import clients
from services.cli.console import say
from services.cli.documents import StateEvent
from services.cli.guest_control import errno_of, guest_control, require_init
from services.cli.guest_root import enter_root
from services.cli.launcher import Services, service_ended
from services.cli.requests import QemuRequest, VmRequest
from services.cli.run.attachment import Attachment
from services.cli.run.plan import share_mounts, share_requests
from services.handshake.errors import FailedPreconditionError, PortholeError, UnavailableError
from services.rpc.removal import remove_tree
from services.session import apply_guest_capabilities

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
    from typing import Any

    from services.cli.clients import OwnerClient
    from services.cli.guest_control import GuestClient, RunningCommand
    from services.cli.requests import GuestCommand
    from services.cli.run.plan import RunShare
    from services.cli.run.signals import Signals
    from services.cli.run.terminal import Terminal
    from services.cli.views import VmView

WAIT_S: Final = 30.0

LONG_S: Final = 10.0
"""A boot that takes longer is spoken of, and again each time that this has passed."""

POWER_OFF_S: Final = 15.0
"""Longest that the guest gets to end: it ends processes, and writes back what they wrote."""

TAIL_BYTES: Final = 2048

EMULATED: Final = "guests run by emulation"
"""How the owner's log says that there is no KVM, and why."""

MODES: Final = {"tap": "nat", "user": "virtio-proxy"}
"""The networking mode of each network; the default .wslconfig allows both."""


class CommandRefusedError(FailedPreconditionError):
    """The guest's kernel did not start the command; `errno` in the metadata says why."""


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """The guest that is asked for.

    Attributes:
        ram_bytes: 0: the owner's default.
        cpus: 0: the owner's default.
        kernel: An absolute path; empty: the owner's default.
        shares: Directories of the host beside its root.
        network: What its adapters are on, a key of MODES; empty: it has none.
        isolation: What its devices are handed of its memory; empty: the owner's default.
    """

    kind: str
    ram_bytes: int = 0
    cpus: int = 0
    kernel: str = ""
    shares: tuple[RunShare, ...] = ()
    network: str = ""
    isolation: str = ""


async def run(
    plan: GuestPlan,
    command: GuestCommand,
    terminal: Terminal | None,
    signals: Signals,
    environment: Mapping[str, str],
) -> int:
    """Boot the guest, run the command, and end everything.

    Args:
        plan: The guest.
        command: The command, with the terminal's size if it has one.
        terminal: The caller's terminal; None: the command has pipes.
        signals: Those of this process, which are handled.
        environment: PORTHOLE_ variables for the services.

    Returns:
        The command's exit code, or 128 and the number of a signal.

    Raises:
        CommandRefusedError: The command could not be started.
        PortholeError: The guest did not boot, or has ended.
    """
    with _run_dir() as run_dir:
        async with Services(run_dir, environment, _hear) as services:
            try:
                return await _unless_a_service_ends(
                    services, _work(services, plan, command, terminal, signals)
                )
            finally:
                signals.ignore()


def _hear(_service: str, line: str) -> None:
    """Print the one line of the services that its reader can act upon: guests are slow."""
    _, found, rest = line.partition(EMULATED)
    if found:
        say(found + rest)


async def _unless_a_service_ends(services: Services, work: Coroutine[Any, Any, int]) -> int:
    ending = asyncio.create_task(services.first_to_end())
    working = asyncio.create_task(work)
    try:
        await asyncio.wait([ending, working], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise service_ended(await ending)
        return await working
    finally:
        for task in (ending, working):
            task.cancel()
        # Without the service its work has failed, too.
        await asyncio.gather(ending, working, return_exceptions=True)


async def _work(
    services: Services,
    plan: GuestPlan,
    command: GuestCommand,
    terminal: Terminal | None,
    signals: Signals,
) -> int:
    async with clients.owner(services.owner_address, WAIT_S) as owner:
        async with _said_if_long(services.run_dir):
            vm = await _boot(services, owner, plan)
        for warning in vm.warnings:
            say(f"warning: {warning.text} [{warning.id}]")
        async with guest_control(vm.guest_init_address, WAIT_S) as guest:
            try:
                await _furnish(guest, plan)
                signals.check()
                attachment = Attachment(await _start(guest, command), terminal)
                with signals.passed_to(attachment.take_signal):
                    return await attachment.run()
            except UnavailableError as failure:
                raise await _cause(owner, vm.vm_id, failure) from None
            finally:
                await _power_off(owner, guest, vm.vm_id)


async def _boot(services: Services, owner: OwnerClient, plan: GuestPlan) -> VmView:
    vm = await owner.create_vm(
        VmRequest(
            kind=plan.kind,
            ram_bytes=plan.ram_bytes,
            qemu=QemuRequest(kernel=plan.kernel, cpus=plan.cpus, isolation=plan.isolation),
        )
    )
    require_init(vm)
    if plan.kind == "wslc":
        await apply_guest_capabilities(services.owner_address, vm.vm_id)
    # CreateVm would make a warning of a share that cannot be.
    for share in share_requests(plan.shares):
        await owner.add_share(vm.vm_id, share)
    if plan.network:
        await owner.configure_networking(vm.vm_id, MODES[plan.network])
    return await owner.get_vm(vm.vm_id)


async def _furnish(guest: GuestClient, plan: GuestPlan) -> None:
    """Give the guest its root and its shares.

    Raises:
        FailedPreconditionError: GUEST_REQUEST_REFUSED.
    """
    await enter_root(guest)
    for mount in share_mounts(share_requests(plan.shares)):
        await guest.mount(mount)


async def _start(guest: GuestClient, command: GuestCommand) -> RunningCommand:
    try:
        return await guest.run(command)
    except FailedPreconditionError as refusal:
        if not errno_of(refusal):
            raise
        raise CommandRefusedError(
            refusal.reason, f"{command.arguments[0]}: {refusal.message}", **refusal.metadata
        ) from None


async def _power_off(owner: OwnerClient, guest: GuestClient, vm_id: str) -> None:
    """End the guest by itself, so that it writes back first; the services end one that does not."""
    with contextlib.suppress(PortholeError, TimeoutError):
        async with asyncio.timeout(POWER_OFF_S):
            await guest.power_off(POWER_OFF_S)
            async for event in owner.watch_vm(vm_id):
                if isinstance(event, StateEvent) and event.state == "terminated":
                    return


async def _cause(owner: OwnerClient, vm_id: str, failure: UnavailableError) -> PortholeError:
    """Return why the guest is out of reach, which its owner knows a moment later."""
    with contextlib.suppress(PortholeError, TimeoutError):
        async with asyncio.timeout(WAIT_S):
            for _ in range(20):
                for warning in (await owner.get_vm(vm_id)).warnings:
                    if warning.id in ("GuestEnded", "GuestInitEnded"):
                        return UnavailableError("GUEST_ENDED", warning.text)
                await asyncio.sleep(0.1)
    return failure


@asynccontextmanager
async def _said_if_long(run_dir: Path) -> AsyncIterator[None]:
    """Say in the body, once in a while, that the boot takes long, and what the guest says."""

    async def speak() -> None:
        while True:
            await asyncio.sleep(LONG_S)
            said = await asyncio.to_thread(_last_line, run_dir)
            say(f"the guest is still booting; its console says: {said or 'nothing'}")

    speaking = asyncio.create_task(speak())
    try:
        yield
    finally:
        speaking.cancel()
        await asyncio.wait([speaking])


def _last_line(run_dir: Path) -> str:
    for console in run_dir.glob("vm/*/console.log"):
        with contextlib.suppress(OSError), console.open("rb") as file:
            file.seek(max(0, console.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="backslashreplace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


@contextlib.contextmanager
def _run_dir() -> Iterator[Path]:
    # A Unix socket's path has at most 107 bytes.
    path = Path(tempfile.mkdtemp(prefix="ph-"))
    try:
        yield path
    finally:
        for left, why in remove_tree(path).items():
            say(f"{left} is left behind: {why}")
