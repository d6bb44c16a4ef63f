"""Circles of lock owners that wait for each other: EDEADLK of fcntl(2).

Owns which owner waits for which lock. Whose locks are in the way is asked for anew each time, since
locks come and go while others wait. Host processes and other guests are no part of a circle: what
they wait for is not known here. Must not know requests or threads.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

from services.devicehost.devices.fs.host_files.errors import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.devices.fs.host_files.syscalls import RecordLock
    from services.devicehost.devices.fs.locks.owners import Owner


class WaitGraph:
    """The waits of one mount for record locks; usable from any thread."""

    def __init__(self, blockers: Callable[[Owner, RecordLock], set[int]]) -> None:
        """Begin without waits.

        Args:
            blockers: Returns the lock owners whose locks keep an owner from a lock now.
        """
        self._blockers = blockers
        self._waits: dict[int, list[tuple[Owner, RecordLock]]] = {}
        self._mutex = threading.Lock()

    def begin(self, owner: Owner, wanted: RecordLock) -> None:
        """Note that an owner is about to wait for a lock.

        Raises:
            OSError: EDEADLK when the wait would close a circle; it is not noted then.
        """
        with self._mutex:  # of two waits that close a circle at the same time, one sees the other
            self._waits.setdefault(owner.id, []).append((owner, wanted))
            if self._leads_back_to(owner.id):
                self._remove(owner, wanted)
                raise refusal(errno.EDEADLK)

    def end(self, owner: Owner, wanted: RecordLock) -> None:
        """Note that a wait is over."""
        with self._mutex:
            self._remove(owner, wanted)

    def _leads_back_to(self, owner_id: int) -> bool:
        seen, pending = {owner_id}, [owner_id]
        while pending:
            for owner, wanted in self._waits.get(pending.pop(), ()):
                found = self._blockers(owner, wanted)
                if owner_id in found:
                    return True
                pending += found - seen
                seen |= found
        return False

    def _remove(self, owner: Owner, wanted: RecordLock) -> None:
        waits = self._waits[owner.id]
        waits.remove((owner, wanted))
        if not waits:
            del self._waits[owner.id]
