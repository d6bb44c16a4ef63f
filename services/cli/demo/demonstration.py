"""The demonstration: three VMs work on a real directory tree, and everything is compared.

Owns the list of VMs and the tree that they share. vm.py has the steps for each VM, report.py the
wording of the report.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.cli import clients
from services.cli.demo.namespace import VIRTIO_PROXY
from services.cli.demo.report import DemoReport
from services.cli.demo.servers import name_server
from services.cli.demo.tree import read_tree, tree_portion
from services.cli.demo.vm import WAIT_S, Stage, VmPlan, VmShow
from services.cli.launcher import Services, service_ended
from services.cli.requests import QemuRequest
from services.rpc.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OLD_KERNEL: Final = "5.15.167.4-microsoft-standard-WSL2"
"""A kernel from before the pool, as WSL shipped it."""


class Guests(StrEnum):
    """What the guests of a demonstration are."""

    USER_SPACE = "user-space"
    QEMU = "qemu"


USER_SPACE_PLANS: Final = (
    VmPlan("WSL2", "WSL2", networking=VIRTIO_PROXY),
    VmPlan("WSLC", "WSLC", networking=VIRTIO_PROXY),
    VmPlan("WSL2, old kernel", "WSL2", OLD_KERNEL, pooled=False),
)
QEMU_PLANS: Final = (
    VmPlan("WSL2", "WSL2", qemu=QemuRequest()),
    VmPlan("WSLC", "WSLC", qemu=QemuRequest()),
    VmPlan("WSL2, strict", "WSL2", qemu=QemuRequest(isolation="strict")),
)
PLANS: Final = {Guests.USER_SPACE: USER_SPACE_PLANS, Guests.QEMU: QEMU_PLANS}

EMULATION_S: Final = "55"
"""Deadline of a boot, and of a guest's report: maybe three guests are emulated at once."""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """The inputs of one demonstration.

    Attributes:
        tree: Directory that is shared read-only.
        exclude: Names of entries of that directory that are left out.
        out: Directory for all results.
        portion_files: Approximate number of files also written, and read through a mount point;
            Linux guests read no more.
        trace_file: File to which every process appends its spans.
        mount: Whether a real mount point can be shown.
        networks: The networking modes that can be shown.
        guests: What the guests are.
    """

    tree: Path
    exclude: tuple[str, ...]
    out: Path
    portion_files: int
    trace_file: Path
    mount: bool
    networks: frozenset[str]
    guests: Guests = Guests.USER_SPACE


async def run(plan: DemoPlan, say: Callable[[str], None]) -> DemoReport:
    """Run the demonstration; `say` is called with a sentence before each step.

    Raises:
        PortholeError: The services did not start, or one of them ended. Any other failure of one VM
            is in the report, and the other VMs are still shown.
    """
    say(f"reading {plan.tree} on the host")
    host = await asyncio.to_thread(read_tree, plan.tree, plan.exclude)
    portion = tree_portion(host, plan.portion_files)
    if plan.guests is Guests.QEMU:
        # Emulated guests would take minutes for the whole tree.
        host = portion
    report = DemoReport(
        tree=str(plan.tree),
        tree_files=len(host.files),
        tree_bytes=host.total_bytes,
        tree_excluded=list(plan.exclude),
        tree_unreadable=len(host.unreadable),
    )
    environment = {
        "PORTHOLE_TRACE_FILE": str(plan.trace_file),
        "PORTHOLE_METRICS_FILE": str(plan.out / "metrics.jsonl"),
        # The tree may be the library that the services run on: they must not write .pyc files.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if plan.guests is Guests.QEMU:
        environment["PORTHOLE_BOOT_DEADLINE_S"] = EMULATION_S
        environment["PORTHOLE_CAPABILITIES_DEADLINE_S"] = EMULATION_S
    with _run_dir(plan.out) as run_dir, (plan.out / "services.log").open("a", buffering=1) as log:
        say("starting device host and VM owner")
        services = Services(
            run_dir, environment, lambda name, line: print(f"{name}: {line}", file=log)
        )
        async with services, clients.owner(services.owner_address, WAIT_S) as owner:
            stage = Stage(
                host=host,
                portion=portion,
                owner=owner,
                owner_address=services.owner_address,
                mount=plan.mount,
                networks=plan.networks,
                say=say,
            )
            shows = [
                VmShow(stage, vm_plan, plan.out / f"vm{number}")
                for number, vm_plan in enumerate(PLANS[plan.guests], start=1)
            ]
            report.vms = [show.report for show in shows]
            with name_server() if VIRTIO_PROXY in plan.networks else nullcontext():
                await _run_all(shows, services)
    return report


async def _run_all(shows: list[VmShow], services: Services) -> None:
    """Run all shows at the same time, so that one guest works while another waits for its device.

    Raises:
        UnavailableError: SERVICE_ENDED; the rest of the demonstration would prove nothing.
    """
    ending = asyncio.create_task(services.first_to_end())
    running = [asyncio.create_task(show.run()) for show in shows]
    try:
        unfinished = set(running)
        while unfinished and not ending.done():
            done, _ = await asyncio.wait({*unfinished, ending}, return_when=asyncio.FIRST_COMPLETED)
            unfinished -= done
        if unfinished:
            raise service_ended(await ending)
        await asyncio.gather(*running)
    finally:
        for task in (ending, *running):
            task.cancel()
        await asyncio.wait((ending, *running))


@contextmanager
def _run_dir(out: Path) -> Iterator[Path]:
    # Not below `out`: a Unix socket's path has at most 107 bytes, and `out` may be deep.
    path = Path(tempfile.mkdtemp(prefix="ph-"))
    try:
        yield path
    finally:
        for log in path.glob("vm/*/*.log"):
            shutil.copyfile(log, out / f"{log.parent.name}-{log.name}")
        remove_tree(path)
