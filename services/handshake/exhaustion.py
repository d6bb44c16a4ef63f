"""Bounded resources, and the episodes in which one is used up.

Every quota and pool reports its exhaustion in the same form: name, used, total and remedy. It does
so once per episode, because a guest can provoke exhaustion at will.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Resource(StrEnum):
    """A bounded resource; docs/limits.md has a line for each."""

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
    Resource.VM_WINDOWS: "requests of all devices of the VM wait, then fail; a guest with a bounce "
    "pool needs no windows",
    Resource.NODES: "look-ups fail with ENFILE until the guest forgets files",
    Resource.HANDLES: "opens fail with EMFILE until the guest closes files; a higher hard limit on "
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
"""The effect of each exhaustion and its remedy, for people."""

_WHY_NOT_ALL: Final[dict[str, str]] = {
    Resource.BOUNCE_POOL: ", and the free slots are too few for a request, or not side by side",
}
"""Why a resource is used up although some is left, where that is not plain."""

_EASED_NUMERATOR: Final = 3
_EASED_DENOMINATOR: Final = 4


@dataclass(frozen=True, slots=True)
class Exhaustion:
    """A bounded resource is used up, so that requests wait or fail.

    Attributes:
        resource: One of Resource, or a name that only a newer peer knows.
        used: Amount in use when the first request was refused or had to wait. It may be less than
            `total`: the request needed several at once, or a ring is too short for so many.
        total: The bound.
    """

    resource: str
    used: int
    total: int

    def __str__(self) -> str:
        remedy = REMEDIES.get(self.resource)
        why = _WHY_NOT_ALL.get(self.resource, "") if self.used < self.total else ""
        used = f"{self.resource} exhausted: {self.used} of {self.total} in use{why}"
        return f"{used}; {remedy}" if remedy else used


class Episode:
    """Decides when an episode begins and ends.

    An episode begins when a request is refused or has to wait. It ends at the first look that finds
    at most three quarters in use and no refusal since the look before. It has no lock: threads that
    share it need one.

    Attributes:
        lasts: Whether an episode has begun and not ended.
    """

    __slots__ = ("_hit", "lasts")

    def __init__(self) -> None:
        self.lasts = False
        self._hit = False

    def hit(self) -> bool:
        """Note that a request is refused or has to wait; return whether an episode begins."""
        self._hit = True
        begins, self.lasts = not self.lasts, True
        return begins

    def look(self, used: int, total: int) -> bool:
        """End the episode if it is over; return whether it lasts, so that another look is due.

        Args:
            used: Amount in use now.
            total: The bound.
        """
        eased = used * _EASED_DENOMINATOR <= total * _EASED_NUMERATOR
        if not self._hit and eased:
            self.lasts = False
        self._hit = False
        return self.lasts
