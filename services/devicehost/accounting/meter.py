"""The meter of one device: its counters and its bounds.

The counters of the data path are plain attributes, each written by one queue's thread; the rare
ones share a lock. Must not know the modules that count, or those that read.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import Final

from services.devicehost.accounting.bounds import Bounds
from services.devicehost.accounting.counters import COUNTERS, Counters, QueueCounters


class _Counting:
    """The rare counters of a device, locked for the body of a `with` statement."""

    __slots__ = ("_counters", "_lock")

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._lock = threading.Lock()

    def __enter__(self) -> Counters:
        self._lock.acquire()
        return self._counters

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class DeviceMeter:
    """Counters, bounds and exhaustions of one device; they outlive its connections.

    Attributes:
        bounds: The bounded resources of the device.
        counting: Gives the counters to a `with` statement, from any thread. The body adds to them
            and does nothing else: the lock is held meanwhile.
        guest_descriptors: Descriptors of guest memory that are open now: the one gauge, which the
            front-end thread alone writes.
    """

    def __init__(self) -> None:
        self.bounds: Final = Bounds()
        self.counting: Final = _Counting(Counters())
        self.guest_descriptors = 0
        self._queues: dict[int, QueueCounters] = {}

    def queue(self, index: int) -> QueueCounters:
        """Return the counters of one queue, the same object every time."""
        with self.counting:
            return self._queues.setdefault(index, QueueCounters())

    def snapshot(self) -> Counters:
        """Return a copy of all counters, added up over the queues."""
        with self.counting as counted:
            total = dataclasses.replace(counted)
            queues = list(self._queues.values())
        parts = [counted_by for queue in queues for counted_by in (queue, queue.native)]
        for name, meaning in COUNTERS.items():
            values = [getattr(part, name) for part in (total, *parts) if hasattr(part, name)]
            setattr(total, name, max(values) if meaning.is_highest else sum(values))
        total.exhaustions = self.bounds.exhaustions
        return total
