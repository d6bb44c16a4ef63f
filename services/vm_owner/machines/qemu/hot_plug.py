"""Devices that are plugged into a running QEMU, each into a root port of its own.

Owns the objects that QEMU has for a device: its character device (the vhost-user socket), its
network back end if it is an adapter, the device itself, and its port. Must not know what the guest
does with it.

`device_del` only asks the guest. Once it has let go, QEMU says DEVICE_DELETED; the other objects
can be removed then, and the vhost-user socket is closed by that.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    PortholeError,
)
from services.vm_owner.machines.qemu.ports import port_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.vm_owner.machines.qemu.ports import Ports

logger = logging.getLogger(__name__)

QUEUE_SIZE: Final = 1024
"""Descriptors of a virtio-fs queue, the most that QEMU gives."""


class Monitor(Protocol):
    """Gives commands to QEMU; see services.vm_owner.machines.qemu.monitor."""

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Give a command and return its answer."""


@dataclass(frozen=True, slots=True)
class FsDevice:
    """A virtio-fs device.

    Attributes:
        queues: Number of its request queues.
    """

    tag: str
    queues: int


@dataclass(frozen=True, slots=True)
class NetDevice:
    """A virtio-net device.

    Attributes:
        vectors: Number of its MSI-X vectors; None: QEMU decides, 0: none.
        mtu: Bytes of payload per frame, which a Linux guest takes over; 0: it is not told.
    """

    mac_address: str
    vectors: int | None
    mtu: int = 0


