"""Operations on the root of a device with several shares: a directory of their names alone.

Every user can read it and none can change it: making, removing or renaming an entry is EPERM for
root as well. Only LOOKUP and SYNCFS touch a share's directory, so a share that is out of order does
not keep the others from being listed.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final, TypeAlias

from services.devicehost.devices.fs.aggregate.mount import VALID_S, AggregateMount
from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.descriptors import Descriptor
from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.host_files.syscalls import NAME_MAX, Statx
from services.devicehost.devices.fs.operations.directories import NO_ENTRY, dirent
from services.devicehost.devices.fs.operations.table import OPERATIONS, Operation
from services.wire.fuse import (
    ATTR,
    ATTR_OUT,
    DIRENT,
    FORGET_ONE,
    FUSE_ROOT_ID,
    GETXATTR_OUT,
    OPEN_OUT,
    STATFS_OUT,
    STATX,
    STATX_OUT,
    Attr,
    Opcode,
    align8,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.devicehost.devices.fs.mount.directory import Entry
    from services.devicehost.devices.fs.mount.mount import Mount
    from services.devicehost.devices.fs.operations.request import Request
    from services.devicehost.virtio.deferral import Deferred

_MODE: Final = stat.S_IFDIR | 0o555
_BLOCK_BYTES: Final = 4096
_NS: Final = 1_000_000_000
_STATX_SHOWN: Final = 0x7FF & ~0x20  # STATX_BASIC_STATS without atime, which is not kept
_DT_DIR: Final = 4
_DOTS: Final = (b".", b"..")

_Run: TypeAlias = "Callable[[AggregateMount, Request], int | Deferred]"


def lookup(mount: AggregateMount, request: Request) -> int:
    """LOOKUP: find a share."""
    name = request.name()
    return request.reply(mount.share_entry(name))


def forget(mount: AggregateMount, request: Request) -> int:
    """FORGET: without effect, since the root is never forgotten."""
    return 0


def batch_forget(mount: AggregateMount, request: Request) -> int:
    """BATCH_FORGET: take back lookups of many nodes, in any share."""
    (count,) = request.args
    if len(request.body) != count * FORGET_ONE.size:
        raise refusal(errno.EINVAL)
    for node_id, lookups in FORGET_ONE.iter_unpack(request.body):
        mount.forget(node_id, lookups)
    return 0


def interrupt(mount: AggregateMount, request: Request) -> int:
    """INTERRUPT: end a wait, in any share.

    Raises:
        OSError: EAGAIN when none waits.
    """
    (unique,) = request.args
    # Every share is asked: one that does not know the request yet remembers the INTERRUPT.
    ended = [each.lock_waits.interrupt(unique) for each in mount.mounts()]
    if not any(ended):
        raise refusal(errno.EAGAIN)
    return 0


def getattr_(mount: AggregateMount, request: Request) -> int:
    """GETATTR: a directory that changed when a share was last added or removed."""
    count, changed_ns = len(mount.aggregate.children()), mount.aggregate.changed_ns
    seconds, rest = divmod(changed_ns, _NS)
    attr = Attr(
        ino=FUSE_ROOT_ID,
        size=0,
        blocks=0,
        atime=seconds,
        mtime=seconds,
        ctime=seconds,
        atimensec=rest,
        mtimensec=rest,
        ctimensec=rest,
        mode=_MODE,
        nlink=2 + count,
        uid=0,
        gid=0,
        rdev=0,
        blksize=_BLOCK_BYTES,
        flags=0,
    )
    return request.reply(ATTR_OUT.pack(VALID_S, 0) + ATTR.pack(*attr))


def statx(mount: AggregateMount, request: Request) -> int:
    """STATX: the same as GETATTR."""
    count, changed_ns = len(mount.aggregate.children()), mount.aggregate.changed_ns
    seconds, rest = divmod(changed_ns, _NS)
    none = Statx(*[0] * len(Statx._fields))
    shown = none._replace(
        mask=_STATX_SHOWN,
        blksize=_BLOCK_BYTES,
        nlink=2 + count,
        mode=_MODE,
        ino=FUSE_ROOT_ID,
        atime=seconds,
        atime_ns=rest,
        ctime=seconds,
        ctime_ns=rest,
        mtime=seconds,
        mtime_ns=rest,
    )
    return request.reply(STATX_OUT.pack(VALID_S, 0, 0) + STATX.pack(*shown[:-1]))


def access(mount: AggregateMount, request: Request) -> int:
    """ACCESS: every user may read and search, none may write."""
    (mask,) = request.args
    if mask & os.W_OK:
        raise refusal(errno.EACCES)
    return 0


def statfs(mount: AggregateMount, request: Request) -> int:
    """STATFS: the root has no room of its own."""
    return request.reply(STATFS_OUT.pack(0, 0, 0, 0, 0, _BLOCK_BYTES, NAME_MAX, _BLOCK_BYTES))


def syncfs(mount: AggregateMount, request: Request) -> int:
    """SYNCFS: write back every file system that holds a share, also when one of them fails.

    Raises:
        OSError: The error of the last one that failed.
    """
    failure: OSError | None = None
    for each in mount.mounts():
        try:
            root = each.nodes.root
            opened = Descriptor(os.open(root.path, os.O_RDONLY | os.O_DIRECTORY))
            syscalls.syncfs(opened.fd)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure
    return 0


def opendir(mount: AggregateMount, request: Request) -> int:
    """OPENDIR: an open root has no state, so its handle is 0."""
    return request.reply(OPEN_OUT.pack(0, 0))


def release_or_sync(mount: AggregateMount, request: Request) -> int:
    """RELEASEDIR and FSYNCDIR: without effect, since an open root has no state."""
    return 0


def readdir(mount: AggregateMount, request: Request) -> int:
    """READDIR: list the shares from a cookie on."""
    return _list(mount, request, b"")


def readdirplus(mount: AggregateMount, request: Request) -> int:
    """READDIRPLUS: the same without lookups, since a share may take long to answer."""
    return _list(mount, request, NO_ENTRY)


def getxattr(mount: AggregateMount, request: Request) -> int:
    """GETXATTR: the root has no extended attributes."""
    raise refusal(errno.ENODATA)


def listxattr(mount: AggregateMount, request: Request) -> int:
    """LISTXATTR: the root has no extended attributes."""
    (size,) = request.args
    return 0 if size else request.reply(GETXATTR_OUT.pack(0))


def _list(mount: AggregateMount, request: Request, prefix: bytes) -> int:
    _, cookie, size, _, _, _ = request.args
    room = min(size, request.space_bytes)
    listed = bytearray()
    for ino, following, kind, name in _entries(mount):
        if following <= cookie:
            continue
        if len(listed) + len(prefix) + align8(DIRENT.size + len(name)) > room:
            if not listed:
                raise refusal(errno.EINVAL)
            break
        listed += prefix + dirent(ino, following, kind, name)
    return request.reply(bytes(listed))


def _entries(mount: AggregateMount) -> Iterator[Entry]:
    """List the root; cookies are slots, which only grow and are never used again."""
    for cookie, dots in enumerate(_DOTS, 1):
        yield FUSE_ROOT_ID, cookie, _DT_DIR, dots
    for child in mount.aggregate.children():
        yield child.ino, len(_DOTS) + child.slot, _DT_DIR, os.fsencode(child.name)


def _of_root(run: _Run) -> _Run:
    def checked(mount: AggregateMount, request: Request) -> int | Deferred:
        if request.nodeid != FUSE_ROOT_ID:
            raise refusal(errno.ESTALE)
        return run(mount, request)

    return checked


def _refused(number: int) -> _Run:
    def refuse(mount: AggregateMount, request: Request) -> int:
        raise refusal(number)

    return refuse


def _as(row: Operation[Mount], run: _Run) -> Operation[AggregateMount]:
    """Make a row for the root that checks the form of a request like the row for a share.

    The root refuses changes by errors of its own.
    """
    return Operation(run, row.args, row.reply_bytes, streamed=row.streamed)


_OF_ANY_NODE: Final[dict[Opcode, _Run]] = {
    Opcode.FORGET: forget,
    Opcode.BATCH_FORGET: batch_forget,
    Opcode.INTERRUPT: interrupt,
}
_OF_THE_ROOT: Final[dict[Opcode, _Run]] = {
    Opcode.LOOKUP: lookup,
    Opcode.GETATTR: getattr_,
    Opcode.STATX: statx,
    Opcode.ACCESS: access,
    Opcode.STATFS: statfs,
    Opcode.SYNCFS: syncfs,
    Opcode.OPENDIR: opendir,
    Opcode.READDIR: readdir,
    Opcode.READDIRPLUS: readdirplus,
    Opcode.RELEASEDIR: release_or_sync,
    Opcode.FSYNCDIR: release_or_sync,
    Opcode.GETXATTR: getxattr,
    Opcode.LISTXATTR: listxattr,
    Opcode.OPEN: _refused(errno.EISDIR),
    Opcode.READLINK: _refused(errno.EINVAL),
}
ROOT_OPERATIONS: Final[dict[int, Operation[AggregateMount]]] = {
    **{
        opcode: _as(row, _of_root(_refused(errno.EPERM if row.modifies else errno.EBADF)))
        for opcode, row in OPERATIONS.items()
    },
    **{opcode: _as(OPERATIONS[opcode], _of_root(run)) for opcode, run in _OF_THE_ROOT.items()},
    **{opcode: _as(OPERATIONS[opcode], run) for opcode, run in _OF_ANY_NODE.items()},
}
"""An opcode that is not named above fails with EPERM if it would change the root. Otherwise it
needs the handle of an open file and fails with EBADF."""
