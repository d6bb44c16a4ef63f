"""FUSE operations as methods, on nodes and handles.

Owns the arguments of every operation that the guest's driver makes; replies.py decodes the replies.
Each node in a reply counts one lookup, which the caller gives back with `forget`. Must not know
paths or queues.
"""

from __future__ import annotations

import contextlib
import errno
import os
from functools import partial
from typing import TYPE_CHECKING, Final

from services.handshake.errors import PortholeError
from services.simguest.fs import replies
from services.simguest.fs.driver import nothing
from services.wire import fuse
from services.wire.fuse import Attr, Dirent, Opcode, StatfsOut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.simguest.fs.driver import FsDriver, Pending
    from services.simguest.fs.replies import DirectoryEntry, Node
    from services.simguest.memory.dma import Buffer

DIRECTORY_BYTES: Final = 128 << 10
"""Bytes of a directory that one READDIRPLUS asks for."""
FORGETS_PER_REQUEST: Final = 1024
"""Nodes in one BATCH_FORGET, which then has 16 KiB."""

_PATH_MAX: Final = 4096
_MAX_XATTR_BYTES: Final = 65536
"""XATTR_SIZE_MAX and XATTR_LIST_MAX (linux/limits.h)."""
_NSEC: Final = 1_000_000_000
_U64: Final = (1 << 64) - 1


