"""The one grammar of sizes that people write, in flags of the command and in .wslconfig."""

from __future__ import annotations

import re
from typing import Final

WANT: Final = "a size like 64M, 4096K, 1GB, 64MiB or a number of bytes"
"""The grammar, for messages."""

_SIZE: Final = re.compile(r"(\d{1,20})\s*(?:([KMGT])(?:I?B)?|B)?", re.ASCII | re.IGNORECASE)
_UNIT_SHIFT: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_LIMIT_BYTES: Final = 1 << 64


def parse_size(text: str) -> int:
    """Read a size: a number of bytes, or one with a unit.

    WSL's own grammar has K, KB, M, MB and so on in capitals; this one has lower case, KiB and a
    space before the unit, too. A unit is a power of 1024 in both.

    Args:
        text: For instance "64M", "4096K", "1GB", "64MiB" or "67108864".

    Returns:
        The size in bytes, below 2**64.

    Raises:
        ValueError: It is not a size, or does not fit into 64 bits; the text says which.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not {WANT}")
    size_bytes = int(match[1]) << _UNIT_SHIFT[(match[2] or "").upper()]
    if size_bytes >= _LIMIT_BYTES:
        raise ValueError(f"{text!r} does not fit into 64 bits")
    return size_bytes
