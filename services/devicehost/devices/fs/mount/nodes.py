"""The nodes that a guest knows, each with a count of its lookups.

Owns node ids and lookup counts. A node is a file, not a name: it stays the same when its name is
renamed, replaced or removed, since no path is looked up a second time. Hard links are one node:
device and inode number are the key. Ids are never reused.

A node is resident while it has an O_PATH descriptor. When there are too many descriptors, nodes
that were not used lately are evicted: their descriptors are closed, and reopened when they are
needed (`reopening`). So a guest may know more files than a process may have open.

A file without a name cannot be reopened, so its node stays resident. But a guest may know any
number of removed files until it needs memory. So beyond one and a half times the limit on
descriptors such a node is evicted too, and is ESTALE unless the file is open.

If no file can be reopened (see Reopener), there are at most as many nodes as descriptors. When the
table is full, LOOKUP fails with ENFILE until the guest forgets some nodes. Must not know requests.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.host_files.file import HostFile
from services.devicehost.devices.fs.mount.reopening import Reopener
from services.wire.fuse import FUSE_ROOT_ID

if TYPE_CHECKING:
    from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits

_SWEEP_STEPS: Final = 16
"""How many nodes are looked at, at most, each time a descriptor is to be closed."""


class Node(HostFile):
    """A file of the host that the guest knows, while it is resident.

    Attributes:
        id: The number by which the guest names it.
    """

    __slots__ = ("__weakref__", "id")

    def __init__(self, node_id: int, descriptor: Descriptor, kind: int) -> None:
        super().__init__(descriptor, kind)
        self.id: Final = node_id


class _Entry:
    """One node in the table.

    Attributes:
        key: Device and inode number.
        lookups: Lookups by the guest, less those that it took back (FORGET).
        node: The node; None while it is evicted.
        last: The node as it was when it was evicted; requests and open files may still have it.
        reopen_with: The kernel's file handle of its file, while the node is evicted.
        recently: Whether it was used since the last sweep came by.
    """

    __slots__ = ("id", "key", "kind", "last", "lookups", "node", "recently", "reopen_with")

    def __init__(self, node: Node, key: tuple[int, int]) -> None:
        self.id: Final = node.id
        self.kind: Final = node.kind
        self.key: Final = key
        self.lookups = 0
        self.node: Node | None = node
        self.last: weakref.ref[Node] | None = None
        self.reopen_with = b""
        self.recently = True


class NodeTable:
    """All nodes of one mount; safe to use from every queue's thread.

    Attributes:
        root: The shared directory; it is never forgotten and never evicted.
        limit: Most nodes besides the root.
    """

    def __init__(
        self,
        root: Descriptor,
        status: os.stat_result,
        limits: Limits,
        root_id: int = FUSE_ROOT_ID,
    ) -> None:
        """Start with the root.

        Args:
            root: O_PATH descriptor of the shared directory.
            status: Its status.
            limits: Of the device.
            root_id: The root's; other nodes are numbered from there.
        """
        self._reopener = Reopener(root, status.st_dev)
        self.root: Final = Node(root_id, root, stat.S_IFMT(status.st_mode))
        self.limit: Final = (
            limits.nodes if self._reopener.usable else min(limits.nodes, limits.descriptors)
        )
        self._most_resident: Final = limits.descriptors
        self._next_id = root_id + 1
        entry = _Entry(self.root, (status.st_dev, status.st_ino))
        self._by_id = {root_id: entry}
        self._by_key = {entry.key: entry}
        self._resident: deque[_Entry] = deque()
        self._mutex = threading.RLock()

    def __len__(self) -> int:
        """Return how many nodes there are besides the root."""
        return len(self._by_id) - 1

    def get(self, node_id: int) -> Node:
        """Find a node.

        Raises:
            OSError: ESTALE when the guest never looked it up or has forgotten it, or when it was
                evicted and its file is gone.
        """
        entry = self._by_id.get(node_id)
        if entry is None:
            raise refusal(errno.ESTALE)
        entry.recently = True
        return entry.node or self._reopen(entry)

    def require_room(self) -> None:
        """Refuse to create a file that would get no node.

        Raises:
            OSError: ENFILE when the table is full.
        """
        if len(self) >= self.limit:
            raise refusal(errno.ENFILE)

    def count_lookup(self, descriptor: Descriptor, status: os.stat_result) -> Node:
        """Find or make the node of an O_PATH descriptor and count one lookup.

        Raises:
            OSError: ENFILE when the node would be new and the table is full.
        """
        key = (status.st_dev, status.st_ino)
        with self._mutex:
            entry = self._by_key.get(key)
            if entry is not None and entry.node is None:
                entry = self._recognize(entry, descriptor)
            if entry is None:
                self.require_room()
                node = Node(self._next_id, descriptor, stat.S_IFMT(status.st_mode))
                self._next_id += 1
                entry = self._by_id[node.id] = self._by_key[key] = _Entry(node, key)
                self._add_resident(entry)
            entry.lookups += 1
            entry.recently = True
            return entry.node or self._reopen(entry)

    def count_lookup_if_known(self, status: os.stat_result) -> Node | None:
        """Count one lookup of a node by its status alone, if it has a descriptor.

        An open descriptor keeps the inode number from being reused, so an equal number means the
        same file.
        """
        with self._mutex:
            entry = self._by_key.get((status.st_dev, status.st_ino))
            if entry is None or entry.node is None:
                return None
            entry.lookups += 1
            entry.recently = True
            return entry.node

    def forget(self, node_id: int, count: int) -> None:
        """Take back `count` lookups; unknown nodes and counts too high are harmless."""
        with self._mutex:
            entry = self._by_id.get(node_id)
            if entry is None or entry.id == self.root.id:
                return
            entry.lookups -= count
            if entry.lookups <= 0:
                del self._by_id[node_id]
                if self._by_key.get(entry.key) is entry:
                    del self._by_key[entry.key]
                entry.node = None  # the sweep sees it later, but must not keep the descriptor

    def _reopen(self, entry: _Entry) -> Node:
        """Give an evicted node a descriptor again.

        Raises:
            OSError: ESTALE when its file is gone.
        """
        with self._mutex:
            if entry.node is not None:
                return entry.node
            node = entry.last() if entry.last is not None else None
            if node is None:
                descriptor = self._reopener.reopen(entry.key[0], entry.reopen_with)
                node = Node(entry.id, descriptor, entry.kind)
            entry.node = node
            self._add_resident(entry)
            return node

    def _recognize(self, entry: _Entry, found: Descriptor) -> _Entry | None:
        """Return an evicted node's entry if `found` is its file; an inode number may be reused."""
        if entry.last is None or entry.last() is None:
            if self._reopener.prepare(found, entry.key[0]) != entry.reopen_with:
                del self._by_key[entry.key]
                return None
            entry.node = Node(entry.id, found, entry.kind)
            self._add_resident(entry)
        return entry

    def _add_resident(self, entry: _Entry) -> None:
        if not self._reopener.usable:
            return
        self._resident.append(entry)
        for _ in range(_SWEEP_STEPS):
            if len(self._resident) <= self._most_resident:
                return
            self._sweep_one()

    def _sweep_one(self) -> None:
        """Look at the node that is resident longest: evict it, or pass it over once more."""
        entry = self._resident.popleft()
        if entry.node is None:
            return  # forgotten meanwhile
        if entry.recently or not self._evict(entry, entry.node):
            entry.recently = False
            self._resident.append(entry)

    def _evict(self, entry: _Entry, node: Node) -> bool:
        """Evict a node; False when its file could not be reopened."""
        try:
            # Nothing leads back to a file without a name.
            crowded = len(self._resident) >= self._most_resident + self._most_resident // 2
            if os.fstat(node.fd).st_nlink == 0 and not crowded:
                return False
            entry.reopen_with = self._reopener.prepare(node.descriptor, entry.key[0])
        except OSError:
            return False
        entry.last = weakref.ref(node)
        entry.node = None
        return True
