"""Circles of lock owners that wait for each other: EDEADLK of fcntl(2).

Owns which owner waits for which lock. Whose locks are in the way is asked for anew each time, since
locks come and go while others wait. Host processes and other guests are no part of a circle: what
they wait for is not known here. Must not know requests or threads.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, NamedTuple

from services.devicehost.devices.fs.host_files.errors import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.devices.fs.host_files.syscalls import RecordLock


class Wait(NamedTuple):
    """A lock of one file that a lock owner waits for."""

    node_id: int
    owner_id: int
    wanted: RecordLock


class WaitGraph:
    """The waits of one mount for record locks; usable from any thread."""

    def __init__(self, blockers: Callable[[Wait], set[int]]) -> None:
        """Begin without waits.

        Args:
            blockers: Returns the lock owners whose locks are in the way now.
        """
        self._blockers = blockers
        self._waits: dict[int, list[Wait]] = {}
        self._mutex = threading.Lock()

    def begin(self, wait: Wait) -> None:
        """Note that an owner is about to wait for a lock.

        Raises:
            OSError: EDEADLK when the wait would close a circle; it is not noted then.
        """
        with self._mutex:  # of two waits that close a circle at the same time, one sees the other
            self._waits.setdefault(wait.owner_id, []).append(wait)
            if self._leads_back_to(wait.owner_id):
                self._remove(wait)
                raise refusal(errno.EDEADLK)

    def end(self, wait: Wait) -> None:
        """Note that a wait is over."""
        with self._mutex:
            self._remove(wait)

    def _leads_back_to(self, owner_id: int) -> bool:
        seen, pending = {owner_id}, [owner_id]
        while pending:
            for wait in self._waits.get(pending.pop(), ()):
                found = self._blockers(wait)
                if owner_id in found:
                    return True
                pending += found - seen
                seen |= found
        return False

    def _remove(self, wait: Wait) -> None:
        waits = self._waits[wait.owner_id]
        waits.remove(wait)
        if not waits:
            del self._waits[wait.owner_id]
