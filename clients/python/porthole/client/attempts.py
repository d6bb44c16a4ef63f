"""The attempts of one call: the time that is left, and the pauses between them.

Owns the back-off. Does no I/O and does not sleep; the clients do.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from porthole.client.errors import PortholeError
    from porthole.client.methods import Method

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0


class Attempts:
    """The attempts of one call.

    Args:
        method: What may be repeated.
        timeout_s: Time for all attempts and pauses together; None: that of the method.
        clock: Monotonic time in seconds.
        spread: Returns a number from 0 to 1. Pauses are between half of their length and the
            whole, so that clients that failed together do not come back together.
    """

    def __init__(
        self,
        method: Method,
        timeout_s: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._method = method
        self._clock = clock
        self._spread = spread
        self._timeout_s = method.timeout_s if timeout_s is None else timeout_s
        self.begin_anew()

    def begin_anew(self) -> None:
        """Start the time and the pauses again: a stream broke that had delivered something."""
        self._end = self._clock() + self._timeout_s
        self._pause_s = FIRST_PAUSE_S

    @property
    def left_s(self) -> float:
        """The deadline of an attempt that begins now, in seconds; 0 when the time is up."""
        return max(0.0, self._end - self._clock())

    def pause_after(self, error: PortholeError) -> float | None:
        """Return the pause before the next attempt in seconds; None: the call has failed."""
        if not self._method.repeats_after(error):
            return None
        pause_s = self._pause_s * (1 + self._spread()) / 2
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s if pause_s < self.left_s else None
