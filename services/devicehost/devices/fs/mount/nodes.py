"""The nodes that a guest knows, each with a count of its lookups.

Owns node ids and lookup counts. A node is a file, not a name: it stays the same when its name is
renamed, replaced or removed, since no path is looked up a second time. Hard links are one node:
mount, device and inode number are the key. A file that is reached through two mounts of the host is
two nodes, since each mount has its own say in what may be done with it. Ids are never reused.

A node is resident while it has an O_PATH descriptor. When there are too many descriptors, nodes
that were not used lately are evicted: their descriptors are closed, and opened again when they are
needed. So a guest may know more files than a process may have open. Two ways lead back to a file:
its file handle, where those of its volume are trusted (`volumes`), and its name. A node remembers
the directory and the name that it was found by last. It is opened beneath that directory, which may
have to be opened again first, and only if mount, device, inode number, type and time of birth are
those of the node. Renaming by the guest keeps that right. After the host has renamed the file, or
put another in its place, the node is ESTALE until it is looked up again.

Nothing leads back to a file without a name, so its node stays resident. But a guest may know any
number of removed files until it needs memory. So beyond one and a half times the limit on
descriptors such a node is evicted too, and is ESTALE unless the file is open.

When the table is full, LOOKUP fails with ENFILE until the guest forgets some nodes. Must not know
requests.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.descriptors import (
    Descriptor,
    crowded_from,
    first_unusable,
)
from services.devicehost.devices.fs.host_files.errors import SHORTAGE, refusal
from services.devicehost.devices.fs.host_files.file import HostFile
from services.devicehost.devices.fs.mount.bound import Bound, Total
from services.devicehost.devices.fs.mount.volumes import Volume, foreign_mask
from services.wire.fuse import FUSE_ROOT_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.devicehost.devices.fs.host_files.descriptors import Limits
    from services.devicehost.devices.fs.host_files.syscalls import Statx

_NONE: Final = Volume(mount=0)
_ALL_NODES: Final = Total()

_DEEPEST: Final = 2048
"""Directories that may have to be opened to reach a file: no path of PATH_MAX bytes has more."""

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
        reopen_with: The kernel's file handle of its file, while the node is evicted; empty if
            handles are not trusted.
        found_in: Id of the directory that it was found in last.
        found_as: Its name there; None: it has been removed, or has none.
        recently: Whether it was used since the last sweep came by.
    """

    __slots__ = (
        "born_ns",
        "found_as",
        "found_in",
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

    def __init__(self, node: Node, status: Statx, volume: Volume) -> None:
        self.id: Final = node.id
        self.kind: Final = node.kind
        self.is_submount: Final = node.is_submount
        self.key: Final = status.file
        self.born_ns: Final = status.born_ns
        self.volume = volume
        self.lookups = 0
        self.node: Node | None = node
        self.last: Callable[[], Node | None] = _no_node
        self.reopen_with = b""
        self.found_in = 0
        self.found_as: bytes | None = None
        self.recently = True

    def make(self, descriptor: Descriptor) -> Node:
        """Make the node again, with another descriptor of the file."""
        mask = self.volume.ino_mask
        return Node(self.id, descriptor, self.kind, mask, is_submount=self.is_submount)

    def is_of(self, status: Statx) -> bool:
        """Return whether a status is of its very file, as far as a status can show that."""
        found = status.file, status.born_ns, stat.S_IFMT(status.mode)
        return found == (self.key, self.born_ns, self.kind)

    def open_in(self, directory: Node) -> Descriptor:
        """Open its file by the name that it has in a directory.

        Raises:
            OSError: ESTALE when it is not there.
        """
        try:
            found = Descriptor(syscalls.open_beneath(directory.fd, self.found_as or b"", os.O_PATH))
            if self.is_of(syscalls.status_of(found.fd)):
                return found
        except OSError as error:
            if error.errno in SHORTAGE:
                raise
        raise refusal(errno.ESTALE)


class NodeTable:
    """All nodes of one mount; safe to use from every queue's thread.

    Attributes:
        root: The shared directory; it is never forgotten and never evicted.
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
        volume.trusts_handles(root)  # with a file that stays
        self._ino_mask: Final = ino_mask
        self._submounts: Final = submounts
        self._root_device: Final = status.dev
        self.root: Final = Node(
            root_id, root, stat.S_IFMT(status.mode), ino_mask, is_submount=False
        )
        self._bound: Final = Bound(
            limits.nodes, limits.all_nodes, _ALL_NODES, alone=limits.one_guest
        )
        self._most_resident: Final = limits.descriptors
        self._next_id = root_id + 1
        entry = _Entry(self.root, status, volume)
        self._volumes = weakref.WeakValueDictionary({entry.key[:-1]: volume})
        self._by_id = {root_id: entry}
        self._by_key = {entry.key: entry}
        self._resident: deque[_Entry] = deque()
        self._mutex = threading.RLock()
        self._crowded_from: Final = crowded_from(first_unusable())

    def __len__(self) -> int:
        """Return how many nodes there are besides the root."""
        return len(self._by_id) - 1

    @property
    def limit(self) -> int:
        """The most nodes besides the root as things are."""
        return self._bound.limit

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
        if not self._bound.has_room():
            raise refusal(errno.ENFILE)

    def count_lookup(
        self, descriptor: Descriptor, status: Statx, parent: Node, name: bytes | None
    ) -> Node:
        """Find or make the node of a file and count one lookup.

        Args:
            descriptor: O_PATH descriptor of the file.
            status: Its status.
            parent: The directory that it was found in.
            name: Its checked name there; None: it has none.

        Raises:
            OSError: ENFILE when the node would be new and the table is full.
        """
        key = status.file
        with self._mutex:
            entry = self._by_key.get(key)
            if entry is not None and entry.node is None:
                entry = self._recognize(entry, descriptor, status)
            if entry is None:
                self.require_room()
                node, volume = self._make(descriptor, status, parent)
                self._next_id += 1
                entry = self._by_id[node.id] = self._by_key[key] = _Entry(node, status, volume)
                self._bound.add()
                self._add_resident(entry)
            entry.found_in, entry.found_as = parent.id, name
            entry.lookups += 1
            entry.recently = True
            return entry.node or self._reopen(entry)

    def count_lookup_if_known(self, status: Statx, parent: Node, name: bytes) -> Node | None:
        """Count one lookup of a node by its status alone, if it has a descriptor.

        An open descriptor keeps the inode number from being reused, so an equal number means the
        same file.
        """
        with self._mutex:
            entry = self._by_key.get(status.file)
            if entry is None or entry.node is None:
                return None
            entry.found_in, entry.found_as = parent.id, name
            entry.lookups += 1
            entry.recently = True
            return entry.node

    def renamed(self, directory: Node, name: bytes) -> None:
        """Note that the guest has renamed a file, which has this name now."""
        with contextlib.suppress(OSError), self._mutex:
            status = syscalls.status_at(directory.fd, name)
            entry = self._by_key.get(status.file)
            if entry is not None and entry.is_of(status):
                entry.found_in, entry.found_as = directory.id, name

    @contextlib.contextmanager
    def removing(self, directory: Node, name: bytes) -> Iterator[None]:
        """Remove a name meanwhile.

        Where handles are not trusted, nothing leads back to its file without this name, but the
        file may have others. So its node has a descriptor before the name goes.
        """
        entry = self._without_handle(directory, name)
        if entry is None:
            yield
            return
        node = None
        with contextlib.suppress(OSError):
            node = entry.node or self._reopen(entry)
        # If that failed, the entry is another file's, or lost already.
        yield
        with self._mutex:
            if (entry.found_in, entry.found_as) == (directory.id, name):
                entry.found_as = None
        del node  # referenced until here, so it was not evicted

    def forget(self, node_id: int, count: int) -> None:
        """Take back `count` lookups; unknown nodes and counts too high are harmless."""
        with self._mutex:
            entry = self._by_id.get(node_id)
            if entry is None or entry.id == self.root.id:
                return
            entry.lookups -= count
            if entry.lookups <= 0:
                del self._by_id[node_id]
                self._bound.take()
                if self._by_key.get(entry.key) is entry:
                    del self._by_key[entry.key]
                # The sweep sees it later, but it must keep neither the descriptor nor the mount.
                entry.node = None
                entry.found_as = None
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
                node = entry.make(self._open_again(entry))
            entry.node = node
            self._add_resident(entry)
            return node

    def _open_again(self, entry: _Entry) -> Descriptor:
        """Open the file of an evicted node.

        Raises:
            OSError: ESTALE when it is not found.
        """
        try:
            return entry.volume.reopen(entry.reopen_with)
        except OSError as error:
            if error.errno in SHORTAGE:
                raise
        found = self._open_by_name(entry)
        if entry.reopen_with:
            entry.volume.distrust_handles()
        return found

    def _open_by_name(self, entry: _Entry) -> Descriptor:
        """Open an evicted node's file beneath the directory that it was found in."""
        way = [entry]
        while (directory := self._directory_of(way[-1])).node is None:
            if len(way) == _DEEPEST:
                raise refusal(errno.ESTALE)
            way.append(directory)
        node = directory.node
        for each in reversed(way[1:]):
            each.node = node = each.last() or each.make(each.open_in(node))
            self._add_resident(each)
        return entry.open_in(node)

    def _directory_of(self, entry: _Entry) -> _Entry:
        """Return the entry of the directory that a node was found in.

        Raises:
            OSError: ESTALE when the guest has forgotten it, or the node has no name.
        """
        directory = self._by_id.get(entry.found_in)
        if directory is None or entry.found_as is None:
            raise refusal(errno.ESTALE)
        return directory

    def _without_handle(self, directory: Node, name: bytes) -> _Entry | None:
        """Return what may be the entry of a file, unless handles lead back to it."""
        with self._mutex:
            above = self._by_id.get(directory.id)
            if above is not None and above.volume.trusts_handles(directory.descriptor):
                return None
            try:
                return self._by_key.get(syscalls.status_at(directory.fd, name).file)
            except OSError:
                return None

    def _recognize(self, entry: _Entry, found: Descriptor, status: Statx) -> _Entry | None:
        """Return an evicted node's entry if `found` is its file; an inode number may be reused."""
        if entry.last() is None:
            handle = entry.reopen_with and entry.volume.prepare(found)
            same = handle == entry.reopen_with if handle else entry.is_of(status)
            if not same:
                del self._by_key[entry.key]
                return None
            entry.node = entry.make(found)
            self._add_resident(entry)
        return entry

    def _add_resident(self, entry: _Entry) -> None:
        self._resident.append(entry)
        crowded = entry.node is not None and entry.node.fd >= self._crowded_from
        for _ in range(_SWEEP_STEPS):
            if len(self._resident) <= (0 if crowded else self._most_resident):
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
        crowded = len(self._resident) >= self._most_resident + self._most_resident // 2
        linked = os.fstat(node.fd).st_nlink != 0
        if not entry.volume.trusts_handles(node.descriptor):
            entry.reopen_with = b""
        elif linked and not entry.reopen_with:
            entry.reopen_with = entry.volume.prepare(node.descriptor)
        # Nothing leads back to a file without a name.
        named = entry.found_as is not None and entry.found_in in self._by_id
        if not crowded and not (linked and (entry.reopen_with or named)):
            return False
        entry.last = weakref.ref(node)
        entry.node = None
        return True
