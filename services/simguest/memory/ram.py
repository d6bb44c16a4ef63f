"""The guest's RAM: one sealed memfd, laid out as a PC's physical address space.

Owns the memory and its regions. Must not know what any part of it is used for.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from dataclasses import dataclass
from typing import Final

from services.handshake.errors import InvalidArgumentError
from services.handshake.pool import PAGE_BYTES

LOW_RAM_LIMIT: Final = 3 << 30
"""RAM below this address is one region at 0; the hole for devices begins here."""

HIGH_RAM_BASE: Final = 4 << 30
"""The rest of RAM begins here, behind the hole."""

MIN_RAM_BYTES: Final = 32 << 20
MAX_RAM_BYTES: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class RamRegion:
    """One contiguous part of guest-physical memory.

    Attributes:
        gpa: Guest-physical address of its first byte.
        size_bytes: Length.
        offset: Where it starts in the memfd, in bytes.
        user_addr: Address of its first byte in this process; vhost-user calls it the user address
            and gives ring addresses in it.
    """

    gpa: int
    size_bytes: int
    offset: int
    user_addr: int

    @property
    def end(self) -> int:
        """The first address behind the region."""
        return self.gpa + self.size_bytes


class GuestRam:
    """Zeroed, sparse memory of a fixed length, whose descriptor other processes can map."""

    def __init__(self, ram_bytes: int) -> None:
        """Make the memory.

        Args:
            ram_bytes: Length; a multiple of the page size from 32 MiB to 1 TiB.

        Raises:
            InvalidArgumentError: RAM_SIZE.
        """
        if not MIN_RAM_BYTES <= ram_bytes <= MAX_RAM_BYTES or ram_bytes % PAGE_BYTES:
            raise InvalidArgumentError(
                "RAM_SIZE",
                f"{ram_bytes} bytes of RAM: give a multiple of {PAGE_BYTES} from {MIN_RAM_BYTES} "
                f"to {MAX_RAM_BYTES}",
                ram_bytes=ram_bytes,
            )
        self.size_bytes = ram_bytes
        self.fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, ram_bytes)
        # A device host maps this file; if the file shrank, SIGBUS would kill the device host.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        mapping = mmap.mmap(self.fd, ram_bytes)
        user_addr = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self._view = memoryview(mapping)
        self.regions = tuple(_regions(ram_bytes, user_addr))

    def view(self, gpa: int, length: int) -> memoryview:
        """Return the `length` bytes at `gpa`, writable and without a copy.

        Raises:
            InvalidArgumentError: GPA_OUTSIDE_RAM when the bytes are not all inside one region.
        """
        for region in self.regions:
            if region.gpa <= gpa and 0 <= length <= region.end - gpa:
                start = region.offset + gpa - region.gpa
                return self._view[start : start + length]
        raise InvalidArgumentError(
            "GPA_OUTSIDE_RAM",
            f"[0x{gpa:x}, 0x{gpa + length:x}) is outside the guest's {self.size_bytes} B of RAM",
            gpa=gpa,
            length=length,
        )

    def user_addr(self, gpa: int) -> int:
        """Return the address in this process of a guest-physical address.

        Raises:
            InvalidArgumentError: GPA_OUTSIDE_RAM.
        """
        self.view(gpa, 1)
        region = next(region for region in self.regions if region.gpa <= gpa < region.end)
        return region.user_addr + gpa - region.gpa

    def close(self) -> None:
        """Close the memory; it is unmapped once its last view is gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._view.release()


def _regions(ram_bytes: int, user_addr: int) -> list[RamRegion]:
    low = min(ram_bytes, LOW_RAM_LIMIT)
    regions = [RamRegion(0, low, 0, user_addr)]
    if ram_bytes > low:
        regions.append(RamRegion(HIGH_RAM_BASE, ram_bytes - low, low, user_addr + low))
    return regions
