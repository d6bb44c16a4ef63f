"""The nodes that a guest knows, each with a count of its lookups.

Owns node ids and lookup counts. A node is a file, not a name: it stays the same when its name is
renamed, replaced or removed, since no path is looked up a second time. Hard links are one node:
mount, device and inode number are the key. A file that is reached through two mounts of the host is
two nodes, since each mount has its own say in what may be done with it. Ids are never reused.

A node is resident while it has an O_PATH descriptor. When there are too many descriptors, nodes
that were not used lately are evicted: their descriptors are closed, and reopened when they are
needed (`volumes`). So a guest may know more files than a process may have open.

A file without a name cannot be reopened, so its node stays resident. But a guest may know any
number of removed files until it needs memory. So beyond one and a half times the limit on
descriptors such a node is evicted too, and is ESTALE unless the file is open.

If no file can be reopened (see Volume), there are at most as many nodes as descriptors. When the
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
from services.devicehost.devices.fs.mount.volumes import Volume, foreign_mask
from services.wire.fuse import FUSE_ROOT_ID

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits
    from services.devicehost.devices.fs.host_files.syscalls import FileKey, Statx

_NONE: Final = Volume(mount=0)

_SWEEP_STEPS: Final = 16
"""How many nodes are looked at, at most, each time a descriptor is to be closed."""


class Node(HostFile):
    """A file of the host that the guest knows, while it is resident.

    Attributes:
        id: The number by which the guest names it.
        ino_mask: Bits that are flipped in its inode number.
        is_submount: Whether it is announced as the root of another file system.
    """

    __slots__ = ("__weakref__", "id", "ino_mask", "is_submount")

    def __init__(
        self, node_id: int, descriptor: Descriptor, kind: int, ino_mask: int, *, is_submount: bool
    ) -> None:
        super().__init__(descriptor, kind)
        self.id: Final = node_id
        self.ino_mask: Final = ino_mask
        self.is_submount: Final = is_submount


def _no_node() -> Node | None:
    return None


class _Entry:
    """One node in the table.

    Attributes:
        key: What tells its file from all others.
        volume: Opens its file again.
        lookups: Lookups by the guest, less those that it took back (FORGET).
        node: The node; None while it is evicted.
        last: Returns the node as it was when it was evicted, if requests or open files still have
            it.
        reopen_with: The kernel's file handle of its file, while the node is evicted.
        recently: Whether it was used since the last sweep came by.
    """

    __slots__ = (
        "id",
        "is_submount",
        "key",
        "kind",
        "last",
        "lookups",
        "node",
        "recently",
        "reopen_with",
        "volume",
    )

    def __init__(self, node: Node, key: FileKey, volume: Volume) -> None:
        self.id: Final = node.id
        self.kind: Final = node.kind
        self.is_submount: Final = node.is_submount
        self.key: Final = key
        self.volume = volume
        self.lookups = 0
        self.node: Node | None = node
        self.last: Callable[[], Node | None] = _no_node
        self.reopen_with = b""
        self.recently = True

    def make(self, descriptor: Descriptor) -> Node:
        """Make the node again, with another descriptor of the file."""
        mask = self.volume.ino_mask
        return Node(self.id, descriptor, self.kind, mask, is_submount=self.is_submount)


class NodeTable:
    """All nodes of one mount; safe to use from every queue's thread.

    Attributes:
        root: The shared directory; it is never forgotten and never evicted.
        limit: Most nodes besides the root.
    """

    def __init__(
        self,
        root: Descriptor,
        status: Statx,
        limits: Limits,
        root_id: int = FUSE_ROOT_ID,
        *,
        ino_mask: int = 0,
        submounts: bool = False,
    ) -> None:
        """Start with the root.

        Args:
            root: O_PATH descriptor of the shared directory.
            status: Its status.
            limits: Of the device.
            root_id: The root's; other nodes are numbered from there.
            ino_mask: Bits that are flipped in the inode numbers of this share.
            submounts: Whether directories of other volumes are announced as submounts.
        """
        volume = Volume(status.mount, ino_mask)
        self._ino_mask: Final = ino_mask
        self._submounts: Final = submounts
        self._root_device: Final = status.dev
        self._can_reopen: Final = volume.can_reopen(root)
        self.root: Final = Node(
            root_id, root, stat.S_IFMT(status.mode), ino_mask, is_submount=False
        )
        self.limit: Final = (
            limits.nodes if self._can_reopen else min(limits.nodes, limits.descriptors)
        )
        self._most_resident: Final = limits.descriptors
        self._next_id = root_id + 1
        entry = _Entry(self.root, status.file, volume)
        self._volumes = weakref.WeakValueDictionary({entry.key[:-1]: volume})
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

    def count_lookup(self, descriptor: Descriptor, status: Statx, parent: Node) -> Node:
        """Find or make the node of a file and count one lookup.

        Args:
            descriptor: O_PATH descriptor of the file.
            status: Its status.
            parent: The directory that it was found in.

        Raises:
            OSError: ENFILE when the node would be new and the table is full.
        """
        key = status.file
        with self._mutex:
            entry = self._by_key.get(key)
            if entry is not None and entry.node is None:
                entry = self._recognize(entry, descriptor)
            if entry is None:
                self.require_room()
                node, volume = self._make(descriptor, status, parent)
                self._next_id += 1
                entry = self._by_id[node.id] = self._by_key[key] = _Entry(node, key, volume)
                self._add_resident(entry)
            entry.lookups += 1
            entry.recently = True
            return entry.node or self._reopen(entry)

    def count_lookup_if_known(self, status: Statx) -> Node | None:
        """Count one lookup of a node by its status alone, if it has a descriptor.

        An open descriptor keeps the inode number from being reused, so an equal number means the
        same file.
        """
        with self._mutex:
            entry = self._by_key.get(status.file)
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
                # The sweep sees it later, but it must keep neither the descriptor nor the mount.
                entry.node = None
                entry.volume = _NONE

    def _make(self, descriptor: Descriptor, status: Statx, parent: Node) -> tuple[Node, Volume]:
        kind, where = stat.S_IFMT(status.mode), status.file[:-1]
        above = self._by_id.get(parent.id)
        is_submount = (
            self._submounts
            and kind == stat.S_IFDIR
            and above is not None
            and above.key[:-1] != where
        )
        volume = self._volumes.get(where)
        if volume is None:
            # The first file of a volume that is looked up is its root.
            mask = 0 if is_submount else foreign_mask(status.dev, self._root_device)
            volume = self._volumes[where] = Volume(status.mount, self._ino_mask ^ mask)
        return (
            Node(self._next_id, descriptor, kind, volume.ino_mask, is_submount=is_submount),
            volume,
        )

    def _reopen(self, entry: _Entry) -> Node:
        """Give an evicted node a descriptor again.

        Raises:
            OSError: ESTALE when its file is gone.
        """
        with self._mutex:
            if entry.node is not None:
                return entry.node
            node = entry.last()
            if node is None:
                descriptor = entry.volume.reopen(entry.reopen_with)
                node = entry.make(descriptor)
            entry.node = node
            self._add_resident(entry)
            return node

    def _recognize(self, entry: _Entry, found: Descriptor) -> _Entry | None:
        """Return an evicted node's entry if `found` is its file; an inode number may be reused."""
        if entry.last() is None:
            if entry.volume.prepare(found) != entry.reopen_with:
                del self._by_key[entry.key]
                return None
            entry.node = entry.make(found)
            self._add_resident(entry)
        return entry

    def _add_resident(self, entry: _Entry) -> None:
        if not self._can_reopen:
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
            entry.reopen_with = entry.volume.prepare(node.descriptor)
        except OSError:
            return False
        entry.last = weakref.ref(node)
        entry.node = None
        return True
