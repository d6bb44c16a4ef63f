"""Unpacking of compressed bodies, with a bound on what they inflate to.

Must not know HTTP or gRPC.
"""

from __future__ import annotations

import zlib
from typing import Final

from services.handshake.errors import InvalidArgumentError, ResourceExhaustedError

REQUEST_LIMIT_BYTES: Final = 4 << 20
"""Longest body as it is sent; also gRPC's default."""

INFLATED_LIMIT_BYTES: Final = 16 << 20
"""Longest body when it is unpacked."""

_GZIP: Final = b"\x1f\x8b"
_GZIP_WINDOW: Final = 31
_ZLIB_WINDOW: Final = 15
_ZLIB_METHOD: Final = 0x78


class TooLargeError(ResourceExhaustedError):
    """A body is longer than its bound; the same one never fits, and a smaller one is taken."""

    retryable = False


def too_large() -> TooLargeError:
    """Return the refusal of a body that is too long."""
    return TooLargeError(
        "OTLP_TOO_LARGE",
        f"a request may have {REQUEST_LIMIT_BYTES} bytes, and {INFLATED_LIMIT_BYTES} when it is "
        "unpacked; send smaller batches",
        limit=REQUEST_LIMIT_BYTES,
    )


def is_packed(message: bytes) -> bool:
    """Return whether a message of gRPC is compressed.

    No request of OTLP begins so: its first byte is the tag of field 1, or it is empty.
    """
    if message.startswith(_GZIP):
        return True
    # RFC 1950, section 2.2: the method, and a check sum over the first two bytes.
    return (
        len(message) >= 2
        and message[0] == _ZLIB_METHOD
        and int.from_bytes(message[:2], "big") % 31 == 0
    )


def inflate(body: bytes) -> bytes:
    """Unpack gzip, of one or several members, or zlib.

    Raises:
        TooLargeError: OTLP_TOO_LARGE.
        InvalidArgumentError: OTLP_ENCODING when it is damaged or cut off.
    """
    window = _GZIP_WINDOW if body.startswith(_GZIP) else _ZLIB_WINDOW
    parts: list[bytes] = []
    left = INFLATED_LIMIT_BYTES
    rest = body
    while rest:
        member = zlib.decompressobj(window)
        try:
            part = member.decompress(rest, left + 1)
        except zlib.error as error:
            raise _damaged(str(error)) from None
        if len(part) > left:
            raise too_large()
        if not member.eof:
            raise _damaged("it was cut off")
        left -= len(part)
        parts.append(part)
        rest = member.unused_data
    return b"".join(parts)


def _damaged(why: str) -> InvalidArgumentError:
    return InvalidArgumentError("OTLP_ENCODING", f"the body is not compressed as it says: {why}")
