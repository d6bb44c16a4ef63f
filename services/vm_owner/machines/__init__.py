"""Machines: a machine runs one guest and attaches its devices.

Owns the interface; each kind of machine is one module beside this one. A machine must not know
device hosts or shares: it boots a command line and attaches vhost-user sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from services.handshake.exhaustion import Exhaustion
    from services.handshake.pool import SwiotlbPool


class Isolation(StrEnum):
    """What the devices of a guest are handed of its memory."""

    SHARED_RAM = "shared-ram"
    """All of it; a device keeps the pool, which all devices share."""
    STRICT = "strict"
    """The pools alone; a device keeps its own."""


@dataclass(frozen=True, slots=True)
class BootSpec:
    """The parameters of booting a guest.

    Attributes:
        init_channel_address: The channel that guest init reports to; empty: it does not report.
        publishes_pool: Whether its kernel publishes the pool that it reserves.
        divided_pool_bytes: Size of the pool that the machine places and divides among devices, for
            strict isolation; None: its kernel places the pool, and devices share it.
    """

    vm_id: str
    ram_bytes: int
    kernel_command_line: str
    init_channel_address: str
    kernel_release: str
    publishes_pool: bool
    divided_pool_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a device is going to be attached.

    Attributes:
        aperture: The part of the guest's pool that the device there has for itself; None: devices
            share the pool.
    """

    aperture: SwiotlbPool | None = None


@dataclass(frozen=True, slots=True)
class AttachSpec:
    """The parameters of attaching a device.

    Attributes:
        client_address: The guest's address on a network adapter, with prefix length; empty: none.
        gateway_address: The gateway of a network adapter; empty: none.
        client_address_ipv6: As client_address; a Linux guest has it only.
        name_servers: Addresses of name servers; a Linux guest uses them only.
        mac_address: Hardware address of a network adapter; empty: one is made.
        mtu: Bytes of payload per frame of a network adapter; 0: the guest's own choice.
        queues: Request queues of a virtio-fs device.
    """

    instance_id: str
    device_class: str
    tag: str
    socket_path: str
    client_address: str = ""
    gateway_address: str = ""
    client_address_ipv6: str = ""
    name_servers: tuple[str, ...] = ()
    mac_address: str = ""
    mtu: int = 0
    queues: int = 1


@dataclass(frozen=True, slots=True)
class KernelExhaustion:
    """The guest's kernel has used a resource up; `instance_id` is the device that needed more."""

    instance_id: str
    exhaustion: Exhaustion


@dataclass(frozen=True, slots=True)
class GuestInitEnd:
    """Guest init, process 1 of the guest, has ended by itself; `cause` says how."""

    cause: str


MachineReport = KernelExhaustion | GuestInitEnd


class Machine(Protocol):
    """A machine that runs one guest. A call that fails raises a PortholeError."""

    @property
    def address(self) -> str:
        """Address at which it serves porthole.machine.v1.Machine."""

    @property
    def ram_base(self) -> int:
        """The guest-physical address at which RAM begins, one of sizing.RAM_BASES; see `start`."""

    async def start(self, on_end: Callable[[str], None]) -> None:
        """Get ready to boot; where RAM begins is known then.

        Args:
            on_end: Called at most once, with the cause, when the machine ends by itself.
        """

    async def boot(self, spec: BootSpec) -> str:
        """Boot the guest; returns the address at which its init serves GuestInit.

        A guest whose init is to report by itself is booted when it runs, though its init be silent.
        """

    def reserve(self, instance_id: str) -> Placement:
        """Take a place for a device that is about to be added."""

    def give_back(self, instance_id: str) -> None:
        """Give back the place of a device that was never attached."""

    async def attach_device(self, spec: AttachSpec) -> None:
        """Attach a device at its place; the guest has probed it when this returns."""

    async def set_link(self, instance_id: str, is_up: bool) -> None:
        """Have the guest see the link of an adapter come or go.

        It does nothing where the guest learns that from the device itself, or for an adapter that
        is not attached.
        """

    async def release_device(self, instance_id: str) -> None:
        """Have the guest let go of a device that is about to be torn down, if it needs to.

        The kernel of a real guest waits for the answers of a device that it uses. A guest that does
        not let go in a few seconds is left to its own devices: nothing is raised.
        """

    async def detach_device(self, instance_id: str) -> None:
        """Detach a device."""

    def watch(self) -> AsyncIterator[MachineReport]:
        """Stream exhaustions of the guest's kernel, and the end of guest init."""

    def last_words(self) -> str:
        """Return the end of what the guest has printed, in one line; empty: nothing, or unknown."""

    async def stop(self) -> None:
        """Power the guest off: its devices and its memory are gone then.

        A guest that has ended is no error. Processes of the machine may go on until `ended`.
        """

    async def ended(self) -> None:
        """Wait, after `stop`, until nothing of the machine is left.

        A process that has no part in the guest any more may have telemetry to export, which must
        not hold up whoever ends the VM.
        """
