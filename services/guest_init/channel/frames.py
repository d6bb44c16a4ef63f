"""The frames of the channel: bytes in, messages out.

Owns the format (protos/porthole/guest/v1/mini_init.proto): "PHI1", the length of a message as 32
bits, little-endian, and the message. Must not know sockets or messages.
"""

from __future__ import annotations

import struct
from typing import Final

MAGIC: Final = b"PHI1"
MESSAGE_LIMIT_BYTES: Final = 65_536

_HEADER: Final = struct.Struct("<4sI")


def frame(message: bytes) -> bytes:
    """Write a frame.

    Args:
        message: 1 to MESSAGE_LIMIT_BYTES bytes.

    Raises:
        ValueError: The message is empty or too long.
    """
    if not 1 <= len(message) <= MESSAGE_LIMIT_BYTES:
        raise ValueError(f"a message of {len(message)} bytes")
    return _HEADER.pack(MAGIC, len(message)) + message


class FrameReader:
    """Finds frames in a stream of bytes. What is none is skipped, up to the next header.

    It keeps less than one frame between two calls.

    Attributes:
        skipped_bytes: Number of bytes that belonged to no frame.
    """

    def __init__(self) -> None:
        self.skipped_bytes = 0
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take further bytes; returns the messages of the frames that are whole now."""
        held, place, messages = self._held, 0, []
        held += data
        while len(held) - place >= _HEADER.size:
            magic, length = _HEADER.unpack_from(held, place)
            if magic != MAGIC or not 1 <= length <= MESSAGE_LIMIT_BYTES:
                after = self._next_start(place + 1)
                self.skipped_bytes += after - place
                place = after
                continue
            end = place + _HEADER.size + length
            if end > len(held):
                break
            messages.append(bytes(held[place + _HEADER.size : end]))
            place = end
        del held[:place]
        return messages

    def _next_start(self, place: int) -> int:
        found = self._held.find(MAGIC[:1], place)
        return len(self._held) if found < 0 else found
