"""Open files and directories of a guest, by the handle that it was given.

Owns handle numbers and their bound. Handles are never reused.
Must not know requests or what is done with a handle.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, Final, TypeVar

from services.devicehost.devices.fs.errors import refusal

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from services.devicehost.devices.fs.descriptors import Descriptor
    from services.devicehost.devices.fs.nodes import Node


class OpenFile:
    """A regular file that is open on the host.

    Attributes:
        node: The file; it does not become idle while it is open.
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
        lock: Held while the host's position in the directory is in use.
    """

    __slots__ = ("lock",)

    def __init__(
        self,
        node: Node,
        descriptor: Descriptor,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        super().__init__(node, descriptor)
        self.lock: Final = lock or threading.Lock()


HandleT = TypeVar("HandleT", bound=OpenFile)


class HandleTable:
    """All handles of one mount; safe to use from every queue's thread."""

    def __init__(self, limit: int) -> None:
        """Start empty.

        Args:
            limit: Most handles at one time.
        """
        self.limit: Final = limit
        self._next = 1
        self._by_number: dict[int, OpenFile] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_number)

    def require_room(self) -> None:
        """Refuse before something is opened or created for which there would be no handle.

        Raises:
            OSError: ENFILE when the table is full.
        """
        if len(self._by_number) >= self.limit:
            raise refusal(errno.ENFILE)

    def add(self, handle: OpenFile) -> int:
        """Number a handle.

        Raises:
            OSError: ENFILE when the table is full.
        """
        with self._lock:
            self.require_room()
            number = self._next
            self._next += 1
            self._by_number[number] = handle
            return number

    def get(self, number: int, kind: type[HandleT]) -> HandleT:
        """Find a handle of exactly this kind.

        Raises:
            OSError: EBADF when there is none.
        """
        handle = self._by_number.get(number)
        if type(handle) is not kind:
            raise refusal(errno.EBADF)
        return handle

    def mark_locked(self, opened: OpenFile) -> None:
        """Note that somebody may have locks on a file: FLUSH and RELEASE of it must come by here.

        In this table they always do.
        """

    def remove(self, number: int, kind: type[OpenFile]) -> None:
        """Let go of a handle; it is closed when no request uses it any more.

        Raises:
            OSError: EBADF when there is none of this kind.
        """
        with self._lock:
            self.get(number, kind)
            del self._by_number[number]
