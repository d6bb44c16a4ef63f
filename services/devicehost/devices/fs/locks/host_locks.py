"""One lock that a guest asks for, in the form of the host.

Owns what record locks and flock have in common: setting a lock at once, waiting for it, undoing it.
Must not know requests, or how waiting is arranged.
"""

from __future__ import annotations

import errno
import fcntl
from typing import TYPE_CHECKING, Final, Protocol

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.errors import refusal

if TYPE_CHECKING:
    from services.devicehost.devices.fs.host_files.descriptors import Descriptor
    from services.devicehost.devices.fs.host_files.syscalls import RecordLock
    from services.devicehost.devices.fs.locks.owners import Owner, OwnerTable

_OPERATIONS: Final = {
    fcntl.F_RDLCK: fcntl.LOCK_SH,
    fcntl.F_WRLCK: fcntl.LOCK_EX,
    fcntl.F_UNLCK: fcntl.LOCK_UN,
}


class HostLock(Protocol):
    """A lock that a guest asks for."""

    def set(self, *, wait: bool) -> None:
        """Set or clear it.

        Raises:
            OSError: EAGAIN without `wait` when another lock is in the way; an error of fcntl(2) or
                flock(2).
            InterruptedError: With `wait`: the thread was woken up.
        """

    def begin_wait(self) -> None:
        """Note that a thread is about to wait in `set`.

        Raises:
            OSError: EDEADLK: it would wait for ever.
        """

    def end_wait(self) -> None:
        """Note that the thread is done."""

    def undo(self) -> None:
        """Clear it: it came after the wait was settled."""


class HostRecordLock:
    """A POSIX lock."""

    def __init__(self, table: OwnerTable, owner: Owner, lock: RecordLock) -> None:
        self._table = table
        self._owner = owner
        self._lock = lock

    def set(self, *, wait: bool) -> None:
        """Set or clear it; see HostLock.set."""
        syscalls.set_record_lock(self._owner.descriptor.fd, self._lock, wait=wait)

    def begin_wait(self) -> None:
        """Have the owner kept while a thread waits; see HostLock.begin_wait."""
        self._table.begin_wait(self._owner, self._lock)

    def end_wait(self) -> None:
        """Let the owner be removed with its locks again."""
        self._table.end_wait(self._owner, self._lock)

    def undo(self) -> None:
        """Clear it; see HostLock.undo."""
        unlock = self._lock._replace(kind=fcntl.F_UNLCK)
        syscalls.set_record_lock(self._owner.descriptor.fd, unlock, wait=False)


class HostFileLock:
    """A flock lock."""

    def __init__(self, opened: Descriptor, kind: int) -> None:
        """Take the lock that a guest asks for.

        Args:
            opened: Descriptor of the open file that it belongs to.
            kind: F_RDLCK for a shared one, F_WRLCK for an exclusive one, F_UNLCK for none.

        Raises:
            OSError: EINVAL for another kind.
        """
        if kind not in _OPERATIONS:
            raise refusal(errno.EINVAL)
        self._opened = opened
        self._operation = _OPERATIONS[kind]

    def set(self, *, wait: bool) -> None:
        """Set or clear it; see HostLock.set."""
        operation = self._operation if wait else self._operation | fcntl.LOCK_NB
        syscalls.set_file_lock(self._opened.fd, operation)

    def begin_wait(self) -> None:
        """Nothing to note: this object keeps the descriptor."""

    def end_wait(self) -> None:
        """Nothing to note."""

    def undo(self) -> None:
        """Clear it; see HostLock.undo."""
        syscalls.set_file_lock(self._opened.fd, fcntl.LOCK_UN)
