"""The bounce pool: the only memory that a confined device can reach, handed out slot by slot.

Owns the slots of one pool with the geometry of Linux' swiotlb (kernel/dma/swiotlb.c,
include/linux/swiotlb.h): 2 KiB slots, segments of 128 slots that no mapping crosses, and areas with
a lock each. Must not know rings, devices or how the kernel chose the pool.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

from services.handshake.errors import ResourceExhaustedError
from services.handshake.exhaustion import Episode, Exhaustion, Resource
from services.handshake.pool import (
    MAX_MAPPING_BYTES,
    PAGE_BYTES,
    SEGMENT_SLOTS,
    SLOT_BYTES,
    SwiotlbPool,
)
from services.simguest.memory.dma import Mapping, check_lengths, copy_in, copy_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from services.simguest.memory.dma import Buffer
    from services.simguest.memory.ram import GuestRam

DEFAULT_AREAS: Final = 4
"""Areas of a pool; the kernel makes one per CPU, rounded up to a power of two."""

LOOK_INTERVAL_S: Final = 1.0
"""Time between two looks at an exhausted pool; it bounds how often exhaustion is reported."""

_SEGMENT_FREE: Final[int] = (1 << SEGMENT_SLOTS) - 1
_PAGE_SLOTS: Final = PAGE_BYTES // SLOT_BYTES
_PAGE_STARTS: Final[int] = sum(1 << slot for slot in range(0, SEGMENT_SLOTS, _PAGE_SLOTS))


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """The use of a pool at one moment.

    Attributes:
        slots_total: Slots of the pool.
        slots_used: Slots that are mapped.
        slots_used_high_water: The most slots that were ever mapped at once.
        bytes_bounced: Bytes copied in and out since boot.
    """

    slots_total: int
    slots_used: int
    slots_used_high_water: int
    bytes_bounced: int


def slots_of(length: int) -> int:
    """Return the number of slots that a mapping of `length` bytes takes."""
    return -(-length // SLOT_BYTES)


def find_run(free: int, slots: int) -> int:
    """Find a run of free slots in one segment.

    A run of a page or more starts on a page, as in the kernel.

    Args:
        free: One bit per slot of the segment, set where the slot is free.
        slots: Length of the run, 1 to 128.

    Returns:
        The index of the first slot of the lowest run; -1 when there is none.
    """
    starts = free
    known = 1
    while known < slots:  # bit i of `starts`: the `known` slots from i on are free
        step = min(known, slots - known)
        starts &= starts >> step
        known += step
    if slots >= _PAGE_SLOTS:
        starts &= _PAGE_STARTS
    return (starts & -starts).bit_length() - 1


class _Area:
    """A share of the pool's segments, under a lock of its own."""

    __slots__ = ("_free", "_hint", "_lock", "first_segment")

    def __init__(self, first_segment: int, free: list[int]) -> None:
        self.first_segment = first_segment
        self._free = free
        self._hint = 0
        self._lock = threading.Lock()

    def take(self, wanted: Sequence[int], found: list[int]) -> None:
        """Take runs of free slots, until one does not fit.

        Args:
            wanted: Slots of each run. The first `len(found)` runs have been taken before.
            found: The first slot of each run taken, counted from the start of the pool; this
                appends to it.
        """
        with self._lock:
            for slots in wanted[len(found) :]:
                slot = self._take_run(slots)
                if slot < 0:
                    return
                found.append(slot)

    def give(self, runs: Iterable[tuple[int, int]]) -> None:
        """Free runs, each given by its first slot and its number of slots."""
        with self._lock:
            for slot, slots in runs:
                segment, first = divmod(slot - self.first_segment * SEGMENT_SLOTS, SEGMENT_SLOTS)
                self._free[segment] |= ((1 << slots) - 1) << first

    def _take_run(self, slots: int) -> int:
        count = len(self._free)
        for segment in chain(range(self._hint, count), range(self._hint)):
            free = self._free[segment]
            if free and (first := find_run(free, slots)) >= 0:
                self._free[segment] = free & ~(((1 << slots) - 1) << first)
                self._hint = segment
                return (self.first_segment + segment) * SEGMENT_SLOTS + first
        return -1


