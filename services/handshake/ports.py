"""The ports of the host that are forwarded to a guest, as values.

Owns what names a mapping, and its one spelling. What a port may be is the device host's to judge.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

DEFAULT_LISTEN_ADDRESS: Final = "127.0.0.1"
"""Where the host listens if a request does not say (port.proto)."""


class PortProtocol(StrEnum):
    """The protocol of a mapping."""

    UNSPECIFIED = "unspecified"
    """Of a peer that is newer, or has forgotten it; refused."""
    TCP = "tcp"
    UDP = "udp"


class PortState(StrEnum):
    """Whether a mapping forwards."""

    UNSPECIFIED = "unspecified"
    """Of a peer that is newer."""
    LISTENING = "listening"
    LOST = "lost"
    """The network was started again, and could not listen on the port any more."""


@dataclass(frozen=True, slots=True)
class PortKey:
    """Where the host listens, which names a mapping.

    Attributes:
        protocol: TCP or UDP.
        address: An address of the host; of every address, "0.0.0.0" or "::"; empty in a request:
            DEFAULT_LISTEN_ADDRESS.
        port: 1 to 65535, or 0 for a free one, in a request.
    """

    protocol: PortProtocol
    address: str
    port: int

    def __str__(self) -> str:
        """Return it as "tcp 127.0.0.1:80"."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.protocol} {address}:{self.port}"


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the host that is forwarded to one of the guest.

    Attributes:
        key: Where the host listens.
        guest_port: 1 to 65535.
        state: Whether it forwards; of no meaning in a request.
        reason: Of a lost one, the reason of the error.
        detail: The same for people.
    """

    key: PortKey
    guest_port: int
    state: PortState = PortState.LISTENING
    reason: str = ""
    detail: str = ""


def normal(key: PortKey) -> PortKey:
    """Return a key with its address in the one spelling that is compared.

    One that is no address stays as it is: the device host refuses it.
    """
    try:
        address = ipaddress.ip_address(key.address or DEFAULT_LISTEN_ADDRESS)
    except ValueError:
        return key
    return replace(key, address=str(address))
