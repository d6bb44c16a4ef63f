"""The table of guest memory regions that a front-end announced, and their descriptors.

Owns every region's descriptor from the moment it is handed in. Maps nothing itself. Must not know
how the table travels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.devicehost.memory.mapping import guard_against_loss, page_bytes_of
from services.handshake.errors import InvalidArgumentError
from services.handshake.pool import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Guard = Callable[[int, int], None]

MAX_SLOTS: Final = 32
"""Regions that a table may have."""

_U64: Final = 1 << 64
_OFFSET_LIMIT: Final = 1 << 63


@dataclass(slots=True)
class Region:
    """One contiguous stretch of guest-physical memory.

    Attributes:
        gpa: Guest-physical address of the first byte.
        size_bytes: Length.
        user_addr: The front-end's own address of the first byte.
        file_offset: Where the region starts in the file.
        fd: The file; None once it is closed.
        page_bytes: Size of the file's pages; a table sets it.
    """

    gpa: int
    size_bytes: int
    user_addr: int
    file_offset: int
    fd: int | None
    page_bytes: int = PAGE_BYTES

    def close_fd(self) -> None:
        """Close the descriptor; harmless when done before."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def same_place(self, gpa: int, size_bytes: int, user_addr: int) -> bool:
        """Return whether a removal with these values means this region."""
        return (self.gpa, self.size_bytes, self.user_addr) == (gpa, size_bytes, user_addr)


class RegionTable:
    """The regions of one guest, without overlap."""

    def __init__(self, guard: Guard = guard_against_loss) -> None:
        """Make an empty table.

        Args:
            guard: Called with a descriptor and the least size of its file in bytes; raises
                InvalidArgumentError if a mapping of it must not be touched.
        """
        self._guard = guard
        self._regions: list[Region] = []

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    def __len__(self) -> int:
        return len(self._regions)

    def replace(self, regions: Sequence[Region]) -> None:
        """Take a whole new table; on failure the old one stays and the new descriptors are closed.

        Raises:
            InvalidArgumentError: A region is empty, overflows, overlaps another, or its file is too
                short or could shrink; or there are more than MAX_SLOTS.
        """
        fresh = RegionTable(self._guard)
        try:
            for region in regions:
                fresh.add(region)
        except InvalidArgumentError:
            for region in regions:
                region.close_fd()
            raise
        self.close()
        self._regions = fresh._regions

    def add(self, region: Region) -> None:
        """Add one region; on failure nothing changes and its descriptor is closed.

        Raises:
            InvalidArgumentError: See `replace`.
        """
        try:
            self._check(region)
        except InvalidArgumentError:
            region.close_fd()
            raise
        self._regions.append(region)

    def remove(self, gpa: int, size_bytes: int, user_addr: int) -> None:
        """Forget one region and close its descriptor.

        Raises:
            InvalidArgumentError: REGION_UNKNOWN.
        """
        for region in self._regions:
            if region.same_place(gpa, size_bytes, user_addr):
                region.close_fd()
                self._regions.remove(region)
                return
        raise InvalidArgumentError(
            "REGION_UNKNOWN",
            f"no region of 0x{size_bytes:x} bytes at guest address 0x{gpa:x} and user address "
            f"0x{user_addr:x} is in the table",
            gpa=gpa,
        )

    def find(self, gpa: int, length: int) -> Region | None:
        """Return the region that holds [gpa, gpa + length) whole; None when there is none."""
        for region in self._regions:
            start = gpa - region.gpa
            if start >= 0 and start + length <= region.size_bytes:
                return region
        return None

    def user_to_gpa(self, user_addr: int, length: int) -> int | None:
        """Return the guest-physical address of a front-end's range; None if no region holds it."""
        for region in self._regions:
            start = user_addr - region.user_addr
            if start >= 0 and start + length <= region.size_bytes:
                return region.gpa + start
        return None

    @property
    def open_fds(self) -> int:
        """Descriptors that are open."""
        return sum(region.fd is not None for region in self._regions)

    def close_fds(self) -> int:
        """Close every descriptor; the table goes on translating addresses.

        Returns:
            How many were open.
        """
        count = self.open_fds
        for region in self._regions:
            region.close_fd()
        return count

    def close(self) -> None:
        """Close every descriptor and forget every region."""
        self.close_fds()
        self._regions = []

    def _check(self, region: Region) -> None:
        where = f"region of 0x{region.size_bytes:x} bytes at guest address 0x{region.gpa:x}"
        if len(self._regions) >= MAX_SLOTS:
            raise InvalidArgumentError(
                "REGION_LIMIT", f"{where}: the table has {MAX_SLOTS} slots only", bound=MAX_SLOTS
            )
        if region.gpa % PAGE_BYTES or region.size_bytes % PAGE_BYTES:
            raise InvalidArgumentError(
                "REGION_UNALIGNED", f"{where} is not made of whole pages of {PAGE_BYTES} bytes"
            )
        if (
            region.size_bytes == 0
            or region.gpa + region.size_bytes > _U64
            or region.user_addr + region.size_bytes > _U64
            or region.file_offset + region.size_bytes > _OFFSET_LIMIT
        ):
            raise InvalidArgumentError(
                "REGION_BOUNDS", f"{where} is empty or overflows 64 bits", gpa=region.gpa
            )
        for other in self._regions:
            if _overlap(region.gpa, other.gpa, region, other) or _overlap(
                region.user_addr, other.user_addr, region, other
            ):
                raise InvalidArgumentError(
                    "REGION_OVERLAP",
                    f"{where} overlaps the one at guest address 0x{other.gpa:x}",
                    gpa=region.gpa,
                )
        if region.fd is not None:
            self._guard(region.fd, region.file_offset + region.size_bytes)
            region.page_bytes = page_bytes_of(region.fd)


def _overlap(start: int, other_start: int, region: Region, other: Region) -> bool:
    return start < other_start + other.size_bytes and other_start < start + region.size_bytes
