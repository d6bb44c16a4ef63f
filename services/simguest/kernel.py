"""The guest's kernel, as far as the handshake sees it: it reserves a pool and publishes it.

Owns reading the command line, choosing the address of the pool, and the files under
/sys/bus/vmbus/drivers/hv_pci. Only the kernel chooses the address; the owner must not rely on a
particular one. Must not know devices or the readers of the files.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake.pool import POOL_ALIGN_BYTES, Gpa, SwiotlbPool, reserved_pool_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from services.simguest.memory.ram import RamRegion

POOL_PARAMETER: Final = "hv_pci_swiotlb"
PUBLISH_DIR: Final = "sys/bus/vmbus/drivers/hv_pci"
"""The directory in which the kernel publishes its pool, below the guest's root."""

BASE_FILE: Final = "swiotlb_base"
SIZE_FILE: Final = "swiotlb_size"

IMAGE_END: Final = 16 << 20
"""The kernel's own image and early data lie below this address."""

_MEMPARSE: Final = re.compile(r"(0x[0-9a-fA-F]+|[0-9]+)([kKmMgG]?)", re.ASCII)
_SUFFIX_SHIFT: Final = {"": 0, "k": 10, "m": 20, "g": 30}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel that a guest boots.

    Attributes:
        release: `uname -r`.
        publishes_pool: Whether it knows `hv_pci_swiotlb=`; an older kernel ignores the parameter.
    """

    release: str
    publishes_pool: bool


def parse_command_line(text: str) -> dict[str, str]:
    """Parse a kernel command line; the last of equal parameters counts, a flag's value is empty."""
    items = (item.partition("=") for item in text.split())
    return {name: value for name, _, value in items}


def wanted_pool_bytes(command_line: str) -> int:
    """Return the length of the pool that the command line asks for.

    The value has the syntax of the kernel's memparse(): decimal or 0x-hexadecimal, with an optional
    K, M or G. A value that does not parse gives a kernel warning and no pool.

    Returns:
        The length in bytes, rounded up to 2 MiB; 0 for no pool.
    """
    value = parse_command_line(command_line).get(POOL_PARAMETER)
    if value is None:
        return 0
    match = _MEMPARSE.fullmatch(value)
    if match is None:
        _log.warning("kernel: %s=%s does not parse; no pool is reserved", POOL_PARAMETER, value)
        return 0
    wanted = (
        int(match[1], 0 if match[1].startswith("0x") else 10) << _SUFFIX_SHIFT[match[2].lower()]
    )
    return reserved_pool_bytes(wanted)


def reserve_pool(kernel: Kernel, command_line: str, low_ram: RamRegion) -> SwiotlbPool | None:
    """Reserve the pool at core-initcall time: one contiguous, zeroed range below 4 GiB.

    It lies at the top of low memory, which the guest has not touched yet.

    Returns:
        The pool; None when the command line asks for none, when the kernel does not know the
        parameter, or when memory is short (with a kernel warning).
    """
    size = wanted_pool_bytes(command_line) if kernel.publishes_pool else 0
    if not size:
        return None
    base = (low_ram.end - size) // POOL_ALIGN_BYTES * POOL_ALIGN_BYTES
    if base < IMAGE_END:
        _log.warning(
            "kernel: cannot allocate a pool of %d bytes: %d bytes below 4 GiB are free; "
            "give the VM more RAM or ask for less with %s=",
            size,
            max(0, low_ram.end - IMAGE_END),
            POOL_PARAMETER,
        )
        return None
    return SwiotlbPool(Gpa(base), size)


def ordinary_ranges(
    regions: tuple[RamRegion, ...], pool: SwiotlbPool | None
) -> list[tuple[int, int]]:
    """Return the ranges [start, end) of RAM that are left for pages, without image and pool."""
    low, *high = regions
    ranges = [(region.gpa, region.end) for region in high]
    if pool is None:
        return [(IMAGE_END, low.end), *ranges]
    around = [(IMAGE_END, int(pool.base)), (pool.end, low.end)]
    return [span for span in around if span[0] < span[1]] + ranges


def publish_pool(pool: SwiotlbPool | None, root: Path) -> Path:
    """Publish the pool as sysfs files below `root`; None removes the files.

    Returns:
        The directory of the files, which always exists.

    Raises:
        OSError: The directory cannot be written.
    """
    directory = root / PUBLISH_DIR
    directory.mkdir(parents=True, exist_ok=True)
    if pool is None:
        withdraw_pool(root)
    else:
        (directory / BASE_FILE).write_text(f"0x{pool.base:x}\n", encoding="ascii")
        (directory / SIZE_FILE).write_text(f"{pool.size_bytes}\n", encoding="ascii")
    return directory


def withdraw_pool(root: Path) -> None:
    """Remove the files of a published pool. It makes no directory: the owner may have ended.

    Raises:
        OSError: A file cannot be removed.
    """
    for name in (BASE_FILE, SIZE_FILE):
        (root / PUBLISH_DIR / name).unlink(missing_ok=True)
