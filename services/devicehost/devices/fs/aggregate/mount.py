"""A guest's mount of all shares of a device, between INIT and DESTROY.

Each share has everything of its own: rules, nodes, open files, locks and limits. The ids of its
nodes begin with its slot, so a request finds its share by the node that it names, and nothing that
a guest sends to one share can reach, fill up or break another. A share is mounted when a guest
first looks it up; one that cannot be mounted then fails by itself. Must not know requests.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.mount.mount import Mount, totals
from services.devicehost.fastpath import SLOT_SHIFT
from services.wire.fuse import (
    ATTR_FLAGS,
    FUSE_ATTR_SUBMOUNT,
    FUSE_SUBMOUNTS,
)

if TYPE_CHECKING:
    from services.devicehost.devices.fs.aggregate.shares import Aggregate, Child
    from services.devicehost.devices.fs.mount.native_mounts import NativeMounts
    from services.handshake.exhaustion import Resource

_LOG = logging.getLogger(__name__)

VALID_S: Final = 1
"""How long a guest may trust entries and attributes of the root: shares come and go."""


class AggregateMount:
    """A guest's mount of all shares of a device, between INIT and DESTROY.

    Attributes:
        read_only: False: the root refuses changes by errors of its own.
        native: None: the native loop serves nothing of the root.
        aggregate: The shares.
    """

    read_only: Final = False
    native: Final = None

    def __init__(
        self, aggregate: Aggregate, native_mounts: NativeMounts | None, agreed: int
    ) -> None:
        """Begin with no share mounted.

        Args:
            aggregate: The shares.
            native_mounts: Of the device, if it has a native loop.
            agreed: FUSE_* that were agreed on at INIT.
        """
        self.aggregate: Final = aggregate
        self._native_mounts: Final = native_mounts
        self._agreed: Final = agreed
        self._attr_flags: Final = FUSE_ATTR_SUBMOUNT if agreed & FUSE_SUBMOUNTS else 0
        self._mutex = threading.Lock()
        self._mounts: dict[int, Mount] = {}
        self._ended = False
        aggregate.attach(self)

    def find(self, node_id: int) -> Mount | AggregateMount:
        """Return the mount that a node belongs to; this one has the root.

        Raises:
            OSError: ESTALE when the node's share was removed, or was not looked up.
        """
        slot = node_id >> SLOT_SHIFT
        if slot == 0:
            return self
        mount = self._mounts.get(slot)
        if mount is None:
            raise refusal(errno.ESTALE)
        return mount

    def totals(self) -> dict[Resource, int]:
        """Return how much a share may use of each bounded resource."""
        limits = self.aggregate.limits
        return totals(limits, lock_owners=limits.handles)

    def used(self, resource: Resource) -> int:
        """Return how much of a resource is used by the share that uses most of it."""
        return max((mount.used(resource) for mount in self.mounts()), default=0)

    def is_full(self, resource: Resource, node_id: int) -> bool:
        """Return whether the share of a node has used a resource up."""
        mount = self._mounts.get(node_id >> SLOT_SHIFT)
        return mount is not None and mount.is_full(resource, node_id)

    def mounts(self) -> list[Mount]:
        """Return the mounts of the shares that were looked up."""
        with self._mutex:
            return list(self._mounts.values())

    def share_entry(self, name: bytes) -> bytes:
        """Look up a share and return its fuse_entry_out. A share's directory is never forgotten.

        Raises:
            OSError: ENOENT; or the error of the share's directory, which is logged as well.
        """
        child = self.aggregate.find(os.fsdecode(name))
        if child is None:
            raise refusal(errno.ENOENT)
        try:
            mount = self._mounted(child)
            root = mount.nodes.root
            entry = mount.entry(root, syscalls.status_of(root.fd), VALID_S)
            return entry[: -ATTR_FLAGS.size] + ATTR_FLAGS.pack(self._attr_flags)
        except OSError as error:
            if not child.removed and child.failures.admit() is not None:
                _LOG.warning(
                    "share %r of virtio-fs %r of VM %s cannot be used: %s; the others can",
                    *(child.name, self.aggregate.options.name, self.aggregate.options.vm_id),
                    error.strerror,
                )
            raise

    def drop(self, child: Child) -> None:
        """Let go of a share that was removed."""
        with self._mutex:
            mount = self._mounts.pop(child.slot, None)
            if mount is not None and self._native_mounts is not None:
                self._native_mounts.put(child.slot, None)
        if mount is not None:
            mount.end(errno.ESTALE)

    def end(self) -> None:
        """Let go of every share."""
        with self._mutex:
            self._ended = True
            mounts, self._mounts = self._mounts, {}
            if self._native_mounts is not None:
                for slot in mounts:
                    self._native_mounts.put(slot, None)
        for mount in mounts.values():
            mount.end()

    def forget(self, node_id: int, count: int) -> None:
        """Take lookups back; without effect when the node's share was removed."""
        with contextlib.suppress(OSError):
            mount = self.find(node_id)
            if isinstance(mount, Mount):
                mount.nodes.forget(node_id, count)

    def _mounted(self, child: Child) -> Mount:
        """Mount a share, unless it is mounted. Other shares are served meanwhile.

        Raises:
            OSError: ENOENT when the share was removed; an error of fstat(2).
        """
        mount = self._mounts.get(child.slot)
        if mount is not None:
            return mount
        slot = child.slot
        made = Mount(child.share, slot=slot, agreed=self._agreed)
        with self._mutex:
            if child.removed or self._ended:
                raise refusal(errno.ENOENT)
            mount = self._mounts.setdefault(slot, made)
            if mount is made and self._native_mounts is not None:
                self._native_mounts.put(slot, made.native)
            return mount
