"""The driver's side of a split ring in guest memory, without any threads or waiting.

Owns the layout of one ring and the driver's indices (VIRTIO 1.2 section 2.7, EVENT_IDX of 2.7.7 and
2.7.10). Not thread-safe: queue.py locks. Everything that the device wrote is checked here.

The ring relies on the order of plain stores and loads on x86; where section 2.7.13 asks for a full
barrier there is one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from services.wire import virtio_ring as wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.simguest.memory.dma import Mapping

_IDX = wire.AVAIL_IDX // 2
_AVAIL_RING = wire.AVAIL_RING // 2


class BrokenRingError(Exception):
    """The device broke a rule of the ring; the message names the rule."""


def ring_bytes(size: int) -> int:
    """Return the length in bytes of a ring of `size` entries."""
    return _used_offset(size) + wire.used_bytes(size)


def _used_offset(size: int) -> int:
    end = wire.desc_table_bytes(size) + wire.avail_bytes(size)
    return -(-end // wire.USED_ALIGN) * wire.USED_ALIGN


def chain_descriptors(buffers: Sequence[Mapping], readable: int, nexts: Sequence[int]) -> bytes:
    """Pack the descriptors of a chain.

    Args:
        buffers: The memory of each descriptor.
        readable: Number of buffers that the device may only read; they come first.
        nexts: Index of the second descriptor and of each later one; one fewer than `buffers`.
    """
    last = len(buffers) - 1
    return b"".join(
        wire.DESC.pack(
            buffer.gpa,
            buffer.length,
            (wire.DESC_F_NEXT if i < last else 0) | (wire.DESC_F_WRITE if i >= readable else 0),
            nexts[i] if i < last else 0,
        )
        for i, buffer in enumerate(buffers)
    )


class DriverRing:
    """One ring, driven by the guest.

    Attributes:
        size: Entries.
        desc_gpa: Address of the descriptor table.
        avail_gpa: Address of the available ring.
        used_gpa: Address of the used ring.
    """

    def __init__(self, size: int, memory: Mapping, *, event_idx: bool) -> None:
        """Lay out an empty ring.

        Args:
            size: Entries; a power of two.
            memory: `ring_bytes(size)` bytes, aligned to 16; they are cleared.
            event_idx: Whether EVENT_IDX is negotiated.
        """
        avail, used = wire.desc_table_bytes(size), _used_offset(size)
        memory.view[:] = bytes(memory.length)
        self.size = size
        self.desc_gpa = memory.gpa
        self.avail_gpa = memory.gpa + avail
        self.used_gpa = memory.gpa + used
        self._desc = memory.view[:avail]
        self._avail = memory.view[avail : avail + wire.avail_bytes(size)].cast("H")
        self._used_bytes = memory.view[used : used + wire.used_bytes(size)]
        self._used = self._used_bytes.cast("H")
        self._event_idx = event_idx
        self._avail_idx = 0
        self._kicked_idx = 0
        self._last_used = 0
        self._barrier_lock = threading.Lock()

    def write_descriptors(self, indices: Sequence[int], descriptors: bytes) -> None:
        """Write packed descriptors into free entries of the table."""
        for i, index in enumerate(indices):
            start = index * wire.DESC_BYTES
            packed = descriptors[i * wire.DESC_BYTES : (i + 1) * wire.DESC_BYTES]
            self._desc[start : start + wire.DESC_BYTES] = packed

    def publish(self, head: int) -> None:
        """Make the chain that starts at `head` available (section 2.7.13)."""
        self._avail[_AVAIL_RING + self._avail_idx % self.size] = head
        self._avail_idx = (self._avail_idx + 1) & wire.U16_MASK
        self._avail[_IDX] = self._avail_idx

    def should_kick(self) -> bool:
        """Return whether the device wants a kick for the chains published since the last call."""
        self._barrier()
        old, self._kicked_idx = self._kicked_idx, self._avail_idx
        if self._event_idx:
            event = self._used[wire.avail_event_offset(self.size) // 2]
            return wire.need_event(event, self._avail_idx, old)
        return not self._used[wire.USED_FLAGS] & wire.USED_F_NO_NOTIFY

    def pop_used(self) -> tuple[int, int] | None:
        """Take the next used element, its head and written bytes; None when there is none.

        Raises:
            BrokenRingError: The device's index jumped, or the head is not an entry of the table.
        """
        new = (self._used[_IDX] - self._last_used) & wire.U16_MASK
        if new == 0:
            return None
        if new > self.size:
            raise BrokenRingError(f"the used index jumped by {new} in a ring of {self.size}")
        offset = wire.USED_RING + self._last_used % self.size * wire.USED_ELEM_BYTES
        head, written = wire.USED_ELEM.unpack_from(self._used_bytes, offset)
        if head >= self.size:
            raise BrokenRingError(f"used element names head {head} in a ring of {self.size}")
        self._last_used = (self._last_used + 1) & wire.U16_MASK
        return head, written

    def arm(self) -> bool:
        """Ask for a call at the next used element; False when one is there already."""
        if self._event_idx:
            self._avail[wire.used_event_offset(self.size) // 2] = self._last_used
        self._barrier()
        return self._used[_IDX] == self._last_used

    def _barrier(self) -> None:
        # Taking a free lock is a locked instruction; no load or store is moved across it.
        with self._barrier_lock:
            pass
