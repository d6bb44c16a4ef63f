"""The show of one VM: boot, read, write, mount, fetch, shut down, with a comparison after each.

Owns the steps. It works on the VM through the services, and reads directly only the host's files.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.cli import clients
from services.cli.clients import WorkloadClient
from services.cli.demo.linux_guest import LinuxWorkload, linux_guest
from services.cli.demo.namespace import NAT
from services.cli.demo.report import VmReport
from services.cli.demo.servers import HOST, NAME, fetch, http_server, quote
from services.cli.demo.tree import (
    Tree,
    copy_differences,
    copy_files,
    differences,
    read_tree,
    tree_portion,
)
from services.cli.guest_control import require_init
from services.cli.guest_root import ROOT_SHARE
from services.cli.requests import QemuRequest, ShareRequest, VmRequest
from services.cli.views import HttpResult
from services.handshake.errors import PortholeError
from services.handshake.ports import PortKey, PortMapping, PortProtocol
from services.session import apply_guest_capabilities

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from services.cli.clients import OwnerClient
    from services.cli.views import VmView

Workload = WorkloadClient | LinuxWorkload

SOURCE: Final = "source"
TARGET: Final = "target"
BY_MOUNT: Final = "by-mount"
"""Name of the directory of the target share that is written through a mount point."""

BY_MOUNT_FILES: Final = 200
"""Approximate number of files written there; for each, the kernel sends some twenty requests."""

WAIT_S: Final = 30.0
HTTP_DEADLINE_S: Final = 30.0
HTTP_FILE_LIMIT_BYTES: Final = 4 << 20
"""Largest file that is fetched over HTTP; the tree's largest up to this size is taken."""

PINGS: Final = 3
PING_DEADLINE_S: Final = 5.0
RESOLVE_DEADLINE_S: Final = 5.0

BODY_BYTES: Final = 100_000
"""What the guest's own HTTP service answers with."""
NOT_HERE: Final = ("NETWORKING_FALLBACK", "PORT_FORWARD_UNSUPPORTED")
"""Reasons for which this machine, for instance its passt, cannot show a part."""


@dataclass(frozen=True, slots=True)
class VmPlan:
    """One VM of the demonstration.

    Attributes:
        kernel_release: `uname -r`; empty: that of the bundled kernel.
        pooled: Whether its kernel publishes a pool.
        networking: The mode of its network where that can be shown; otherwise another one.
        qemu: The Linux guest in QEMU; None: the user-space guest.
    """

    name: str
    kind: str
    kernel_release: str = ""
    pooled: bool = True
    networking: str = NAT
    qemu: QemuRequest | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """The inputs that all VMs of one demonstration share.

    Attributes:
        host: The tree on the host; every VM has it as a read-only share and reads all of it.
        portion: The part of it that is also written, and read through a mount point.
        owner: The VM owner.
        owner_address: The address of the VM owner, for sessions.
        mount: Whether a real mount point can be shown.
        networks: The networking modes that can be shown.
        say: Called with a sentence before each step.
    """

    host: Tree
    portion: Tree
    owner: OwnerClient
    owner_address: str
    mount: bool
    networks: frozenset[str]
    say: Callable[[str], None]


