"""Open files and directories of a guest, by the handle that it was given.

Owns handle numbers and their bound. Handles are never reused.
Must not know requests.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, Final, TypeVar

from services.devicehost.devices.fs.host_files.descriptors import files_below, first_unusable
from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.mount.bound import Bound, Total

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits
    from services.devicehost.devices.fs.mount.nodes import Node


class OpenFile:
    """A regular file that is open on the host.

    Attributes:
        node: The file; it is not evicted while it is open.
        descriptor: The open descriptor.
        fd: Its number; valid while this object is referenced.
    """

    __slots__ = ("descriptor", "fd", "node")

    def __init__(self, node: Node, descriptor: Descriptor) -> None:
        self.node: Final = node
        self.descriptor: Final = descriptor
        self.fd: Final = descriptor.fd


class OpenDirectory(OpenFile):
    """A directory that is open on the host.

    Attributes:
        mutex: Held while the host's position in the directory is in use.
    """

    __slots__ = ("mutex",)

    def __init__(
        self,
        node: Node,
        descriptor: Descriptor,
        mutex: AbstractContextManager[object] | None = None,
    ) -> None:
        super().__init__(node, descriptor)
        self.mutex: Final = mutex or threading.Lock()


OpenFileT = TypeVar("OpenFileT", bound=OpenFile)

_ALL_OPEN_FILES: Final = Total()


class OpenFileTable:
    """All open files of one mount, by handle; safe to use from every queue's thread."""

    def __init__(self, limits: Limits) -> None:
        """Start empty.

        Args:
            limits: Of the device.
        """
        self._next = 1
        self._by_handle: dict[int, OpenFile] = {}
        self._mutex = threading.Lock()
        self._bound: Final = Bound(
            limits.handles, limits.all_handles, _ALL_OPEN_FILES, alone=limits.one_guest
        )
        self._files_below: Final = files_below(first_unusable())

    def __len__(self) -> int:
        return len(self._by_handle)

    @property
    def limit(self) -> int:
        """The most open files as things are."""
        return self._bound.limit

    def require_room(self) -> None:
        """Refuse to open or create a file that would get no handle.

        Raises:
            OSError: EMFILE when the table is full.
        """
        if not self._bound.has_room():
            raise refusal(errno.EMFILE)

    def add(self, opened: OpenFile) -> int:
        """Give an open file a handle.

        Raises:
            OSError: EMFILE when the table is full, or when descriptors are running short.
        """
        with self._mutex:
            self.require_room()
            if opened.fd >= self._files_below:
                raise refusal(errno.EMFILE)
            handle = self._next
            self._next += 1
            self._by_handle[handle] = opened
            self._bound.add()
            return handle

    def get(self, handle: int, kind: type[OpenFileT]) -> OpenFileT:
        """Find an open file of exactly this kind.

        Raises:
            OSError: EBADF when there is none.
        """
        opened = self._by_handle.get(handle)
        if type(opened) is not kind:
            raise refusal(errno.EBADF)
        return opened

    def mark_locked(self, opened: OpenFile) -> None:
        """Note that a lock owner may have locks on a file, so Python must serve FLUSH and RELEASE.

        Python serves them all for the files of this table, so there is nothing to note.
        """

    def remove(self, handle: int, kind: type[OpenFile]) -> None:
        """Let go of an open file; it is closed when no request uses it any more.

        Raises:
            OSError: EBADF when there is none of this kind.
        """
        with self._mutex:
            self.get(handle, kind)
            del self._by_handle[handle]
            self._bound.take()
