"""What a process holds of guest memory: descriptors and mappings, known by the memfd's identity.

Names would do for one guest; the memories of several have the same name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.guest_ring import GuestRam


class MemoryFiles:
    """The memfds of a guest, and what a process holds of them beyond what it held at first."""

    def __init__(self, rams: Iterable[GuestRam], pid: int | str = "self") -> None:
        self._pid = pid
        self._inodes = {os.fstat(ram.fd).st_ino: ram for ram in rams}
        self._own_descriptors = self._count()
        self._own_mappings = self._all_mapped()

    def descriptors(self) -> int:
        """Return how many descriptors of any of them are open."""
        return self._count() - self._own_descriptors

    def mapped(self) -> list[tuple[int, int]]:
        """Return the guest address and length of every stretch that is mapped, in order.

        Neighbours of one file are one stretch, as the kernel may show them.
        """
        merged: list[tuple[int, int]] = []
        new = self._all_mapped()
        for one in self._own_mappings:
            new.remove(one)
        for gpa, length in sorted(new):
            if merged and sum(merged[-1]) == gpa:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((gpa, length))
        return merged

    def _count(self) -> int:
        count = 0
        for entry in Path(f"/proc/{self._pid}/fd").iterdir():
            try:
                count += entry.stat().st_ino in self._inodes
            except FileNotFoundError:
                continue
        return count

    def _all_mapped(self) -> list[tuple[int, int]]:
        found = []
        for line in Path(f"/proc/{self._pid}/maps").read_text().splitlines():
            span, _, offset, _, inode, *_ = line.split()
            ram = self._inodes.get(int(inode))
            if ram is not None:
                start, end = (int(part, 16) for part in span.split("-"))
                found.append((ram.gpa + int(offset, 16) - ram.file_offset, end - start))
        return found
