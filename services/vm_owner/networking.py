"""The network engine of one VM: its mode, and the adapters eth0 and loopback0.

Owns the mode in force, the adapters, their addresses, and the order in which they are made and
removed. A mode that this host cannot set up becomes NONE, with one warning.

Each adapter is in a subnet with one address for the host and one for the guest. In the mode NAT it
is on a TAP of its own, on which the host has its address, or which is a port of a bridge that the
client names for eth0: the addresses are those of the bridge's network then. In the mode VirtioProxy
it is on a user-mode network of its own, which the device host runs. The host's address is the
gateway of eth0. loopback0 reaches the host only, so it has no gateway.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from services.handshake import events
from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    PortholeError,
)
from services.handshake.features import USER_NETWORK
from services.handshake.options import SPOOFING_REFUSED
from services.vm_owner import taps
from services.vm_owner.adapter_addresses import RequestedAddresses, requested_addresses
from services.vm_owner.allowed_devices import networking_mode
from services.vm_owner.device_hosts import UserNetwork
from services.vm_owner.guest_devices import DeviceSpec
from services.vm_owner.warnings import networking_fallback
from services.vm_owner.wslconfig import NetworkingMode

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Iterable

    from services.vm_owner.adapter_addresses import AdapterAddresses
    from services.vm_owner.guest_devices import GuestDevice, GuestDevices
    from services.vm_owner.record import VmRecord
    from services.vm_owner.subnets import SubnetPool
    from services.vm_owner.warnings import VmWarning

logger = logging.getLogger(__name__)

_CANNOT_BE_SET_UP: Final = frozenset(
    {"TAP_UNAVAILABLE", "TAP_NOT_PERMITTED", "PASST_MISSING", "PASST_TOO_OLD", "PASST_FAILED"}
)
"""Reasons for which no repetition helps: this host lacks what the mode needs."""

_GATEWAY_OWNER: Final = "eth0"


class Taps(Protocol):
    """A maker of TAP interfaces, for instance the module `taps`. Its calls block; use a thread."""

    def create_tap(self, name: str, place: ipaddress.IPv4Interface | str) -> None:
        """Create a TAP with an address, or on a bridge; a failure leaves nothing behind."""

    def delete_tap(self, name: str) -> None:
        """Remove a TAP."""

    def host_networks(self) -> Iterable[ipaddress.IPv4Network]:
        """List the networks that the host is on."""


@dataclass(frozen=True, slots=True)
class NetworkRequest:
    """The networking that ConfigureNetworking asks for.

    Attributes:
        mode: The mode; None: that of the configuration.
        options: "key=value;…" of adapter_addresses.KEYS.
        host_loopback: Whether the guest reaches the host's loopback by loopback0.
    """

    mode: NetworkingMode | None = None
    options: str = ""
    host_loopback: bool = False


@dataclass(slots=True)
class _Adapter:
    """An adapter that is being made, or was.

    Attributes:
        addresses: Its addresses.
        backend: Its TAP, or its user-mode network.
        bridge: The bridge that its TAP is a port of; empty: none.
        subnet: What was taken of the subnets that all VMs share; None: nothing.
        device: None before it is added.
    """

    name: str
    addresses: AdapterAddresses
    backend: str | UserNetwork
    subnet: ipaddress.IPv4Network | None
    bridge: str = ""
    device: GuestDevice | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """The networking that ConfigureNetworking has set up.

    Attributes:
        mode: The mode in force.
        adapters: The adapters, eth0 first; none in the mode NONE.
        gateway_address: The host's address on eth0's network; empty without adapters.
        warning: Why the mode in force is not the one that was asked for; None: it is.
        host_loopback_address: Where the guest reaches the host's loopback; empty: it does not.
    """

    mode: NetworkingMode
    adapters: tuple[GuestDevice, ...] = ()
    gateway_address: str = ""
    warning: VmWarning | None = None
    host_loopback_address: str = ""


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
        self._network: Network | None = None

    async def configure(self, request: NetworkRequest) -> Network:
        """Set networking up, once: both adapters, or none.

        After a failure no adapter is left, and the call may be repeated.

        Raises:
            AlreadyExistsError: NETWORKING_CONFIGURED.
            FailedPreconditionError: VIRTIO_OFF, NETWORKING_MODE or SUBNET_TAKEN.
            InvalidArgumentError: See requested_addresses.
            ResourceExhaustedError: SUBNETS_EXHAUSTED.
            PortholeError: A peer refused, or cannot be reached.
        """
        record = self._record
        asked = f"ConfigureNetworking for VM {record.vm_id}"
        mode = networking_mode(record.facts.config, request.mode, asked, vm_id=record.vm_id)
        if self._network is not None:
            raise AlreadyExistsError(
                "NETWORKING_CONFIGURED",
                f"networking of VM {record.vm_id} is configured already, in the mode "
                f"{self._network.mode}; that can be done only once",
                vm_id=record.vm_id,
                mode=self._network.mode,
            )
        addresses = requested_addresses(request.options, mode)
        if request.host_loopback and mode is not NetworkingMode.VIRTIO_PROXY:
            raise InvalidArgumentError(
                "OPTION_VALUE",
                f"host_loopback is of use in the networking mode VirtioProxy, and {mode} is asked "
                "for; leave it out",
                option="host_loopback",
            )
        network = Network(mode)
        if mode.has_adapters:
            network = await self._set_up(mode, addresses, host_loopback=request.host_loopback)
        ids = [adapter.instance_id for adapter in network.adapters]
        record.emit(events.networking_configured(record.vm_id, mode, network.mode, ids))
        self._network = network
        return network

    async def shut_down(self) -> None:
        """Remove the adapters and their TAPs, the last one first; failures are logged."""
        while self._adapters:
            adapter = self._adapters.pop()
            if adapter.device and self._devices.find(adapter.device.instance_id):
                await self._devices.remove(adapter.device.instance_id)
            if isinstance(adapter.backend, str):
                try:
                    await asyncio.to_thread(self._taps.delete_tap, adapter.backend)
                except PortholeError as failure:
                    logger.warning("TAP %s is left behind: %s", adapter.backend, failure.message)
            self._give_back(adapter)

    async def _set_up(
        self, mode: NetworkingMode, asked: RequestedAddresses, *, host_loopback: bool
    ) -> Network:
        try:
            # Also in the mode VirtioProxy: the guest may want to reach these networks.
            networks = await asyncio.to_thread(self._taps.host_networks)
            for name in events.ADAPTERS:
                of_gateway = name == _GATEWAY_OWNER
                wanted = asked if of_gateway else RequestedAddresses(spoofing=asked.spoofing)
                addresses, subnet = self._choose(mode, wanted, networks)
                backend: str | UserNetwork = taps.tap_name(self._record.vm_id, name)
                if mode is NetworkingMode.VIRTIO_PROXY:
                    host = (str(addresses.gateway),)
                    backend = UserNetwork(
                        dns_forward=host if of_gateway else (),
                        host_loopback=host if host_loopback and not of_gateway else (),
                    )
                await self._add(_Adapter(name, addresses, backend, subnet, wanted.bridge))
        except FailedPreconditionError as failure:
            await self.shut_down()
            if not _cannot_be_set_up(failure):
                raise
            return self._fall_back(mode, failure)
        except BaseException:
            await self.shut_down()
            raise
        eth0, loopback0 = self._adapters
        return Network(
            mode,
            tuple(each.device for each in (eth0, loopback0) if each.device is not None),
            str(eth0.addresses.gateway),
            host_loopback_address=str(loopback0.addresses.gateway) if host_loopback else "",
        )

    def _choose(
        self,
        mode: NetworkingMode,
        asked: RequestedAddresses,
        networks: Iterable[ipaddress.IPv4Network],
    ) -> tuple[AdapterAddresses, ipaddress.IPv4Network | None]:
        """Return the addresses of an adapter, and the subnet that was taken for them."""
        if asked.client is None:
            subnet = self._subnets.take(networks)
            return asked.complete(subnet), subnet
        subnet = asked.client.network
        # A user-mode network is its guest's alone; that of a TAP is one of this host, too, and must
        # be new to it. That of a bridge is the bridge's.
        if mode is NetworkingMode.VIRTIO_PROXY or asked.bridge:
            return asked.complete(subnet), None
        self._subnets.claim(subnet, networks)
        return asked.complete(subnet), subnet

    def _fall_back(self, mode: NetworkingMode, failure: PortholeError) -> Network:
        record = self._record
        warning = networking_fallback(mode, failure)
        logger.warning("VM %s: %s", record.vm_id, warning.text)
        record.emit(events.networking_fallback(record.vm_id, mode, failure.reason, warning.text))
        record.warn(warning)
        return Network(NetworkingMode.NONE, warning=warning)

    async def _add(self, adapter: _Adapter) -> None:
        if isinstance(adapter.backend, str):
            place = adapter.bridge or adapter.addresses.host
            try:
                await asyncio.to_thread(self._taps.create_tap, adapter.backend, place)
            except BaseException:
                self._give_back(adapter)
                raise
        self._adapters.append(adapter)
        adapter.device = await self._devices.add(_spec(adapter))

    def _give_back(self, adapter: _Adapter) -> None:
        if adapter.subnet is not None:
            self._subnets.give_back(adapter.subnet)


def _cannot_be_set_up(failure: PortholeError) -> bool:
    if failure.reason == "DEVICE_HOST_FEATURE":
        return failure.metadata.get("feature") == USER_NETWORK
    return failure.reason in _CANNOT_BE_SET_UP


def _spec(adapter: _Adapter) -> DeviceSpec:
    addresses, backend = adapter.addresses, adapter.backend
    gateway = str(addresses.gateway) if adapter.name == _GATEWAY_OWNER else ""
    ipv6 = addresses.client_ipv6
    # What a device does by default is not said: an older device host does not know the option.
    refused = addresses.spoofing == SPOOFING_REFUSED
    options = [
        f"client_ip={addresses.client}",
        *([f"client_ip_ipv6={ipv6}"] if ipv6 else []),
        f"client_mac={addresses.mac}",
        *([f"gateway_ip={gateway}"] if gateway else []),
        *addresses.further,
        *([f"spoofing={SPOOFING_REFUSED}"] if refused else []),
    ]
    return DeviceSpec(
        device_class=events.NET,
        tag=adapter.name,
        extra_options=";".join(options),
        backend=backend,
        client_address=str(addresses.client),
        gateway_address=gateway,
        client_address_ipv6=ipv6,
        name_servers=() if isinstance(backend, str) else backend.dns_forward,
        mtu=0 if isinstance(backend, str) else backend.mtu,
    )
