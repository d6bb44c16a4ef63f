"""Machines: what runs a guest and takes its devices, behind one small interface.

Owns the interface; each kind of machine is one module beside this one. A machine must not know
pools, device hosts or shares: it boots a command line and plugs vhost-user sockets in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from services.handshake.exhaustion import Exhaustion

LOW_RAM_LIMIT: Final = 3 << 30
"""RAM up to here is at guest-physical address 0, the rest at 4 GiB (machine.proto, BootRequest)."""


@dataclass(frozen=True, slots=True)
class BootSpec:
    """How to boot a guest.

    Attributes:
        init_channel_address: Where guest init reports to; empty: it does not push.
        publishes_pool: Whether its kernel publishes the pool that it reserves.
    """

    vm_id: str
    ram_bytes: int
    kernel_command_line: str
    init_channel_address: str
    kernel_release: str
    publishes_pool: bool


@dataclass(frozen=True, slots=True)
class PluggedDevice:
    """A device that a machine plugs in.

    Attributes:
        client_address: Of a network adapter, with prefix length; empty for none.
        gateway_address: Of a network adapter; empty for none.
    """

    instance_id: str
    device_class: str
    tag: str
    socket_path: str
    client_address: str = ""
    gateway_address: str = ""


class Machine(Protocol):
    """Something that runs one guest; every failure of a call is a PortholeError."""

    @property
    def address(self) -> str:
        """Where it serves porthole.machine.v1.Machine."""

    async def start(self, on_end: Callable[[str], None]) -> None:
        """Get ready to boot.

        Args:
            on_end: Called at most once, with the cause, when the machine ends by itself.
        """

    async def boot(self, spec: BootSpec) -> str:
        """Boot the guest; returns where its init serves GuestInit."""

    async def attach_device(self, device: PluggedDevice) -> None:
        """Plug a device in; the guest has probed it when this returns."""

    async def detach_device(self, instance_id: str) -> None:
        """Unplug a device."""

    def watch(self) -> AsyncIterator[tuple[str, Exhaustion]]:
        """Stream what the guest's kernel has used up, and the device that needed more."""

    async def stop(self) -> None:
        """Power the guest off and release the machine; never raises for a guest that is gone."""
