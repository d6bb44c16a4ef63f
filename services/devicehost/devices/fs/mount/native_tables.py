"""Nodes and open files in the native library's tables, in the form of NodeTable and OpenFileTable.

The native loop and Python's operations work on the same tables. A node or open file is pinned as
long as Python references it. Must not know requests.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
from typing import TYPE_CHECKING, Final, cast

from services.devicehost import fastpath
from services.devicehost.devices.fs.host_files.descriptors import Descriptor
from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.mount.nodes import Node
from services.devicehost.devices.fs.mount.open_files import OpenDirectory, OpenFile, OpenFileT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.devicehost.devices.fs.host_files.syscalls import Statx
    from services.devicehost.devices.fs.mount.native_mount import NativeMount

_KINDS: Final[dict[type[OpenFile], int]] = {
    OpenFile: fastpath.FILE,
    OpenDirectory: fastpath.DIRECTORY,
}


class _Pin(Descriptor):
    """A descriptor of the library's, open as long as its node or open file is pinned."""

    __slots__ = ("_mount", "_unpin", "pin")

    def __init__(
        self, mount: NativeMount, unpin: Callable[[int | None, int], None], pin: int, fd: int
    ) -> None:
        self.fd = fd
        self.pin: Final = pin
        self._mount = mount
        self._unpin = unpin

    def __del__(self) -> None:
        if self._mount.pointer is not None:  # a collected cycle is finalized in any order
            self._unpin(self._mount.pointer, self.pin)


class _Kept(Descriptor):
    """A descriptor that another pin keeps open."""

    __slots__ = ("keeper",)

    def __init__(self, keeper: _Pin, fd: int) -> None:
        self.fd = fd
        self.keeper: Final = keeper

    def __del__(self) -> None:
        """Close nothing."""


class _PositionMutex:
    """The library's mutex of the position in an open directory."""

    def __init__(self, library: ctypes.CDLL, opened: _Pin) -> None:
        self._library = library
        self._opened = opened

    def __enter__(self) -> None:
        self._library.ph_directory_lock(self._opened.pin)

    def __exit__(self, *_: object) -> None:
        self._library.ph_directory_unlock(self._opened.pin)


def _node(found: fastpath.PhPythonPin, descriptor: Descriptor) -> Node:
    is_submount = bool(found.is_submount)
    return Node(found.id, descriptor, found.kind, found.ino_mask, is_submount=is_submount)


class NativeNodeTable:
    """The library's nodes of one mount, with the methods of NodeTable."""

    def __init__(self, mount: NativeMount) -> None:
        self._mount = mount
        self._library = mount.library

    def __len__(self) -> int:
        count: int = self._library.ph_mount_node_count(self._mount.pointer)
        return count

    @property
    def limit(self) -> int:
        """The most nodes besides the root as things are."""
        limit: int = self._library.ph_mount_node_limit(self._mount.pointer)
        return limit

    @property
    def root(self) -> Node:
        """The shared directory; see NodeTable."""
        return self.get(self._mount.root_id)

    def get(self, node_id: int) -> Node:
        """Find a node; see NodeTable.get."""
        found = fastpath.PhPythonPin()
        pinned = self._library.ph_python_pin_node(self._mount.pointer, node_id, ctypes.byref(found))
        return self._node(found, pinned)

    def require_room(self) -> None:
        """Refuse when there is no room; see NodeTable.require_room."""
        if len(self) >= self.limit:
            raise refusal(errno.ENFILE)

    def count_lookup(
        self, descriptor: Descriptor, status: Statx, parent: Node, name: bytes | None
    ) -> Node:
        """Count a lookup and take the descriptor over; see NodeTable.count_lookup."""
        found = fastpath.PhPythonPin()
        pinned = self._library.ph_python_count_and_pin(
            self._mount.pointer, descriptor.detach(), parent.id, name, ctypes.byref(found)
        )
        return self._node(found, pinned)

    def forget(self, node_id: int, count: int) -> None:
        """Take lookups back; see NodeTable.forget."""
        self._library.ph_node_forget(self._mount.pointer, node_id, count)

    def renamed(self, directory: Node, name: bytes) -> None:
        """Note the new name of a file; see NodeTable.renamed."""
        self._library.ph_node_renamed(self._mount.pointer, _pin_of(directory.descriptor), name)

    @contextlib.contextmanager
    def removing(self, directory: Node, name: bytes) -> Iterator[None]:
        """Remove a name meanwhile; see NodeTable.removing."""
        mount, above = self._mount.pointer, _pin_of(directory.descriptor)
        node = self._library.ph_removal_begin(mount, above, name)
        removed = False
        try:
            yield
            removed = True
        finally:
            self._library.ph_removal_end(mount, node, above, name, removed)

    def _node(self, found: fastpath.PhPythonPin, pinned: bool) -> Node:
        if not pinned:
            raise refusal(ctypes.get_errno())
        pin = _Pin(self._mount, self._library.ph_node_unpin, found.pinned, found.fd)
        return _node(found, pin)


class NativeOpenFileTable:
    """The library's open files of one mount, with the methods of OpenFileTable."""

    def __init__(self, mount: NativeMount) -> None:
        self._mount = mount
        self._library = mount.library

    def __len__(self) -> int:
        count: int = self._library.ph_mount_open_file_count(self._mount.pointer)
        return count

    @property
    def limit(self) -> int:
        """The most open files as things are."""
        limit: int = self._library.ph_mount_open_file_limit(self._mount.pointer)
        return limit

    def require_room(self) -> None:
        """Refuse when there is no room; see OpenFileTable.require_room."""
        if len(self) >= self.limit:
            raise refusal(errno.EMFILE)

    def add(self, opened: OpenFile) -> int:
        """Give an open file a handle and take its descriptor over; see OpenFileTable.add."""
        handle: int = self._library.ph_open_file_add(
            self._mount.pointer,
            _pin_of(opened.node.descriptor),
            opened.descriptor.detach(),
            _KINDS[type(opened)],
        )
        if not handle:
            raise refusal(ctypes.get_errno())
        return handle

    def get(self, handle: int, kind: type[OpenFileT]) -> OpenFileT:
        """Find an open file; see OpenFileTable.get."""
        found = fastpath.PhPythonPin()
        if not self._library.ph_python_pin_open_file(
            self._mount.pointer, handle, _KINDS[kind], ctypes.byref(found)
        ):
            raise refusal(ctypes.get_errno())
        pin = _Pin(self._mount, self._library.ph_open_file_unpin, found.pinned, found.fd)
        node = _node(found, _Kept(pin, found.node_fd))
        if issubclass(kind, OpenDirectory):
            return kind(node, pin, _PositionMutex(self._library, pin))
        return kind(node, pin)

    def mark_locked(self, opened: OpenFile) -> None:
        """Have the native loop leave FLUSH and RELEASE of a file to Python from now on."""
        self._library.ph_open_file_mark_posix_locked(_pin_of(opened.descriptor))

    def remove(self, handle: int, kind: type[OpenFile]) -> None:
        """Let go of an open file; see OpenFileTable.remove."""
        if not self._library.ph_open_file_remove(self._mount.pointer, handle, _KINDS[kind]):
            raise refusal(errno.EBADF)


def _pin_of(descriptor: Descriptor) -> int:
    """Return the library's pin of what these tables have made."""
    return cast("_Pin", descriptor).pin
