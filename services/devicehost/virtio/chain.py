"""Descriptor chains: following one through the ring, and the buffers that it offers.

Owns every rule for a chain of VIRTIO 1.2, sections 2.7.4 and 2.7.5. The guest may write to a table
while it is read, so every descriptor is read once, and an indirect table is copied first. Must not
know queues, notifications or devices.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, Final

from services.handshake.errors import InvalidArgumentError
from services.wire.virtio_ring import (
    DESC,
    DESC_BYTES,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
)

if TYPE_CHECKING:
    from services.devicehost.memory import GuestMemory, Lease

MAX_CHAIN_BYTES: Final = (1 << 32) - 1
"""Longest chain in bytes: a used element has 32 bits for the length (section 2.7.8)."""

MIN_INDIRECT_LIMIT: Final = 1024
"""Descriptors that an indirect table may have in any ring: Linux drivers exceed a ring's size."""

_MOST_IN_ORDER: Final = 512
"""Most descriptors of a table that is taken in one step; no request of Linux has as many."""

_FLAGS: Final = 12
"""Offset of the low byte of a descriptor's flags."""

_Buffers = tuple[Sequence[int], Sequence[int], int]
"""Addresses and lengths of a chain's buffers, and how many, the first ones, are readable."""


class QueueError(InvalidArgumentError):
    """A guest broke a rule of its ring; the device serves nothing until it is reset."""


class Chain:
    """The buffers of one request, to be pushed back exactly once.

    Attributes:
        head: Index of the first descriptor, which the used ring names.
        readable: Buffers that the driver wrote for the device, in order; never empty ones.
        writable: Buffers that the device may write, in order; never empty ones.
        readable_bytes: Length of all readable buffers.
        writable_bytes: Length of all writable buffers.
        lease: Keeps the buffers mapped; the queue closes it.
    """

    __slots__ = ("head", "lease", "readable", "readable_bytes", "writable", "writable_bytes")

    def __init__(
        self,
        head: int,
        lease: Lease,
        readable: list[memoryview],
        writable: list[memoryview],
        readable_bytes: int,
        writable_bytes: int,
    ) -> None:
        self.head = head
        self.lease = lease
        self.readable = readable
        self.writable = writable
        self.readable_bytes = readable_bytes
        self.writable_bytes = writable_bytes


