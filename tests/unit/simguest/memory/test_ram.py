"""RAM and its pages: layout, seals, sparseness, first fit."""

from __future__ import annotations

import fcntl
import os
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.handshake.errors import InvalidArgumentError, ResourceExhaustedError
from services.simguest.memory.pages import PageAllocator
from services.simguest.memory.ram import HIGH_RAM_BASE, LOW_RAM_LIMIT, GuestRam

GIB = 1 << 30


def test_ram_above_3_gib_goes_on_at_4_gib() -> None:
    ram = GuestRam(4 * GIB)
    low, high = ram.regions
    assert (low.gpa, low.size_bytes, low.offset) == (0, LOW_RAM_LIMIT, 0)
    assert (high.gpa, high.size_bytes, high.offset) == (HIGH_RAM_BASE, GIB, LOW_RAM_LIMIT)
    assert high.user_addr - low.user_addr == LOW_RAM_LIMIT
    ram.view(HIGH_RAM_BASE, 4)[:] = b"high"
    assert os.pread(ram.fd, 4, LOW_RAM_LIMIT) == b"high"
    assert ram.user_addr(HIGH_RAM_BASE + 5) == high.user_addr + 5
    for gpa, length in [(LOW_RAM_LIMIT - 1, 2), (LOW_RAM_LIMIT, 1), (5 * GIB, 1), (-1, 1), (0, -1)]:
        with pytest.raises(InvalidArgumentError) as caught:
            ram.view(gpa, length)
        assert caught.value.reason == "GPA_OUTSIDE_RAM"
    ram.close()


def test_ram_is_zero_sparse_and_never_changes_its_length() -> None:
    ram = GuestRam(512 << 20)
    assert bytes(ram.view(0x100000, 4096)) == bytes(4096)
    assert os.fstat(ram.fd).st_blocks * 512 < 1 << 20
    assert fcntl.fcntl(ram.fd, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    for length in (0, 1 << 30):
        with pytest.raises(PermissionError):
            os.ftruncate(ram.fd, length)
    ram.close()


@pytest.mark.parametrize("ram_bytes", [0, 4096, (32 << 20) + 1, (1 << 40) + 4096])
def test_ram_of_an_impossible_size_is_refused(ram_bytes: int) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        GuestRam(ram_bytes)
    assert caught.value.reason == "RAM_SIZE"


def test_a_view_outlives_its_ram() -> None:
    ram = GuestRam(32 << 20)
    view = ram.view(0x1000, 4)
    ram.close()
    ram.close()
    view[:] = b"late"
    assert bytes(view) == b"late"


def test_pages_run_out_with_a_clear_error() -> None:
    pages = PageAllocator([(0x1000, 0x3000), (0x8000, 0x9000)])
    assert pages.allocate(4097) == 0x1000
    with pytest.raises(ResourceExhaustedError, match=r"8192 of 12288 bytes are in use") as caught:
        pages.allocate(4097)
    assert caught.value.reason == "GUEST_MEMORY_EXHAUSTED"
    assert pages.allocate(4096) == 0x8000


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(1, 40_000)), max_size=60))
def test_pages_never_overlap_and_come_back_whole(steps: list[tuple[bool, int]]) -> None:
    pages = PageAllocator([(0x1000, 0x41000), (0x80000, 0xC0000)])
    live: list[tuple[int, int]] = []
    for allocate, number in steps:
        if allocate:
            try:
                live.append((pages.allocate(number), number))
            except ResourceExhaustedError:
                assert number > 4096
        elif live:
            pages.free(*live.pop(number % len(live)))
        ends = sorted((gpa, gpa + -(-length // 4096) * 4096) for gpa, length in live)
        assert all(end <= start for (_, end), (start, _) in pairwise(ends))
        assert pages.used_bytes == sum(end - start for start, end in ends)
    for gpa, length in live:
        pages.free(gpa, length)
    assert pages.used_bytes == 0
    assert {pages.allocate(0x40000), pages.allocate(0x40000)} == {0x1000, 0x80000}
