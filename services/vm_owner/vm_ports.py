"""The ports of one VM, which its eth0 maps on a user-mode network.

Owns what has been mapped, and the undoing of a mapping whose answer was lost. The device host
listens, and forgets the ports with the adapter. Must not know how a network is set up.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    NotFoundError,
    PortholeError,
    UnavailableError,
)
from services.handshake.ports import normal
from services.vm_owner.device_hosts import UserNetwork
from services.vm_owner.operations import Operation

if TYPE_CHECKING:
    from services.handshake.events import Event
    from services.handshake.ports import PortKey, PortMapping
    from services.vm_owner.device_hosts import DeviceHost, DeviceHosts
    from services.vm_owner.guest_devices import GuestDevice, GuestDevices
    from services.vm_owner.record import VmRecord

logger = logging.getLogger(__name__)

_MAPPER: Final = "eth0"


class VmPorts:
    """The ports of one VM. The caller of a method that changes them holds the VM's lock.

    Args:
        record: The record of the VM.
        devices: Its devices, of which eth0 maps the ports.
        device_hosts: Both device hosts.
    """

    def __init__(self, record: VmRecord, devices: GuestDevices, device_hosts: DeviceHosts) -> None:
        self._record = record
        self._devices = devices
        self._device_hosts = device_hosts
        self._mapped: dict[PortKey, PortMapping] = {}

    async def map(self, wanted: PortMapping) -> PortMapping:
        """Map a port; the host listens when this returns. After a failure nothing has changed.

        Raises:
            FailedPreconditionError: NO_USER_NETWORK, or the state of the VM does not allow it.
            AlreadyExistsError: PORT_EXISTS.
            PortholeError: The device host refused, or cannot be reached.
        """
        self._record.require(Operation.MAP_PORT)
        device = self._adapter(Operation.MAP_PORT)
        host = await self._device_hosts.get(elevated=device.spec.elevated)
        try:
            wanted = replace(wanted, key=normal(wanted.key))
            mapping = await host.map_port(self._record.vm_id, device.instance_id, wanted)
            # The VM may have begun to shut down meanwhile.
            self._record.require(Operation.MAP_PORT)
        except (DeadlineExceededError, UnavailableError, FailedPreconditionError):
            await self._undo(host, device)
            raise
        self._mapped[mapping.key] = mapping
        self._record.emit(_event(events.PORT_MAPPED, self._record.vm_id, mapping))
        return mapping

    async def unmap(self, key: PortKey) -> None:
        """End a mapping.

        Raises:
            FailedPreconditionError: NO_USER_NETWORK, or the state of the VM does not allow it.
            NotFoundError: PORT_UNKNOWN.
            PortholeError: The device host refused, or cannot be reached.
        """
        self._record.require(Operation.UNMAP_PORT)
        device = self._adapter(Operation.UNMAP_PORT)
        host = await self._device_hosts.get(elevated=device.spec.elevated)
        key = normal(key)
        try:
            await host.unmap_port(self._record.vm_id, device.instance_id, key)
        except NotFoundError:
            # An earlier call may have ended it, whose answer was lost.
            if key not in self._mapped:
                raise
        mapping = self._mapped.pop(key, None)
        if mapping is not None:
            self._record.emit(_event(events.PORT_UNMAPPED, self._record.vm_id, mapping))

    async def unmap_same(self, mapping: PortMapping) -> None:
        """End the mapping that `map` has returned, and no later one of the same port.

        It does nothing if that has been ended.

        Raises:
            PortholeError: See `unmap`.
        """
        if self._mapped.get(mapping.key) is mapping:
            await self.unmap(mapping.key)

    async def list(self) -> list[PortMapping]:
        """List the mappings, in the order in which they were made.

        Raises:
            FailedPreconditionError: NO_USER_NETWORK, or the state of the VM does not allow it.
            PortholeError: The device host cannot be reached.
        """
        self._record.require(Operation.LIST_PORTS)
        device = self._adapter(Operation.LIST_PORTS)
        host = await self._device_hosts.get(elevated=device.spec.elevated)
        return await host.list_ports(self._record.vm_id, device.instance_id)

    def _adapter(self, operation: Operation) -> GuestDevice:
        for device in self._devices.all():
            if device.spec.tag == _MAPPER and isinstance(device.spec.backend, UserNetwork):
                return device
        vm_id = self._record.vm_id
        raise FailedPreconditionError(
            "NO_USER_NETWORK",
            f"{operation} is refused: VM {vm_id} has no adapter {_MAPPER} on a user-mode network; "
            "call ConfigureNetworking in the mode VirtioProxy first",
            vm_id=vm_id,
        )

    async def _undo(self, host: DeviceHost, device: GuestDevice) -> None:
        """Unmap what the device host has mapped without our knowledge: its answer was lost."""
        vm_id, instance_id = self._record.vm_id, device.instance_id
        try:
            for mapping in await host.list_ports(vm_id, instance_id):
                if mapping.key not in self._mapped:
                    await host.unmap_port(vm_id, instance_id, mapping.key)
        except PortholeError as failure:
            logger.warning("VM %s: a port may be left mapped until it ends: %s", vm_id, failure)


def _event(name: str, vm_id: str, mapping: PortMapping) -> Event:
    key = mapping.key
    return events.port(name, vm_id, key.protocol, key.address, key.port, mapping.guest_port)
