"""Open files and directories of a guest, by the handle that it was given.

Owns handle numbers and their bound. Handles are never reused.
Must not know requests.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, Final, TypeVar

from services.devicehost.devices.fs.host_files.errors import refusal

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from services.devicehost.devices.fs.host_files.descriptors import Descriptor
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


class OpenFileTable:
    """All open files of one mount, by handle; safe to use from every queue's thread."""

    def __init__(self, limit: int) -> None:
        """Start empty.

        Args:
            limit: Most open files at one time.
        """
        self.limit: Final = limit
        self._next = 1
        self._by_handle: dict[int, OpenFile] = {}
        self._mutex = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_handle)

    def require_room(self) -> None:
        """Refuse to open or create a file that would get no handle.

        Raises:
            OSError: ENFILE when the table is full.
        """
        if len(self._by_handle) >= self.limit:
            raise refusal(errno.ENFILE)

    def add(self, opened: OpenFile) -> int:
        """Give an open file a handle.

        Raises:
            OSError: ENFILE when the table is full.
        """
        with self._mutex:
            self.require_room()
            handle = self._next
            self._next += 1
            self._by_handle[handle] = opened
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
