"""The guest's DMA API: every buffer is mapped here before a device may see it.

Owns the interface and its direct kind, for a guest without a pool; bounce.py has the other kind.
Must not know rings or drivers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from services.handshake.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from services.simguest.memory.pages import PageAllocator
    from services.simguest.memory.ram import GuestRam

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes that a driver hands to a device; a memoryview has the format 'B'."""

_MAX_DESCRIPTOR_BYTES: Final = (1 << 32) - 1


@dataclass(slots=True, eq=False)
class Mapping:
    """Memory that a device may reach until it is unmapped.

    Attributes:
        gpa: Guest-physical address of the first byte.
        length: In bytes.
        view: The memory itself, `length` bytes, writable.
    """

    gpa: int
    length: int
    view: memoryview


class Dma(Protocol):
    """Maps buffers for devices, like the kernel's DMA API. Thread-safe."""

    @property
    def max_mapping_bytes(self) -> int:
        """Length of the longest possible mapping, in bytes."""
        ...

    def map(self, lengths: Sequence[int], deadline_s: float) -> list[Mapping]:
        """Map buffers of these lengths: all of them, or none when this raises.

        Two threads that each held a part while they wait for the rest would deadlock.

        Args:
            lengths: In bytes, each from 1 to `max_mapping_bytes`.
            deadline_s: How long to wait for room, in seconds.

        Raises:
            InvalidArgumentError: BUFFER_EMPTY or MAPPING_TOO_LONG.
            ResourceExhaustedError: No room came free in time; it names used and total.
        """
        ...

    def sync_for_device(self, mappings: Iterable[Mapping], buffers: Iterable[Buffer]) -> None:
        """Copy buffers into the first of the mappings, each of exactly its buffer's length."""
        ...

    def sync_for_cpu(self, mappings: Iterable[Mapping], written: int) -> list[bytes]:
        """Copy out the first `written` bytes of the mappings, which the device fills in order.

        Returns:
            One bytes object per mapping; short or empty behind the last byte that was written.
        """
        ...

    def unmap(self, mappings: Iterable[Mapping]) -> None:
        """End mappings; the caller must not use them afterwards."""
        ...


def copy_in(mappings: Iterable[Mapping], buffers: Iterable[Buffer]) -> int:
    """Copy buffers into mappings, and return the number of bytes."""
    copied = 0
    for mapping, data in zip(mappings, buffers, strict=False):
        mapping.view[:] = data
        copied += mapping.length
    return copied


def copy_out(mappings: Iterable[Mapping], written: int) -> list[bytes]:
    """Copy the first `written` bytes out of mappings, in order.

    The driver gets a copy, because the device can still write to the mappings.
    """
    parts = []
    for mapping in mappings:
        parts.append(bytes(mapping.view[:written]))
        written = max(0, written - mapping.length)
    return parts


def check_lengths(lengths: Sequence[int], limit: int) -> None:
    """Refuse lengths that can never be mapped.

    Raises:
        InvalidArgumentError: BUFFER_EMPTY, or MAPPING_TOO_LONG (the kernel's EIO).
    """
    for length in lengths:
        if length > limit:
            raise InvalidArgumentError(
                "MAPPING_TOO_LONG",
                f"a buffer of {length} bytes cannot be mapped: one mapping holds at most {limit}; "
                "split the buffer, or negotiate smaller requests",
                length=length,
                bound=limit,
            )
        if length <= 0:
            raise InvalidArgumentError(
                "BUFFER_EMPTY",
                f"a buffer of {length} bytes cannot be mapped; leave empty buffers out",
                length=length,
            )


class DirectDma:
    """Maps buffers in ordinary pages of a guest that has no pool."""

    max_mapping_bytes = _MAX_DESCRIPTOR_BYTES

    def __init__(self, ram: GuestRam, pages: PageAllocator) -> None:
        self._ram = ram
        self._pages = pages

    def map(self, lengths: Sequence[int], deadline_s: float) -> list[Mapping]:
        """Allocate pages for each buffer, without ever waiting for some."""
        del deadline_s
        check_lengths(lengths, self.max_mapping_bytes)
        mappings: list[Mapping] = []
        try:
            for length in lengths:
                gpa = self._pages.allocate(length)
                mappings.append(Mapping(gpa, length, self._ram.view(gpa, length)))
        except BaseException:
            self.unmap(mappings)
            raise
        return mappings

    def sync_for_device(self, mappings: Iterable[Mapping], buffers: Iterable[Buffer]) -> None:
        """Copy a driver's buffers into their pages."""
        copy_in(mappings, buffers)

    def sync_for_cpu(self, mappings: Iterable[Mapping], written: int) -> list[bytes]:
        """Copy the bytes that the device wrote out of their pages."""
        return copy_out(mappings, written)

    def unmap(self, mappings: Iterable[Mapping]) -> None:
        """Free the pages."""
        for mapping in mappings:
            self._pages.free(mapping.gpa, mapping.length)
