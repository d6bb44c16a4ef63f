"""Readers of the bounce pool that a guest kernel publishes.

Owns the reader interface and the reader of sysfs. A pool in the device tree or in the kernel log
would be another reader. A reader never raises and never returns half a pool: a pool that cannot be
read whole counts as not published. The VM owner judges the numbers.
"""

from __future__ import annotations

import errno
import logging
import re
from typing import TYPE_CHECKING, Final, Protocol

from services.handshake.pool import Gpa, SwiotlbPool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

SYSFS_DIR: Final = "/sys/bus/vmbus/drivers/hv_pci"
"""Directory in which WSL's kernel publishes (drivers/pci/controller/pci-hyperv.c)."""

VIRTIO_DIR: Final = "/sys/bus/virtio"
"""Directory in which a kernel with Porthole's patch publishes."""

BASE_FILE: Final = "swiotlb_base"
SIZE_FILE: Final = "swiotlb_size"

_READ_LIMIT_BYTES: Final = 4096  # a sysfs attribute is at most one page
_U64: Final = (1 << 64) - 1

# The syntax of strtoull (C11 7.22.1.4) with base 0, with white space around it. A minus is refused:
# strtoull reads "-1" as 2**64 - 1, which is no address.
_NUMBER: Final = re.compile(
    r"[ \t\n\v\f\r]*\+?(?:0[xX](?P<hex>[0-9a-fA-F]+)|(?P<oct>0[0-7]*)|(?P<dec>[1-9][0-9]*))"
    r"[ \t\n\v\f\r]*",
    re.ASCII,
)


class PoolReader(Protocol):
    """One place where a kernel may publish its pool."""

    def read(self) -> SwiotlbPool | None:
        """Read the pool as it is published now; None when there is none. Never raises."""
        ...


class SysfsReader:
    """Reads `swiotlb_base` and `swiotlb_size` in a directory.

    Attributes:
        publish_dir: The directory, usually SYSFS_DIR.
    """

    def __init__(self, publish_dir: Path) -> None:
        self.publish_dir = publish_dir

    def read(self) -> SwiotlbPool | None:
        """Read both files; returns None unless both hold a number other than 0."""
        base = _read_number(self.publish_dir / BASE_FILE)
        size_bytes = _read_number(self.publish_dir / SIZE_FILE)
        if not base or not size_bytes:
            return None
        return SwiotlbPool(Gpa(base), size_bytes)


def first_published(readers: Sequence[PoolReader]) -> SwiotlbPool | None:
    """Return the first pool that one of the readers finds, or None."""
    for reader in readers:
        pool = reader.read()
        if pool is not None:
            return pool
    return None


def parse_number(text: str) -> int | None:
    """Parse a number in the syntax of C's strtoull with base 0.

    Args:
        text: "0x…" for hexadecimal, "0…" for octal, else decimal; white space around it is allowed.

    Returns:
        0 to 2**64 - 1; None for a minus, for other text and for overflow.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    digits, base = next(
        (match[name], base)
        for name, base in (("hex", 16), ("oct", 8), ("dec", 10))
        if match[name] is not None
    )
    significant = digits.lstrip("0") or "0"
    if len(significant) > len(f"{_U64:o}"):  # a longer text overflows in every base
        return None
    value = int(significant, base)
    return value if value <= _U64 else None


def _read_number(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            raw = file.read(_READ_LIMIT_BYTES + 1)
    except OSError as error:
        if error.errno != errno.ENOENT:
            logger.warning("cannot read %s: %s; it counts as not published", path, error.strerror)
        return None
    number = parse_number(raw.decode("ascii", "replace")) if len(raw) <= _READ_LIMIT_BYTES else None
    if number is None:
        logger.warning(
            "%s holds %r, not a 64-bit number; it counts as not published", path, raw[:80]
        )
    return number