class FsOperations:
    """The operations of one session. Every method may be called from any thread.

    Methods named `begin_…` return at once, so that many requests can be in flight; errors of the
    reply are raised by the `result` of what they return. A reply raises OSError with the device's
    errno, EIO when it is malformed. PortholeError means that the device is gone, or that no session
    runs.

    Attributes:
        driver: The session.
    """

    def __init__(self, driver: FsDriver) -> None:
        self.driver = driver

    # Names and nodes.

    def lookup(self, parent: int, name: bytes) -> Node:
        """Find a name in a directory."""
        return self._entry(Opcode.LOOKUP, parent, _z(name))

    def forget(self, nodeid: int, lookups: int = 1) -> None:
        """Give back lookups of a node; there is no reply, and it never fails."""
        with contextlib.suppress(PortholeError):  # a device that is gone has forgotten everything
            args = fuse.FORGET_IN.pack(lookups)
            self.driver.submit_hiprio(Opcode.FORGET, nodeid, args)

    def forget_many(self, nodeids: Sequence[int]) -> None:
        """Give back one lookup of each node; there is no reply, and it never fails."""
        for start in range(0, len(nodeids), FORGETS_PER_REQUEST):
            batch = nodeids[start : start + FORGETS_PER_REQUEST]
            args = fuse.BATCH_FORGET_IN.pack(len(batch)) + b"".join(
                fuse.FORGET_ONE.pack(nodeid, 1) for nodeid in batch
            )
            with contextlib.suppress(PortholeError):
                self.driver.submit_hiprio(Opcode.BATCH_FORGET, 0, args)

    def interrupt(self, unique: int) -> None:
        """Ask the device to interrupt a request; there is no reply."""
        self.driver.submit_hiprio(Opcode.INTERRUPT, 0, fuse.INTERRUPT_IN.pack(unique))

    def mkdir(self, parent: int, name: bytes, mode: int) -> Node:
        """Make a directory with exactly these permission bits."""
        return self._entry(Opcode.MKDIR, parent, fuse.MKDIR_IN.pack(mode, 0) + _z(name))

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int = 0) -> Node:
        """Make a node of the type in `mode`; `rdev` is a device number in the kernel's encoding."""
        return self._entry(Opcode.MKNOD, parent, fuse.MKNOD_IN.pack(mode, rdev, 0) + _z(name))

    def symlink(self, parent: int, name: bytes, target: bytes) -> Node:
        """Make a symbolic link."""
        return self._entry(Opcode.SYMLINK, parent, _z(name) + _z(target))

    def link(self, nodeid: int, parent: int, name: bytes) -> Node:
        """Make another name for a node."""
        return self._entry(Opcode.LINK, parent, fuse.LINK_IN.pack(nodeid) + _z(name))

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name of anything but a directory."""
        self._plain(Opcode.UNLINK, parent, _z(name)).result()

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        self._plain(Opcode.RMDIR, parent, _z(name)).result()

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """Rename; `flags` are RENAME_* of renameat2(2)."""
        names = _z(name) + _z(new_name)
        if flags:
            args = fuse.RENAME2_IN.pack(new_parent, flags)
            self._plain(Opcode.RENAME2, parent, args + names).result()
        else:
            self._plain(Opcode.RENAME, parent, fuse.RENAME_IN.pack(new_parent) + names).result()

    def readlink(self, nodeid: int) -> bytes:
        """Read the target of a symbolic link."""
        return self.driver.submit(Opcode.READLINK, nodeid, b"", _PATH_MAX, bytes).result()

    # Attributes.

    def getattr(self, nodeid: int, fh: int | None = None) -> Attr:
        """Read attributes; those of an open handle, when one is given."""
        flags, handle = (0, 0) if fh is None else (fuse.FUSE_GETATTR_FH, fh)
        return self._attr(Opcode.GETATTR, nodeid, fuse.GETATTR_IN.pack(flags, handle)).result()

    def begin_setattr(
        self,
        nodeid: int,
        *,
        fh: int | None = None,
        size: int | None = None,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> Pending[Attr]:
        """Change the given attributes; times are in nanoseconds since the epoch."""
        given = {
            fuse.FATTR_FH: fh,
            fuse.FATTR_SIZE: size,
            fuse.FATTR_MODE: mode,
            fuse.FATTR_UID: uid,
            fuse.FATTR_GID: gid,
            fuse.FATTR_ATIME: atime_ns,
            fuse.FATTR_MTIME: mtime_ns,
        }
        atime, atimensec = divmod(atime_ns or 0, _NSEC)
        mtime, mtimensec = divmod(mtime_ns or 0, _NSEC)
        request = fuse.SetattrIn(
            valid=sum(bit for bit, value in given.items() if value is not None),
            fh=fh or 0,
            size=size or 0,
            lock_owner=0,
            atime=atime & _U64,
            mtime=mtime & _U64,
            ctime=0,
            atimensec=atimensec,
            mtimensec=mtimensec,
            ctimensec=0,
            mode=mode or 0,
            uid=uid or 0,
            gid=gid or 0,
        )
        return self._attr(Opcode.SETATTR, nodeid, fuse.SETATTR_IN.pack(*request))

    def statfs(self, nodeid: int = fuse.FUSE_ROOT_ID) -> StatfsOut:
        """Read the file system's total and free space."""
        size = fuse.STATFS_OUT.size
        return self.driver.submit(Opcode.STATFS, nodeid, b"", size, replies.statfs).result()

    def getxattr(self, nodeid: int, name: bytes) -> bytes:
        """Read an extended attribute."""
        return self._sized(Opcode.GETXATTR, nodeid, _z(name))

    def listxattr(self, nodeid: int) -> list[bytes]:
        """List the names of extended attributes."""
        return [name for name in self._sized(Opcode.LISTXATTR, nodeid, b"").split(b"\0") if name]

    def setxattr(self, nodeid: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Write an extended attribute; `flags` are XATTR_CREATE or XATTR_REPLACE."""
        if self.driver.flags & fuse.FUSE_SETXATTR_EXT:
            head = fuse.SETXATTR_IN.pack(len(value), flags, 0)
        else:
            head = fuse.SETXATTR_COMPAT_IN.pack(len(value), flags)
        self._plain(Opcode.SETXATTR, nodeid, head + _z(name) + value).result()

    def removexattr(self, nodeid: int, name: bytes) -> None:
        """Remove an extended attribute."""
        self._plain(Opcode.REMOVEXATTR, nodeid, _z(name)).result()

    # Files.

    def begin_open(self, nodeid: int, flags: int = os.O_RDONLY) -> Pending[int]:
        """Open a file; the result is the handle."""
        return self._handle(Opcode.OPEN, nodeid, flags)

    def begin_create(
        self, parent: int, name: bytes, mode: int, flags: int = os.O_WRONLY
    ) -> Pending[tuple[Node, int]]:
        """Open a file, making it when it is missing; the result is node and handle."""
        args = fuse.CREATE_IN.pack(flags | os.O_CREAT, mode, 0, 0) + _z(name)
        size = replies.ENTRY_BYTES + fuse.OPEN_OUT.size
        return self.driver.submit(Opcode.CREATE, parent, args, size, replies.created)

    def begin_read(self, nodeid: int, fh: int, offset: int, size: int) -> Pending[bytes]:
        """Read `size` bytes, fewer at the file's end; `size` is at most `driver.max_read`."""
        args = fuse.READ_IN.pack(fh, offset, size, 0, 0, 0)
        return self.driver.submit(Opcode.READ, nodeid, args, size, bytes)

    def begin_write(self, nodeid: int, fh: int, offset: int, part: Buffer) -> Pending[int]:
        """Write at most `driver.max_write` bytes; the result is the number written."""
        args = fuse.WRITE_IN.pack(fh, offset, len(part), 0, 0, 0)
        decode = partial(replies.written, len(part))
        size = fuse.WRITE_OUT.size
        return self.driver.submit(Opcode.WRITE, nodeid, args, size, decode, payload=part)

    def begin_flush(self, nodeid: int, fh: int) -> Pending[None]:
        """Report that a descriptor is closed; an error of an earlier write may be raised here."""
        return self._plain(Opcode.FLUSH, nodeid, fuse.FLUSH_IN.pack(fh, 0))

    def fsync(self, nodeid: int, fh: int, *, data_only: bool = False) -> None:
        """Make a file's contents durable."""
        flags = fuse.FUSE_FSYNC_FDATASYNC if data_only else 0
        self._plain(Opcode.FSYNC, nodeid, fuse.FSYNC_IN.pack(fh, flags)).result()

    def release(self, nodeid: int, fh: int) -> None:
        """Close a handle, without waiting for the reply, as a kernel does; it never fails."""
        self._release(Opcode.RELEASE, nodeid, fh)

    # Directories.

    def opendir(self, nodeid: int) -> int:
        """Open a directory, and return the handle."""
        return self._handle(Opcode.OPENDIR, nodeid, os.O_RDONLY).result()

    def releasedir(self, nodeid: int, fh: int) -> None:
        """Close a directory's handle; never fails."""
        self._release(Opcode.RELEASEDIR, nodeid, fh)

    def readdir(self, nodeid: int, fh: int, cookie: int = 0) -> list[tuple[bytes, Dirent]]:
        """Read the names after `cookie`, none at the end; counts no lookups."""
        args = fuse.READ_IN.pack(fh, cookie, self._directory_bytes, 0, 0, 0)
        size = self._directory_bytes
        return self.driver.submit(Opcode.READDIR, nodeid, args, size, replies.names).result()

    def readdirplus(self, nodeid: int, fh: int, cookie: int = 0) -> list[DirectoryEntry]:
        """Read the names after `cookie` with their nodes, none at the end.

        Each entry with a node counts one lookup of the node.
        """
        args = fuse.READ_IN.pack(fh, cookie, self._directory_bytes, 0, 0, 0)
        size = self._directory_bytes
        return self.driver.submit(Opcode.READDIRPLUS, nodeid, args, size, replies.entries).result()

    # The envelope of each kind of request.

    @property
    def _directory_bytes(self) -> int:
        return min(DIRECTORY_BYTES, self.driver.max_read)

    def _plain(self, opcode: Opcode, nodeid: int, args: bytes) -> Pending[None]:
        return self.driver.submit(opcode, nodeid, args, 0, nothing)

    def _entry(self, opcode: Opcode, nodeid: int, args: bytes) -> Node:
        size = replies.ENTRY_BYTES
        return self.driver.submit(opcode, nodeid, args, size, replies.entry).result()

    def _attr(self, opcode: Opcode, nodeid: int, args: bytes) -> Pending[Attr]:
        return self.driver.submit(opcode, nodeid, args, replies.ATTR_BYTES, replies.attr)

    def _handle(self, opcode: Opcode, nodeid: int, flags: int) -> Pending[int]:
        args = fuse.OPEN_IN.pack(flags, 0)
        return self.driver.submit(opcode, nodeid, args, fuse.OPEN_OUT.size, replies.handle)

    def _release(self, opcode: Opcode, nodeid: int, fh: int) -> None:
        with contextlib.suppress(PortholeError):
            self._plain(opcode, nodeid, fuse.RELEASE_IN.pack(fh, 0, 0, 0))

    def _sized(self, opcode: Opcode, nodeid: int, args: bytes) -> bytes:
        # The size is read first; the value may have grown until it is read (ERANGE).
        while True:
            query = fuse.GETXATTR_IN.pack(0) + args
            room = fuse.GETXATTR_OUT.size
            asked = self.driver.submit(opcode, nodeid, query, room, replies.xattr_size)
            size = min(asked.result(), _MAX_XATTR_BYTES)
            if size == 0:
                return b""
            try:
                request = fuse.GETXATTR_IN.pack(size) + args
                return self.driver.submit(opcode, nodeid, request, size, bytes).result()
            except OSError as error:
                if error.errno != errno.ERANGE or size == _MAX_XATTR_BYTES:
                    raise


def _z(name: bytes) -> bytes:
    if b"\0" in name:
        raise OSError(errno.EINVAL, "a name must not contain NUL", name)
    return name + b"\0"
