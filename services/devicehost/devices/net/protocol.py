"""The virtio-net protocol (virtio 1.2, section 5.1.6): frames behind headers in a driver's buffers.

Owns where the header ends and how a frame is spread over buffers. Offloads are not offered, so a
header carries only the number of buffers of a frame. Must not know queues or the back end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

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

_NO_OFFLOAD: Final = virtio_net.HEADER.pack(*NetHeader())


def frame_of(chain: Chain) -> list[bytes | memoryview] | None:
    """Return the frame that a driver sends, in parts, behind a header that asks for nothing.

    Returns:
        The header, and the parts of the frame where they lie in guest memory; None when the frame
        is too short or too long, or asks for an offload, none of which was negotiated.
    """
    length = chain.readable_bytes - HEADER_BYTES
    if not ETHERNET_HEADER_BYTES <= length <= MAX_FRAME_BYTES:
        return None
    header, parts = _split(chain.readable)
    if header.flags & virtio_net.HDR_F_NEEDS_CSUM or header.gso_type:
        return None
    return [_NO_OFFLOAD, *parts]


def spread(frame: memoryview, chains: list[Chain]) -> list[tuple[Chain, int]]:
    """Copy a frame and its header to a driver's buffers, which must have room for them.

    Args:
        frame: The header, in which the number of buffers is set, and the frame.
        chains: Buffers to write to, filled in this order.

    Returns:
        Each chain with the bytes that were written to it.
    """
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
    """Take the header off the start, wherever the guest's buffers divide it."""
    header = bytearray()
    for index, part in enumerate(readable):
        missing = HEADER_BYTES - len(header)
        header += part[:missing]
        if len(header) == HEADER_BYTES:
            rest = part[missing:]
            parts = [rest, *readable[index + 1 :]] if len(rest) else readable[index + 1 :]
            return NetHeader._make(virtio_net.HEADER.unpack(header)), parts
    raise ValueError(f"{len(header)} bytes are no virtio-net header of {HEADER_BYTES}")
