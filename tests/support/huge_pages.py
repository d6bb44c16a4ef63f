"""Huge pages of this machine: how many there are, for as long as a test needs them. Needs root."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_COUNT = Path("/proc/sys/vm/nr_hugepages")
_PUNCH_HOLE = 0x02 | 0x01
"""FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE."""

HUGE = 2 << 20


class HugePages:
    """The pool of huge pages that no guest has yet."""

    def __init__(self, before: int) -> None:
        self._before = before

    def set(self, count: int) -> None:
        """Have `count` more than there were; skips the test if the machine has no room."""
        _COUNT.write_text(str(self._before + count))
        if int(_COUNT.read_text()) < self._before + count:
            pytest.skip(f"the machine has no room for {count} huge pages")

    def punch_hole(self, fd: int, offset: int, left: int) -> None:
        """Give one page of a file back, and have no page free: `left` are in use."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        if libc.fallocate(fd, _PUNCH_HOLE, offset, HUGE):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        _COUNT.write_text(str(self._before + left))


@contextmanager
def huge_pages(count: int) -> Iterator[HugePages]:
    """Have so many huge pages of 2 MiB."""
    sizes = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    if os.geteuid() or not sizes.exists():
        pytest.skip("needs root, and huge pages of 2 MiB")
    before = int(_COUNT.read_text())
    if before:
        pytest.skip("somebody uses the huge pages of this machine")
    pages = HugePages(before)
    try:
        pages.set(count)
        yield pages
    finally:
        _COUNT.write_text(str(before))
