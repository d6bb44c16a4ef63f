"""Reports of a guest to the watchers of its machine: what its kernel used up, and init's end.

Owns the hand-over from the drivers' threads to the event loop. Must not know gRPC or pools.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from services.handshake.exhaustion import Exhaustion

BACKLOG: Final = 64
"""The most reports that wait for one watcher; further ones are dropped for that watcher."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KernelExhaustion:
    """An episode in which requests of a device needed more of a resource of the kernel."""

    device_id: str
    exhaustion: Exhaustion


@dataclass(frozen=True, slots=True)
class InitEnd:
    """Guest init has ended by itself; `cause` is its exit status or signal."""

    cause: str


Report = KernelExhaustion | InitEnd

_Reports = asyncio.Queue[Report | None]


class GuestReports:
    """Reports to the watchers, and counts episodes of exhaustion by device and resource."""

    def __init__(self) -> None:
        self._watchers: dict[_Reports, asyncio.AbstractEventLoop] = {}
        self._init_end: InitEnd | None = None
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def counts(self) -> dict[tuple[str, str], int]:
        """Return the number of episodes of each device and resource."""
        with self._lock:
            return dict(self._counts)

    def exhausted(self, device_id: str, exhaustion: Exhaustion) -> None:
        """Log an exhaustion and report it to the watchers. Never waits; any thread may call it."""
        with self._lock:
            self._counts[device_id, exhaustion.resource] += 1
        _log.warning("kernel: device %s: %s", device_id, exhaustion)
        self._offer(KernelExhaustion(device_id, exhaustion))

    def init_ended(self, cause: str) -> None:
        """Report the end of guest init, also to those who watch later. Call it on the loop."""
        self._init_end = InitEnd(cause)
        self._offer(self._init_end)

    def end(self) -> None:
        """End every running `watch`."""
        self._offer(None)

    async def watch(self) -> AsyncGenerator[Report, None]:
        """Yield each report from now on, and an earlier end of guest init, until `end`."""
        reports: _Reports = asyncio.Queue(BACKLOG)
        if self._init_end is not None:
            reports.put_nowait(self._init_end)
        self._watchers[reports] = asyncio.get_running_loop()
        try:
            while (item := await reports.get()) is not None:
                yield item
        finally:
            del self._watchers[reports]

    def _offer(self, item: Report | None) -> None:
        for reports, loop in list(self._watchers.items()):
            loop.call_soon_threadsafe(_put, reports, item)


def _put(reports: _Reports, item: Report | None) -> None:
    if reports.full() and not isinstance(item, KernelExhaustion):
        reports.get_nowait()  # an end is worth more than one of many exhaustions
    with contextlib.suppress(asyncio.QueueFull):
        reports.put_nowait(item)
