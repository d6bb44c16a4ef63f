"""The calls of driver_tree.py on a directory of this machine, perhaps a mount point.

A path is walked component by component. No symlink is followed, since a driver follows none: a
symlink in the middle of a path is ENOTDIR.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from services.devicehost.devices.fs.host_files import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW


class Status(NamedTuple):
    """The part of a file's status that does not depend on where and when it was made."""

    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    rdev: int


class HostTree:
    """A directory; handles are descriptors. Failures are OSError."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)

    @contextmanager
    def _parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        *above, name = path.split(b"/")
        fd = os.open(self._root, _DIRECTORY)
        try:
            for component in above:
                below = os.open(component, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd, name
        finally:
            os.close(fd)

    @contextmanager
    def _node(self, path: bytes) -> Iterator[bytes]:
        """A path that leads to exactly this file."""
        with self._parent(path) as (parent, name):
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent)
        try:
            yield b"/proc/self/fd/%d" % fd
        finally:
            os.close(fd)

    def open(self, path: bytes, flags: int, mode: int) -> int:
        with self._parent(path) as (parent, name):
            return os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=parent)

    def tmpfile(self, path: bytes, mode: int) -> int:
        with self._node(path) as node:
            return os.open(node, os.O_RDWR | os.O_TMPFILE, mode)

    def close(self, handle: int) -> None:
        os.close(handle)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        return os.pread(handle, size, offset)

    def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        return os.pwrite(handle, data, offset)

    def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def fallocate(self, handle: int, mode: int, offset: int, size: int) -> None:
        syscalls.fallocate(handle, mode, offset, size)

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        return os.lseek(handle, offset, whence)

    def copy(self, source: int, at: int, target: int, to: int, size: int) -> int:
        return os.copy_file_range(source, target, size, at, to)

    def fstat(self, handle: int) -> Status:
        return _status(os.fstat(handle))

    def link_handle(self, handle: int, path: bytes) -> None:
        self._link(b"/proc/self/fd/%d" % handle, path)

    def _link(self, node: bytes, path: bytes) -> None:
        with self._parent(path) as (parent, name):
            # Without a descriptor it would be link(2), which does not follow.
            os.link(node, name, dst_dir_fd=parent, follow_symlinks=True)

    def mkdir(self, path: bytes, mode: int) -> None:
        with self._parent(path) as (parent, name):
            os.mkdir(name, mode, dir_fd=parent)

    def mkfifo(self, path: bytes, mode: int) -> None:
        with self._parent(path) as (parent, name):
            os.mkfifo(name, mode, dir_fd=parent)

    def symlink(self, target: bytes, path: bytes) -> None:
        with self._parent(path) as (parent, name):
            os.symlink(target, name, dir_fd=parent)

    def readlink(self, path: bytes) -> bytes:
        with self._parent(path) as (parent, name):
            return os.readlink(name, dir_fd=parent)

    def link(self, path: bytes, new: bytes) -> None:
        with self._node(path) as node:
            self._link(node, new)

    def unlink(self, path: bytes) -> None:
        with self._parent(path) as (parent, name):
            os.unlink(name, dir_fd=parent)

    def rmdir(self, path: bytes) -> None:
        with self._parent(path) as (parent, name):
            os.rmdir(name, dir_fd=parent)

    def rename(self, path: bytes, new: bytes, flags: int) -> None:
        with self._parent(path) as (parent, name), self._parent(new) as (new_parent, new_name):
            syscalls.rename(parent, name, new_parent, new_name, flags)

    def stat(self, path: bytes) -> Status:
        with self._parent(path) as (parent, name):
            return _status(os.stat(name, dir_fd=parent, follow_symlinks=False))

    def chmod(self, path: bytes, mode: int) -> None:
        with self._node(path) as node:
            os.chmod(node, mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        with self._node(path) as node:
            os.chown(node, uid, gid)

    def truncate(self, path: bytes, size: int) -> None:
        with self._node(path) as node:
            os.truncate(node, size)

    def set_times(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        with self._node(path) as node:
            os.utime(node, ns=(atime_ns, mtime_ns))

    def times(self, path: bytes) -> tuple[int, int]:
        with self._node(path) as node:
            status = os.stat(node)
            return status.st_atime_ns, status.st_mtime_ns

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        with self._node(path) as node:
            os.setxattr(node, name, value, flags)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        with self._node(path) as node:
            return os.getxattr(node, name)

    def removexattr(self, path: bytes, name: bytes) -> None:
        with self._node(path) as node:
            os.removexattr(node, name)

    def listxattr(self, path: bytes) -> list[bytes]:
        with self._node(path) as node:
            return sorted(map(os.fsencode, os.listxattr(node)))

    def names(self, path: bytes) -> list[bytes]:
        with self._node(path) as node:
            fd = os.open(node, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sorted(map(os.fsencode, os.listdir(fd)))
        finally:
            os.close(fd)


def _status(status: os.stat_result) -> Status:
    return Status(
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_size,
        status.st_rdev,
    )
