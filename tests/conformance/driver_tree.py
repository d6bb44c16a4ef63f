"""The calls of host_tree.py on a directory of a share, through the guest's own driver.

It takes the place of the kernel above the driver: it keeps open files and their flags, and cuts
long reads and writes into requests.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from services.simguest.fs import replies, streams
from services.simguest.fs.driver import nothing, unpack
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.conformance.host_tree import Status

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from struct import Struct

    from services.simguest.fs.paths import ShareFiles
    from services.simguest.fs.replies import Node
    from services.wire.fuse import Attr


@dataclass(frozen=True, slots=True)
class _Open:
    nodeid: int
    fh: int
    flags: int


class DriverTree:
    """A directory of a share; handles are numbers. Failures are OSError."""

    def __init__(self, files: ShareFiles, root: bytes) -> None:
        self._files = files
        self._operations = files.operations
        self._root = root + b"/"
        self._open: dict[int, _Open] = {}
        self._next = 0

    def _parent(self, path: bytes) -> AbstractContextManager[tuple[int, bytes]]:
        return self._files.parent(self._root + path)

    def _node(self, path: bytes) -> AbstractContextManager[Node]:
        return self._files.walk(self._root + path)

    def open(self, path: bytes, flags: int, mode: int) -> int:
        with self._parent(path) as (parent, name):
            if flags & os.O_CREAT:
                node, fh = self._operations.begin_create(parent, name, mode, flags).result()
                return self._keep(node.nodeid, fh, flags)
            node = self._operations.lookup(parent, name)
        try:
            fh = self._operations.begin_open(node.nodeid, flags).result()
        except OSError:
            self._operations.forget(node.nodeid)
            raise
        return self._keep(node.nodeid, fh, flags)

    def tmpfile(self, path: bytes, mode: int) -> int:
        with self._node(path) as node:
            args = fuse.CREATE_IN.pack(os.O_RDWR | os.O_TMPFILE, stat.S_IFREG | mode, 0, 0)
            size = replies.ENTRY_BYTES + fuse.OPEN_OUT.size
            made, fh = self._operations.driver.submit(
                Opcode.TMPFILE, node.nodeid, args + b"\0", size, replies.created
            ).result()
        return self._keep(made.nodeid, fh, os.O_RDWR)

    def _keep(self, nodeid: int, fh: int, flags: int) -> int:
        self._next += 1
        self._open[self._next] = _Open(nodeid, fh, flags)
        return self._next

    def close(self, handle: int) -> None:
        opened = self._open.pop(handle)
        self._operations.begin_flush(opened.nodeid, opened.fh).result()
        self._operations.release(opened.nodeid, opened.fh)
        self._operations.forget(opened.nodeid)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        opened = self._open[handle]
        most = self._operations.driver.max_read
        if opened.flags & os.O_ACCMODE == os.O_WRONLY and not size:
            raise OSError(errno.EBADF, "a kernel refuses this itself")
        data = b""
        while len(data) < size:
            wanted = min(size - len(data), most)
            at = offset + len(data)
            part = self._operations.begin_read(opened.nodeid, opened.fh, at, wanted).result()
            data += part
            if len(part) < wanted:
                break
        return data

    def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        opened = self._open[handle]
        driver = self._operations.driver
        if opened.flags & os.O_ACCMODE == os.O_RDONLY and not data:
            raise OSError(errno.EBADF, "a kernel refuses this itself")
        for start in range(0, len(data), driver.max_write):
            part = data[start : start + driver.max_write]
            args = fuse.WRITE_IN.pack(opened.fh, offset + start, len(part), 0, 0, opened.flags)
            decode = partial(replies.written, len(part))
            size = fuse.WRITE_OUT.size
            written = driver.submit(
                Opcode.WRITE, opened.nodeid, args, size, decode, payload=part
            ).result()
            if written != len(part):
                raise OSError(errno.EIO, f"{written} of {len(part)} bytes written")
        return len(data)

    def ftruncate(self, handle: int, size: int) -> None:
        opened = self._open[handle]
        if not opened.flags & os.O_ACCMODE:
            raise OSError(errno.EINVAL, "a kernel refuses this itself")
        self._operations.begin_setattr(opened.nodeid, fh=opened.fh, size=size).result()

    def fallocate(self, handle: int, mode: int, offset: int, size: int) -> None:
        opened = self._open[handle]
        args = fuse.FALLOCATE_IN.pack(opened.fh, offset, size, mode)
        self._call(Opcode.FALLOCATE, opened.nodeid, args)

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        opened = self._open[handle]
        args = fuse.LSEEK_IN.pack(opened.fh, offset, whence)
        return self._call(Opcode.LSEEK, opened.nodeid, args, fuse.LSEEK_OUT)[0]

    def copy(self, source: int, at: int, target: int, to: int, size: int) -> int:
        one, two = self._open[source], self._open[target]
        if two.flags & os.O_APPEND:
            raise OSError(errno.EBADF, "a kernel refuses this itself")
        args = fuse.COPY_FILE_RANGE_IN.pack(one.fh, at, two.nodeid, two.fh, to, size, 0)
        return self._call(Opcode.COPY_FILE_RANGE, one.nodeid, args, fuse.WRITE_OUT)[0]

    def _call(
        self, opcode: Opcode, nodeid: int, args: bytes, answer: Struct | None = None
    ) -> tuple[int, ...]:
        driver = self._operations.driver
        if answer is None:
            driver.submit(opcode, nodeid, args, 0, nothing).result()
            return ()
        body = driver.submit(opcode, nodeid, args, answer.size, bytes).result()
        return unpack(opcode, answer, body)

    def fstat(self, handle: int) -> Status:
        opened = self._open[handle]
        return _status(self._operations.getattr(opened.nodeid, opened.fh))

    def link_handle(self, handle: int, path: bytes) -> None:
        with self._parent(path) as (parent, name):
            node = self._operations.link(self._open[handle].nodeid, parent, name)
            self._operations.forget(node.nodeid)

    def mkdir(self, path: bytes, mode: int) -> None:
        self._files.mkdir(self._root + path, mode)

    def mkfifo(self, path: bytes, mode: int) -> None:
        with self._parent(path) as (parent, name):
            node = self._operations.mknod(parent, name, stat.S_IFIFO | mode)
            self._operations.forget(node.nodeid)

    def symlink(self, target: bytes, path: bytes) -> None:
        self._files.symlink(target, self._root + path)

    def readlink(self, path: bytes) -> bytes:
        return self._files.readlink(self._root + path)

    def link(self, path: bytes, new: bytes) -> None:
        self._files.link(self._root + path, self._root + new)

    def unlink(self, path: bytes) -> None:
        self._files.unlink(self._root + path)

    def rmdir(self, path: bytes) -> None:
        self._files.rmdir(self._root + path)

    def rename(self, path: bytes, new: bytes, flags: int) -> None:
        self._files.rename(self._root + path, self._root + new, flags)

    def stat(self, path: bytes) -> Status:
        return _status(self._files.stat(self._root + path))

    def chmod(self, path: bytes, mode: int) -> None:
        self._files.chmod(self._root + path, mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        with self._node(path) as node:
            self._operations.begin_setattr(
                node.nodeid, uid=None if uid == -1 else uid, gid=None if gid == -1 else gid
            ).result()

    def truncate(self, path: bytes, size: int) -> None:
        self._files.truncate(self._root + path, size)

    def set_times(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        self._files.set_times(self._root + path, atime_ns, mtime_ns)

    def times(self, path: bytes) -> tuple[int, int]:
        attr = self._files.stat(self._root + path)
        return _ns(attr.atime, attr.atimensec), _ns(attr.mtime, attr.mtimensec)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        with self._node(path) as node:
            self._operations.setxattr(node.nodeid, name, value, flags)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        with self._node(path) as node:
            return self._operations.getxattr(node.nodeid, name)

    def removexattr(self, path: bytes, name: bytes) -> None:
        with self._node(path) as node:
            self._operations.removexattr(node.nodeid, name)

    def listxattr(self, path: bytes) -> list[bytes]:
        with self._node(path) as node:
            return sorted(self._operations.listxattr(node.nodeid))

    def names(self, path: bytes) -> list[bytes]:
        with self._node(path) as node:
            found = list(streams.scan(self._operations, node.nodeid))
            self._operations.forget_many([child.nodeid for _, child in found])
            return sorted(name for name, _ in found)


def _ns(seconds: int, nanoseconds: int) -> int:
    return (seconds - (seconds >> 63 << 64)) * 1_000_000_000 + nanoseconds


def _status(attr: Attr) -> Status:
    return Status(attr.mode, attr.nlink, attr.uid, attr.gid, attr.size, attr.rdev)
