"""The guest as a machine: it boots, devices come and go, it powers off.

Owns the order in which the guest's parts come up and go down. Must not know gRPC.

Power-off stops the drivers with their mounts and the network namespace, then the queues, the
vhost-user sockets, guest init, and last the RAM. It does not wait for the process of guest init,
which may have telemetry to export. A guest keeps running when its owner dies, like a VM whose
manager has crashed, unless `exit_with_parent` is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from services.handshake import events
from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PortholeError,
)
from services.rpc.address import parse_address
from services.simguest.fs import driver as fs_driver
from services.simguest.guest_init import GuestInitProcess, InitBoot
from services.simguest.kernel import (
    Kernel,
    ordinary_ranges,
    publish_pool,
    reserve_pool,
    withdraw_pool,
)
from services.simguest.memory.bounce import BouncePool, PoolUsage
from services.simguest.memory.dma import DirectDma, Dma
from services.simguest.memory.pages import PageAllocator
from services.simguest.memory.ram import GuestRam
from services.simguest.net import driver as net_driver
from services.simguest.reports import GuestReports
from services.simguest.states import GuestEvent, GuestState, guest_life
from services.simguest.virtio.device import DeviceKind, DeviceMemory, VirtioDevice
from services.simguest.workload.workload import Workload
from services.wire import virtio_fs, virtio_net

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.handshake.pool import SwiotlbPool

T = TypeVar("T")

KINDS: Final = {
    events.FS: DeviceKind(fs_driver.WANTED_FEATURES, virtio_fs.CONFIG.size, queues=2),
    events.NET: DeviceKind(net_driver.WANTED_FEATURES, virtio_net.CONFIG.size, queues=2),
}
"""The device classes that this guest has drivers for."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GuestPlace:
    """The surroundings of a guest, which are known before it boots.

    Attributes:
        directory: Holds the guest's files and the socket of its init.
        rings_in_pool: Whether virtqueue rings are put into the pool, when there is one.
        telemetry: The flags for telemetry that guest init is started with.
    """

    directory: Path
    rings_in_pool: bool
    telemetry: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BootSpec:
    """The VM owner's decisions for one VM.

    Attributes:
        ram_bytes: Length of its RAM.
        kernel_command_line: Its kernel command line.
        kernel: The kernel to boot.
        init_channel_address: The address that guest init reports to; empty when it must not report.
        vm_id: The VM's id, for metrics.
    """

    ram_bytes: int
    kernel_command_line: str
    kernel: Kernel
    init_channel_address: str
    vm_id: str = ""


@dataclass(frozen=True, slots=True)
class AttachSpec:
    """How to attach a device.

    Attributes:
        instance_id: The device's id.
        device_class: events.FS or events.NET.
        tag: Mount tag or adapter name; one device per tag.
        socket_path: The device's vhost-user socket.
        client_address: An adapter's own address, "192.0.2.2/24"; empty for none.
        gateway_address: An adapter's next hop; empty for none.
        client_address_ipv6: An adapter's own IPv6 address, "fd00::2/64"; empty for none.
        name_servers: The name servers that an adapter leads to.
    """

    instance_id: str
    device_class: str
    tag: str
    socket_path: Path
    client_address: str = ""
    gateway_address: str = ""
    client_address_ipv6: str = ""
    name_servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Memory:
    ram: GuestRam
    pool: SwiotlbPool | None
    bounce: BouncePool | None
    device: DeviceMemory


