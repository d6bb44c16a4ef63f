"""What of one device is bounded, how much of it is used, and who hears when it is used up.

Must not know what any of it means, metrics or who listens.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake.exhaustion import Bound

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.handshake.exhaustion import Exhaustion

LOOK_INTERVAL_S: Final = 1.0
"""How often use is looked at while an episode lasts. The native loop gives things back without
Python, so nobody else would notice; and it bounds how often a guest can begin an episode."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of one bounded resource of a device is used, at one moment.

    Attributes:
        resource: What it is.
        used: How much of it is in use.
        total: How much there is.
        exhaustions: How many episodes this device has begun by needing more.
    """

    resource: str
    used: int
    total: int
    exhaustions: int


class Bounds:
    """The bounded resources of one device, by name; safe to use from every thread.

    Attributes:
        on_exhausted: Told when an episode begins, on the thread that needed more, which may hold
            locks of the data path: it must not wait.
    """

    def __init__(self) -> None:
        self.on_exhausted: Callable[[Exhaustion], None] | None = None
        self._by_name: dict[str, Bound] = {}
        self._exhaustions: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def exhaustions(self) -> int:
        """Episodes of everything together."""
        with self._lock:
            return self._exhaustions.total()

    def add(self, bound: Bound) -> None:
        """Put a bound in, in place of an earlier one of its name."""
        with self._lock:
            self._by_name[bound.resource] = bound

    def total(self, resource: str) -> int | None:
        """Tell how much of something there is; None when it is not bounded yet."""
        found = self._by_name.get(resource)
        return found.total if found is not None else None

    def hit(self, resource: str) -> None:
        """A request of this device was refused, or has to wait, because this is used up."""
        self._by_name[resource].hit(self._tell)

    def is_exhausted(self, resource: str) -> bool:
        """Tell whether an episode of this lasts."""
        return self._by_name[resource].exhausted

    def usage(self) -> tuple[Usage, ...]:
        """Tell how much of everything is used."""
        with self._lock:
            bounds = list(self._by_name.values())
        return tuple(
            Usage(each.resource, each.used(), each.total, self._exhaustions[each.resource])
            for each in bounds
        )

    def _tell(self, exhaustion: Exhaustion) -> None:
        with self._lock:
            self._exhaustions[exhaustion.resource] += 1
        if self.on_exhausted is not None:
            self.on_exhausted(exhaustion)


def bound(resource: str, total: int, used: Callable[[], int]) -> Bound:
    """Make a bound whose use is looked at from time to time while it is used up."""
    return Bound(resource, total, used, _look_later)


def _look_later(look: Callable[[], None]) -> None:
    timer = threading.Timer(LOOK_INTERVAL_S, look)
    timer.name, timer.daemon = "exhaustion", True
    # Without threads nobody looks: the episode lasts, and what is used up has been told.
    with contextlib.suppress(RuntimeError):
        timer.start()
