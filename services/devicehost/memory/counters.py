"""What one device counts; see DeviceCounters in device.proto for what each number means.

The numbers of the data path are written by one queue's thread each, so they need no lock; the rare
ones share one. Must not know metrics or who reads them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from services.devicehost.fastpath import Counters
from services.devicehost.memory.bounds import Bounds


@dataclass(slots=True)
class QueueCounters:
    """What one queue counts; written by that queue's thread only.

    Attributes:
        requests: Chains that were completed.
        bytes_in: Bytes that the guest offered for reading.
        bytes_out: Bytes that were written to the guest.
        native: The same of what the native loop served.
    """

    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    native: Counters = field(default_factory=Counters)


@dataclass(frozen=True, slots=True)
class CounterValues:
    """All counters of a device at one moment; each only ever grows."""

    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    translations_refused: int = 0
    windows_mapped: int = 0
    windows_evicted: int = 0
    windows_waited: int = 0
    highest_slot: int = 0
    frames_dropped: int = 0
    held_back: int = 0
    exhaustions: int = 0


@dataclass(slots=True)
class DeviceCounters:
    """The counters of one device; they outlive its connections.

    Attributes:
        bounds: What of the device is bounded.
    """

    bounds: Bounds = field(default_factory=Bounds)
    _queues: dict[int, QueueCounters] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _refused: int = 0
    _mapped: int = 0
    _evicted: int = 0
    _waited: int = 0
    _highest_slot: int = 0
    _frames_dropped: int = 0
    _held_back: int = 0

    def queue(self, index: int) -> QueueCounters:
        """Give the counters of one queue, the same object every time."""
        with self._lock:
            return self._queues.setdefault(index, QueueCounters())

    def count_refusal(self) -> None:
        """An address was refused."""
        with self._lock:
            self._refused += 1

    def count_windows(self, *, mapped: int = 0, evicted: int = 0, waited: int = 0) -> None:
        """Windows were mapped, unmapped to make room, or waited for."""
        with self._lock:
            self._mapped += mapped
            self._evicted += evicted
            self._waited += waited

    def count_drop(self) -> None:
        """A network frame was dropped."""
        with self._lock:
            self._frames_dropped += 1

    def count_hold(self) -> None:
        """A queue was not read on, because too many requests of the device were queued."""
        with self._lock:
            self._held_back += 1

    def note_slot(self, slot: int) -> None:
        """A request touched this slot of the pool, counted from 1."""
        with self._lock:
            self._highest_slot = max(self._highest_slot, slot)

    def snapshot(self) -> CounterValues:
        """Tell all counters."""
        with self._lock:
            queues = list(self._queues.values())
            counted: list[QueueCounters | Counters] = [
                *queues,
                *(queue.native for queue in queues),
            ]
            return CounterValues(
                requests=sum(each.requests for each in counted),
                bytes_in=sum(each.bytes_in for each in counted),
                bytes_out=sum(each.bytes_out for each in counted),
                translations_refused=self._refused,
                windows_mapped=self._mapped,
                windows_evicted=self._evicted,
                windows_waited=self._waited,
                highest_slot=max(
                    [self._highest_slot, *(queue.native.highest_slot for queue in queues)]
                ),
                frames_dropped=self._frames_dropped,
                held_back=self._held_back,
                exhaustions=self.bounds.exhaustions,
            )
