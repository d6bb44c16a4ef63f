"""A limit on log lines that a guest or a front-end can trigger.

Must not know what is logged.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Throttle:
    """Lets one occurrence through per interval, and counts the others."""

    def __init__(
        self, interval_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._next_s = float("-inf")
        self._held_back = 0

    def admit(self) -> int | None:
        """Ask for one occurrence; from any thread.

        Returns:
            How many were held back since the last one that was let through; None: hold this back.
        """
        with self._lock:
            now = self._clock()
            if now < self._next_s:
                self._held_back += 1
                return None
            self._next_s = now + self._interval_s
            held_back, self._held_back = self._held_back, 0
            return held_back
