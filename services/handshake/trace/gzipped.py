"""Unpacking of gzip and zlib, to at most so many bytes.

Must not know what is in it.
"""

from __future__ import annotations

import zlib
from typing import Final

from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.syntax import refusal

GZIP: Final = b"\x1f\x8b"
"""What content of gzip begins with."""

_GZIP_WINDOW: Final = 31
_ZLIB_WINDOW: Final = 15
"""zlib's numbers for both formats with the largest window."""


class TooLongError(Exception):
    """Content has more bytes when it is unpacked than it may have."""


def inflate(content: bytes, limit_bytes: int) -> bytes:
    """Return the content of gzip, of one or several members, or else of zlib.

    Args:
        content: What was packed. Zeros may follow: tar and tapes pad with them.
        limit_bytes: Most bytes that it may have when it is unpacked.

    Raises:
        TooLongError: It has more.
        zlib.error: It is damaged or cut off.
    """
    window = _GZIP_WINDOW if content.startswith(GZIP) else _ZLIB_WINDOW
    unpacked = bytearray()
    rest = content
    while True:
        member = zlib.decompressobj(window)
        unpacked += member.decompress(rest, limit_bytes + 1 - len(unpacked))
        if len(unpacked) > limit_bytes:
            raise TooLongError
        if not member.eof:
            raise zlib.error("it was cut off")
        rest = member.unused_data
        if not rest.strip(b"\0"):
            return bytes(unpacked)


def unpack(content: bytes, name: str, limit_bytes: int, remedy: str) -> bytes:
    """Return the content of a gzip file; other content as it is.

    Args:
        content: The file.
        name: Its name, for errors.
        limit_bytes: Most bytes that it may have when it is unpacked.
        remedy: The advice for one that has more.

    Raises:
        InvalidArgumentError: INPUT_TOO_LARGE; TRACE_SYNTAX when it is damaged or cut off.
    """
    if not content.startswith(GZIP):
        return content
    try:
        return inflate(content, limit_bytes)
    except zlib.error as error:
        raise refusal(name, f"damaged gzip: {error}") from None
    except TooLongError:
        raise InvalidArgumentError(
            "INPUT_TOO_LARGE",
            f"{name} is longer than {limit_bytes} bytes when it is unpacked; {remedy}",
            path=name,
            limit=limit_bytes,
        ) from None
