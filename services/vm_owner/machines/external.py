"""The external machine: its process was started elsewhere, for instance by compose.

Owns the connection. The machine is powered off with its VM, and never started.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

from services.handshake.errors import PortholeError, UnavailableError
from services.vm_owner.machines import Placement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from services.vm_owner.machines import AttachSpec, BootSpec, MachineReport

logger = logging.getLogger(__name__)


class MachineConnection(Protocol):
    """A connected machine. A call that fails raises a PortholeError."""

    async def boot(self, spec: BootSpec) -> str:
        """Boot the guest; returns the address at which its init serves GuestInit."""

    async def attach_device(self, spec: AttachSpec) -> None:
        """Attach a device."""

    async def detach_device(self, instance_id: str) -> None:
        """Detach a device."""

    def watch(self) -> AsyncIterator[MachineReport]:
        """Stream exhaustions of the guest's kernel, and the end of guest init."""

    async def power_off(self) -> None:
        """Stop the guest."""

    async def close(self) -> None:
        """Disconnect."""


class ExternalMachine:
    """A machine at an address.

    Args:
        address: "unix:/path" or "host:port".
        dial: Connects to it.
    """

    ram_base: Final = 0
    """Where machine.proto has it."""

    def __init__(self, address: str, dial: Callable[[str], Awaitable[MachineConnection]]) -> None:
        self.address = address
        self._dial = dial
        self._client: MachineConnection | None = None

    async def start(self, on_end: Callable[[str], None]) -> None:
        """Connect.

        Raises:
            UnavailableError: PEER_UNAVAILABLE.
        """
        self._client = await self._dial(self.address)

    async def boot(self, spec: BootSpec) -> str:
        """Boot the guest; returns the address at which its init serves GuestInit."""
        return await self._connected().boot(spec)

    def reserve(self, instance_id: str) -> Placement:
        """Do nothing: such a guest has a place for every device."""
        return Placement()

    def give_back(self, instance_id: str) -> None:
        """Do nothing."""

    async def attach_device(self, spec: AttachSpec) -> None:
        """Attach a device."""
        await self._connected().attach_device(spec)

    async def set_link(self, instance_id: str, is_up: bool) -> None:
        """Do nothing: the guest's front-end asks the device."""

    async def release_device(self, instance_id: str) -> None:
        """Do nothing: such a guest lets go of a device that has ended."""

    async def detach_device(self, instance_id: str) -> None:
        """Detach a device."""
        await self._connected().detach_device(instance_id)

    def watch(self) -> AsyncIterator[MachineReport]:
        """Stream exhaustions of the guest's kernel, and the end of guest init."""
        return self._connected().watch()

    def last_words(self) -> str:
        """Return nothing: what such a guest prints is not known here."""
        return ""

    async def stop(self) -> None:
        """Power the guest off and disconnect."""
        await self.power_off()

    async def ended(self) -> None:
        """Do nothing: whoever runs the machine ends it."""

    async def power_off(self) -> bool:
        """Power the guest off and disconnect; return whether it has powered off, or never ran."""
        if self._client is None:
            return True
        try:
            await self._client.power_off()
        except PortholeError as failure:
            logger.warning("machine %s was not powered off: %s", self.address, failure)
            return False
        finally:
            await self.disconnect()
        return True

    async def disconnect(self) -> None:
        """Disconnect without powering the guest off."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _connected(self) -> MachineConnection:
        if self._client is None:
            raise UnavailableError(
                "MACHINE_GONE", f"machine {self.address} is not connected", address=self.address
            )
        return self._client
