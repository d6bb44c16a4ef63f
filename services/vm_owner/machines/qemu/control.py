"""The interface of a guest's init, for what a machine asks for inside the guest.

Must not know gRPC: services.vm_owner.clients implements it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

SHARES: Final = "/mnt"
"""The directory in which the guest has its shares, each by its tag."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter gets in the guest.

    Attributes:
        mac_address: Finds it.
        name: The name of its interface.
        addresses: Each with prefix length.
        gateway: Of the default route; empty: none.
        name_servers: Addresses of name servers.
    """

    mac_address: str
    name: str
    addresses: tuple[str, ...]
    gateway: str
    name_servers: tuple[str, ...] = ()


class GuestControl(Protocol):
    """A connected guest init. A call that fails raises a PortholeError."""

    async def make_ready(self, wait_s: float) -> None:
        """Wait until the guest speaks, and make the place of its shares."""

    async def mount(self, tag: str, target: str, wait_s: float) -> None:
        """Mount a share.

        Args:
            tag: Its tag.
            target: The mount point, which is made.
            wait_s: Longest that the guest waits for the device.
        """

    async def unmount(self, target: str, deadline_s: float) -> None:
        """Take a mount out of the guest's tree, also one that is in use."""

    async def configure_adapter(self, adapter: Adapter, wait_s: float) -> None:
        """Give an adapter its name and addresses, and bring it up."""

    async def power_off(self, deadline_s: float) -> None:
        """Begin the end of the guest."""

    async def close(self) -> None:
        """Disconnect."""
