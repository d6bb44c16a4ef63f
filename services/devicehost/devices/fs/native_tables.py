"""Nodes and handles in the native library's tables, in the form of NodeTable and HandleTable.

The native loop and Python's operations work on the same tables; what Python holds of them is
pinned as long as it is referenced. Must not know requests.
"""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING, Final, cast

from services.devicehost import fastpath
from services.devicehost.devices.fs.descriptors import Descriptor, first_unusable
from services.devicehost.devices.fs.errors import refusal
from services.devicehost.devices.fs.handles import HandleT, OpenDirectory, OpenFile
from services.devicehost.devices.fs.nodes import Node

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from services.devicehost.devices.fs.descriptors import Limits

_KINDS: Final[dict[type[OpenFile], int]] = {
    OpenFile: fastpath.FILE,
    OpenDirectory: fastpath.DIRECTORY,
}


class NativeTables:
    """The library's side of one mount, as long as somebody references it.

    Attributes:
        library: The native fast path.
        root_id: Of the shared directory's node.
        pointer: What its functions want to be given.
    """

    pointer: int | None = None

    def __init__(
        self,
        library: ctypes.CDLL,
        root: Descriptor,
        rules: fastpath.Rules,
        limits: Limits,
        *,
        root_id: int,
        may_switch: bool,
    ) -> None:
        """Start with the root.

        Args:
            library: The native fast path.
            root: O_PATH descriptor of the shared directory.
            rules: How files are shown.
            limits: Of the device.
            root_id: As NodeTable's.
            may_switch: Whether files are made as the guest's user.

        Raises:
            OSError: EIO: the shared directory cannot be read any more, or there is no memory.
        """
        self.library: Final = library
        self.root_id: Final = root_id
        setup = fastpath.FsSetup(
            rules=rules,
            root_id=root_id,
            nodes=limits.nodes,
            descriptors=limits.descriptors,
            handles=limits.handles,
            root_fd=root.duplicate().detach(),
            descriptor_limit=first_unusable(),
            may_switch=may_switch,
        )
        self.pointer = library.ph_fs_new(ctypes.byref(setup))
        if self.pointer is None:
            raise refusal(errno.EIO)

    def __del__(self) -> None:
        """Give it up; a native loop may have it yet."""
        if self.pointer is not None:
            self.library.ph_fs_release(self.pointer)
            self.pointer = None


class _Pin(Descriptor):
    """A descriptor of the library's, open as long as its node or handle is pinned."""

    __slots__ = ("_tables", "_unpin", "pin")

    def __init__(
        self, tables: NativeTables, unpin: Callable[[int | None, int], None], pin: int, fd: int
    ) -> None:
        self.fd = fd
        self.pin: Final = pin
        self._tables = tables
        self._unpin = unpin

    def __del__(self) -> None:
        if self._tables.pointer is not None:  # a collected cycle is finalized in any order
            self._unpin(self._tables.pointer, self.pin)


class _Kept(Descriptor):
    """A descriptor that another pin keeps open."""

    __slots__ = ("keeper",)

    def __init__(self, keeper: _Pin, fd: int) -> None:
        self.fd = fd
        self.keeper: Final = keeper

    def __del__(self) -> None:
        """Close nothing."""


class _HandleLock:
    """The library's lock of an open directory."""

    def __init__(self, library: ctypes.CDLL, handle: _Pin) -> None:
        self._library = library
        self._handle = handle

    def __enter__(self) -> None:
        self._library.ph_handle_lock(self._handle.pin)

    def __exit__(self, *_: object) -> None:
        self._library.ph_handle_unlock(self._handle.pin)


class NativeNodeTable:
    """As NodeTable.

    Attributes:
        limit: Most nodes besides the root.
    """

    def __init__(self, tables: NativeTables) -> None:
        self._tables = tables
        self._library = tables.library
        self.limit: Final[int] = self._library.ph_fs_node_limit(tables.pointer)

    def __len__(self) -> int:
        count: int = self._library.ph_fs_node_count(self._tables.pointer)
        return count

    @property
    def root(self) -> Node:
        """As NodeTable's."""
        return self.get(self._tables.root_id)

    def get(self, node_id: int) -> Node:
        """As NodeTable's."""
        seen = fastpath.Seen()
        found = self._library.ph_see_node(self._tables.pointer, node_id, ctypes.byref(seen))
        return self._node(seen, found)

    def require_room(self) -> None:
        """As NodeTable's."""
        if len(self) >= self.limit:
            raise refusal(errno.ENFILE)

    def hold(self, descriptor: Descriptor, status: os.stat_result) -> Node:
        """As NodeTable's; takes the descriptor over."""
        seen = fastpath.Seen()
        found = self._library.ph_see_held(
            self._tables.pointer, descriptor.detach(), ctypes.byref(seen)
        )
        return self._node(seen, found)

    def forget(self, node_id: int, count: int) -> None:
        """As NodeTable's."""
        self._library.ph_node_forget(self._tables.pointer, node_id, count)

    def _node(self, seen: fastpath.Seen, found: bool) -> Node:
        if not found:
            raise refusal(ctypes.get_errno())
        pin = _Pin(self._tables, self._library.ph_node_unpin, seen.pin, seen.fd)
        return Node(seen.id, pin, seen.kind)


class NativeHandleTable:
    """As HandleTable.

    Attributes:
        limit: Most handles at one time.
    """

    def __init__(self, tables: NativeTables, limit: int) -> None:
        self.limit: Final = limit
        self._tables = tables
        self._library = tables.library

    def __len__(self) -> int:
        count: int = self._library.ph_fs_handle_count(self._tables.pointer)
        return count

    def require_room(self) -> None:
        """As HandleTable's."""
        if len(self) >= self.limit:
            raise refusal(errno.ENFILE)

    def add(self, handle: OpenFile) -> int:
        """As HandleTable's; takes the handle's descriptor over."""
        node = handle.node.descriptor
        number: int = self._library.ph_handle_add(
            self._tables.pointer,
            cast("_Pin", node).pin,
            handle.descriptor.detach(),
            _KINDS[type(handle)],
        )
        if not number:
            raise refusal(ctypes.get_errno())
        return number

    def get(self, number: int, kind: type[HandleT]) -> HandleT:
        """As HandleTable's."""
        seen = fastpath.Seen()
        if not self._library.ph_see_handle(
            self._tables.pointer, number, _KINDS[kind], ctypes.byref(seen)
        ):
            raise refusal(ctypes.get_errno())
        pin = _Pin(self._tables, self._library.ph_handle_unpin, seen.pin, seen.fd)
        node = Node(seen.id, _Kept(pin, seen.node_fd), seen.kind)
        if issubclass(kind, OpenDirectory):
            return kind(node, pin, _HandleLock(self._library, pin))
        return kind(node, pin)

    def mark_locked(self, opened: OpenFile) -> None:
        """As HandleTable's: the native loop leaves them to Python from now on."""
        self._library.ph_handle_mark_locked(cast("_Pin", opened.descriptor).pin)

    def remove(self, number: int, kind: type[OpenFile]) -> None:
        """As HandleTable's."""
        if not self._library.ph_handle_remove(self._tables.pointer, number, _KINDS[kind]):
            raise refusal(errno.EBADF)
