"""What is bounded and can be used up, and the episodes in which it is.

Every quota and pool says the same when it is exhausted: its name, used, total and the remedy; once
per episode, since a guest can provoke it at will. Must not know who counts, or who is told.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


class Resource(StrEnum):
    """What is bounded; docs/limits.md has a line for each."""

    WINDOWS = "windows"
    VM_WINDOWS = "vm_windows"
    NODES = "nodes"
    HANDLES = "handles"
    DESCRIPTORS = "descriptors"
    LOCK_OWNERS = "lock_owners"
    LOCKS = "locks"
    LOCK_WAITS = "lock_waits"
    QUEUED_REQUESTS = "queued_requests"
    BOUNCE_POOL = "bounce_pool"


REMEDIES: Final[dict[str, str]] = {
    Resource.WINDOWS: "requests wait, then fail; a guest with a bounce pool needs no windows",
    Resource.VM_WINDOWS: "requests of all its VM's devices wait, then fail; a guest with a bounce "
    "pool needs no windows",
    Resource.NODES: "look-ups fail with ENFILE until the guest forgets files",
    Resource.HANDLES: "opens fail with ENFILE until the guest closes files; a higher hard limit on "
    "open files (RLIMIT_NOFILE) allows more",
    Resource.DESCRIPTORS: "opens and look-ups fail with EMFILE or ENFILE; higher limits on open "
    "files (RLIMIT_NOFILE, fs.file-max) allow more",
    Resource.LOCK_OWNERS: "new record locks fail with ENOLCK; a higher hard limit on open files "
    "(RLIMIT_NOFILE) allows more",
    Resource.LOCKS: "record locks fail with ENOLCK until the guest clears some",
    Resource.LOCK_WAITS: "further waits for locks fail with ENOLCK",
    Resource.QUEUED_REQUESTS: "rings are not read for a while, then further waits for locks fail "
    "with ENOLCK; receive frames that need more buffers are dropped",
    Resource.BOUNCE_POOL: "requests wait, then fail; boot with a larger hv_pci_swiotlb= or have "
    "fewer requests in flight",
}
"""What exhaustion means and what helps, for people."""

_EASED_NUMERATOR: Final = 3
_EASED_DENOMINATOR: Final = 4


@dataclass(frozen=True, slots=True)
class Exhaustion:
    """Something bounded is used up: requests wait or fail.

    Attributes:
        resource: What; one of Resource, unless a newer peer names it.
        used: How much of it, when the first was refused or had to wait. It may be less than
            `total`: somebody needed several at once, or a ring is too short for so many.
        total: How much there is.
    """

    resource: str
    used: int
    total: int

    def __str__(self) -> str:
        remedy = REMEDIES.get(self.resource)
        used = f"{self.resource} exhausted: {self.used} of {self.total} in use"
        return f"{used}; {remedy}" if remedy else used


class Bound:
    """One bounded resource, and the episodes in which it is used up.

    An episode begins when somebody is refused or has to wait. It ends with the first look at which
    no more than three quarters are in use and nobody has been refused since the look before.
    Safe to use from every thread.

    Attributes:
        resource: What is bounded.
        total: How much there is.
        used: Tells how much of it is in use; from any thread, without waiting.
        exhausted: Whether an episode lasts.
    """

    def __init__(
        self,
        resource: str,
        total: int,
        used: Callable[[], int],
        look_later: Callable[[Callable[[], None]], None],
    ) -> None:
        """Begin with no episode.

        Args:
            resource: What is bounded.
            total: How much there is.
            used: Tells how much of it is in use.
            look_later: Has what it is given called a while later, on a thread of its own. How much
                later bounds how often episodes can begin.
        """
        self.resource: Final = resource
        self.total: Final = total
        self.used: Final = used
        self.exhausted = False
        self._look_later: Final = look_later
        self._hit = False
        self._lock = threading.Lock()

    def hit(self, tell: Callable[[Exhaustion], None]) -> None:
        """Somebody is refused or has to wait.

        Args:
            tell: Called if that begins an episode.
        """
        with self._lock:
            self._hit = True
            begins, self.exhausted = not self.exhausted, True
        if begins:
            tell(Exhaustion(self.resource, self.used(), self.total))
            self._look_later(self.look)

    def look(self) -> None:
        """See whether the episode is over."""
        used = self.used()
        with self._lock:
            eased = used * _EASED_DENOMINATOR <= self.total * _EASED_NUMERATOR
            if not self._hit and eased:
                self.exhausted = False
            self._hit = False
            again = self.exhausted
        if again:
            self._look_later(self.look)
