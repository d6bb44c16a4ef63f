"""The virtio-net protocol (virtio 1.2, section 5.1.6): frames behind headers in a driver's buffers.

Owns where the header ends, what of it may be believed, and how a frame is spread over buffers. A
driver's header is copied out of guest memory before it is checked, with the start of the frame,
and the back end gets what was checked and nothing else: the kernel acts on it. Must not know queues
or the back end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.devicehost.devices.net.spoofing import START_BYTES
from services.wire import virtio_net
from services.wire.virtio_net import (
    ETHERNET_HEADER_BYTES,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    NetHeader,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.devicehost.virtio.chain import Chain

_CHECKSUM_BYTES: Final = 2

_SEGMENTATION: Final = {
    virtio_net.HDR_GSO_TCPV4: (virtio_net.F_HOST_TSO4, virtio_net.F_HOST_ECN),
    virtio_net.HDR_GSO_TCPV6: (virtio_net.F_HOST_TSO6, virtio_net.F_HOST_ECN),
    virtio_net.HDR_GSO_UDP_L4: (virtio_net.F_HOST_USO, 0),
}
"""Kinds of segmentation: the feature that each needs, and that which it needs with the ECN bit;
0: it has no such bit."""


def frame_of(chain: Chain, features: int) -> list[bytes | memoryview] | None:
    """Return the frame that a driver sends, in parts, behind a header for the back end.

    Args:
        chain: What the driver has made available.
        features: What was negotiated, as a mask.

    Returns:
        The header, a copy of the start of the frame, and the parts of the rest where they lie in
        guest memory; None when the frame must not be sent: it is too short or too long, or its
        header breaks a rule.
    """
    length = chain.readable_bytes - HEADER_BYTES
    if not ETHERNET_HEADER_BYTES <= length <= MAX_FRAME_BYTES:
        return None
    header, parts = _split(chain.readable)
    checked = checked_header(header, length, features)
    if checked is None:
        return None
    start, parts = _take(parts, min(length, START_BYTES))
    return [virtio_net.HEADER.pack(*checked), start, *parts]


def checked_header(header: NetHeader, frame_bytes: int, features: int) -> NetHeader | None:
    """Return what a driver's header asks for, if it may (sections 5.1.6.2 and 5.1.6.2.2).

    Args:
        header: A copy of what the driver wrote.
        frame_bytes: Length of the frame behind it.
        features: What was negotiated, as a mask.

    Returns:
        The fields that have a meaning, the others 0. None: an offload that was not negotiated, a
        checksum outside of the frame, segments without a size or without a checksum, or more bytes
        of headers than the frame has.
    """
    start, offset = header.csum_start, header.csum_offset
    needs_checksum = header.flags & virtio_net.HDR_F_NEEDS_CSUM
    if needs_checksum:
        if not features & virtio_net.F_CSUM:
            return None
        if not ETHERNET_HEADER_BYTES <= start <= frame_bytes - offset - _CHECKSUM_BYTES:
            return None
        checked = NetHeader(flags=needs_checksum, csum_start=start, csum_offset=offset)
    else:
        checked = NetHeader()
    if header.gso_type == virtio_net.HDR_GSO_NONE:
        return checked
    if not needs_checksum or not _may_segment(header.gso_type, features):
        return None
    if not header.gso_size or header.hdr_len > frame_bytes:
        return None
    return checked._replace(
        gso_type=header.gso_type, gso_size=header.gso_size, hdr_len=header.hdr_len
    )


def checksum_at(header: bytes | memoryview) -> int:
    """Return where in the frame a checked header has the kernel write a checksum; 0: nowhere."""
    checked = NetHeader(*virtio_net.HEADER.unpack(header))
    return checked.csum_start + checked.csum_offset


def received_flags(features: int) -> int:
    """Return the flags that a header for the driver may have (section 5.1.6.4.1)."""
    if features & virtio_net.F_GUEST_CSUM:
        return virtio_net.HDR_F_NEEDS_CSUM | virtio_net.HDR_F_DATA_VALID
    return 0


def _may_segment(gso_type: int, features: int) -> bool:
    kind = gso_type & ~virtio_net.HDR_GSO_ECN
    feature, with_ecn = _SEGMENTATION.get(kind, (0, 0))
    has_ecn = gso_type & virtio_net.HDR_GSO_ECN
    return bool(features & feature) and (not has_ecn or bool(features & with_ecn))


def spread(frame: memoryview, chains: list[Chain], flags: int = 0) -> list[tuple[Chain, int]]:
    """Copy a frame and its header to a driver's buffers, which must have room for them.

    Args:
        frame: The header, in which the number of buffers is set, and the frame.
        chains: Buffers to write to, filled in this order.
        flags: Of the header's flags, those that are kept.

    Returns:
        Each chain with the bytes that were written to it.
    """
    frame[virtio_net.FLAGS_OFFSET] &= flags
    virtio_net.NUM_BUFFERS.pack_into(frame, virtio_net.NUM_BUFFERS_OFFSET, len(chains))
    filled = []
    for chain in chains:
        written = _fill(chain.writable, frame)
        frame = frame[written:]
        filled.append((chain, written))
    return filled


def _fill(writable: Iterable[memoryview], data: memoryview) -> int:
    """Copy from the start of `data` until it or the room ends; returns the bytes copied."""
    at = 0
    for part in writable:
        piece = data[at : at + len(part)]
        part[: len(piece)] = piece
        at += len(piece)
        if at == len(data):
            break
    return at


def _split(readable: list[memoryview]) -> tuple[NetHeader, list[memoryview]]:
    header, parts = _take(readable, HEADER_BYTES)
    return NetHeader._make(virtio_net.HEADER.unpack(header)), parts


def _take(parts: list[memoryview], count: int) -> tuple[bytes, list[memoryview]]:
    """Copy bytes off the start, wherever the guest's buffers divide them; return the rest, too."""
    taken = bytearray()
    for index, part in enumerate(parts):
        missing = count - len(taken)
        taken += part[:missing]
        if len(taken) == count:
            rest = part[missing:]
            return bytes(taken), [rest, *parts[index + 1 :]] if len(rest) else parts[index + 1 :]
    raise ValueError(f"there are {len(taken)} bytes, and {count} are to be taken")
