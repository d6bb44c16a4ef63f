"""rtnetlink(7): the messages in which Linux says what its network is (linux/rtnetlink.h).

Owns layouts and constants only. Integers are in the byte order of the machine. The kernel is
trusted; what is too short for its own length ends a sequence all the same.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/netlink.h
NETLINK_ROUTE: Final = 0
F_REQUEST: Final = 0x1
F_DUMP: Final = 0x300
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

RTM_NEWLINK: Final = 16
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_GETROUTE: Final = 26

# Groups of changes, as masks for bind(2).
GROUP_LINK: Final = 0x1
GROUP_IPV4_IFADDR: Final = 0x10
GROUP_IPV4_ROUTE: Final = 0x40
GROUP_IPV6_IFADDR: Final = 0x100
GROUP_IPV6_ROUTE: Final = 0x400

IFF_LOWER_UP: Final = 0x10000
"""The interface is up and has a carrier (linux/if.h)."""

# Addresses (linux/if_addr.h) and routes.
IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFA_FLAGS: Final = 8
IFA_F_TEMPORARY: Final = 0x01
IFA_F_DADFAILED: Final = 0x08
IFA_F_DEPRECATED: Final = 0x20
IFA_F_TENTATIVE: Final = 0x40
RT_SCOPE_UNIVERSE: Final = 0
RT_TABLE_MAIN: Final = 254
RTN_UNICAST: Final = 1
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
RTA_PRIORITY: Final = 6
RTA_MULTIPATH: Final = 9

HEADER: Final = Struct("=IHHII")
"""struct nlmsghdr: length with this header, type, flags, sequence number, port."""
LINK: Final = Struct("=BxHiII")
"""struct ifinfomsg: family, type, index, flags, mask of changes."""
ADDRESS: Final = Struct("=BBBBI")
"""struct ifaddrmsg: family, length of the prefix, flags, scope, index."""
ROUTE: Final = Struct("=BBBBBBBBI")
"""struct rtmsg: family, lengths of the prefixes of destination and source, type of service, table,
protocol, scope, type, flags."""
NEXT_HOP: Final = Struct("=HBBi")
"""struct rtnexthop: length with its attributes, flags, hops, index."""
ATTRIBUTE: Final = Struct("=HH")
"""struct rtattr: length with this header, type."""
U32: Final = Struct("=I")


class Message(NamedTuple):
    """One message.

    Attributes:
        kind: NLMSG_* or RTM_*.
        body: What follows the header.
    """

    kind: int
    body: memoryview


def messages(data: bytes | memoryview) -> Iterator[Message]:
    """Yield the messages of one datagram."""
    rest = memoryview(data)
    while len(rest) >= HEADER.size:
        length, kind, *_ = HEADER.unpack_from(rest)
        if not HEADER.size <= length <= len(rest):
            return
        yield Message(kind, rest[HEADER.size : length])
        rest = rest[_aligned(length) :]


def attributes(body: memoryview, skip: int) -> dict[int, memoryview]:
    """Return the attributes of a message by their type.

    Args:
        body: The message, without its header.
        skip: Bytes before the first attribute.
    """
    found: dict[int, memoryview] = {}
    rest = body[_aligned(skip) :]
    while len(rest) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(rest)
        if not ATTRIBUTE.size <= length <= len(rest):
            break
        found[kind] = rest[ATTRIBUTE.size : length]
        rest = rest[_aligned(length) :]
    return found


def dump_request(kind: int, family: int) -> bytes:
    """Write the question for all addresses (RTM_GETADDR) or routes (RTM_GETROUTE) of a family."""
    body = ROUTE.pack(family, *(0,) * 8)
    return HEADER.pack(HEADER.size + len(body), kind, F_REQUEST | F_DUMP, 0, 0) + body


def link_request(index: int) -> bytes:
    """Write the question for one interface, by its index."""
    body = LINK.pack(0, 0, index, 0, 0)
    return HEADER.pack(HEADER.size + len(body), RTM_GETLINK, F_REQUEST, 0, 0) + body


def _aligned(length: int) -> int:
    return length + 3 & ~3
