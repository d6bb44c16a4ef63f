"""Reports of resources that the guest's kernel has used up, for the watchers of the machine.

Owns the hand-over from the drivers' threads to the event loop. Must not know gRPC or pools.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from services.handshake.exhaustion import Exhaustion

BACKLOG: Final = 64
"""The most reports that wait for one watcher; further ones are dropped for that watcher."""

_log = logging.getLogger(__name__)

_Reports = asyncio.Queue["tuple[str, Exhaustion] | None"]


class Exhaustions:
    """Counts episodes of exhaustion by device and resource, and reports them to watchers."""

    def __init__(self) -> None:
        self._watchers: dict[_Reports, asyncio.AbstractEventLoop] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def counts(self) -> dict[tuple[str, str], int]:
        """Return the number of episodes of each device and resource."""
        with self._lock:
            return dict(self._counts)

    def report(self, device_id: str, exhaustion: Exhaustion) -> None:
        """Log an exhaustion and report it to the watchers. Never waits; any thread may call it."""
        with self._lock:
            self._counts[device_id, exhaustion.resource] += 1
        _log.warning("kernel: device %s: %s", device_id, exhaustion)
        self._offer((device_id, exhaustion))

    def end(self) -> None:
        """End every running `watch`."""
        self._offer(None)

    async def watch(self) -> AsyncGenerator[tuple[str, Exhaustion], None]:
        """Yield the device id and the exhaustion of each report from now on, until `end`."""
        reports: _Reports = asyncio.Queue(BACKLOG)
        self._watchers[reports] = asyncio.get_running_loop()
        try:
            while (item := await reports.get()) is not None:
                yield item
        finally:
            del self._watchers[reports]

    def _offer(self, item: tuple[str, Exhaustion] | None) -> None:
        for reports, loop in list(self._watchers.items()):
            loop.call_soon_threadsafe(_put, reports, item)


def _put(reports: _Reports, item: tuple[str, Exhaustion] | None) -> None:
    with contextlib.suppress(asyncio.QueueFull):
        reports.put_nowait(item)
