"""rtnetlink: the messages in which Linux says what its network is (linux/rtnetlink.h, rtnetlink(7)).

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
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

RTM_NEWLINK: Final = 16
RTM_GETLINK: Final = 18

# Groups of changes, as masks for bind(2).
GROUP_LINK: Final = 0x1

IFF_LOWER_UP: Final = 0x10000
"""The interface is up and has a carrier (linux/if.h)."""

HEADER: Final = Struct("=IHHII")
"""struct nlmsghdr: length with this header, type, flags, sequence number, port."""
LINK: Final = Struct("=BxHiII")
"""struct ifinfomsg: family, type, index, flags, mask of changes."""
ERROR: Final = Struct("=i")
"""struct nlmsgerr: 0, or an errno, negative."""


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


def link_request(index: int) -> bytes:
    """Write the question for one interface, by its index."""
    body = LINK.pack(0, 0, index, 0, 0)
    return HEADER.pack(HEADER.size + len(body), RTM_GETLINK, F_REQUEST, 0, 0) + body


def _aligned(length: int) -> int:
    return length + 3 & ~3
