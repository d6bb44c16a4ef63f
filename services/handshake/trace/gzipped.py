"""Unpacking of a gzip file, to at most so many bytes.

Must not know what is in it.
"""

from __future__ import annotations

import zlib
from typing import Final

from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.syntax import refusal

_MAGIC: Final = b"\x1f\x8b"
_GZIP_WINDOW: Final = 31
"""zlib's number for the format of gzip with the largest window."""


def unpack(content: bytes, name: str, limit_bytes: int, remedy: str) -> bytes:
    """Return the content of a gzip file, of one or several members; other content as it is.

    Args:
        content: The file.
        name: Its name, for errors.
        limit_bytes: Most bytes that it may have when it is unpacked.
        remedy: The advice for one that has more.

    Raises:
        InvalidArgumentError: INPUT_TOO_LARGE; TRACE_SYNTAX when it is damaged or cut off.
    """
    if not content.startswith(_MAGIC):
        return content
    unpacked = bytearray()
    rest = content
    while rest.strip(b"\0"):  # tar and tapes pad with zeros
        member = zlib.decompressobj(_GZIP_WINDOW)
        try:
            unpacked += member.decompress(rest, limit_bytes + 1 - len(unpacked))
        except zlib.error as error:
            raise refusal(name, f"damaged gzip: {error}") from None
        if len(unpacked) > limit_bytes:
            raise InvalidArgumentError(
                "INPUT_TOO_LARGE",
                f"{name} is longer than {limit_bytes} bytes when it is unpacked; {remedy}",
                path=name,
                limit=limit_bytes,
            )
        if not member.eof:
            raise refusal(name, "damaged gzip: the file was cut off")
        rest = member.unused_data
    return bytes(unpacked)
