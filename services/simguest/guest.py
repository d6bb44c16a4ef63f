"""The guest as a machine: it boots, devices come and go, it powers off.

Owns the order in which the guest's parts come up and go down, and its states. Must not know gRPC.

Power-off: the drivers stop (mounts and network namespaces go with them), the queues, the vhost-user
sockets, guest init, at last the RAM. A guest whose owner dies runs on until it is told otherwise,
as a VM would whose manager crashed; `exit_with_parent` changes that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from services.handshake import events
from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from services.rpc.address import parse_address
from services.simguest.exhaustions import Exhaustions
from services.simguest.fs import driver as fs_driver
from services.simguest.guest_init import GuestInitProcess, InitBoot
from services.simguest.kernel import Kernel, ordinary_ranges, publish_pool, reserve_pool
from services.simguest.memory.bounce import BouncePool, PoolUsage
from services.simguest.memory.dma import DirectDma, Dma
from services.simguest.memory.pages import PageAllocator
from services.simguest.memory.ram import GuestRam
from services.simguest.net import driver as net_driver
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
"""Devices that this guest has drivers for."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GuestPlace:
    """Where a guest lives.

    Attributes:
        directory: For its files and its init's socket.
        rings_in_pool: Whether virtqueue rings are put into the pool, when there is one.
        telemetry: Flags for guest init, which all services share.
    """

    directory: Path
    rings_in_pool: bool
    telemetry: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BootOrder:
    """What a VM owner decides for one VM.

    Attributes:
        vm_id: Of the VM; for metrics.
        ram_bytes: Length of its RAM.
        command_line: The kernel's.
        kernel: Which kernel.
        init_channel: Where its init reports to; empty: it does not push.
    """

    ram_bytes: int
    command_line: str
    kernel: Kernel
    init_channel: str
    vm_id: str = ""


@dataclass(frozen=True, slots=True)
class DeviceOrder:
    """A device to attach.

    Attributes:
        instance_id: Its id.
        device_class: events.FS or events.NET.
        tag: Mount tag or adapter name; one device per tag.
        socket_path: Its vhost-user socket.
        client_address: An adapter's own, "192.0.2.2/24"; empty for none.
        gateway_address: An adapter's next hop; empty for none.
    """

    instance_id: str
    device_class: str
    tag: str
    socket_path: Path
    client_address: str = ""
    gateway_address: str = ""


@dataclass(frozen=True, slots=True)
class _Memory:
    ram: GuestRam
    pool: SwiotlbPool | None
    bounce: BouncePool | None
    device: DeviceMemory


