"""Attributes of nodes: GETATTR, SETATTR, STATX, ACCESS, STATFS, SYNCFS."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.descriptors import Descriptor
from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.mount.open_files import OpenFile
from services.devicehost.devices.fs.share.attributes import STATX_MASK
from services.wire.fuse import (
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_FH,
    FATTR_GID,
    FATTR_KILL_SUIDGID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
    STATFS_OUT,
    SetattrIn,
)

if TYPE_CHECKING:
    from services.devicehost.devices.fs.mount.mount import Mount
    from services.devicehost.devices.fs.mount.nodes import Node
    from services.devicehost.devices.fs.operations.request import Request

_KEEP_ID = (1 << 32) - 1
_ACCESS_MODES = os.R_OK | os.W_OK | os.X_OK


def getattr_(mount: Mount, request: Request) -> int:
    """GETATTR: the node's attributes; a handle, if given, is not used."""
    node = mount.nodes.get(request.nodeid)
    return request.reply(mount.attr(node, syscalls.status_of(node.fd)))


def setattr_(mount: Mount, request: Request) -> int:
    """SETATTR: owner, size, mode and times, in this order.

    Changing the owner or the size may clear set-id bits, so the mode is set after them; changing
    the size changes the times, so they are set last.
    """
    wanted = SetattrIn(*request.args)
    node = mount.nodes.get(request.nodeid)
    kept = mount.rules.kept(node)
    privileges = mount.rules.privileges
    if wanted.valid & (FATTR_UID | FATTR_GID | FATTR_MODE):
        privileges.require_permits(node)
    if wanted.valid & (FATTR_UID | FATTR_GID) and kept:
        kept.keep_owner(
            node,
            wanted.uid if wanted.valid & FATTR_UID and wanted.uid != _KEEP_ID else None,
            wanted.gid if wanted.valid & FATTR_GID and wanted.gid != _KEEP_ID else None,
        )
    elif wanted.valid & (FATTR_UID | FATTR_GID):
        _set_owner(mount, node, wanted)
    if wanted.valid & (FATTR_UID | FATTR_GID):
        mount.drop_kept_capability(node)
    if wanted.valid & FATTR_SIZE:
        _set_size(mount, node, wanted)
    if wanted.valid & FATTR_MODE and kept:
        kept.keep_mode(node, wanted.mode)
    elif wanted.valid & FATTR_MODE:
        privileges.strip(node)
        directory = node.kind == stat.S_IFDIR
        os.chmod(node.path, privileges.host_mode(wanted.mode, directory=directory))  # noqa: PTH101
    if wanted.valid & (FATTR_ATIME | FATTR_MTIME):
        syscalls.set_times(
            node.path,
            _time(wanted.valid, FATTR_ATIME, FATTR_ATIME_NOW, wanted.atime, wanted.atimensec),
            _time(wanted.valid, FATTR_MTIME, FATTR_MTIME_NOW, wanted.mtime, wanted.mtimensec),
        )
    return request.reply(mount.attr(node, syscalls.status_of(node.fd)))


def statx(mount: Mount, request: Request) -> int:
    """STATX: attributes with the time of birth."""
    _, _, _, mask = request.args
    node = mount.nodes.get(request.nodeid)
    status = syscalls.statx(node.fd, mask & STATX_MASK)
    return request.reply(mount.statx(node, status))


def access(mount: Mount, request: Request) -> int:
    """ACCESS: check a user's rights; sent only by guests that do not check them themselves."""
    (mask,) = request.args
    node = mount.nodes.get(request.nodeid)
    if mask & ~_ACCESS_MODES:
        raise refusal(errno.EINVAL)
    if mask & os.W_OK and mount.rules.read_only:
        raise refusal(errno.EROFS)
    kept = mount.rules.kept(node)
    if kept:
        if not kept.permits(node, request.uid, request.gid, mask):
            raise refusal(errno.EACCES)
        return 0
    with mount.checking(request.user):
        if not os.access(node.path, mask, effective_ids=True):
            raise refusal(errno.EACCES)
    return 0


def statfs(mount: Mount, request: Request) -> int:
    """STATFS: room and limits of the file system that holds the node."""
    node = mount.nodes.get(request.nodeid)
    status = os.statvfs(node.fd)
    return request.reply(
        STATFS_OUT.pack(
            status.f_blocks,
            status.f_bfree,
            status.f_bavail,
            status.f_files,
            status.f_ffree,
            status.f_bsize,
            status.f_namemax,
            status.f_frsize,
        )
    )


def syncfs(mount: Mount, request: Request) -> int:
    """SYNCFS: write back the file system that holds the node."""
    node = mount.nodes.get(request.nodeid)
    if node.kind not in (stat.S_IFDIR, stat.S_IFREG):
        raise refusal(errno.EINVAL)
    opened = Descriptor(os.open(node.path, os.O_RDONLY))
    syscalls.syncfs(opened.fd)
    return 0


def _set_owner(mount: Mount, node: Node, wanted: SetattrIn) -> None:
    """Change the owner; an owner that an option fixes can be set to itself only."""
    shown = mount.rules.presentation
    uid = wanted.uid if wanted.valid & FATTR_UID else _KEEP_ID
    gid = wanted.gid if wanted.valid & FATTR_GID else _KEEP_ID
    for value, fixed in ((uid, shown.uid), (gid, shown.gid)):
        if fixed is not None and value not in (fixed, _KEEP_ID):
            raise refusal(errno.EPERM)
    os.chown(
        node.path,
        _host_id(uid, shown.uid),
        _host_id(gid, shown.gid),
    )


def _host_id(value: int, fixed: int | None) -> int:
    """Return the id for chown(2): -1, which keeps the present one, if an option fixes it."""
    return -1 if value == _KEEP_ID or fixed is not None else value


def _set_size(mount: Mount, node: Node, wanted: SetattrIn) -> None:
    """Change the size, by the open file if given: it may be writable when the name is not."""
    if node.kind != stat.S_IFREG:
        raise refusal(errno.EISDIR if node.kind == stat.S_IFDIR else errno.EINVAL)
    with mount.writing(node, wanted.valid & FATTR_KILL_SUIDGID):
        if wanted.valid & FATTR_FH:
            opened = mount.open_files.get(wanted.fh, OpenFile)
            os.ftruncate(opened.fd, wanted.size)
        else:
            os.truncate(node.path, wanted.size)


def _time(valid: int, given: int, now: int, seconds: int, nanoseconds: int) -> tuple[int, int]:
    if not valid & given:
        return 0, syscalls.UTIME_OMIT
    if valid & now:
        return 0, syscalls.UTIME_NOW
    # UTIME_NOW and UTIME_OMIT are larger, and are not for guests.
    if nanoseconds >= 1_000_000_000:
        raise refusal(errno.EINVAL)
    return seconds, nanoseconds
