"""The network engine of one VM: the adapters eth0 and loopback0, each on a TAP of its own.

Owns the adapters, their addresses, and the order in which they are made and removed. Only the mode
VirtioProxy has adapters.

Each adapter gets a subnet of four addresses, with one for the host and one for the guest. The
host's address is the gateway of eth0. loopback0 reaches the host only, so it has no gateway.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from services.handshake import events
from services.handshake.errors import (
    AlreadyExistsError,
    PortholeError,
)
from services.vm_owner import taps
from services.vm_owner.allowed_devices import require_adapters
from services.vm_owner.guest_devices import DeviceSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.vm_owner.guest_devices import GuestDevice, GuestDevices
    from services.vm_owner.record import VmRecord
    from services.vm_owner.subnets import SubnetPool

logger = logging.getLogger(__name__)


class Taps(Protocol):
    """A maker of TAP interfaces, for instance the module `taps`. Its calls block; use a thread."""

    def create_tap(self, name: str, host_address: ipaddress.IPv4Interface) -> None:
        """Create a TAP with an address; a failure leaves nothing behind."""

    def delete_tap(self, name: str) -> None:
        """Remove a TAP."""

    def host_networks(self) -> Iterable[ipaddress.IPv4Network]:
        """List the networks that the host is on."""


@dataclass(slots=True)
class _Adapter:
    name: str
    tap: str
    subnet: ipaddress.IPv4Network
    device: GuestDevice | None = None

    @property
    def host_address(self) -> ipaddress.IPv4Interface:
        return ipaddress.IPv4Interface((self.subnet[1], self.subnet.prefixlen))

    @property
    def client_address(self) -> ipaddress.IPv4Interface:
        return ipaddress.IPv4Interface((self.subnet[2], self.subnet.prefixlen))


@dataclass(frozen=True, slots=True)
class Network:
    """The adapters that ConfigureNetworking made."""

    adapters: tuple[GuestDevice, ...]
    gateway_address: str


class NetworkEngine:
    """The networking of one VM. The caller of every method holds the VM's lock.

    Args:
        record: The record of the VM.
        devices: The devices of the VM, which adapters are added to.
        subnets: The subnets that all VMs of this owner share.
        tap_maker: Makes TAP interfaces.
    """

    def __init__(
        self, record: VmRecord, devices: GuestDevices, subnets: SubnetPool, tap_maker: Taps = taps
    ) -> None:
        self._record = record
        self._devices = devices
        self._subnets = subnets
        self._taps = tap_maker
        self._adapters: list[_Adapter] = []

    async def configure(self) -> Network:
        """Add both adapters. After a failure neither is left, and the call may be repeated.

        Raises:
            AlreadyExistsError: NETWORKING_CONFIGURED.
            FailedPreconditionError: NETWORKING_MODE, or TAP_UNAVAILABLE.
            ResourceExhaustedError: SUBNETS_EXHAUSTED.
            PortholeError: A peer refused, or cannot be reached.
        """
        vm_id = self._record.vm_id
        asked = f"ConfigureNetworking for VM {vm_id}"
        require_adapters(self._record.facts.config, asked, vm_id=vm_id)
        if self._adapters:
            raise AlreadyExistsError(
                "NETWORKING_CONFIGURED",
                f"networking of VM {self._record.vm_id} is configured already; that can be done "
                "only once",
                vm_id=self._record.vm_id,
            )
        try:
            for name in taps.ADAPTERS:
                await self._add(name)
        except BaseException:
            await self.shut_down()
            raise
        devices = tuple(a.device for a in self._adapters if a.device is not None)
        return Network(devices, str(self._adapters[0].host_address.ip))

    async def shut_down(self) -> None:
        """Remove the adapters and their TAPs, the last one first; failures are logged."""
        while self._adapters:
            adapter = self._adapters.pop()
            if adapter.device and self._devices.find(adapter.device.instance_id):
                await self._devices.remove(adapter.device.instance_id)
            try:
                await asyncio.to_thread(self._taps.delete_tap, adapter.tap)
            except PortholeError as failure:
                logger.warning("TAP %s is left behind: %s", adapter.tap, failure.message)
            self._subnets.give_back(adapter.subnet)

    async def _add(self, name: str) -> None:
        networks = await asyncio.to_thread(self._taps.host_networks)
        adapter = _Adapter(
            name, taps.tap_name(self._record.vm_id, name), self._subnets.take(networks)
        )
        try:
            await asyncio.to_thread(self._taps.create_tap, adapter.tap, adapter.host_address)
        except BaseException:
            self._subnets.give_back(adapter.subnet)
            raise
        self._adapters.append(adapter)
        adapter.device = await self._devices.add(self._spec(adapter))

    def _spec(self, adapter: _Adapter) -> DeviceSpec:
        gateway = str(adapter.host_address.ip) if adapter.name == "eth0" else ""
        options = [
            f"client_ip={adapter.client_address}",
            f"client_mac={self._mac(adapter)}",
            *([f"gateway_ip={gateway}"] if gateway else []),
        ]
        return DeviceSpec(
            device_class=events.NET,
            tag=adapter.name,
            extra_options=";".join(options),
            backend=adapter.tap,
            client_address=str(adapter.client_address),
            gateway_address=gateway,
        )

    def _mac(self, adapter: _Adapter) -> str:
        # Locally administered (bit 1 of the first byte) and unique in this owner's subnets.
        last = adapter.client_address.ip.packed
        return ":".join(f"{byte:02x}" for byte in (0x52, 0x54, *last))
