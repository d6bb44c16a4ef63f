"""The nodes that a guest knows: an O_PATH descriptor each, counted as often as it was looked up.

Owns node ids and lookup counts. A node stays what it is when its name is renamed, replaced or
removed, since nothing is ever looked up by path again. Hard links are one node (device and inode
number are the key; the open descriptor keeps the number from being used anew). Ids are never
reused. A guest holds at most `limit` nodes: past that LOOKUP fails with ENFILE until it forgets
some. Must not know requests.
"""

from __future__ import annotations

import errno
import stat
import threading
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.errors import refusal
from services.wire.fuse import FUSE_ROOT_ID

if TYPE_CHECKING:
    import os

    from services.devicehost.devices.fs.descriptors import Descriptor


class Node:
    """One file, directory, symlink or special file of the host.

    Attributes:
        id: What the guest calls it.
        descriptor: O_PATH descriptor of it.
        kind: Its S_IFMT bits; they never change.
    """

    __slots__ = ("_key", "_lookups", "descriptor", "id", "kind")

    def __init__(self, node_id: int, descriptor: Descriptor, status: os.stat_result) -> None:
        self.id: Final = node_id
        self.descriptor: Final = descriptor
        self.kind: Final = stat.S_IFMT(status.st_mode)
        self._key: Final = (status.st_dev, status.st_ino)
        self._lookups = 0

    @property
    def fd(self) -> int:
        """The O_PATH descriptor's number; valid while the node is referenced."""
        return self.descriptor.fd

    @property
    def path(self) -> bytes:
        """A path that leads to exactly this file; for calls that take no O_PATH descriptor."""
        return self.descriptor.path


class NodeTable:
    """All nodes of one mount; safe to use from every queue's thread."""

    def __init__(self, root: Descriptor, status: os.stat_result, limit: int) -> None:
        """Start with the root, which is never forgotten.

        Args:
            root: O_PATH descriptor of the shared directory.
            status: Its status.
            limit: Most nodes besides the root.
        """
        self.root: Final = Node(FUSE_ROOT_ID, root, status)
        self.limit: Final = limit
        self._next_id = FUSE_ROOT_ID + 1
        self._by_id = {FUSE_ROOT_ID: self.root}
        self._by_key = {self.root._key: self.root}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Tell how many nodes there are besides the root."""
        return len(self._by_id) - 1

    def get(self, node_id: int) -> Node:
        """Find a node.

        Raises:
            OSError: ESTALE when the guest never looked it up or has forgotten it.
        """
        node = self._by_id.get(node_id)
        if node is None:
            raise refusal(errno.ESTALE)
        return node

    def require_room(self) -> None:
        """Refuse before something is created for which there would be no node.

        Raises:
            OSError: ENFILE when the table is full.
        """
        if len(self) >= self.limit:
            raise refusal(errno.ENFILE)

    def hold(self, descriptor: Descriptor, status: os.stat_result) -> Node:
        """Find or make the node of an O_PATH descriptor and count one lookup.

        Raises:
            OSError: ENFILE when it would be new and the table is full.
        """
        key = (status.st_dev, status.st_ino)
        with self._lock:
            node = self._by_key.get(key)
            if node is None:
                self.require_room()
                node = Node(self._next_id, descriptor, status)
                self._next_id += 1
                self._by_id[node.id] = self._by_key[key] = node
            node._lookups += 1
            return node

    def forget(self, node_id: int, count: int) -> None:
        """Take back `count` lookups; unknown nodes and counts too high are harmless."""
        with self._lock:
            node = self._by_id.get(node_id)
            if node is None or node is self.root:
                return
            node._lookups -= count
            if node._lookups <= 0:
                del self._by_id[node_id], self._by_key[node._key]
