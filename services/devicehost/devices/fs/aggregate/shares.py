"""The shares of one device, apart from any guest.

A share has a slot, a number that is never used again. Must not know requests, or nodes and open
files of a guest.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final, Protocol

from services.devicehost.accounting import Bounds
from services.devicehost.devices.fs.host_files.syscalls import NAME_MAX
from services.devicehost.devices.fs.share.cache import CachePolicy
from services.devicehost.fastpath import SLOT_SHIFT
from services.devicehost.throttle import Throttle
from services.handshake.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from services.handshake.options import RINGS_ANYWHERE
from services.wire.fuse import FUSE_DIRECT_IO_ALLOW_MMAP

if TYPE_CHECKING:
    import ctypes

    from services.devicehost.devices.fs.host_files.descriptors import Limits
    from services.devicehost.devices.fs.share.share import Share
    from services.handshake.options import FsOptions

MAX_CHILDREN: Final = 1024
"""Shares that one device may have at one time."""
MAX_SLOT: Final = (1 << 64 - SLOT_SHIFT) - 1
"""Shares that one device may have in its life, a million."""

_WARN_INTERVAL_S: Final = 60.0


class Child:
    """One share of a device.

    Attributes:
        name: Its name in the root.
        slot: Its number.
        share: The directory and its options.
        ino: Of its directory, as the guest sees it.
        removed: Whether it was removed.
    """

    def __init__(self, name: str, slot: int, share: Share, host_ino: int) -> None:
        self.name: Final = name
        self.slot: Final = slot
        self.share: Final = share
        self.ino: Final = host_ino ^ slot << SLOT_SHIFT
        self.removed = False
        self.failures: Final = Throttle(_WARN_INTERVAL_S)


class ShareHolder(Protocol):
    """The owner of a guest's mounts of the shares."""

    def drop(self, child: Child) -> None:
        """Let go of a share that was removed."""


class Aggregate:
    """The shares of one device, apart from any guest; safe to use from any thread.

    Attributes:
        options: The device's own; its name is the tag.
        limits: How much a guest may hold of each share.
        library: The native fast path; None: Python serves everything.
        bounds: Of the device.
        changed_ns: When a share was last added or removed, in nanoseconds since the epoch.
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
            limits: How much a guest may hold of each share.
            library: The native fast path; None: Python serves everything.
            bounds: Of the device; they report a resource that a share uses up.
        """
        self.options: Final = options
        self.limits: Final = limits
        self.library: Final = library
        self.bounds: Final = bounds or Bounds()
        self.changed_ns = time.time_ns()
        self._mutex = threading.Lock()
        self._children: dict[str, Child] = {}
        self._next_slot = 1
        self._holder: weakref.ref[ShareHolder] | None = None

    def children(self) -> list[Child]:
        """Return all shares in the order of their slots, which is the order of adding."""
        with self._mutex:
            return list(self._children.values())

    def find(self, name: str) -> Child | None:
        """Find a share by its name."""
        return self._children.get(name)

    def add(self, name: str, share: Share) -> None:
        """Add a share; the guest finds it at once.

        Raises:
            InvalidArgumentError: CHILD_NAME, or CHILD_OPTION for an option of the whole device.
            AlreadyExistsError: CHILD_EXISTS.
            ResourceExhaustedError: CHILD_LIMIT.
        """
        _check_name(name)
        _check_options(share.options)
        host_ino = os.fstat(share.root.fd).st_ino
        with self._mutex:
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
            self._children[name] = Child(name, self._next_slot, share, host_ino)
            self._next_slot += 1
            self.changed_ns = time.time_ns()

    def remove(self, name: str) -> None:
        """Remove a share: the guest's nodes and open files of it are stale at once.

        Its descriptors are closed when the requests under way are done.

        Raises:
            NotFoundError: CHILD_UNKNOWN.
        """
        with self._mutex:
            child = self._children.pop(name, None)
            if child is None:
                raise NotFoundError(
                    "CHILD_UNKNOWN",
                    f"device {self.options.name!r} has no share {name!r}",
                    child=name,
                )
            child.removed = True
            self.changed_ns = time.time_ns()
            holder = self._holder() if self._holder else None
        if holder is not None:
            holder.drop(child)

    def capabilities(self) -> int:
        """Return the FUSE_* that may be agreed on at INIT, with those that `cache=none` needs."""
        return CachePolicy(self.options).capabilities() | FUSE_DIRECT_IO_ALLOW_MMAP

    def attach(self, holder: ShareHolder) -> None:
        """Have this holder, instead of the last one, drop shares that are removed from now on.

        It is referenced weakly: its owner decides when it ends.
        """
        with self._mutex:
            self._holder = weakref.ref(holder)


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
    """Refuse options that count for a whole device."""
    for key, given in (
        ("queues", options.queues != 1),
        ("rings", options.rings != RINGS_ANYWHERE),
        ("swiotlb", options.swiotlb is not None),
        ("aperture", options.aperture is not None),
        ("writeback", options.writeback),
        ("submounts", not options.submounts),
    ):
        if given:
            raise InvalidArgumentError(
                "CHILD_OPTION",
                f"share {options.name!r}: {key} counts for a whole device; leave it out, or share "
                "the directory by a device of its own",
                option=key,
            )
