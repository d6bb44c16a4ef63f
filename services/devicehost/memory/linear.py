"""Guest memory that stays mapped as long as a device is attached to it; it is its own lease.

Owns the life of these mappings. Must not know which stretches of guest memory they cover, or why.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Self

from services.devicehost.memory.guest import GuestMemory, PinnedPart, Span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.devicehost.memory.mapping import Mapping


class LinearMemory(GuestMemory):
    """Guest memory that is its own lease: a request allocates and frees nothing."""

    def _take(self, mappings: Sequence[tuple[int, Mapping]]) -> None:
        """Take over mappings, once, at construction.

        Args:
            mappings: Each with the guest-physical address of its first byte.
        """
        self._mappings = tuple(mapping for _, mapping in mappings)
        self._spans = tuple(
            Span(gpa, len(mapping.view), mapping.address) for gpa, mapping in mappings
        )

    @abstractmethod
    def view(self, gpa: int, length: int) -> memoryview:
        """Return [gpa, gpa + length) of guest memory; see `Lease.view`."""

    def views(self, addresses: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        """Return several ranges; see `Lease.views`."""
        return list(map(self.view, addresses, lengths))

    def read(self, gpa: int, length: int) -> bytes:
        """Copy [gpa, gpa + length) without a lease; see `GuestMemory.read`."""
        return self.view(gpa, length).tobytes()

    def spans(self) -> Sequence[Span]:
        """Return all mappings; see `GuestMemory.spans`."""
        return self._spans

    def lease(self, addresses: Sequence[int] = (), lengths: Sequence[int] = ()) -> Self:
        """Return this object; see `GuestMemory.lease`."""
        return self

    def pin(self, gpa: int, length: int) -> PinnedPart:
        """Make a part of a ring reachable; see `GuestMemory.pin`.

        A part inside a mapping needs no pages of its own.
        """
        for span, mapping in zip(self._spans, self._mappings, strict=True):
            offset = gpa - span.gpa
            if offset >= 0 and offset + length <= span.size_bytes:
                return PinnedPart(mapping.view[offset : offset + length], None)
        return super().pin(gpa, length)

    def close(self) -> None:
        """End a lease: nothing to do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def _unmap(self) -> None:
        for mapping in self._mappings:
            mapping.close()