class ChainReader:
    """Follows the chains of one ring."""

    __slots__ = ("_indirect", "_memory", "_most_indirect_bytes", "_size", "_table")

    def __init__(
        self, table: memoryview, size: int, memory: GuestMemory, *, indirect: bool
    ) -> None:
        """Read chains from a descriptor table.

        Args:
            table: The ring's descriptor table, in guest memory.
            size: Descriptors in the table.
            memory: Where buffers and indirect tables are.
            indirect: Whether INDIRECT_DESC was negotiated.
        """
        self._table = table
        self._size = size
        self._memory = memory
        self._indirect = indirect
        self._most_indirect_bytes = max(size, MIN_INDIRECT_LIMIT) * DESC_BYTES

    def read(self, head: int) -> Chain:
        """Follow the chain that starts at `head` and lease its buffers.

        Raises:
            QueueError: The chain breaks a rule.
            TranslationError: A buffer or an indirect table is out of bounds.
            DeadlineExceededError: The memory has no windows for it in time.
            ResourceExhaustedError: The memory never has windows enough for it.
        """
        addresses, lengths, split = self._follow(head)
        readable_bytes = sum(lengths[:split])
        writable_bytes = sum(lengths[split:])
        if readable_bytes + writable_bytes > MAX_CHAIN_BYTES:
            raise QueueError(
                "CHAIN_TOO_LONG",
                f"the chain at descriptor {head} has {readable_bytes + writable_bytes} bytes; "
                f"{MAX_CHAIN_BYTES} are the most",
                head=head,
                bound=MAX_CHAIN_BYTES,
            )
        lease = self._memory.lease(addresses, lengths)
        views = lease.views(addresses, lengths)
        return Chain(head, lease, views[:split], views[split:], readable_bytes, writable_bytes)

    def _follow(self, head: int) -> _Buffers:
        """Return the buffers of a chain."""
        size = limit = self._size
        table: memoryview | bytes = self._table
        unpack = DESC.unpack_from
        addresses: list[int] = []
        lengths: list[int] = []
        split = -1
        index = head
        nested = False
        steps = 0
        while True:
            if index >= size:
                raise QueueError(
                    "DESCRIPTOR_INDEX",
                    f"the chain at descriptor {head} names descriptor {index} of a table of {size}",
                    head=head,
                    index=index,
                )
            steps += 1
            if steps > limit:
                raise QueueError(
                    "DESCRIPTOR_LOOP",
                    f"the chain at descriptor {head} has more than {limit} descriptors: a loop",
                    head=head,
                    bound=limit,
                )
            addr, length, flags, following = unpack(table, index * DESC_BYTES)
            if flags & DESC_F_INDIRECT:
                if nested or flags & DESC_F_NEXT or not self._indirect:
                    raise QueueError(
                        "INDIRECT_MISPLACED",
                        f"descriptor {index} of the chain at {head} is indirect, but "
                        + _why_misplaced(nested, self._indirect),
                        head=head,
                    )
                table = self._read_indirect(head, addr, length)
                in_order = _take_in_order(table) if not lengths else None
                if in_order is not None:
                    return in_order
                size = limit = length // DESC_BYTES
                nested, index, steps = True, 0, 0
                continue
            if length == 0:
                raise QueueError(
                    "BUFFER_EMPTY",
                    f"descriptor {index} of the chain at {head} has a buffer of length 0",
                    head=head,
                )
            if flags & DESC_F_WRITE:
                if split < 0:
                    split = len(lengths)
            elif split >= 0:
                raise QueueError(
                    "READABLE_AFTER_WRITABLE",
                    f"descriptor {index} of the chain at {head} is readable after a writable one",
                    head=head,
                )
            addresses.append(addr)
            lengths.append(length)
            if not flags & DESC_F_NEXT:
                return addresses, lengths, split if split >= 0 else len(lengths)
            index = following

    def _read_indirect(self, head: int, addr: int, length: int) -> bytes:
        most = self._most_indirect_bytes
        if length == 0 or length % DESC_BYTES or length > most:
            raise QueueError(
                "INDIRECT_LENGTH",
                f"the indirect table of the chain at {head} has {length} bytes; it must be a "
                f"multiple of {DESC_BYTES}, up to {most}",
                head=head,
                length=length,
                bound=most,
            )
        return self._memory.read(addr, length)


def _take_in_order(table: bytes) -> _Buffers | None:
    """Take an indirect table in one step if it is as drivers write it.

    That is: each descriptor names the next one, all rules are kept, no bit is unknown and the last
    buffer is writable. `_follow` costs as much for a short chain, and more than twice as much for
    one of 64 pages.

    Returns:
        The buffers, as from `_follow`; None: the table has to be followed.
    """
    count = len(table) // DESC_BYTES
    if count > _MOST_IN_ORDER:
        return None
    split = table[_FLAGS::DESC_BYTES].count(DESC_F_NEXT)
    layout, lawful = _in_order(count, split)
    words = layout.unpack(table)
    lengths = words[1::3]
    if words[2::3] != lawful or 0 in lengths:
        return None
    return words[::3], lengths, split


@functools.lru_cache(maxsize=64)
def _in_order(count: int, split: int) -> tuple[Struct, tuple[int, ...]]:
    """Return the layout of a table that is in order, and the `flags` and `next` that it must have.

    The two fields are one number per descriptor. `next` of the last descriptor is ignored.
    """
    layout = Struct("<" + "QII" * (count - 1) + "QIH2x")
    links = [DESC_F_NEXT | following << 16 for following in range(1, count)]
    links[split:] = [link | DESC_F_WRITE for link in links[split:]]
    return layout, (*links, DESC_F_WRITE)


def _why_misplaced(nested: bool, negotiated: bool) -> str:
    if nested:
        return "lies in an indirect table itself"
    return "goes on to another one" if negotiated else "INDIRECT_DESC was not negotiated"
