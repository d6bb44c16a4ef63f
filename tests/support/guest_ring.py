"""A minimal guest for tests of the device side: a memfd and hand-written rings.

It can write anything into them; services.simguest is the guest that keeps to the rules.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from typing import TYPE_CHECKING

from services.devicehost.memory import Region, RegionTable
from services.wire.virtio_ring import (
    DESC_F_NEXT,
    DESC_F_WRITE,
    Descriptor,
    avail_bytes,
    avail_event_offset,
    desc_table_bytes,
    used_bytes,
    used_event_offset,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

USER_BASE = 0x7F00_0000_0000
"""The address that its front-end gives for guest memory: user address = USER_BASE + gpa."""


class GuestRam:
    """RAM of a guest, from guest-physical address `gpa` on; sealed against shrinking."""

    def __init__(
        self,
        size_bytes: int,
        gpa: int = 0,
        file_offset: int = 0,
        *,
        sealed: bool = True,
        huge_pages: bool = False,
    ) -> None:
        self.gpa = gpa
        self.size_bytes = size_bytes
        self.file_offset = file_offset
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | (os.MFD_HUGETLB if huge_pages else 0)
        self.fd = os.memfd_create("guest", flags)
        os.ftruncate(self.fd, file_offset + size_bytes)
        fcntl.fcntl(
            self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK if sealed else fcntl.F_SEAL_SEAL
        )
        self._map = mmap.mmap(self.fd, size_bytes, offset=file_offset)

    def region(self) -> Region:
        return Region(
            self.gpa, self.size_bytes, USER_BASE + self.gpa, self.file_offset, os.dup(self.fd)
        )

    def table(self) -> RegionTable:
        table = RegionTable()
        table.add(self.region())
        return table

    def read(self, gpa: int, length: int) -> bytes:
        return self._map[gpa - self.gpa : gpa - self.gpa + length]

    def write(self, gpa: int, data: bytes) -> None:
        self._map[gpa - self.gpa : gpa - self.gpa + len(data)] = data

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)


class GuestRing:
    """The driver's side of one ring, at `gpa`; every part begins on a page of its own."""

    def __init__(self, ram: GuestRam, gpa: int, size: int) -> None:
        self.ram = ram
        self.size = size
        self.desc = gpa
        self.avail = _page_after(gpa + desc_table_bytes(size))
        self.used = _page_after(self.avail + avail_bytes(size))
        self.end = _page_after(self.used + used_bytes(size))
        self.next_avail = 0

    def describe(
        self, index: int, addr: int, length: int, flags: int = 0, following: int = 0
    ) -> None:
        packed = Descriptor(addr, length, flags, following).pack()
        self.ram.write(self.desc + 16 * index, packed)

    def chain(
        self,
        head: int,
        readable: Sequence[tuple[int, int]] = (),
        writable: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Write a lawful chain into descriptors `head` and those that follow it."""
        buffers = [(*b, 0) for b in readable] + [(*b, DESC_F_WRITE) for b in writable]
        for place, (addr, length, flags) in enumerate(buffers):
            more = DESC_F_NEXT if place < len(buffers) - 1 else 0
            self.describe(head + place, addr, length, flags | more, head + place + 1)

    def offer(self, *heads: int) -> None:
        for head in heads:
            self._put_u16(self.avail + 4 + 2 * (self.next_avail % self.size), head)
            self.next_avail = (self.next_avail + 1) & 0xFFFF
        self.set_avail_idx(self.next_avail)

    def set_avail_idx(self, value: int) -> None:
        self._put_u16(self.avail + 2, value)

    def set_avail_flags(self, value: int) -> None:
        self._put_u16(self.avail, value)

    def set_used_event(self, value: int) -> None:
        self._put_u16(self.avail + used_event_offset(self.size), value)

    @property
    def avail_event(self) -> int:
        return self._u16(self.used + avail_event_offset(self.size))

    @property
    def used_flags(self) -> int:
        return self._u16(self.used)

    @property
    def used_idx(self) -> int:
        return self._u16(self.used + 2)

    def completions(self) -> list[tuple[int, int]]:
        """Head and length of every used element so far (for fewer than `size` of them)."""
        data = self.ram.read(self.used + 4, 8 * self.used_idx)
        return list(struct.iter_unpack("<II", data))

    def _u16(self, gpa: int) -> int:
        return int.from_bytes(self.ram.read(gpa, 2), "little")

    def _put_u16(self, gpa: int, value: int) -> None:
        self.ram.write(gpa, value.to_bytes(2, "little"))


def _page_after(gpa: int) -> int:
    return -(-gpa // 4096) * 4096
