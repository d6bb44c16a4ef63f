"""Open regular files: their data, holes, write-back and end.

READ and WRITE move data between the page cache and guest memory directly. Only regular files are
opened: a FIFO could block the queue, a device would act on the host, and guests serve both
themselves.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files import credentials, syscalls
from services.devicehost.devices.fs.host_files.descriptors import Descriptor
from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.mount.open_files import OpenFile
from services.devicehost.devices.fs.share.cache import writeback_flags
from services.wire.fuse import (
    FUSE_FSYNC_FDATASYNC,
    FUSE_OPEN_KILL_SUIDGID,
    FUSE_RELEASE_FLOCK_UNLOCK,
    FUSE_RELEASE_FLUSH,
    FUSE_WRITE_CACHE,
    FUSE_WRITE_KILL_SUIDGID,
    LSEEK_OUT,
    OPEN_OUT,
    WRITE_OUT,
)

if TYPE_CHECKING:
    from services.devicehost.devices.fs.mount.mount import Mount
    from services.devicehost.devices.fs.mount.nodes import Node
    from services.devicehost.devices.fs.operations.request import Request

_USABLE: Final = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME | os.O_LARGEFILE
"""Open flags of a guest that are passed to the host. O_APPEND comes with each WRITE instead: a
program may set or clear it later, and data that a mapping wrote back have an offset of their own.
O_DIRECT concerns the guest's cache alone, and the host's alignment rules would break it. O_PATH,
O_NONBLOCK, O_DIRECTORY and O_CREAT never pass."""
_COPY_BYTES: Final = 64 << 20
"""The most that one COPY_FILE_RANGE copies, so that a queue stays responsive; callers loop."""


def host_flags(mount: Mount, flags: int) -> int:
    """Return the flags of open(2) for the flags of a guest."""
    usable = flags & _USABLE
    return writeback_flags(usable) if mount.writeback else usable


def open_via_path(path: bytes, flags: int) -> int:
    """Open a file of the host, without O_NOATIME where the host refuses that.

    It does so to who does not own the file, as an ordinary user's device host may not. The guest's
    kernel has checked whether its user may ask for it; overlayfs always does, for its lower files.

    Raises:
        OSError: An error of open(2).
    """
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno != errno.EPERM or not flags & os.O_NOATIME:
            raise
    return os.open(path, flags & ~os.O_NOATIME)


def open_regular(mount: Mount, node: Node, flags: int, open_flags: int) -> OpenFile:
    """Open a node that is a regular file.

    Raises:
        OSError: EISDIR, ELOOP or ENXIO when it is a directory, a symlink or a special file; EROFS
            when a read-only share is to be written; an error of open(2).
    """
    if node.kind != stat.S_IFREG:
        raise refusal(
            {stat.S_IFDIR: errno.EISDIR, stat.S_IFLNK: errno.ELOOP}.get(node.kind, errno.ENXIO)
        )
    if mount.rules.read_only and flags & (os.O_ACCMODE | os.O_TRUNC):
        raise refusal(errno.EROFS)
    kill = open_flags & FUSE_OPEN_KILL_SUIDGID
    with mount.writing(node, kill) if kill or flags & os.O_TRUNC else credentials.NOTHING:
        return OpenFile(node, Descriptor(open_via_path(node.path, host_flags(mount, flags))))


def open_file(mount: Mount, request: Request) -> int:
    """OPEN: open a node."""
    flags, open_flags = request.args
    opened = open_regular(mount, mount.nodes.get(request.nodeid), flags, open_flags)
    number = mount.open_files.add(opened)
    return request.reply(OPEN_OUT.pack(number, mount.rules.cache.file_flags))


def release(mount: Mount, request: Request) -> int:
    """RELEASE: close a file, and drop the locks that were set by it."""
    number, _, release_flags, lock_owner = request.args
    opened = mount.open_files.get(number, OpenFile)
    mount.open_files.remove(number, OpenFile)
    if release_flags & FUSE_RELEASE_FLOCK_UNLOCK:  # a request under way may keep the file open
        syscalls.set_file_lock(opened.fd, fcntl.LOCK_UN)
    if release_flags & FUSE_RELEASE_FLUSH:
        mount.lock_owners.drop(opened.node.id, lock_owner)
    mount.lock_owners.release(opened.node.id, number)
    return 0


def read(mount: Mount, request: Request) -> int:
    """READ: page cache to guest memory."""
    number, offset, size, _, _, _ = request.args
    opened = mount.open_files.get(number, OpenFile)
    return os.preadv(opened.fd, request.space_of(size), offset)


def write(mount: Mount, request: Request) -> int:
    """WRITE: guest memory to page cache, at the offset or, with O_APPEND, at the file's end.

    The payload must be as long as the request says.
    """
    number, offset, size, write_flags, _, file_flags = request.args
    opened = mount.open_files.get(number, OpenFile)
    payload = request.payload_of(size)
    appends = file_flags & os.O_APPEND and not write_flags & FUSE_WRITE_CACHE
    how = os.RWF_APPEND if appends else 0
    with mount.writing(opened.node, write_flags & FUSE_WRITE_KILL_SUIDGID):
        written = os.pwritev(opened.fd, payload, offset, how)
    return request.reply(WRITE_OUT.pack(written))


def flush(mount: Mount, request: Request) -> int:
    """FLUSH: report the error that closing would; sent at each close of a descriptor in the guest.

    A process that closes a file loses its POSIX locks on it, whichever descriptor it closes.
    """
    number, lock_owner = request.args
    opened = mount.open_files.get(number, OpenFile)
    mount.lock_owners.drop(opened.node.id, lock_owner)
    os.close(os.dup(opened.fd))
    return 0


def fsync(mount: Mount, request: Request) -> int:
    """FSYNC: write a file back, wholly or its data only."""
    number, flags = request.args
    opened = mount.open_files.get(number, OpenFile)
    (os.fdatasync if flags & FUSE_FSYNC_FDATASYNC else os.fsync)(opened.fd)
    return 0


def fallocate(mount: Mount, request: Request) -> int:
    """FALLOCATE: reserve or punch a range.

    The request has no flag for clearing set-id bits; they are cleared unless its user is root.
    """
    number, offset, length, mode = request.args
    opened = mount.open_files.get(number, OpenFile)
    with mount.writing(opened.node, request.uid):
        syscalls.fallocate(opened.fd, mode, offset, length)
    return 0


def lseek(mount: Mount, request: Request) -> int:
    """LSEEK: find data or a hole."""
    number, offset, whence = request.args
    if whence not in (os.SEEK_SET, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE):
        raise refusal(errno.EINVAL)
    opened = mount.open_files.get(number, OpenFile)
    return request.reply(LSEEK_OUT.pack(os.lseek(opened.fd, offset, whence)))


def copy_file_range(mount: Mount, request: Request) -> int:
    """COPY_FILE_RANGE: copy between two open files without moving data through the guest.

    Set-id bits are cleared as in FALLOCATE.
    """
    from_number, from_offset, target_id, to_number, to_offset, length, flags = request.args
    if flags:
        raise refusal(errno.EINVAL)
    mount.require_own(target_id)
    source = mount.open_files.get(from_number, OpenFile)
    target = mount.open_files.get(to_number, OpenFile)
    with mount.writing(target.node, request.uid):
        copied = os.copy_file_range(
            source.fd, target.fd, min(length, _COPY_BYTES), from_offset, to_offset
        )
    return request.reply(WRITE_OUT.pack(copied))
