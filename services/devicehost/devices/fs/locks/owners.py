"""The owners of record locks: an open file description per node and lock owner.

The kernel keeps the locks themselves and drops them with the description. A description is closed
when its owner closes the file (FLUSH), or when the guest has released all handles by which the
owner set locks. So no lock outlives the guest's open file. Must not know requests or waiting.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import Final

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.descriptors import Descriptor
from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.host_files.syscalls import OFFSET_MAX, RecordLock
from services.devicehost.devices.fs.locks.deadlocks import Wait, WaitGraph

MAX_LOCKS: Final = 1 << 16
"""Record locks that one guest may have of a share; they take memory of the host's kernel."""

_EVERYTHING: Final = RecordLock(fcntl.F_UNLCK, 0, OFFSET_MAX)
_READ_ONLY_IF: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY)
_KINDS: Final = {"READ": fcntl.F_RDLCK, "WRITE": fcntl.F_WRLCK}


class Owner:
    """One lock owner on one node.

    Attributes:
        id: The guest's lock owner.
        node_id: The file.
        descriptor: The description that its locks belong to.
        pid: The guest's process that was the last to set a lock.
        handles: Handles by which it has set locks.
        waits: Locks that it is waiting for.
    """

    __slots__ = ("descriptor", "handles", "id", "node_id", "pid", "waits")

    def __init__(self, owner_id: int, node_id: int, descriptor: Descriptor) -> None:
        self.id: Final = owner_id
        self.node_id: Final = node_id
        self.descriptor: Final = descriptor
        self.pid = 0
        self.handles: set[int] = set()
        self.waits = 0


class OwnerTable:
    """All lock owners of one mount; safe to use from every queue's thread."""

    def __init__(self, limit: int) -> None:
        """Start empty.

        Args:
            limit: Most owners at one time, each with a descriptor.
        """
        self.limit: Final = limit
        self._by_node: dict[int, dict[int, Owner]] = {}
        self._count = 0
        self._locks = 0
        self._graph = WaitGraph(self._blockers)
        self._mutex = threading.Lock()

    def __len__(self) -> int:
        return self._count

    @property
    def locks(self) -> int:
        """An upper bound on the number of record locks; some may be gone."""
        return self._locks

    def find(self, node_id: int, owner_id: int) -> Owner | None:
        """Find an owner that has, or had, locks."""
        return self._by_node.get(node_id, {}).get(owner_id)

    def find_or_add(self, node_id: int, owner_id: int, handle: int, opened: Descriptor) -> Owner:
        """Find or add the owner, which is about to change a lock.

        Args:
            node_id: The file.
            owner_id: The guest's lock owner.
            handle: The open file by which the lock is changed.
            opened: Its descriptor.

        Raises:
            OSError: ENOLCK when there are too many owners or locks, or the file cannot be opened
                once more.
        """
        owner = self.find(node_id, owner_id)
        made = None if owner else Owner(owner_id, node_id, _open_for_locks(opened))
        with self._mutex:
            owners = self._by_node.setdefault(node_id, {})
            owner = owners.get(owner_id)
            if owner is None:
                if made is None:  # dropped meanwhile: the guest closes the file that it locks
                    made = Owner(owner_id, node_id, _open_for_locks(opened))
                if self._count >= self.limit:
                    if not owners:
                        del self._by_node[node_id]
                    raise refusal(errno.ENOLCK)
                owner = owners[owner_id] = made
                self._count += 1
            self._count_change()
            owner.handles.add(handle)
            return owner

    def drop(self, node_id: int, owner_id: int) -> None:
        """Drop all locks of an owner on a node: it has closed the file (FLUSH)."""
        if node_id not in self._by_node:
            return
        with self._mutex:
            owner = self.find(node_id, owner_id)
            if owner is None:
                return
            if owner.waits:
                # Another thread of the process waits for a lock, which has to stay when it comes.
                _unlock(owner)
            else:
                self._remove(node_id, owner_id)

    def release(self, node_id: int, handle: int) -> None:
        """Forget a handle of a node, and the owners that have set locks by it alone (RELEASE)."""
        if node_id not in self._by_node:
            return
        with self._mutex:
            for owner_id, owner in list(self._by_node.get(node_id, {}).items()):
                owner.handles.discard(handle)
                if not owner.handles:
                    self._remove(node_id, owner_id)

    def clear(self) -> None:
        """Drop all locks: the guest is gone."""
        with self._mutex:
            for node_id, owners in list(self._by_node.items()):
                for owner_id in list(owners):
                    self._remove(node_id, owner_id)

    def begin_wait(self, owner: Owner, wanted: RecordLock) -> None:
        """Note that an owner waits for a lock.

        Raises:
            OSError: EDEADLK when the owner would wait for itself, by way of others.
        """
        self._graph.begin(Wait(owner.node_id, owner.id, wanted))
        with self._mutex:
            owner.waits += 1

    def end_wait(self, owner: Owner, wanted: RecordLock) -> None:
        """Note that an owner no longer waits for a lock."""
        with self._mutex:
            owner.waits -= 1
        self._graph.end(Wait(owner.node_id, owner.id, wanted))

    def pid_of(self, node_id: int, lock: RecordLock) -> int:
        """Return the guest's process that holds a lock; 0 when it is not of this guest."""
        owners = self._owners_of(node_id)
        return next((owner.pid for owner in owners if lock in _held(owner.descriptor)), 0)

    def _owners_of(self, node_id: int) -> list[Owner]:
        with self._mutex:
            return list(self._by_node.get(node_id, {}).values())

    def _blockers(self, wait: Wait) -> set[int]:
        return {
            owner.id
            for owner in self._owners_of(wait.node_id)
            if owner.id != wait.owner_id
            and any(_is_in_the_way(held, wait.wanted) for held in _held(owner.descriptor))
        }

    def _count_change(self) -> None:
        """Count a change as one more lock; beyond the bound, count the locks that there are.

        Raises:
            OSError: ENOLCK, also when clearing a lock: clearing its middle splits it in two.
        """
        self._locks += 1
        if self._locks > MAX_LOCKS:
            everybody = [owner for owners in self._by_node.values() for owner in owners.values()]
            self._locks = 1 + sum(len(_held(owner.descriptor)) for owner in everybody)
            if self._locks > MAX_LOCKS:
                raise refusal(errno.ENOLCK)

    def _remove(self, node_id: int, owner_id: int) -> None:
        owners = self._by_node[node_id]
        _unlock(owners.pop(owner_id))
        self._count -= 1
        if not owners:
            del self._by_node[node_id]