class Guest:
    """One guest; what changes it is done one at a time, in the order of the calls.

    Attributes:
        vm_id: Of its VM; empty before it has booted.
        exhaustions: Tells when its kernel's pool is used up.
    """

    def __init__(self, place: GuestPlace) -> None:
        self.vm_id = ""
        self.workload = Workload()
        self.exhaustions = Exhaustions()
        self._life = guest_life()
        self._place = place
        self._memory: _Memory | None = None
        self._init: GuestInitProcess | None = None
        self._devices: dict[str, tuple[DeviceOrder, VirtioDevice]] = {}
        self._order = asyncio.Lock()
        # Of its own: a workload that hangs must not keep the guest from powering off.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="guest")

    @property
    def state(self) -> GuestState:
        """Where the guest is in its life."""
        return self._life.state

    async def boot(self, order: BootOrder) -> str:
        """Boot, once: reserve and publish the pool, then start guest init.

        Returns:
            Where guest init serves, or will in a moment.

        Raises:
            FailedPreconditionError: GUEST_STATE.
            InvalidArgumentError: RAM_SIZE, or SOCKET_PATH_TOO_LONG for guest init's.
            OSError: The guest's directory cannot be written; the guest stays off.
        """
        async with self._order:
            self._fire(GuestEvent.BOOT)
            try:
                await self._boot(order)
            except BaseException:
                self._fire(GuestEvent.BOOT_FAILED)
                raise
            self._fire(GuestEvent.BOOT_DONE)
            return self._init_address()

    async def attach(self, order: DeviceOrder) -> None:
        """Plug a device in; its driver has probed it when this returns.

        Raises:
            FailedPreconditionError: GUEST_STATE, or a reason of `VirtioDevice` and the driver.
            AlreadyExistsError: DEVICE_ATTACHED, for the same id or tag.
            InvalidArgumentError: DEVICE_CLASS_UNKNOWN.
            PortholeError: As `VirtioDevice` and the driver; nothing of the device is left then.
        """
        async with self._order:
            self._fire(GuestEvent.ATTACH)
            kind = KINDS.get(order.device_class)
            if kind is None:
                raise InvalidArgumentError(
                    "DEVICE_CLASS_UNKNOWN",
                    f"no driver for device class {order.device_class!r}; there are drivers for "
                    f"{', '.join(KINDS)}",
                    device_class=order.device_class,
                )
            for other, _ in self._devices.values():
                if order.instance_id == other.instance_id or order.tag == other.tag:
                    raise AlreadyExistsError(
                        "DEVICE_ATTACHED",
                        f"device {other.instance_id} with tag {other.tag!r} is attached already",
                        instance_id=other.instance_id,
                        tag=other.tag,
                    )
            device = await self._run(lambda: self._probe(order, kind))
            self._devices[order.instance_id] = (order, device)

    async def detach(self, instance_id: str) -> None:
        """Unplug a device: its driver stops, then its queues, then its socket closes.

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
            order, device = self._devices.pop(instance_id)
            await self._run(lambda: self._unplug(order.tag, device))

    async def power_off(self) -> None:
        """Power off in the order of this module's docstring; harmless when it is off already."""
        async with self._order:
            self._fire(GuestEvent.POWER_OFF)
            devices = [device for _, device in self._devices.values()]
            self._devices.clear()
            await self._run(lambda: self._stop_devices(devices))
            if self._init is not None:
                await self._init.end()
                self._init = None
            if self._memory is not None:
                _release_memory(self._memory)
                self._memory = None
                publish_pool(None, self._place.directory)
            self.exhaustions.end()

    def pool_usage(self) -> tuple[SwiotlbPool, PoolUsage] | None:
        """Tell the pool and how it is used; None when none is in use."""
        memory = self._memory
        if memory is None or memory.pool is None or memory.bounce is None:
            return None
        return memory.pool, memory.bounce.usage()

    def _fire(self, event: GuestEvent) -> None:
        """Go where `event` leads.

        Raises:
            FailedPreconditionError: GUEST_STATE; nothing changed. A reason of its own, because the
                owner has a state machine as well, for the same VM.
        """
        try:
            self._life.fire(event)
        except FailedPreconditionError:
            raise FailedPreconditionError(
                "GUEST_STATE", f"cannot {event}: the guest is {self.state}", state=self.state
            ) from None

    async def _boot(self, order: BootOrder) -> None:
        parse_address(self._init_address())
        memory = _make_memory(order, self._place.rings_in_pool, self.exhaustions)
        try:
            self._init = await self._start_init(order, memory.pool)
        except BaseException:
            memory.ram.close()
            raise
        self._memory, self.vm_id = memory, order.vm_id

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _init_address(self) -> str:
        return f"unix:{self._place.directory / 'guest-init.sock'}"

    async def _start_init(self, order: BootOrder, pool: SwiotlbPool | None) -> GuestInitProcess:
        publish_dir = publish_pool(pool, self._place.directory)
        cmdline_file = self._place.directory / "cmdline"
        cmdline_file.write_text(f"{order.command_line}\n", encoding="utf-8")
        return await GuestInitProcess.start(
            InitBoot(
                publish_dir=publish_dir,
                cmdline_file=cmdline_file,
                kernel_release=order.kernel.release,
                listen=self._init_address(),
                owner=order.init_channel,
                telemetry=self._place.telemetry,
            )
        )

    def _probe(self, order: DeviceOrder, kind: DeviceKind) -> VirtioDevice:
        memory = self._memory
        if memory is None:
            raise FailedPreconditionError("GUEST_STATE", "the guest has no memory")
        name = f"{order.device_class} {order.tag!r}"
        reach = memory.device
        if memory.bounce is not None:
            reach = replace(reach, buffers=memory.bounce.for_device(order.instance_id))
        device = VirtioDevice(name, order.socket_path, kind, reach)
        try:
            if order.device_class == events.FS:
                self.workload.attach_share(order.tag, device)
            else:
                self.workload.attach_adapter(
                    order.tag, device, order.client_address, order.gateway_address
                )
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
        with contextlib.ExitStack() as steps:  # unwinds all, whatever fails
            for device in devices:
                steps.callback(device.close)
            steps.callback(self.workload.close)


def _make_memory(order: BootOrder, rings_in_pool: bool, exhaustions: Exhaustions) -> _Memory:
    ram = GuestRam(order.ram_bytes)
    pool = reserve_pool(order.kernel, order.command_line, ram.regions[0])
    direct = DirectDma(ram, PageAllocator(ordinary_ranges(ram.regions, pool)))
    bounce = BouncePool(ram, pool, on_exhausted=exhaustions.tell) if pool else None
    buffers: Dma = bounce or direct
    rings = buffers if rings_in_pool else direct
    return _Memory(ram, pool, bounce, DeviceMemory(ram, buffers, rings))


def _release_memory(memory: _Memory) -> None:
    if memory.bounce is not None and (used := memory.bounce.usage().slots_used):
        _log.error("kernel: %d slots of the bounce pool are still mapped at power-off", used)
    memory.ram.close()
