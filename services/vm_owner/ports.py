"""The ports of the host that are forwarded to a guest, as values.

The device host decides what a port may be. Must not know VMs or protobuf.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

DEFAULT_ADDRESS: Final = "127.0.0.1"
"""Where the host listens if a request does not say (port.proto)."""


class PortProtocol(StrEnum):
    """The protocol of a port."""

    UNSPECIFIED = "unspecified"
    TCP = "tcp"
    UDP = "udp"


class PortState(StrEnum):
    """Whether a mapping forwards."""

    UNSPECIFIED = "unspecified"
    LISTENING = "listening"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class PortKey:
    """Where the host listens, which names a mapping.

    Attributes:
        address: An address of the host; empty in a request: 127.0.0.1.
        port: 1 to 65535; 0 in a request to map: a free one.
    """

    protocol: PortProtocol
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the host that is forwarded to one of the guest.

    Attributes:
        key: Where the host listens.
        guest_port: 1 to 65535.
        state: Whether it forwards.
        reason: Of a lost one, the reason of the error.
        detail: The same for people.
    """

    key: PortKey
    guest_port: int
    state: PortState = PortState.UNSPECIFIED
    reason: str = ""
    detail: str = ""


def normal(key: PortKey) -> PortKey:
    """Return a key as the device host writes it. One that is no address is for it to refuse."""
    try:
        return replace(key, address=str(ipaddress.ip_address(key.address or DEFAULT_ADDRESS)))
    except ValueError:
        return key