class Guest:
    """One guest. Its changes are made one at a time, in the order of the calls.

    Args:
        place: Its surroundings.
        no_network: Why it cannot have a network namespace; None: it may try.

    Attributes:
        vm_id: The VM's id; empty before boot.
        workload: The guest's drivers and their work.
        reports: Reports when the kernel's pool is used up, and when guest init ends.
    """

    def __init__(self, place: GuestPlace, no_network: PortholeError | None = None) -> None:
        self.vm_id = ""
        self.workload = Workload(no_network)
        self.reports = GuestReports()
        self._life = guest_life()
        self._place = place
        self._memory: _Memory | None = None
        self._init: GuestInitProcess | None = None
        self._to_init: socket.socket | None = None
        self._dismissed: GuestInitProcess | None = None
        self._devices: dict[str, tuple[AttachSpec, VirtioDevice]] = {}
        self._order = asyncio.Lock()
        # These changes have a thread of their own: a hung workload must not prevent the power-off.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="guest")

    @property
    def state(self) -> GuestState:
        """The state of the guest."""
        return self._life.state

    async def boot(self, spec: BootSpec) -> str:
        """Boot, once: reserve and publish the pool, then start guest init and wait for it.

        Returns:
            The address at which guest init serves.

        Raises:
            FailedPreconditionError: GUEST_STATE.
            InvalidArgumentError: RAM_SIZE; or SOCKET_PATH_TOO_LONG, for guest init's address.
            PortholeError: Guest init does not serve; see GuestInitProcess.start.
            OSError: The guest's directory cannot be written; the guest stays off.
        """
        async with self._order:
            self._fire(GuestEvent.BOOT)
            try:
                await self._boot(spec)
            except BaseException:
                self._fire(GuestEvent.BOOT_FAILED)
                raise
            self._fire(GuestEvent.BOOT_DONE)
            return self._init_address()

    async def attach(self, spec: AttachSpec) -> None:
        """Attach a device; its driver has probed it when this returns.

        Raises:
            FailedPreconditionError: GUEST_STATE, or a reason of `VirtioDevice` or the driver.
            AlreadyExistsError: DEVICE_ATTACHED, when the id or the tag is taken.
            InvalidArgumentError: DEVICE_CLASS_UNKNOWN.
            PortholeError: An error of `VirtioDevice` or the driver; nothing is left behind then.
        """
        async with self._order:
            self._fire(GuestEvent.ATTACH)
            kind = KINDS.get(spec.device_class)
            if kind is None:
                raise InvalidArgumentError(
                    "DEVICE_CLASS_UNKNOWN",
                    f"no driver for device class {spec.device_class!r}; there are drivers for "
                    f"{', '.join(KINDS)}",
                    device_class=spec.device_class,
                )
            for other, _ in self._devices.values():
                if spec.instance_id == other.instance_id or spec.tag == other.tag:
                    raise AlreadyExistsError(
                        "DEVICE_ATTACHED",
                        f"device {other.instance_id} with tag {other.tag!r} is attached already",
                        instance_id=other.instance_id,
                        tag=other.tag,
                    )
            device = await self._run(lambda: self._probe(spec, kind))
            self._devices[spec.instance_id] = (spec, device)

    async def detach(self, instance_id: str) -> None:
        """Detach a device: stop its driver, then its queues, then close its socket.

        Raises:
            FailedPreconditionError: GUEST_STATE.
            NotFoundError: DEVICE_UNKNOWN.
        """
        async with self._order:
            self._fire(GuestEvent.DETACH)
            if instance_id not in self._devices:
                raise NotFoundError(
                    "DEVICE_UNKNOWN", f"no device {instance_id!r} is attached", device=instance_id
                )
            spec, device = self._devices.pop(instance_id)
            await self._run(lambda: self._unplug(spec.tag, device))

    async def power_off(self) -> None:
        """Power off in the order of this module's docstring; does nothing the second time."""
        async with self._order:
            self._fire(GuestEvent.POWER_OFF)
            devices = [device for _, device in self._devices.values()]
            self._devices.clear()
            await self._run(lambda: self._stop_devices(devices))
            if self._init is not None:
                self._init.dismiss()
                self._dismissed, self._init = self._init, None
            self._close_to_init()
            if self._memory is not None:
                _release_memory(self._memory)
                self._memory = None
                withdraw_pool(self._place.directory)
            self.reports.end()

    async def init_ended(self) -> None:
        """Wait for the process of guest init, after `power_off`; it may still export telemetry."""
        dismissed, self._dismissed = self._dismissed, None
        if dismissed is not None:
            await dismissed.ended()

    def pool_usage(self) -> tuple[SwiotlbPool, PoolUsage] | None:
        """Return the pool and its usage; None without a pool, and when the guest is off."""
        memory = self._memory
        if memory is None or memory.pool is None or memory.bounce is None:
            return None
        return memory.pool, memory.bounce.usage()

    def _fire(self, event: GuestEvent) -> None:
        """Change the state as the table says.

        Raises:
            FailedPreconditionError: GUEST_STATE; nothing has changed. The reason is not
                ILLEGAL_EVENT, which would read as a refusal by the owner's own state machine.
        """
        try:
            self._life.fire(event)
        except FailedPreconditionError:
            raise FailedPreconditionError(
                "GUEST_STATE", f"cannot {event}: the guest is {self.state}", state=self.state
            ) from None

    async def _boot(self, spec: BootSpec) -> None:
        parse_address(self._init_address())
        memory = _make_memory(spec, self._place.rings_in_pool, self.reports)
        try:
            self._init = await self._start_init(spec, memory.pool)
        except BaseException:
            memory.ram.close()
            self._close_to_init()
            raise
        self._init.watch(self.reports.init_ended)
        self._memory, self.vm_id = memory, spec.vm_id

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _init_address(self) -> str:
        return f"unix:{self._place.directory / 'guest-init.sock'}"

    async def _start_init(self, spec: BootSpec, pool: SwiotlbPool | None) -> GuestInitProcess:
        publish_dir = publish_pool(pool, self._place.directory)
        cmdline_file = self._place.directory / "cmdline"
        cmdline_file.write_text(f"{spec.kernel_command_line}\n", encoding="utf-8")
        self._to_init, of_init = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with of_init:
            return await GuestInitProcess.start(
                InitBoot(
                    publish_dir=publish_dir,
                    cmdline_file=cmdline_file,
                    kernel_release=spec.kernel.release,
                    listen=self._init_address(),
                    owner=spec.init_channel_address,
                    telemetry=self._place.telemetry,
                    network_fd=of_init.fileno(),
                )
            )

    def _close_to_init(self) -> None:
        to_init, self._to_init = self._to_init, None
        if to_init is not None:
            to_init.close()

    def _publish_network(self) -> None:
        """Send guest init the tables of the network, as soon as there is one."""
        fds = self.workload.network_tables()
        if not fds or self._to_init is None:
            return
        try:
            # One that has ended, or does not take them, is reported elsewhere.
            with contextlib.suppress(OSError):
                socket.send_fds(self._to_init, [b"n"], fds, socket.MSG_DONTWAIT)
        finally:
            for fd in fds:
                os.close(fd)

    def _probe(self, spec: AttachSpec, kind: DeviceKind) -> VirtioDevice:
        memory = self._memory
        if memory is None:
            raise FailedPreconditionError("GUEST_STATE", "the guest has no memory")
        name = f"{spec.device_class} {spec.tag!r}"
        reach = memory.device
        if memory.bounce is not None:
            reach = replace(reach, buffers=memory.bounce.for_device(spec.instance_id))
        device = VirtioDevice(name, spec.socket_path, kind, reach)
        try:
            if spec.device_class == events.FS:
                self.workload.attach_share(spec.tag, device)
            else:
                self.workload.attach_adapter(
                    spec.tag,
                    device,
                    spec.client_address,
                    spec.gateway_address,
                    spec.client_address_ipv6,
                    spec.name_servers,
                )
                self._publish_network()
        except BaseException:
            device.close()
            raise
        return device

    def _unplug(self, tag: str, device: VirtioDevice) -> None:
        try:
            self.workload.detach(tag)
        finally:
            device.close()

    def _stop_devices(self, devices: list[VirtioDevice]) -> None:
        with contextlib.ExitStack() as steps:  # takes all steps, even when one fails
            for device in devices:
                steps.callback(device.close)
            steps.callback(self.workload.close)


def _make_memory(spec: BootSpec, rings_in_pool: bool, reports: GuestReports) -> _Memory:
    ram = GuestRam(spec.ram_bytes)
    pool = reserve_pool(spec.kernel, spec.kernel_command_line, ram.regions[0])
    direct = DirectDma(ram, PageAllocator(ordinary_ranges(ram.regions, pool)))
    bounce = BouncePool(ram, pool, on_exhausted=reports.exhausted) if pool else None
    buffers: Dma = bounce or direct
    rings = buffers if rings_in_pool else direct
    return _Memory(ram, pool, bounce, DeviceMemory(ram, buffers, rings))


def _release_memory(memory: _Memory) -> None:
    if memory.bounce is not None and (used := memory.bounce.usage().slots_used):
        _log.error("kernel: %d slots of the bounce pool are still mapped at power-off", used)
    memory.ram.close()