class BouncePool:
    """Maps buffers into the slots of one pool and copies between them and their drivers."""

    max_mapping_bytes = MAX_MAPPING_BYTES

    def __init__(
        self,
        ram: GuestRam,
        pool: SwiotlbPool,
        areas: int = DEFAULT_AREAS,
        on_exhausted: Callable[[str, Exhaustion], None] = lambda *_: None,
    ) -> None:
        """Take over the pool's memory, which is all zero.

        Args:
            ram: The memory that the pool is part of.
            pool: Its range; the base is page-aligned.
            areas: Number of areas, each with a lock; at most one per segment is made.
            on_exhausted: Called once per episode of exhaustion, on the thread that has to wait
                for slots, with the id that its device gave to `for_device`.
        """
        self.pool = pool
        self._memory = ram.view(pool.base, pool.size_bytes)
        self._slots_total = pool.size_bytes // SLOT_BYTES
        self._areas, self._segments_per_area = _make_areas(self._slots_total, areas)
        self._home = threading.local()
        self._counters = threading.Lock()
        self._next_home = 0
        self._used = 0
        self._high_water = 0
        self._bytes_bounced = 0
        self._room = threading.Condition(threading.Lock())
        self._waiting = 0
        self._on_exhausted = on_exhausted
        self._episode = Episode()

    def for_device(self, device_id: str) -> DevicePool:
        """Return the pool as one device uses it."""
        return DevicePool(self, device_id)

    def usage(self) -> PoolUsage:
        """Return how the pool is used now."""
        with self._counters:
            return PoolUsage(self._slots_total, self._used, self._high_water, self._bytes_bounced)

    def map(self, lengths: Sequence[int], deadline_s: float, device_id: str = "") -> list[Mapping]:
        """Map buffers of these lengths: all of them, or none when this raises.

        Args:
            lengths: In bytes, each from 1 to 256 KiB.
            deadline_s: How long to wait for slots, in seconds.
            device_id: The device that the buffers are for; it is named when slots are short.

        Raises:
            InvalidArgumentError: BUFFER_EMPTY or MAPPING_TOO_LONG.
            ResourceExhaustedError: POOL_EXHAUSTED, naming pool, used and total.
        """
        check_lengths(lengths, MAX_MAPPING_BYTES)
        if (mappings := self._take_all(lengths)) is not None:
            return mappings
        self._note_exhausted(device_id)
        self._wake()  # slots that were taken and given back may be enough for another thread
        return self._wait_for_room(lengths, deadline_s)

    def sync_for_device(self, mappings: Iterable[Mapping], buffers: Iterable[Buffer]) -> None:
        """Copy a driver's buffers into their slots."""
        copied = copy_in(mappings, buffers)
        with self._counters:
            self._bytes_bounced += copied

    def sync_for_cpu(self, mappings: Iterable[Mapping], written: int) -> list[bytes]:
        """Copy the bytes that the device wrote out of their slots."""
        with self._counters:
            self._bytes_bounced += written
        return copy_out(mappings, written)

    def unmap(self, mappings: Iterable[Mapping]) -> None:
        """Free the slots and wake the threads that wait for some."""
        given = [
            ((mapping.gpa - self.pool.base) // SLOT_BYTES, slots_of(mapping.length))
            for mapping in mappings
        ]
        with self._counters:  # first: once freed, another thread may take and count them again
            self._used -= sum(slots for _, slots in given)
        self._give(given)
        self._wake()

    def _give(self, runs: Iterable[tuple[int, int]]) -> None:
        by_area: dict[int, list[tuple[int, int]]] = {}
        for run in runs:
            area = run[0] // SEGMENT_SLOTS // self._segments_per_area
            by_area.setdefault(area, []).append(run)
        for area, its_runs in by_area.items():
            self._areas[area].give(its_runs)

    def _wake(self) -> None:
        # A waiter counts itself before it looks for slots: it finds these, or is counted here.
        if self._waiting:
            with self._room:
                self._room.notify_all()

    def _take_all(self, lengths: Sequence[int]) -> list[Mapping] | None:
        wanted = [slots_of(length) for length in lengths]
        found = self._find_all(wanted)
        if len(found) < len(wanted):
            self._give(zip(found, wanted, strict=False))
            return None
        with self._counters:
            self._used += sum(wanted)
            self._high_water = max(self._high_water, self._used)
        mappings = []
        for slot, length in zip(found, lengths, strict=True):
            offset = slot * SLOT_BYTES
            view = self._memory[offset : offset + length]
            mappings.append(Mapping(self.pool.base + offset, length, view))
        return mappings

    def _find_all(self, wanted: Sequence[int]) -> list[int]:
        """Take as many of the wanted runs as fit, from the thread's own area first."""
        found: list[int] = []
        home, count = self._home_area(), len(self._areas)
        before = -1
        # After progress all areas are tried again: one without room for this run may fit the next.
        while before < len(found) < len(wanted):
            before = len(found)
            for i in range(count):
                self._areas[(home + i) % count].take(wanted, found)
                if len(found) == len(wanted):
                    break
        return found

    def _home_area(self) -> int:
        """Return the area that this thread tries first; new threads get the areas in turn."""
        home: int | None = getattr(self._home, "area", None)
        if home is None:
            with self._counters:
                home = self._home.area = self._next_home
                self._next_home = (home + 1) % len(self._areas)
        return home

    def _wait_for_room(self, lengths: Sequence[int], deadline_s: float) -> list[Mapping]:
        needed = sum(map(slots_of, lengths))
        if needed > self._slots_total:
            raise self._exhausted(f"{needed} slots are needed at once")
        end = time.monotonic() + deadline_s
        with self._room:
            self._waiting += 1
            try:
                while (mappings := self._take_all(lengths)) is None:
                    left = end - time.monotonic()
                    if left <= 0:
                        raise self._exhausted(f"{needed} slots did not come free in {deadline_s} s")
                    self._room.wait(left)
            finally:
                self._waiting -= 1
        return mappings

    def _note_exhausted(self, device_id: str) -> None:
        with self._counters:
            begins, used = self._episode.hit(), self._used
        if begins:
            exhaustion = Exhaustion(Resource.BOUNCE_POOL, used, self._slots_total)
            self._on_exhausted(device_id, exhaustion)
            _call_later(self._look)

    def _look(self) -> None:
        """Look whether the episode is over; as long as it lasts, schedule the next look."""
        with self._counters:
            lasts = self._episode.look(self._used, self._slots_total)
        if lasts:
            _call_later(self._look)

    def _exhausted(self, what: str) -> ResourceExhaustedError:
        usage = self.usage()
        return ResourceExhaustedError(
            "POOL_EXHAUSTED",
            f"bounce pool {self.pool} is full: {what}, {usage.slots_used} of {usage.slots_total} "
            "are used; boot with a larger hv_pci_swiotlb= or have fewer requests in flight",
            pool=str(self.pool),
            used=usage.slots_used,
            total=usage.slots_total,
        )


class DevicePool:
    """The pool as one device uses it; the device is named when the pool is exhausted."""

    max_mapping_bytes = MAX_MAPPING_BYTES

    def __init__(self, pool: BouncePool, device_id: str) -> None:
        self._pool = pool
        self._device_id = device_id
        self.sync_for_device = pool.sync_for_device
        self.sync_for_cpu = pool.sync_for_cpu
        self.unmap = pool.unmap

    def map(self, lengths: Sequence[int], deadline_s: float) -> list[Mapping]:
        """Map buffers of this device; see `BouncePool.map`."""
        return self._pool.map(lengths, deadline_s, self._device_id)


def _make_areas(slots_total: int, wanted: int) -> tuple[list[_Area], int]:
    whole, rest = divmod(slots_total, SEGMENT_SLOTS)
    free = [_SEGMENT_FREE] * whole + ([(1 << rest) - 1] if rest else [])
    per_area = -(-len(free) // max(1, min(wanted, len(free))))
    areas = [_Area(i, free[i : i + per_area]) for i in range(0, len(free), per_area)]
    return areas, per_area


def _call_later(look: Callable[[], None]) -> None:
    """Call `look` after LOOK_INTERVAL_S, on a thread of its own."""
    timer = threading.Timer(LOOK_INTERVAL_S, look)
    timer.daemon = True
    timer.start()
