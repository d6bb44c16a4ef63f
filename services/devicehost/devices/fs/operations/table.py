"""The table of operations: each opcode with its function, and the checks that come before it.

INIT and DESTROY belong to the session. An opcode that is not here is answered with ENOSYS; the
guest kernel then does without it for good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from services.devicehost.devices.fs.operations import (
    directories,
    files,
    locks,
    metadata,
    names,
    xattrs,
)
from services.wire import fuse
from services.wire.fuse import Opcode

if TYPE_CHECKING:
    from collections.abc import Callable
    from struct import Struct

    from services.devicehost.devices.fs.mount.mount import Mount
    from services.devicehost.devices.fs.operations.request import Request
    from services.devicehost.virtio.deferral import Deferred


class Place(Protocol):
    """The object that an operation works on: a mount, or the root of several."""

    @property
    def read_only(self) -> bool:
        """Whether every change is refused."""


WhereT = TypeVar("WhereT", bound=Place)


@dataclass(frozen=True, slots=True)
class Operation(Generic[WhereT]):
    """One row.

    Attributes:
        run: Serves the request; returns the length of the data that it placed, or a Deferred
            that answers the request later.
        args: The fixed part of the request; None when there is none.
        reply_bytes: The least room for the reply's data; checked first, so that the guest learns
            of everything that is done.
        modifies: Whether it is refused with EROFS on a read-only share.
        streamed: Whether the bytes after `args` stay in guest memory.
    """

    run: Callable[[WhereT, Request], int | Deferred]
    args: Struct | None = None
    reply_bytes: int = 0
    modifies: bool = False
    streamed: bool = False


_ATTR: Final = fuse.ATTR_OUT.size + fuse.ATTR.size
_ENTRY: Final = fuse.ENTRY_OUT.size + fuse.ATTR.size
_OPEN: Final = fuse.OPEN_OUT.size
_WRITE: Final = fuse.WRITE_OUT.size
_STATX: Final = fuse.STATX_OUT.size + fuse.STATX.size

OPERATIONS: Final[dict[int, Operation[Mount]]] = {
    Opcode.LOOKUP: Operation(names.lookup, None, _ENTRY),
    Opcode.FORGET: Operation(names.forget, fuse.FORGET_IN),
    Opcode.BATCH_FORGET: Operation(names.batch_forget, fuse.BATCH_FORGET_IN),
    Opcode.CREATE: Operation(names.create, fuse.CREATE_IN, _ENTRY + _OPEN, modifies=True),
    Opcode.TMPFILE: Operation(names.tmpfile, fuse.CREATE_IN, _ENTRY + _OPEN, modifies=True),
    Opcode.MKDIR: Operation(names.mkdir, fuse.MKDIR_IN, _ENTRY, modifies=True),
    Opcode.MKNOD: Operation(names.mknod, fuse.MKNOD_IN, _ENTRY, modifies=True),
    Opcode.SYMLINK: Operation(names.symlink, None, _ENTRY, modifies=True),
    Opcode.LINK: Operation(names.link, fuse.LINK_IN, _ENTRY, modifies=True),
    Opcode.UNLINK: Operation(names.unlink, None, modifies=True),
    Opcode.RMDIR: Operation(names.rmdir, None, modifies=True),
    Opcode.RENAME: Operation(names.rename, fuse.RENAME_IN, modifies=True),
    Opcode.RENAME2: Operation(names.rename2, fuse.RENAME2_IN, modifies=True),
    Opcode.READLINK: Operation(names.readlink),
    Opcode.OPEN: Operation(files.open_file, fuse.OPEN_IN, _OPEN),
    Opcode.RELEASE: Operation(files.release, fuse.RELEASE_IN),
    Opcode.READ: Operation(files.read, fuse.READ_IN),
    Opcode.WRITE: Operation(files.write, fuse.WRITE_IN, _WRITE, modifies=True, streamed=True),
    Opcode.FLUSH: Operation(files.flush, fuse.FLUSH_IN),
    Opcode.FSYNC: Operation(files.fsync, fuse.FSYNC_IN),
    Opcode.FALLOCATE: Operation(files.fallocate, fuse.FALLOCATE_IN, modifies=True),
    Opcode.LSEEK: Operation(files.lseek, fuse.LSEEK_IN, fuse.LSEEK_OUT.size),
    Opcode.COPY_FILE_RANGE: Operation(
        files.copy_file_range, fuse.COPY_FILE_RANGE_IN, _WRITE, modifies=True
    ),
    Opcode.GETLK: Operation(locks.getlk, fuse.LK_IN, fuse.LK_OUT.size),
    Opcode.SETLK: Operation(locks.setlk, fuse.LK_IN),
    Opcode.SETLKW: Operation(locks.setlkw, fuse.LK_IN),
    Opcode.INTERRUPT: Operation(locks.interrupt, fuse.INTERRUPT_IN),
    Opcode.OPENDIR: Operation(directories.opendir, fuse.OPEN_IN, _OPEN),
    Opcode.RELEASEDIR: Operation(directories.releasedir, fuse.RELEASE_IN),
    Opcode.READDIR: Operation(directories.readdir, fuse.READ_IN),
    Opcode.READDIRPLUS: Operation(directories.readdirplus, fuse.READ_IN),
    Opcode.FSYNCDIR: Operation(directories.fsyncdir, fuse.FSYNC_IN),
    Opcode.GETATTR: Operation(metadata.getattr_, fuse.GETATTR_IN, _ATTR),
    Opcode.SETATTR: Operation(metadata.setattr_, fuse.SETATTR_IN, _ATTR, modifies=True),
    Opcode.STATX: Operation(metadata.statx, fuse.STATX_IN, _STATX),
    Opcode.ACCESS: Operation(metadata.access, fuse.ACCESS_IN),
    Opcode.STATFS: Operation(metadata.statfs, None, fuse.STATFS_OUT.size),
    Opcode.SYNCFS: Operation(metadata.syncfs, fuse.SYNCFS_IN),
    Opcode.SETXATTR: Operation(xattrs.setxattr, fuse.SETXATTR_COMPAT_IN, modifies=True),
    Opcode.GETXATTR: Operation(xattrs.getxattr, fuse.GETXATTR_IN),
    Opcode.LISTXATTR: Operation(xattrs.listxattr, fuse.GETXATTR_IN),
    Opcode.REMOVEXATTR: Operation(xattrs.removexattr, None, modifies=True),
}
