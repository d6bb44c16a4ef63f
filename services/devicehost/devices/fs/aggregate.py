"""Several shares on one device: what its root holds, and what a guest has of each.

A share has a slot, a number that is never used again, and everything of its own: rules, nodes,
handles, locks and limits. The ids of its nodes begin with the slot, so a request finds its share by
the node that it names, and nothing that a guest sends to one share can reach, fill up or break
another. A share is mounted when a guest first looks it up; one that cannot be then fails by itself.
Must not know opcodes or layouts of requests.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.cache import CachePolicy
from services.devicehost.devices.fs.errors import refusal
from services.devicehost.devices.fs.mount import Mount, totals
from services.devicehost.devices.fs.nodes import SLOT_SHIFT
from services.devicehost.devices.fs.request import NAME_MAX
from services.devicehost.devices.fs.rules import Rules
from services.devicehost.memory.bounds import Bounds
from services.devicehost.throttle import Throttle
from services.handshake.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from services.wire.fuse import (
    ATTR_FLAGS,
    FUSE_ATTR_SUBMOUNT,
    FUSE_DIRECT_IO_ALLOW_MMAP,
    FUSE_SUBMOUNTS,
    FUSE_WRITEBACK_CACHE,
)

if TYPE_CHECKING:
    import ctypes

    from services.devicehost.devices.fs.descriptors import Limits
    from services.devicehost.devices.fs.native_loop import NativeLoop
    from services.devicehost.devices.fs.session import Share
    from services.handshake.exhaustion import Resource
    from services.handshake.options import FsOptions

_LOG = logging.getLogger(__name__)

MAX_CHILDREN: Final = 1024
"""Shares that one device may have at one time."""
MAX_SLOT: Final = (1 << 64 - SLOT_SHIFT) - 1
"""Shares that one device may have in its life, a million."""

VALID_S: Final = 1
"""How long a guest may trust what it knows of the root: shares come and go."""
ROOT_MODE: Final = stat.S_IFDIR | 0o555
_WARN_INTERVAL_S: Final = 60.0


class Child:
    """One share of a device.

    Attributes:
        name: Its name in the root.
        slot: Its number.
        share: What is shared.
        ino: Of its directory, as the guest sees it.
        removed: Whether it has left.
    """

    def __init__(self, name: str, slot: int, share: Share) -> None:
        self.name: Final = name
        self.slot: Final = slot
        self.share: Final = share
        self.ino: Final = os.fstat(share.root.fd).st_ino ^ slot << SLOT_SHIFT
        self.removed = False
        self.failures: Final = Throttle(_WARN_INTERVAL_S)


class Aggregate:
    """The shares of one device, whoever the guest is; safe to use from any thread.

    Attributes:
        options: The device's own; its name is the tag.
        limits: What a guest may hold of each share.
        library: The native fast path, if it serves what it can.
        bounds: Of the device.
        changed_ns: When a share last came or went, since the epoch.
    """

    def __init__(
        self,
        options: FsOptions,
        limits: Limits,
        library: ctypes.CDLL | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        """Start empty.

        Args:
            options: The device's.
            limits: What a guest may hold of each share.
            library: The native fast path, if it is to serve what it can.
            bounds: Of the device; it is told there what of a share is used up.
        """
        self.options: Final = options
        self.limits: Final = limits
        self.library: Final = library
        self.bounds: Final = bounds or Bounds()
        self.changed_ns = time.time_ns()
        self._lock = threading.Lock()
        self._children: dict[str, Child] = {}
        self._next_slot = 1
        self._mount: weakref.ref[AggregateMount] | None = None

    def children(self) -> list[Child]:
        """Tell all shares, by slot: in the order in which they came."""
        with self._lock:
            return list(self._children.values())

    def find(self, name: str) -> Child | None:
        """Find a share by its name."""
        return self._children.get(name)

    def add(self, name: str, share: Share) -> None:
        """Add a share; the guest finds it at once.

        Raises:
            InvalidArgumentError: CHILD_NAME, or CHILD_OPTION for an option that is the device's.
            AlreadyExistsError: CHILD_EXISTS.
            ResourceExhaustedError: CHILD_LIMIT.
        """
        _check_name(name)
        _check_options(share.options)
        with self._lock:
            if name in self._children:
                raise AlreadyExistsError(
                    "CHILD_EXISTS",
                    f"device {self.options.name!r} has a share {name!r} already; remove it first",
                    child=name,
                )
            if len(self._children) >= MAX_CHILDREN or self._next_slot > MAX_SLOT:
                raise ResourceExhaustedError(
                    "CHILD_LIMIT",
                    f"device {self.options.name!r} has {len(self._children)} shares and has had "
                    f"{self._next_slot - 1}; it takes {MAX_CHILDREN} at a time and {MAX_SLOT} in "
                    "its life: add this one to another device",
                    child=name,
                    bound=MAX_CHILDREN,
                )
            self._children[name] = Child(name, self._next_slot, share)
            self._next_slot += 1
            self.changed_ns = time.time_ns()

    def remove(self, name: str) -> None:
        """Remove a share: what the guest has of it is stale at once.

        Its descriptors are closed when the requests under way are done.

        Raises:
            NotFoundError: CHILD_UNKNOWN.
        """
        with self._lock:
            child = self._children.pop(name, None)
            if child is None:
                raise NotFoundError(
                    "CHILD_UNKNOWN",
                    f"device {self.options.name!r} has no share {name!r}",
                    child=name,
                )
            child.removed = True
            self.changed_ns = time.time_ns()
            mount = self._mount() if self._mount else None
        if mount is not None:
            mount.drop(child)

    def capabilities(self) -> int:
        """Tell which FUSE_* may be agreed on at INIT: also what shares with `cache=none` need."""
        return CachePolicy(self.options).capabilities() | FUSE_DIRECT_IO_ALLOW_MMAP | FUSE_SUBMOUNTS

    def begin(self, loop: NativeLoop | None, agreed: int) -> AggregateMount:
        """Mount the root for a guest, with the FUSE_* that were agreed on at INIT.

        The loop is told of each share when it is looked up.
        """
        mount = AggregateMount(self, loop, agreed)
        with self._lock:
            self._mount = weakref.ref(mount)  # whoever has the mount has its end in hand
        return mount


class AggregateMount:
    """What one guest has of all shares between INIT and DESTROY.

    Attributes:
        read_only: The root refuses by other errors.
        tables: The root has none that the native loop could serve.
        aggregate: The shares.
    """

    read_only: Final = False
    tables: Final = None

    def __init__(self, aggregate: Aggregate, loop: NativeLoop | None, agreed: int) -> None:
        """Begin with no share mounted.

        Args:
            aggregate: The shares.
            loop: The native loop of the device, if there is one.
            agreed: FUSE_* that were agreed on at INIT.
        """
        self.aggregate: Final = aggregate
        self._loop = loop
        self._writeback: Final = bool(agreed & FUSE_WRITEBACK_CACHE)
        self._attr_flags: Final = FUSE_ATTR_SUBMOUNT if agreed & FUSE_SUBMOUNTS else 0
        self._lock = threading.Lock()
        self._mounts: dict[int, Mount] = {}
        self._ended = False

    def find(self, node_id: int) -> Mount | AggregateMount:
        """Tell which mount a node is of; this one has the root, and what is of no share.

        Raises:
            OSError: ESTALE when it is of a share that has gone, or was not looked up.
        """
        slot = node_id >> SLOT_SHIFT
        if slot == 0:
            return self
        mount = self._mounts.get(slot)
        if mount is None:
            raise refusal(errno.ESTALE)
        return mount

    def totals(self) -> dict[Resource, int]:
        """Tell how much each share has of what is bounded."""
        limits = self.aggregate.limits
        return totals(limits, lock_owners=limits.handles)

    def used(self, resource: Resource) -> int:
        """Tell how much of it is in use, of the share that uses most."""
        return max((mount.used(resource) for mount in self.mounts()), default=0)

    def is_full(self, resource: Resource, node_id: int) -> bool:
        """Tell whether the share of a node has no more of it."""
        mount = self._mounts.get(node_id >> SLOT_SHIFT)
        return mount is not None and mount.is_full(resource, node_id)

    def mounts(self) -> list[Mount]:
        """Tell the mounts of the shares that were looked up."""
        with self._lock:
            return list(self._mounts.values())

    def enter(self, name: bytes) -> bytes:
        """Look a share up; returns a fuse_entry_out. Directories of shares are never forgotten.

        Raises:
            OSError: ENOENT; or what is wrong with the share's directory, which the log says too.
        """
        child = self.aggregate.find(os.fsdecode(name))
        if child is None:
            raise refusal(errno.ENOENT)
        try:
            mount = self._mounted(child)
            root = mount.nodes.root
            entry = mount.entry(root, os.fstat(root.fd), VALID_S)
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
        """Let go of a share that has left."""
        with self._lock:
            mount = self._mounts.pop(child.slot, None)
            if mount is not None and self._loop is not None:
                self._loop.mount(child.slot, None)
        if mount is not None:
            mount.end(errno.ESTALE)

    def end(self) -> None:
        """Let go of every share."""
        with self._lock:
            self._ended = True
            mounts, self._mounts = self._mounts, {}
            if self._loop is not None:
                for slot in mounts:
                    self._loop.mount(slot, None)
        for mount in mounts.values():
            mount.end()

    def forget(self, node_id: int, count: int) -> None:
        """Take lookups back; of a share that has gone there is nothing to take."""
        with contextlib.suppress(OSError):
            mount = self.find(node_id)
            if isinstance(mount, Mount):
                mount.nodes.forget(node_id, count)

    def _mounted(self, child: Child) -> Mount:
        """Mount a share, unless it is mounted. Others are served meanwhile, however long it takes.

        Raises:
            OSError: ENOENT when it has left; as fstat(2).
        """
        mount = self._mounts.get(child.slot)
        if mount is not None:
            return mount
        share, slot = child.share, child.slot
        rules = Rules(share.options, slot << SLOT_SHIFT)
        made = Mount(
            share.root,
            rules,
            share.limits,
            share.library,
            slot=slot,
            writeback=self._writeback,
        )
        with self._lock:
            if child.removed or self._ended:
                raise refusal(errno.ENOENT)
            mount = self._mounts.setdefault(slot, made)
            if mount is made and self._loop is not None:
                self._loop.mount(slot, made.tables)
            return mount


def _check_name(name: str) -> None:
    length = len(name.encode("utf-8", "surrogateescape"))
    if not 1 <= length <= NAME_MAX or name in (".", "..") or "/" in name or "\0" in name:
        raise InvalidArgumentError(
            "CHILD_NAME",
            f"share name {name!r} has {length} bytes; it needs 1 to {NAME_MAX} bytes without '/' "
            "and NUL, and neither '.' nor '..'",
            child=name,
            bound=NAME_MAX,
        )


def _check_options(options: FsOptions) -> None:
    """Refuse what counts for a whole device."""
    for key, given in (
        ("queues", options.queues != 1),
        ("swiotlb", options.swiotlb is not None),
        ("writeback", options.writeback),
    ):
        if given:
            raise InvalidArgumentError(
                "CHILD_OPTION",
                f"share {options.name!r}: {key} counts for a whole device; leave it out, or share "
                "the directory by a device of its own",
                option=key,
            )
