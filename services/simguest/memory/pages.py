"""The guest's page allocator: ordinary RAM, outside any bounce pool.

Owns the free ranges. Must not know what pages are used for.
"""

from __future__ import annotations

import bisect
import threading
from typing import TYPE_CHECKING

from services.handshake.errors import ResourceExhaustedError
from services.handshake.pool import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable


def pages_bytes(length: int) -> int:
    """Round a length up to whole pages."""
    return -(-length // PAGE_BYTES) * PAGE_BYTES


class PageAllocator:
    """A first-fit allocator over sorted free ranges, which merge when they touch; thread-safe.

    First fit keeps the buffers at low addresses and reuses them, so a device that maps windows on
    demand needs few windows.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Take the free ranges, as page-aligned [start, end) guest-physical addresses."""
        spans = sorted(ranges)
        self._lock = threading.Lock()
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]
        self.total_bytes = sum(end - start for start, end in spans)
        self.used_bytes = 0

    def allocate(self, length: int) -> int:
        """Take contiguous pages for `length` bytes and return the address of the first.

        Raises:
            ResourceExhaustedError: GUEST_MEMORY_EXHAUSTED, naming used and total.
        """
        size = pages_bytes(length)
        with self._lock:
            for i, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
                if end - start >= size:
                    self._starts[i] = start + size
                    if start + size == end:
                        del self._starts[i], self._ends[i]
                    self.used_bytes += size
                    return start
            used, total = self.used_bytes, self.total_bytes
        raise ResourceExhaustedError(
            "GUEST_MEMORY_EXHAUSTED",
            f"no {size} contiguous bytes are free in the guest: {used} of {total} bytes are in "
            "use; have fewer requests in flight or give the VM more RAM",
            used=used,
            total=total,
        )

    def free(self, gpa: int, length: int) -> None:
        """Free the pages that `allocate` returned for the same length."""
        end = gpa + pages_bytes(length)
        with self._lock:
            i = bisect.bisect_left(self._starts, gpa)
            touches_left = i > 0 and self._ends[i - 1] == gpa
            touches_right = i < len(self._starts) and self._starts[i] == end
            if touches_left and touches_right:
                self._ends[i - 1] = self._ends[i]
                del self._starts[i], self._ends[i]
            elif touches_left:
                self._ends[i - 1] = end
            elif touches_right:
                self._starts[i] = gpa
            else:
                self._starts.insert(i, gpa)
                self._ends.insert(i, end)
            self.used_bytes -= end - gpa
