"""The virtio-net device: numbers, configuration space and packet header (virtio 1.2, section 5.1).

Owns layouts and constants only. Offloads have names here whether or not anything offers them.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

VIRTIO_ID_NET: Final = 1
"""Device id (section 5)."""

RX_QUEUE: Final = 0
"""receiveq1: buffers that the device fills (section 5.1.2)."""
TX_QUEUE: Final = 1
"""transmitq1: frames that the driver sends (section 5.1.2)."""

# Feature bits as masks, section 5.1.3.
F_CSUM: Final = 1 << 0
F_GUEST_CSUM: Final = 1 << 1
F_CTRL_GUEST_OFFLOADS: Final = 1 << 2
F_MTU: Final = 1 << 3
F_MAC: Final = 1 << 5
F_GUEST_TSO4: Final = 1 << 7
F_GUEST_TSO6: Final = 1 << 8
F_GUEST_ECN: Final = 1 << 9
F_GUEST_UFO: Final = 1 << 10
F_HOST_TSO4: Final = 1 << 11
F_HOST_TSO6: Final = 1 << 12
F_HOST_ECN: Final = 1 << 13
F_HOST_UFO: Final = 1 << 14
F_MRG_RXBUF: Final = 1 << 15
F_STATUS: Final = 1 << 16
F_CTRL_VQ: Final = 1 << 17
F_CTRL_RX: Final = 1 << 18
F_CTRL_VLAN: Final = 1 << 19
F_GUEST_ANNOUNCE: Final = 1 << 21
F_MQ: Final = 1 << 22
F_CTRL_MAC_ADDR: Final = 1 << 23
F_GUEST_USO4: Final = 1 << 54
F_GUEST_USO6: Final = 1 << 55
F_HOST_USO: Final = 1 << 56
F_HASH_REPORT: Final = 1 << 57
F_GUEST_HDRLEN: Final = 1 << 59
F_RSS: Final = 1 << 60
F_RSC_EXT: Final = 1 << 61
F_STANDBY: Final = 1 << 62
F_SPEED_DUPLEX: Final = 1 << 63

GUEST_SEGMENTS: Final = F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_USO4 | F_GUEST_USO6
"""With one of these a received frame may be longer than the MTU."""
GUEST_OFFLOADS: Final = F_GUEST_CSUM | GUEST_SEGMENTS
"""What CTRL_GUEST_OFFLOADS_SET switches (section 5.1.6.5.6.1), but for UFO and ECN."""

# virtio_net_config.status, section 5.1.4.
S_LINK_UP: Final = 1
S_ANNOUNCE: Final = 2

SPEED_UNKNOWN: Final = 0xFFFFFFFF
"""virtio_net_config.speed of an adapter that reports no speed (section 5.1.4)."""
DUPLEX_UNKNOWN: Final = 0xFF

CONFIG: Final = Struct("<6sHHHIBBHI")
"""struct virtio_net_config (section 5.1.4), 24 bytes."""

HEADER: Final = Struct("<BBHHHHH")
"""struct virtio_net_hdr_v1 (section 5.1.6), 12 bytes; with VERSION_1 it always has num_buffers."""
HEADER_BYTES: Final = HEADER.size
FLAGS_OFFSET: Final = 0
NUM_BUFFERS: Final = Struct("<H")
"""num_buffers, the last field of HEADER; the device sets it to the number of chains of a frame."""
NUM_BUFFERS_OFFSET: Final = 10

# virtio_net_hdr_v1.flags and .gso_type, section 5.1.6.
HDR_F_NEEDS_CSUM: Final = 1
HDR_F_DATA_VALID: Final = 2
HDR_F_RSC_INFO: Final = 4
HDR_GSO_NONE: Final = 0
HDR_GSO_TCPV4: Final = 1
HDR_GSO_UDP: Final = 3
HDR_GSO_TCPV6: Final = 4
HDR_GSO_UDP_L4: Final = 5
HDR_GSO_ECN: Final = 0x80

# Commands on the control queue, section 5.1.6.5: class and command, and the answer.
CTRL_HEADER: Final = Struct("<BB")
CTRL_MQ: Final = 4
CTRL_MQ_VQ_PAIRS_SET: Final = 0
CTRL_GUEST_OFFLOADS: Final = 5
CTRL_GUEST_OFFLOADS_SET: Final = 0
CTRL_OK: Final = b"\0"
CTRL_ERR: Final = b"\1"

MAC_BYTES: Final = 6
ETHERNET_HEADER_BYTES: Final = 14
"""Destination, source and type; the shortest frame has only these."""
MIN_MTU: Final = 68
"""Smallest MTU that a device may announce (section 5.1.4.1)."""
MAX_MTU: Final = 65535
"""Largest MTU that a device may announce (section 5.1.4.1)."""
MAX_FRAME_BYTES: Final = 65550
"""The largest frame: 64 KiB - 1 of payload and an Ethernet header (section 5.1.6.3.1)."""


class NetConfig(NamedTuple):
    """CONFIG; which fields count depends on the features offered.

    Attributes:
        mac: With F_MAC.
        status: S_* bits, with F_STATUS.
        max_virtqueue_pairs: With F_MQ or F_RSS.
        mtu: Bytes of payload per frame, with F_MTU.
        speed: Mbit/s, with F_SPEED_DUPLEX.
        duplex: 0 half, 1 full, with F_SPEED_DUPLEX.
        rss_max_key_size: With F_RSS or F_HASH_REPORT.
        rss_max_indirection_table_length: With F_RSS.
        supported_hash_types: With F_RSS or F_HASH_REPORT.
    """

    mac: bytes
    status: int
    max_virtqueue_pairs: int
    mtu: int
    speed: int = SPEED_UNKNOWN
    duplex: int = DUPLEX_UNKNOWN
    rss_max_key_size: int = 0
    rss_max_indirection_table_length: int = 0
    supported_hash_types: int = 0


class NetHeader(NamedTuple):
    """HEADER.

    Attributes:
        flags: HDR_F_* bits; unknown bits survive.
        gso_type: HDR_GSO_*.
        hdr_len: Bytes of all protocol headers, a hint.
        gso_size: Payload bytes per segment.
        csum_start: Offset at which checksumming starts.
        csum_offset: Offset after csum_start at which the checksum is placed.
        num_buffers: Descriptor chains that a received frame spans; 0 when sending.
    """

    flags: int = 0
    gso_type: int = HDR_GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0