class VmShow:
    """The show of one VM.

    Args:
        stage: The inputs that all VMs share.
        plan: The VM.
        out: Directory for its files; must not exist.
    """

    def __init__(self, stage: Stage, plan: VmPlan, out: Path) -> None:
        self._stage, self._plan, self._out = stage, plan, out
        self._target = out / TARGET
        self.report = VmReport(kind=plan.kind, name=plan.name)

    async def run(self) -> None:
        """Run all steps. An error ends this VM's show and is in its report."""
        began = time.monotonic()
        self._target.mkdir(parents=True)
        with self._recorded():
            vm_id = await self._boot()
            with self._recorded():
                await self._work(vm_id)
            self.report.take(await self._stage.owner.get_vm(vm_id))
            with self._step("terminate", "shutting down"):
                await self._stage.owner.terminate_vm(vm_id)
            self._check_pool()
        self.report.seconds = round(time.monotonic() - began, 3)

    async def _boot(self) -> str:
        request = VmRequest(
            kind=self._plan.kind,
            kernel_release=self._plan.kernel_release,
            qemu=self._plan.qemu,
            shares=(
                *((ROOT_SHARE,) if self._plan.qemu else ()),
                ShareRequest(str(self._stage.host.root), SOURCE, "ro"),
                ShareRequest(str(self._target), TARGET),
            ),
        )
        with self._step("boot", "booting"):
            vm = await self._stage.owner.create_vm(request)
            require_init(vm)
            if self._plan.kind == "WSLC":
                await apply_guest_capabilities(self._stage.owner_address, vm.vm_id)
        return vm.vm_id

    async def _work(self, vm_id: str) -> None:
        gateway = await self._configure_network(vm_id)
        vm = await self._stage.owner.get_vm(vm_id)
        async with self._guest(vm) as guest:
            await self._read(guest)
            await self._write(guest)
            # In a Linux guest everything goes through mount points.
            if self._stage.mount and isinstance(guest, WorkloadClient):
                await self._mount(guest)
            if self.report.networking == NAT:
                await self._ping(guest, gateway)
                await self._fetch(guest, gateway, gateway)
            elif self.report.networking and isinstance(guest, WorkloadClient):
                await self._ping(guest, HOST)
                await self._resolve(guest)
                await self._fetch(guest, HOST, NAME)
                await self._answer(guest, vm_id)
            use = await guest.pool_use()
            self.report.pool_slots = use.slots_total
            self.report.pool_slots_high_water = use.slots_used_high_water

    async def _configure_network(self, vm_id: str) -> str:
        """Give the VM a network, if one can be shown; return its gateway."""
        networks = self._stage.networks
        if self._plan.qemu is not None:
            networks &= {NAT}
        mode = self._plan.networking
        if mode not in networks:
            mode = next(iter(networks), "")
        gateway = ""
        if mode:
            with self._step("network", f"configuring its network, {mode}"), self._unless_lacking():
                gateway = await self._stage.owner.configure_networking(vm_id, mode)
                self.report.networking = mode
        return gateway

    @asynccontextmanager
    async def _guest(self, vm: VmView) -> AsyncIterator[Workload]:
        if self._plan.qemu is None:
            async with clients.workload(vm.machine_address, WAIT_S) as workload:
                yield workload
        else:
            async with linux_guest(vm.guest_init_address, WAIT_S, (SOURCE, TARGET)) as linux:
                yield linux

    async def _read(self, guest: Workload) -> None:
        host = self._stage.host
        with self._step("read", f"reading {len(host.files)} files through its virtqueues"):
            read = {
                path: digest async for path, digest in guest.hash_tree(SOURCE, exclude=host.exclude)
            }
        self.report.files = len(read)
        self.report.compare("read", differences(host, read))

    async def _write(self, guest: Workload) -> None:
        portion = self._stage.portion
        with self._step("write", f"copying {len(portion.files)} files to its writable share"):
            self.report.copied = await guest.copy_tree(SOURCE, TARGET, portion.exclude)
        with self._step("compare", "comparing the copy on the host"):
            copy = await asyncio.to_thread(read_tree, self._target)
        self.report.compare("written", copy_differences(portion, copy))

    async def _mount(self, guest: WorkloadClient) -> None:
        portion = self._stage.portion
        small = tree_portion(portion, min(len(portion.files), BY_MOUNT_FILES))
        async with self._mounted(guest, SOURCE) as source, self._mounted(guest, TARGET) as target:
            with self._step("mount", f"reading {len(portion.files)} files through a mount point"):
                seen = await asyncio.to_thread(read_tree, source, portion.exclude)
            with self._step("mount write", f"copying {len(small.files)} files between mounts"):
                await asyncio.to_thread(copy_files, small, source, target / BY_MOUNT)
        self.report.files_through_mount_point = len(seen.files)
        self.report.compare("mount point", copy_differences(portion, seen))
        copy = await asyncio.to_thread(read_tree, self._target / BY_MOUNT)
        self.report.compare("written through the mount point", copy_differences(small, copy))

    @asynccontextmanager
    async def _mounted(self, guest: WorkloadClient, tag: str) -> AsyncIterator[Path]:
        mount_point = self._out / f"mount-{tag}"
        mount_point.mkdir()
        await guest.mount(tag, str(mount_point))
        try:
            yield mount_point
        finally:
            await guest.unmount(tag)

    async def _ping(self, guest: Workload, gateway: str) -> None:
        with self._step("ping", "ping through its adapter"):
            result = await guest.ping(gateway, PINGS, PING_DEADLINE_S)
        self.report.ping = result
        lost = result.sent - result.received
        self.report.compare("ping", [f"{gateway}: an echo request was lost"] * lost)

    async def _resolve(self, guest: WorkloadClient) -> None:
        with self._step("name", f"resolving {NAME}"):
            found = await guest.resolve(NAME, RESOLVE_DEADLINE_S)
        self.report.resolved = list(found)
        if self.report.resolved != [HOST]:
            self.report.compare("name", [f"{NAME}: {', '.join(found)}, expected {HOST}"])

    async def _answer(self, guest: WorkloadClient, vm_id: str) -> None:
        """Fetch from the guest's own service, by a port that is mapped to it."""
        body = os.urandom(BODY_BYTES)
        with self._step("mapped port", "fetching from its own service"), self._unless_lacking():
            async with guest.serving(body) as guest_port:
                wanted = PortMapping(PortKey(PortProtocol.TCP, "", 0), guest_port)
                port = await self._stage.owner.map_port(vm_id, wanted)
                url = f"http://{port.listen_address}:{port.listen_port}/"
                status, got = await asyncio.to_thread(fetch, url, HTTP_DEADLINE_S)
            digest = hashlib.sha256(got).hexdigest()
            self.report.mapped_port = HttpResult(status, len(got), digest)
            if (status, got) != (200, body):
                self.report.compare("mapped port", [f"{url}: status {status}, {len(got)} bytes"])

    async def _fetch(self, guest: Workload, address: str, name: str) -> None:
        """Fetch a file of the tree.

        Args:
            guest: The guest.
            address: Where this process serves.
            name: What the guest calls that.
        """
        host = self._stage.host
        sizes = {path: digest.size_bytes for path, digest in host.files.items()}
        small = {path: size for path, size in sizes.items() if size <= HTTP_FILE_LIMIT_BYTES}
        if not small:
            return
        path = max(small, key=lambda item: small[item])
        with (
            self._step("http", "HTTP through its adapter"),
            http_server(address, host.root) as port,
        ):
            url = f"http://{name}:{port}/{quote(path)}"
            fetched = await guest.http_get(url, HTTP_DEADLINE_S)
        self.report.http = fetched
        expected = host.files[path].sha256
        if (fetched.status, fetched.sha256) != (200, expected):
            wrong = f"{os.fsdecode(path)}: status {fetched.status}, sha256 {fetched.sha256[:12]}"
            self.report.compare("HTTP", [f"{wrong}, host {expected[:12]}"])

    def _check_pool(self) -> None:
        pooled = bool(self.report.token)
        if pooled != self._plan.pooled:
            has = "has a pool, though its kernel has none" if pooled else "has no pool"
            self.report.failures.append(f"the VM {has}")

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        try:
            yield
        except PortholeError as error:
            self.report.failures.append(f"{error.message} [{error.reason}]")
        except OSError as error:
            self.report.failures.append(str(error))

    @contextmanager
    def _unless_lacking(self) -> Iterator[None]:
        try:
            yield
        except PortholeError as error:
            if error.reason not in NOT_HERE:
                raise
            self.report.not_shown.append(error.message)

    @contextmanager
    def _step(self, name: str, text: str) -> Iterator[None]:
        self._stage.say(f"{self._plan.name}: {text}")
        began = time.monotonic()
        yield
        self.report.seconds_by_step[name] = round(time.monotonic() - began, 3)
