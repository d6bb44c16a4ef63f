"""The vhost-user protocol's messages: numbers, bits and payload layouts.

Source: QEMU docs/interop/vhost-user.rst, protocol version 1. Integers are in the byte order of the
machine; both ends share it. Values that this module does not name survive parsing: refusing them
is the back-end's policy.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

VERSION: Final = 1

# "Header": u32 request, u32 flags, u32 size of the payload.
HEADER: Final = struct.Struct("=III")
HEADER_BYTES: Final = 12
FLAG_VERSION_MASK: Final = 0x3
FLAG_REPLY: Final = 1 << 2
FLAG_NEED_REPLY: Final = 1 << 3

MAX_PAYLOAD_BYTES: Final = 4096
"""No message of the protocol has a longer payload (the longest is CONFIG: 12 + 256 bytes)."""

MAX_MESSAGE_FDS: Final = 8
"""Descriptors that one message may carry ("VHOST_MEMORY_BASELINE_NREGIONS")."""

MAX_TABLE_REGIONS: Final = 8
"""Regions that SET_MEM_TABLE may carry."""

# Feature bit of the protocol itself, in GET_FEATURES, as a mask.
F_LOG_ALL: Final = 1 << 26
F_PROTOCOL_FEATURES: Final = 1 << 30

# "Protocol features", as masks.
PROTOCOL_F_MQ: Final = 1 << 0
PROTOCOL_F_LOG_SHMFD: Final = 1 << 1
PROTOCOL_F_RARP: Final = 1 << 2
PROTOCOL_F_REPLY_ACK: Final = 1 << 3
PROTOCOL_F_MTU: Final = 1 << 4
PROTOCOL_F_BACKEND_REQ: Final = 1 << 5
PROTOCOL_F_CROSS_ENDIAN: Final = 1 << 6
PROTOCOL_F_CRYPTO_SESSION: Final = 1 << 7
PROTOCOL_F_PAGEFAULT: Final = 1 << 8
PROTOCOL_F_CONFIG: Final = 1 << 9
PROTOCOL_F_BACKEND_SEND_FD: Final = 1 << 10
PROTOCOL_F_HOST_NOTIFIER: Final = 1 << 11
PROTOCOL_F_INFLIGHT_SHMFD: Final = 1 << 12
PROTOCOL_F_RESET_DEVICE: Final = 1 << 13
PROTOCOL_F_INBAND_NOTIFICATIONS: Final = 1 << 14
PROTOCOL_F_CONFIGURE_MEM_SLOTS: Final = 1 << 15
PROTOCOL_F_STATUS: Final = 1 << 16


class Request(IntEnum):
    """The requests of a front-end ("Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class BackendRequest(IntEnum):
    """The requests of a back-end on the SET_BACKEND_REQ_FD channel ("Back-end message types")."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5


def request_name(request: int) -> str:
    """Name of a front-end request for messages to people; its number when it has none."""
    try:
        return Request(request).name
    except ValueError:
        return f"request {request}"


class Header(NamedTuple):
    """The header of a message, which precedes its payload.

    Attributes:
        request: A `Request`, or any other number.
        flags: Version in bits 0-1, FLAG_REPLY, FLAG_NEED_REPLY; unknown bits survive.
        size: Length of the payload, in bytes.
    """

    request: int
    flags: int
    size: int

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> Header:
        """Read the first HEADER_BYTES of `data`."""
        return cls(*HEADER.unpack_from(data))

    @property
    def version(self) -> int:
        """Version of the protocol that the sender speaks."""
        return self.flags & FLAG_VERSION_MASK

    @property
    def need_reply(self) -> bool:
        """Whether the sender wants an answer even to a message that has none of its own."""
        return bool(self.flags & FLAG_NEED_REPLY)


def message(request: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """Write a whole message: header with this version and the given further flags, then payload."""
    return HEADER.pack(request, VERSION | flags, len(payload)) + payload


def reply(request: int, payload: bytes) -> bytes:
    """Write the answer to `request`."""
    return message(request, payload, FLAG_REPLY)


# "A single 64-bit integer".
U64: Final = struct.Struct("=Q")

# SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR: the integer's parts.
VRING_INDEX_MASK: Final = 0xFF
VRING_NO_FD: Final = 1 << 8

# "A vring state description": u32 index, u32 num.
VRING_STATE: Final = struct.Struct("=II")

# "A vring address description": u32 index, u32 flags, u64 descriptor, used, available, log.
VRING_ADDR: Final = struct.Struct("=IIQQQQ")
VRING_ADDR_F_LOG: Final = 1

# "Multiple memory regions description": u32 number of regions, u32 padding, then the regions.
MEM_TABLE: Final = struct.Struct("=II")
# "Memory region description": u64 guest address, size, user address, mmap offset.
REGION: Final = struct.Struct("=QQQQ")
# "Single memory region description": u64 padding, then the region.
SINGLE_REGION_PADDING: Final = struct.Struct("=Q")
SINGLE_REGION_BYTES: Final = SINGLE_REGION_PADDING.size + REGION.size

# "Virtio device config space": u32 offset, size, flags, then `size` bytes.
CONFIG: Final = struct.Struct("=III")
CONFIG_MAX_BYTES: Final = 256
CONFIG_F_WRITABLE: Final = 1
CONFIG_F_MIGRATION: Final = 2


class VringState(NamedTuple):
    """A number that belongs to a queue.

    Attributes:
        queue: Index of the queue.
        num: Its size, its base index, or 1 or 0 for enabled or disabled.
    """

    queue: int
    num: int

    def pack(self) -> bytes:
        """Write the payload."""
        return VRING_STATE.pack(*self)

    @classmethod
    def parse(cls, payload: bytes) -> VringState:
        """Read a payload of exactly VRING_STATE.size bytes."""
        return cls(*VRING_STATE.unpack(payload))


class VringAddr(NamedTuple):
    """The addresses of a queue's three parts, in the front-end's address space ("user addresses").

    Attributes:
        queue: Index of the queue.
        flags: VRING_ADDR_F_LOG; unknown bits survive.
        desc: User address of the descriptor table.
        used: User address of the used ring.
        avail: User address of the available ring.
        log: Guest address of the used ring for logging.
    """

    queue: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int

    def pack(self) -> bytes:
        """Write the payload."""
        return VRING_ADDR.pack(*self)

    @classmethod
    def parse(cls, payload: bytes) -> VringAddr:
        """Read a payload of exactly VRING_ADDR.size bytes."""
        return cls(*VRING_ADDR.unpack(payload))


class MemRegion(NamedTuple):
    """One region of guest memory; its descriptor travels beside the message.

    Attributes:
        gpa: Guest-physical address of the first byte.
        size_bytes: Length.
        user_addr: Address of the first byte in the front-end.
        mmap_offset: Offset of the region in the descriptor's file, in bytes.
    """

    gpa: int
    size_bytes: int
    user_addr: int
    mmap_offset: int


def pack_mem_table(regions: list[MemRegion]) -> bytes:
    """Write the payload of SET_MEM_TABLE."""
    return MEM_TABLE.pack(len(regions), 0) + b"".join(REGION.pack(*region) for region in regions)


def parse_mem_table(payload: bytes) -> list[MemRegion] | None:
    """Read the payload of SET_MEM_TABLE; None when count and length disagree."""
    if len(payload) < MEM_TABLE.size:
        return None
    count, _ = MEM_TABLE.unpack_from(payload)
    if len(payload) != MEM_TABLE.size + count * REGION.size:
        return None
    return [MemRegion(*fields) for fields in REGION.iter_unpack(payload[MEM_TABLE.size :])]


def pack_single_region(region: MemRegion) -> bytes:
    """Write the payload of ADD_MEM_REG and REM_MEM_REG."""
    return SINGLE_REGION_PADDING.pack(0) + REGION.pack(*region)


def parse_single_region(payload: bytes) -> MemRegion:
    """Read a payload of exactly SINGLE_REGION_BYTES bytes."""
    return MemRegion(*REGION.unpack_from(payload, SINGLE_REGION_PADDING.size))


class Config(NamedTuple):
    """A part of the device's configuration space.

    Attributes:
        offset: Offset of the part, in bytes.
        size: Length of the part, in bytes.
        flags: CONFIG_F_*; unknown bits survive.
        data: The bytes; zeros in a GET_CONFIG request.
    """

    offset: int
    size: int
    flags: int
    data: bytes

    def pack(self) -> bytes:
        """Write the payload."""
        return CONFIG.pack(self.offset, self.size, self.flags) + self.data

    @classmethod
    def parse(cls, payload: bytes) -> Config | None:
        """Read a payload; None when it is shorter than its own header."""
        if len(payload) < CONFIG.size:
            return None
        offset, size, flags = CONFIG.unpack_from(payload)
        return cls(offset, size, flags, payload[CONFIG.size :])