def _unlock(owner: Owner) -> None:
    """Drop an owner's locks at once: a request under way may keep the description open."""
    with contextlib.suppress(OSError):  # of a network drive; the locks then go with the description
        syscalls.set_record_lock(owner.descriptor.fd, _EVERYTHING, wait=False)


def _open_for_locks(opened: Descriptor) -> Descriptor:
    """Open a file once more, for writing if possible: a write lock needs that.

    The error of open(2) is not passed on: EACCES would mean that another lock is in the way.
    """
    path = opened.path
    try:
        try:
            return Descriptor(os.open(path, os.O_RDWR))
        except OSError as error:
            if error.errno not in _READ_ONLY_IF:
                raise
            return Descriptor(os.open(path, os.O_RDONLY))
    except OSError as error:
        raise refusal(errno.ENOLCK) from error


def _is_in_the_way(held: RecordLock, wanted: RecordLock) -> bool:
    overlap = held.start <= wanted.end and wanted.start <= held.end
    return overlap and fcntl.F_WRLCK in (held.kind, wanted.kind)


def _held(descriptor: Descriptor) -> list[RecordLock]:
    """Return the locks of a description; the kernel lists them with the descriptor (proc(5))."""
    held = []
    for line in Path(f"/proc/self/fdinfo/{descriptor.fd}").read_text().splitlines():
        # lock: 1: OFDLCK ADVISORY WRITE -1 fe:00:2146324 0 EOF
        fields = line.split()
        if fields[0] == "lock:" and fields[2] == "OFDLCK":
            start, end = fields[-2:]
            held.append(
                RecordLock(_KINDS[fields[4]], int(start), OFFSET_MAX if end == "EOF" else int(end))
            )
    return held
