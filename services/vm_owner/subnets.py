"""The subnets of network adapters: which ones this owner has given, and which are free.

Must not know VMs, adapters or TAPs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake.errors import FailedPreconditionError, ResourceExhaustedError

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Iterable

SUBNET_PREFIX: Final = 30
"""Prefix length of one adapter's subnet."""


class SubnetPool:
    """The subnets that this owner may give to adapters.

    Args:
        network: At least a /30.
    """

    def __init__(self, network: ipaddress.IPv4Network) -> None:
        self._network = network
        self._taken: set[ipaddress.IPv4Network] = set()

    def take(self, in_use: Iterable[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
        """Take a free subnet that overlaps none of `in_use`.

        Raises:
            ResourceExhaustedError: SUBNETS_EXHAUSTED, naming the pool, used and total.
        """
        # A route that covers the whole pool does not mean that its addresses are taken.
        narrow = [used for used in in_use if used.prefixlen > self._network.prefixlen]
        for subnet in self._network.subnets(new_prefix=SUBNET_PREFIX):
            if subnet not in self._taken and not any(subnet.overlaps(used) for used in narrow):
                self._taken.add(subnet)
                return subnet
        total = 1 << (SUBNET_PREFIX - self._network.prefixlen)
        raise ResourceExhaustedError(
            "SUBNETS_EXHAUSTED",
            f"no free subnet is left in {self._network}: {len(self._taken)} of {total} are used by "
            "VMs of this owner, the rest by this host; terminate VMs, or start the owner with a "
            "larger --subnet-pool",
            used=len(self._taken),
            total=total,
        )

    def claim(
        self, network: ipaddress.IPv4Network, in_use: Iterable[ipaddress.IPv4Network]
    ) -> None:
        """Take a network that a client has chosen, in the pool or not.

        Raises:
            FailedPreconditionError: SUBNET_TAKEN, naming what has it.
        """
        # A wider route does not mean that the addresses are taken, as in `take`.
        narrow = [used for used in in_use if used.prefixlen >= network.prefixlen]
        for used in (*self._taken, *narrow):
            if network.overlaps(used):
                whose = "an adapter of this owner" if used in self._taken else "this host"
                raise FailedPreconditionError(
                    "SUBNET_TAKEN",
                    f"network {network} overlaps {used}, which {whose} is on; choose another "
                    "client_ip=, or leave it out",
                    network=str(network),
                    taken=str(used),
                )
        self._taken.add(network)

    def give_back(self, subnet: ipaddress.IPv4Network) -> None:
        """Return a subnet."""
        self._taken.discard(subnet)
