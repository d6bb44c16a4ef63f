"""The files of a share by path, as a program in the guest would use them.

Owns the walk from the root through names, and giving back every node afterwards. Paths are relative
to the share's root; "." and empty components are skipped, ".." is refused, and symbolic links are
not followed. Must not know queues or the layout of requests.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from services.simguest.fs import streams
from services.simguest.fs.replies import Node
from services.wire.fuse import FUSE_ROOT_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from services.simguest.fs.operations import FsOperations
    from services.simguest.memory.dma import Buffer
    from services.wire.fuse import Attr

Path = str | bytes


class ShareFiles:
    """The files of one share. Every method may be called from any thread.

    Every method raises OSError with the device's errno, and PortholeError when the device is gone.
    """

    def __init__(self, operations: FsOperations) -> None:
        self.operations = operations

    @contextmanager
    def walk(self, path: Path) -> Iterator[Node]:
        """Find the node of a path; it is valid inside the `with` block."""
        components = split(path)
        if not components:
            yield Node(FUSE_ROOT_ID, self.operations.getattr(FUSE_ROOT_ID))
            return
        with self.parent(path) as (parent, name):
            node = self.operations.lookup(parent, name)
        try:
            yield node
        finally:
            self.operations.forget(node.nodeid)

    @contextmanager
    def parent(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Find the directory of a path's last component; it is valid inside the `with` block."""
        *above, name = split(path) or _refuse_root(path)
        nodeid = FUSE_ROOT_ID
        taken = []
        try:
            for component in above:
                nodeid = self.operations.lookup(nodeid, component).nodeid
                taken.append(nodeid)
            yield nodeid, name
        finally:
            self.operations.forget_many(taken)

    def stat(self, path: Path) -> Attr:
        """Read attributes."""
        with self.walk(path) as node:
            return node.attr

    def list(self, path: Path = "") -> dict[bytes, Attr]:
        """List a directory, without "." and ".."."""
        with self.walk(path) as node:
            found = list(streams.scan(self.operations, node.nodeid))
        self.operations.forget_many([child.nodeid for _, child in found])
        return {name: child.attr for name, child in found}

    def read_file(self, path: Path) -> bytes:
        """Read a whole file."""
        with self.walk(path) as node:
            return b"".join(streams.read_file(self.operations, node))

    def write_file(self, path: Path, data: Buffer | Iterable[Buffer], mode: int = 0o644) -> int:
        """Make a file, or replace its contents; return the number of bytes written."""
        chunks = [data] if isinstance(data, bytes | bytearray | memoryview) else data
        with self.parent(path) as (parent, name):
            node, fh = self.operations.begin_create(
                parent, name, mode, os.O_WRONLY | os.O_TRUNC
            ).result()
        try:
            writer = streams.Writer(self.operations, node.nodeid, fh)
            for chunk in chunks:
                writer.add(chunk)
            writer.finish()
            self.operations.begin_flush(node.nodeid, fh).result()
        finally:
            self.operations.release(node.nodeid, fh)
            self.operations.forget(node.nodeid)
        return writer.size_bytes

    def truncate(self, path: Path, size: int) -> None:
        """Set a file's length in bytes."""
        with self.walk(path) as node:
            self.operations.begin_setattr(node.nodeid, size=size).result()

    def chmod(self, path: Path, mode: int) -> None:
        """Set permission bits."""
        with self.walk(path) as node:
            self.operations.begin_setattr(node.nodeid, mode=mode).result()

    def set_times(self, path: Path, atime_ns: int, mtime_ns: int) -> None:
        """Set access and modification time, in nanoseconds since the epoch."""
        with self.walk(path) as node:
            self.operations.begin_setattr(
                node.nodeid, atime_ns=atime_ns, mtime_ns=mtime_ns
            ).result()

    def mkdir(self, path: Path, mode: int = 0o755) -> None:
        """Make a directory."""
        with self.parent(path) as (parent, name):
            self.operations.forget(self.operations.mkdir(parent, name, mode).nodeid)

    def make_directories(self, path: Path, mode: int = 0o755) -> None:
        """Make a directory and its parents, those that are missing."""
        components = split(path)
        for depth in range(1, len(components) + 1):
            try:
                self.mkdir(b"/".join(components[:depth]), mode)
            except FileExistsError:
                continue

    def unlink(self, path: Path) -> None:
        """Remove a name of anything but a directory."""
        with self.parent(path) as (parent, name):
            self.operations.unlink(parent, name)

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        with self.parent(path) as (parent, name):
            self.operations.rmdir(parent, name)

    def rename(self, path: Path, new_path: Path, flags: int = 0) -> None:
        """Rename; `flags` are RENAME_* of renameat2(2)."""
        with self.parent(path) as (parent, name), self.parent(new_path) as (new_parent, new_name):
            self.operations.rename(parent, name, new_parent, new_name, flags)

    def link(self, path: Path, new_path: Path) -> None:
        """Make another name for a file."""
        with self.walk(path) as node, self.parent(new_path) as (parent, name):
            self.operations.forget(self.operations.link(node.nodeid, parent, name).nodeid)

    def symlink(self, target: bytes, path: Path) -> None:
        """Make a symbolic link."""
        with self.parent(path) as (parent, name):
            self.operations.forget(self.operations.symlink(parent, name, target).nodeid)

    def readlink(self, path: Path) -> bytes:
        """Read the target of a symbolic link."""
        with self.walk(path) as node:
            return self.operations.readlink(node.nodeid)


def split(path: Path) -> list[bytes]:
    """Split a path into components.

    Raises:
        OSError: EINVAL, when a component is "..".
    """
    components = [part for part in os.fsencode(path).split(b"/") if part not in (b"", b".")]
    if b".." in components:
        raise OSError(errno.EINVAL, "a path in a share must not contain '..'", os.fsdecode(path))
    return components


def _refuse_root(path: Path) -> list[bytes]:
    raise OSError(errno.EBUSY, "the root of a share cannot be made, moved or removed", path)
