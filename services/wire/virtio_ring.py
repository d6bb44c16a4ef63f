"""The split virtqueue as it lies in guest memory, and the arithmetic that both sides share.

Source: Virtual I/O Device (VIRTIO) Version 1.2, sections 2.1 (status), 2.7 (split virtqueues) and
6 (reserved feature bits). All fields are little-endian.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

# Device status bits, section 2.1.
STATUS_ACKNOWLEDGE: Final = 1
STATUS_DRIVER: Final = 2
STATUS_DRIVER_OK: Final = 4
STATUS_FEATURES_OK: Final = 8
STATUS_DEVICE_NEEDS_RESET: Final = 64
STATUS_FAILED: Final = 128

# Feature bits of queues and transports as masks, section 6.
F_INDIRECT_DESC: Final = 1 << 28
F_EVENT_IDX: Final = 1 << 29
F_VERSION_1: Final = 1 << 32
F_ACCESS_PLATFORM: Final = 1 << 33
F_RING_PACKED: Final = 1 << 34
F_IN_ORDER: Final = 1 << 35
F_ORDER_PLATFORM: Final = 1 << 36
F_RING_RESET: Final = 1 << 40

MAX_QUEUE_SIZE: Final = 32768
"""Entries of the largest ring; the size is a power of two, section 2.7."""

# struct virtq_desc, section 2.7.5: le64 addr, le32 len, le16 flags, le16 next.
DESC: Final = struct.Struct("<QIHH")
DESC_BYTES: Final = 16
DESC_ALIGN: Final = 16
DESC_F_NEXT: Final = 1
DESC_F_WRITE: Final = 2
DESC_F_INDIRECT: Final = 4

# struct virtq_avail, section 2.7.6: le16 flags, le16 idx, le16 ring[size], le16 used_event.
AVAIL_ALIGN: Final = 2
AVAIL_FLAGS: Final = 0
AVAIL_IDX: Final = 2
AVAIL_RING: Final = 4
AVAIL_F_NO_INTERRUPT: Final = 1

# struct virtq_used, section 2.7.8: le16 flags, le16 idx, {le32 id, le32 len} ring[size],
# le16 avail_event.
USED_ALIGN: Final = 4
USED_FLAGS: Final = 0
USED_IDX: Final = 2
USED_RING: Final = 4
USED_ELEM: Final = struct.Struct("<II")
USED_ELEM_BYTES: Final = 8
USED_F_NO_NOTIFY: Final = 1

U16: Final = struct.Struct("<H")
U16_MASK: Final = 0xFFFF


class Descriptor(NamedTuple):
    """One descriptor, section 2.7.5.

    Attributes:
        addr: Guest-physical address of the buffer, in bytes.
        length: Length of the buffer, in bytes.
        flags: DESC_F_* bits; unknown bits survive.
        next: Index of the next descriptor when DESC_F_NEXT is set.
    """

    addr: int
    length: int
    flags: int
    next: int

    def pack(self) -> bytes:
        """Write the descriptor as it lies in guest memory (16 bytes)."""
        return DESC.pack(*self)


def desc_table_bytes(size: int) -> int:
    """Length of the descriptor table of a ring with `size` entries."""
    return DESC_BYTES * size


def avail_bytes(size: int) -> int:
    """Length of the available ring, `used_event` included (section 2.7, table of sizes)."""
    return AVAIL_RING + 2 * size + 2


def used_bytes(size: int) -> int:
    """Length of the used ring, `avail_event` included (section 2.7, table of sizes)."""
    return USED_RING + USED_ELEM_BYTES * size + 2


def used_event_offset(size: int) -> int:
    """Offset of `used_event` in the available ring (section 2.7.10)."""
    return AVAIL_RING + 2 * size


def avail_event_offset(size: int) -> int:
    """Offset of `avail_event` in the used ring (section 2.7.10)."""
    return USED_RING + USED_ELEM_BYTES * size


def is_queue_size(size: int) -> bool:
    """Whether a ring may have `size` entries: a power of two from 1 to MAX_QUEUE_SIZE."""
    return 0 < size <= MAX_QUEUE_SIZE and size & (size - 1) == 0


def need_event(event: int, new: int, old: int) -> bool:
    """Whether moving an index from `old` to `new` passes `event` (section 2.7.7.2, 2.7.10).

    All three are free-running 16-bit indices; this is vring_need_event of the specification.
    """
    return (new - event - 1) & U16_MASK < (new - old) & U16_MASK
