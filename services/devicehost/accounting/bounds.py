"""The bounded resources of one device: how much of each is used, and reports when one is used up.

Must not know what a resource is, or what a report is used for.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake.exhaustion import Episode, Exhaustion

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_INTERVAL_S: Final = 1.0
"""Time between two looks at a resource that is used up. The native loop gives nodes and handles
back without Python, so there is no event to wait for. The interval also bounds how often a guest
can begin an episode."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The use of one bounded resource of a device, at one moment.

    Attributes:
        resource: One of Resource.
        used: Amount in use.
        total: The bound.
        exhaustions: Episodes that this device has begun by needing more.
    """

    resource: str
    used: int
    total: int
    exhaustions: int


class Bound:
    """One bounded resource, of one device or shared by several; any thread may use it.

    Attributes:
        resource: One of Resource.
        total: The bound.
        used: Returns the amount in use; it may be called on any thread and must not wait.
    """

    def __init__(
        self,
        resource: str,
        total: int,
        used: Callable[[], int],
        look_later: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """Begin with no episode.

        Args:
            resource: One of Resource.
            total: The bound.
            used: Returns the amount in use.
            look_later: Calls its argument after a delay, on another thread; None: after
                LOOK_INTERVAL_S.
        """
        self.resource: Final = resource
        self.total: Final = total
        self.used: Final = used
        self._look_later: Final = look_later or _look_later
        self._episode: Final = Episode()
        self._lock = threading.Lock()

    @property
    def exhausted(self) -> bool:
        """Whether an episode lasts."""
        return self._episode.lasts

    def hit(self, report: Callable[[Exhaustion], None]) -> None:
        """Note that a request is refused or has to wait.

        Args:
            report: Called if this begins an episode, on this thread and with no lock held here.
        """
        with self._lock:
            begins = self._episode.hit()
        if begins:
            report(Exhaustion(self.resource, self.used(), self.total))
            self._look_later(self.look)

    def look(self) -> None:
        """See whether the episode is over."""
        used = self.used()
        with self._lock:
            lasts = self._episode.look(used, self.total)
        if lasts:
            self._look_later(self.look)


class Bounds:
    """The bounded resources of one device, by name; any thread may use them.

    Attributes:
        on_exhausted: Called when an episode begins, on the thread that needed more. That thread
            serves a queue, so it must not wait.
    """

    def __init__(self) -> None:
        self.on_exhausted: Callable[[Exhaustion], None] | None = None
        self._by_name: dict[str, Bound] = {}
        self._exhaustions: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def exhaustions(self) -> int:
        """Episodes of all resources together."""
        with self._lock:
            return self._exhaustions.total()

    def add(self, bound: Bound) -> None:
        """Add a bound; it replaces an earlier one of its resource."""
        with self._lock:
            self._by_name[bound.resource] = bound

    def total(self, resource: str) -> int | None:
        """Return the bound of a resource; None when it is not bounded yet."""
        found = self._by_name.get(resource)
        return found.total if found is not None else None

    def hit(self, resource: str) -> None:
        """Note that a request of this device is refused or has to wait, for want of a resource."""
        self._by_name[resource].hit(self._report)

    def is_exhausted(self, resource: str) -> bool:
        """Return whether an episode of this resource lasts."""
        return self._by_name[resource].exhausted

    def usage(self) -> tuple[Usage, ...]:
        """Return the use of every resource; `used` of each is called with no lock held here."""
        with self._lock:
            bounds = list(self._by_name.values())
        return tuple(
            Usage(each.resource, each.used(), each.total, self._exhaustions[each.resource])
            for each in bounds
        )

    def _report(self, exhaustion: Exhaustion) -> None:
        with self._lock:
            self._exhaustions[exhaustion.resource] += 1
        if self.on_exhausted is not None:
            self.on_exhausted(exhaustion)


def _look_later(look: Callable[[], None]) -> None:
    timer = threading.Timer(LOOK_INTERVAL_S, look)
    timer.name, timer.daemon = "exhaustion", True
    # If no thread can be had there is no further look: the episode lasts.
    with contextlib.suppress(RuntimeError):
        timer.start()
