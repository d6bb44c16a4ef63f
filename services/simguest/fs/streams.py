"""Whole files and whole directories, with several requests in flight for each.

Owns read-ahead, write-behind and the walk through a directory's cookies. Must not know paths or
the layout of requests.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from services.handshake.pool import PAGE_BYTES
from services.simguest.fs.replies import DirectoryEntry
from services.wire import fuse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.simguest.fs.driver import Pending
    from services.simguest.fs.operations import FsOperations
    from services.simguest.fs.replies import Node
    from services.simguest.memory.dma import Buffer

IN_FLIGHT: Final = 4
"""The most READs or WRITEs of one file in flight."""


def read_all(
    operations: FsOperations, nodeid: int, fh: int, size_hint: int, start: int = 0
) -> Iterator[bytes]:
    """Read a file to its end.

    Args:
        operations: The session.
        nodeid: The file.
        fh: Its handle.
        size_hint: Its size in bytes as last seen; a file that has grown is read to its new end.
        start: Offset to begin at.

    Raises:
        OSError: The device's errno.
        PortholeError: The device is gone.
    """
    pending: deque[tuple[Pending[bytes], int]] = deque()
    ahead = start
    while True:
        while len(pending) < IN_FLIGHT and (ahead <= size_hint or not pending):
            size = read_size(operations, max(size_hint - ahead, 0))
            pending.append((operations.begin_read(nodeid, fh, ahead, size), size))
            ahead += size
        request, size = pending.popleft()
        data = request.result()
        if data:
            yield data
        if len(data) < size:
            return


def read_size(operations: FsOperations, rest: int) -> int:
    """Return the size of the READ for the last `rest` bytes of a file.

    It is at least one byte more, in whole pages, so that a short reply shows the end of the file
    without another request.
    """
    return min(operations.driver.max_read, -(-(rest + 1) // PAGE_BYTES) * PAGE_BYTES)


class Writer:
    """Writes a file from its start, with several requests in flight.

    Attributes:
        size_bytes: Number of bytes added so far.
    """

    def __init__(self, operations: FsOperations, nodeid: int, fh: int) -> None:
        self.size_bytes = 0
        self._operations = operations
        self._file = (nodeid, fh)
        self._pending: deque[tuple[Pending[int], int, memoryview]] = deque()

    def add(self, chunk: Buffer) -> None:
        """Begin to write the next bytes.

        Raises:
            OSError: The device's errno, for these bytes or earlier ones.
            PortholeError: The device is gone.
        """
        view = memoryview(chunk)
        most = self._operations.driver.max_write
        for start in range(0, len(view), most):
            part = view[start : start + most]
            request = self._operations.begin_write(*self._file, self.size_bytes, part)
            self._pending.append((request, self.size_bytes, part))
            self.size_bytes += len(part)
            if len(self._pending) == IN_FLIGHT:
                self._settle()

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: The device's errno.
            PortholeError: The device is gone.
        """
        while self._pending:
            self._settle()

    def _settle(self) -> None:
        request, offset, part = self._pending.popleft()
        done = request.result()
        while done < len(part):  # after a short write a kernel writes the rest, too
            rest = part[done:]
            done += self._operations.begin_write(*self._file, offset + done, rest).result()


def scan(operations: FsOperations, nodeid: int) -> Iterator[tuple[bytes, Node]]:
    """Read a whole directory without "." and "..".

    Each node counts one lookup, which the caller must forget. A name that disappears meanwhile is
    left out.

    Args:
        operations: The session.
        nodeid: The directory.

    Raises:
        OSError: The device's errno.
        PortholeError: The device is gone.
    """
    fh = operations.opendir(nodeid)
    try:
        cookie = 0
        while entries := _entries(operations, nodeid, fh, cookie):
            cookie = entries[-1].cookie
            for name, _, node in entries:
                if node is not None:
                    yield name, node
    finally:
        operations.releasedir(nodeid, fh)


def _entries(operations: FsOperations, nodeid: int, fh: int, cookie: int) -> list[DirectoryEntry]:
    if operations.driver.flags & fuse.FUSE_DO_READDIRPLUS:
        found = operations.readdirplus(nodeid, fh, cookie)
    else:
        plain = operations.readdir(nodeid, fh, cookie)
        found = [DirectoryEntry(name, dirent.off, None) for name, dirent in plain]
    # Names that came without a node are looked up: all of READDIR, some of READDIRPLUS.
    return [
        entry._replace(node=_find(operations, nodeid, entry.name))
        if entry.node is None and entry.name not in (b".", b"..")
        else entry
        for entry in found
    ]


def _find(operations: FsOperations, nodeid: int, name: bytes) -> Node | None:
    try:
        return operations.lookup(nodeid, name)
    except FileNotFoundError:
        return None


def read_file(operations: FsOperations, node: Node) -> Iterator[bytes]:
    """Open a file, read it to its end and close it; raises what `read_all` raises."""
    fh = operations.begin_open(node.nodeid).result()
    try:
        yield from read_all(operations, node.nodeid, fh, node.attr.size)
    finally:
        operations.release(node.nodeid, fh)
