"""What the guest's kernel has used up, on its way to whoever watches the machine.

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
"""What a watcher may be behind; what comes beyond it is not told to that watcher."""

_log = logging.getLogger(__name__)

_News = asyncio.Queue["tuple[str, Exhaustion] | None"]


class Exhaustions:
    """Tells watchers what is used up, and by which device; made on the event loop or before it."""

    def __init__(self) -> None:
        self._watchers: dict[_News, asyncio.AbstractEventLoop] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def counts(self) -> dict[tuple[str, str], int]:
        """Tell how often each device has begun an episode of each resource."""
        with self._lock:
            return dict(self._counts)

    def tell(self, device_id: str, exhaustion: Exhaustion) -> None:
        """Log it and tell the watchers; from any thread, without waiting."""
        with self._lock:
            self._counts[device_id, exhaustion.resource] += 1
        _log.warning("kernel: device %s: %s", device_id, exhaustion)
        self._offer((device_id, exhaustion))

    def end(self) -> None:
        """Nothing more will be used up: end what watches now."""
        self._offer(None)

    async def watch(self) -> AsyncGenerator[tuple[str, Exhaustion], None]:
        """Give what is used up from now on, until `end`."""
        news: _News = asyncio.Queue(BACKLOG)
        self._watchers[news] = asyncio.get_running_loop()
        try:
            while (item := await news.get()) is not None:
                yield item
        finally:
            del self._watchers[news]

    def _offer(self, item: tuple[str, Exhaustion] | None) -> None:
        for news, loop in list(self._watchers.items()):
            loop.call_soon_threadsafe(_put, news, item)


def _put(news: _News, item: tuple[str, Exhaustion] | None) -> None:
    with contextlib.suppress(asyncio.QueueFull):
        news.put_nowait(item)