@dataclass(slots=True)
class _Plugged:
    """A device with a port, and what QEMU has of it. The ids are made of the device's own."""

    instance_id: str
    port: int
    objects: list[tuple[str, str]] = field(default_factory=list)
    """Commands that remove its objects, each with an id; the last is carried out first."""
    in_guest: bool = False
    """Whether the guest has the device, or is letting go of it."""
    abandoned: bool = False
    """Whether nobody waits any more for the guest to let go of it."""
    deleted: asyncio.Event = field(default_factory=asyncio.Event)
    removal: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while its objects are removed: a guest that lets go late may be waited for again."""

    @property
    def device_id(self) -> str:
        return f"device-{self.instance_id}"

    @property
    def chardev_id(self) -> str:
        return f"socket-{self.instance_id}"

    @property
    def netdev_id(self) -> str:
        return f"netdev-{self.instance_id}"


class HotPlug:
    """The plugged devices of one QEMU, by instance id.

    Args:
        monitor: Commands QEMU.
        ports: Those of the machine.
    """

    def __init__(self, monitor: Monitor, ports: Ports) -> None:
        self._monitor = monitor
        self._ports = ports
        self._plugged: dict[str, _Plugged] = {}
        self._late: set[asyncio.Task[None]] = set()

    def __contains__(self, instance_id: str) -> bool:
        return instance_id in self._plugged

    def reserve(self, instance_id: str) -> int:
        """Take the lowest free port for a device, and return it; one that has a port keeps it.

        Raises:
            ResourceExhaustedError: GUEST_PORTS_EXHAUSTED.
        """
        plugged = self._plugged.get(instance_id)
        if plugged is None:
            plugged = self._plugged[instance_id] = _Plugged(instance_id, self._ports.take())
        return plugged.port

    def give_back(self, instance_id: str) -> None:
        """Free the port of a device that was not plugged in; of another one, `unplug` does."""
        plugged = self._plugged.get(instance_id)
        if plugged is not None and not plugged.in_guest and not plugged.objects:
            self._forget(plugged)

    async def plug(self, instance_id: str, socket_path: str, device: FsDevice | NetDevice) -> None:
        """Plug a device into its port; the guest is notified, and probes it afterwards.

        After a failure, objects of it may be left, which `unplug` removes.

        Raises:
            ResourceExhaustedError: GUEST_PORTS_EXHAUSTED.
            PortholeError: See Monitor.execute.
        """
        self.reserve(instance_id)
        plugged = self._plugged[instance_id]
        address = {"type": "unix", "data": {"path": socket_path}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        await self._add(
            plugged,
            ("chardev-add", {"id": plugged.chardev_id, "backend": backend}),
            ("chardev-remove", plugged.chardev_id),
        )
        if isinstance(device, NetDevice):
            await self._add(
                plugged,
                (
                    "netdev_add",
                    {
                        "type": "vhost-user",
                        "id": plugged.netdev_id,
                        "chardev": plugged.chardev_id,
                    },
                ),
                ("netdev_del", plugged.netdev_id),
            )
        plugged.in_guest = True
        await self._monitor.execute("device_add", _device_arguments(plugged, device))

    async def set_link(self, instance_id: str, is_up: bool) -> None:
        """Have an adapter's link come or go; does nothing for one that the guest does not have.

        QEMU's adapters on vhost-user have a configuration space of their own, and do not ask the
        device for its (PROTOCOL_F_CONFIG). While the link is down the rings are stopped.

        Raises:
            PortholeError: See Monitor.execute.
        """
        plugged = self._plugged.get(instance_id)
        if plugged is not None and plugged.in_guest:
            await self._monitor.execute("set_link", {"name": plugged.device_id, "up": is_up})

    async def is_connected(self, instance_id: str) -> bool:
        """Return whether the other end of a device's socket is there."""
        plugged = self._plugged.get(instance_id)
        if plugged is None:
            return False
        answer = await self._monitor.execute("query-chardev")
        chardevs = answer if isinstance(answer, list) else []
        found = [each for each in chardevs if each.get("label") == plugged.chardev_id]
        return bool(found) and not str(found[0].get("filename", "")).startswith("disconnected")

    async def unplug(self, instance_id: str, deadline_s: float) -> None:
        """Unplug a device; does nothing for one that is not plugged in.

        Args:
            instance_id: The device.
            deadline_s: Longest that the guest gets to let go of it.

        Raises:
            DeadlineExceededError: GUEST_KEEPS_DEVICE: its port stays taken until it has let go.
            PortholeError: See Monitor.execute.
        """
        plugged = self._plugged.get(instance_id)
        if plugged is None:
            return
        if plugged.in_guest:
            await self._ask_for(plugged)
            await self._await_deletion(plugged, deadline_s)
        await self._remove_objects(plugged)

    def on_deleted(self, device_id: str) -> None:
        """Note that QEMU said DEVICE_DELETED of a device."""
        for plugged in self._plugged.values():
            if plugged.device_id == device_id:
                plugged.in_guest = False
                plugged.deleted.set()
                if plugged.abandoned:
                    task = asyncio.create_task(self._remove_late(plugged))
                    self._late.add(task)
                    task.add_done_callback(self._late.discard)

    async def _add(
        self, plugged: _Plugged, add: tuple[str, dict[str, object]], remove: tuple[str, str]
    ) -> None:
        await self._monitor.execute(*add)
        plugged.objects.append(remove)

    async def _ask_for(self, plugged: _Plugged) -> None:
        try:
            await self._monitor.execute("device_del", {"id": plugged.device_id})
        except FailedPreconditionError as refusal:
            # Either it was never added, or the guest has been asked already.
            logger.debug("%s", refusal.message)
            if await self._is_missing(plugged):
                plugged.in_guest = False
                plugged.deleted.set()

    async def _is_missing(self, plugged: _Plugged) -> bool:
        try:
            await self._monitor.execute(
                "qom-list", {"path": f"/machine/peripheral/{plugged.device_id}"}
            )
        except FailedPreconditionError:
            return True
        return False

    async def _await_deletion(self, plugged: _Plugged, deadline_s: float) -> None:
        try:
            async with asyncio.timeout(deadline_s):
                await plugged.deleted.wait()
        except TimeoutError:
            plugged.abandoned = True
            raise DeadlineExceededError(
                "GUEST_KEEPS_DEVICE",
                f"the guest did not let go of device {plugged.instance_id} within {deadline_s:g} "
                "s; its port is free again when it does, or when the VM ends",
                instance_id=plugged.instance_id,
            ) from None

    async def _remove_late(self, plugged: _Plugged) -> None:
        try:
            await self._remove_objects(plugged)
        except PortholeError as failure:
            logger.warning("device %s: %s", plugged.instance_id, failure.message)

    async def _remove_objects(self, plugged: _Plugged) -> None:
        async with plugged.removal:
            while plugged.objects:
                command, name = plugged.objects[-1]
                try:
                    await self._monitor.execute(command, {"id": name})
                except FailedPreconditionError as refusal:
                    logger.warning("device %s: %s", plugged.instance_id, refusal.message)
                plugged.objects.pop()
            self._forget(plugged)

    def _forget(self, plugged: _Plugged) -> None:
        if self._plugged.get(plugged.instance_id) is plugged:
            del self._plugged[plugged.instance_id]
            self._ports.give_back(plugged.port)


def _device_arguments(plugged: _Plugged, device: FsDevice | NetDevice) -> dict[str, Any]:
    # With iommu_platform the guest may accept VIRTIO_F_ACCESS_PLATFORM, and then bounces.
    common: dict[str, Any] = {
        "id": plugged.device_id,
        "bus": port_id(plugged.port),
        "iommu_platform": True,
    }
    if isinstance(device, FsDevice):
        return common | {
            "driver": "vhost-user-fs-pci",
            "chardev": plugged.chardev_id,
            "tag": device.tag,
            "queue-size": QUEUE_SIZE,
            "num-request-queues": device.queues,
        }
    arguments = common | {
        "driver": "virtio-net-pci",
        "netdev": plugged.netdev_id,
        "mac": device.mac_address,
    }
    if device.mtu:
        arguments["host_mtu"] = device.mtu
    return arguments if device.vectors is None else arguments | {"vectors": device.vectors}
