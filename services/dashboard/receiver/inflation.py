"""Unpacking of compressed bodies, with a bound on what they inflate to.

Must not know HTTP or gRPC.
"""

from __future__ import annotations

import zlib
from typing import Final

from services.handshake.errors import InvalidArgumentError, ResourceExhaustedError
from services.handshake.trace import gzipped

REQUEST_LIMIT_BYTES: Final = 4 << 20
"""Longest body as it is sent; also gRPC's default."""

INFLATED_LIMIT_BYTES: Final = 16 << 20
"""Longest body when it is unpacked."""

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
    if message.startswith(gzipped.GZIP):
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
    try:
        return gzipped.inflate(body, INFLATED_LIMIT_BYTES)
    except gzipped.TooLongError:
        raise too_large() from None
    except zlib.error as error:
        raise InvalidArgumentError(
            "OTLP_ENCODING", f"the body is not compressed as it says: {error}"
        ) from None
