"""The interface through which a device reaches all guest memory, and the leases that it grants.

Owns the error of bound checks, the pinned pages of rings and the life of mappings. Must not know
whether an aperture or windows are behind it.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from services.devicehost.memory.loss import Loss
from services.devicehost.memory.mapping import Mapping
from services.handshake.errors import InvalidArgumentError
from services.handshake.pool import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.devicehost.accounting import DeviceMeter
    from services.devicehost.memory.regions import RegionTable

GpaRange = tuple[int, int]
"""Guest-physical address of the first byte, and the length in bytes."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of guest memory that stays mapped as long as its GuestMemory is retained.

    Attributes:
        gpa: Guest-physical address of the first byte.
        size_bytes: Length.
        address: Of the first byte, in this process.
    """

    gpa: int
    size_bytes: int
    address: int


class TranslationError(InvalidArgumentError):
    """A guest handed in an address that its device may not reach; a retry does not help.

    Attributes:
        gpa: The address.
        length: Bytes that were asked for.
    """

    def __init__(self, gpa: int, length: int, bound: str) -> None:
        super().__init__(
            "ADDRESS_OUT_OF_BOUNDS",
            f"guest address 0x{gpa:x}, length 0x{length:x}, is not inside {bound}",
            gpa=gpa,
            length=length,
            bound=bound,
        )
        self.gpa = gpa
        self.length = length


class Lease(AbstractContextManager["Lease"], Protocol):
    """The right to touch guest buffers until it is closed."""

    def view(self, gpa: int, length: int) -> memoryview:
        """Return [gpa, gpa + length) of guest memory, writable and without a copy.

        Raises:
            TranslationError: The range is not wholly inside the memory that the device may reach.
            DeadlineExceededError: WINDOW_DEADLINE: no window came free in time.
            ResourceExhaustedError: WINDOW_QUOTA_TOO_SMALL: more than the whole quota is needed.
        """

    def views(self, addresses: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        """Return several ranges, each as `view` does, without an object per address and length.

        Args:
            addresses: Of their first bytes.
            lengths: As many.

        Raises:
            TranslationError, DeadlineExceededError, ResourceExhaustedError: See `view`.
        """

    def close(self) -> None:
        """Give the buffers back; harmless when done before."""


class PinnedPart:
    """One part of a ring, reachable until `close`; see `GuestMemory.pin`.

    Attributes:
        view: The bytes of the part.
    """

    __slots__ = ("_mapping", "view")

    def __init__(self, view: memoryview, mapping: Mapping | None) -> None:
        self.view = view
        self._mapping = mapping

    def close(self) -> None:
        """Unmap the pages that were mapped for this part alone."""
        if self._mapping is not None:
            self._mapping.close()


class GuestMemory(ABC):
    """The guest memory that a device can reach; it stays mapped until the last `release`.

    The caller of the constructor holds the first reference. Every thread that touches views holds
    one of its own, so that no page is unmapped while it does.

    Attributes:
        is_pool: Whether buffers can be in a bounce pool only, whose slots are counted.
        loss: Whether pages of it were lost while they were mapped; then they are zeros here, and
            whoever serves the device has to end that.
        rings_remedy: What helps when a ring is in memory whose descriptor is closed.
    """

    is_pool = False
    rings_remedy = (
        "descriptors of guest memory are closed when all rings are placed, or requests come; put "
        "the rings into the pool, or send the table anew before they are placed elsewhere"
    )

    def __init__(self, table: RegionTable, meter: DeviceMeter) -> None:
        self.loss = Loss()
        self._table = table
        self._meter = meter
        self._references = 1
        self._kept: list[PinnedPart] = []
        self._lock = threading.Lock()

    @abstractmethod
    def lease(self, addresses: Sequence[int] = (), lengths: Sequence[int] = ()) -> Lease:
        """Lend guest buffers.

        Args:
            addresses: First bytes of the buffers that the borrower will touch. All windows that
                they need are mapped at once or, on failure, none.
            lengths: As many.

        Raises:
            TranslationError, DeadlineExceededError, ResourceExhaustedError: See `Lease.view`.
        """

    def spans(self) -> Sequence[Span] | None:
        """Return all stretches that requests may touch, by rising address.

        Returns:
            None: guest memory is mapped on demand, and only a lease makes it reachable.
        """
        return None

    def read(self, gpa: int, length: int) -> bytes:
        """Copy [gpa, gpa + length), so that the guest cannot change the bytes after a check.

        Raises:
            TranslationError, DeadlineExceededError, ResourceExhaustedError: See `Lease.view`.
        """
        with self.lease((gpa,), (length,)) as lease:
            return bytes(lease.view(gpa, length))

    def pin(self, gpa: int, length: int) -> PinnedPart:
        """Map the pages of one part of a ring, and no others, until the part is closed.

        Rings are not counted in the quota on windows: their number is bounded by the queues.

        Raises:
            TranslationError: No region holds the range.
            InvalidArgumentError: RING_OUTSIDE_APERTURE: the region's descriptor is closed already.
        """
        region = self._table.find(gpa, length)
        if region is None:
            raise self.refusal(gpa, length, "guest memory")
        if region.fd is None:
            raise self._ring_refusal(gpa, length)
        start = region.file_offset + gpa - region.gpa
        first = start - start % PAGE_BYTES
        mapping = Mapping(
            region.fd, first, _page_end(start + length) - first, self.loss, region.page_bytes
        )
        return PinnedPart(mapping.view[start - first : start - first + length], mapping)

    def keep(self, part: PinnedPart) -> PinnedPart:
        """Keep the pages of a part mapped until the last `release`; a thread may yet touch them.

        Returns:
            The same part, which does not own its pages, like a part inside an aperture.
        """
        self._kept.append(part)
        return PinnedPart(part.view, None)

    def refusal(self, gpa: int, length: int, bound: str) -> TranslationError:
        """Count a refused address and return the error for it."""
        with self._meter.counting as counters:
            counters.translations_refused += 1
        return TranslationError(gpa, length, bound)

    def _ring_refusal(self, gpa: int, length: int) -> InvalidArgumentError:
        with self._meter.counting as counters:
            counters.translations_refused += 1
        return InvalidArgumentError(
            "RING_OUTSIDE_APERTURE",
            f"part of a ring at guest address 0x{gpa:x}, length 0x{length:x}, is outside the "
            f"memory that is mapped, and nothing else can be mapped: {self.rings_remedy}",
            gpa=gpa,
            length=length,
        )

    def retain(self) -> None:
        """Keep everything mapped until the matching `release`."""
        with self._lock:
            self._references += 1

    def release(self) -> None:
        """Give up one reference; the last one unmaps everything."""
        with self._lock:
            self._references -= 1
            last = self._references == 0
        if last:
            for part in self._kept:
                part.close()
            self._unmap()

    @abstractmethod
    def _unmap(self) -> None:
        """Unmap everything that requests may touch."""


def _page_end(offset: int) -> int:
    return -(-offset // PAGE_BYTES) * PAGE_BYTES
