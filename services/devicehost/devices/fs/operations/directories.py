"""Open directories: listing them, with or without a lookup of each entry."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files.descriptors import Descriptor
from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.mount.directory import entries
from services.devicehost.devices.fs.mount.open_files import OpenDirectory
from services.wire.fuse import (
    ATTR,
    DIRENT,
    ENTRY_OUT,
    FUSE_FSYNC_FDATASYNC,
    OPEN_OUT,
    align8,
)

if TYPE_CHECKING:
    from services.devicehost.devices.fs.mount.mount import Mount
    from services.devicehost.devices.fs.operations.request import Request

NO_ENTRY: Final = bytes(ENTRY_OUT.size + ATTR.size)
"""Node id 0 in READDIRPLUS: the name is listed, nothing was looked up."""
_PADDING: Final = [bytes(-length % 8) for length in range(8)]
"""Padding after a name, by its length modulo 8; fuse_dirent itself needs none."""
_DT_UNKNOWN: Final = 0
_DT_REG: Final = 8
_REPLY_BYTES: Final = 1 << 20


def opendir(mount: Mount, request: Request) -> int:
    """OPENDIR: open a directory, with a position of its own."""
    node = mount.nodes.get(request.nodeid)
    if node.kind != stat.S_IFDIR:
        raise refusal(errno.ENOTDIR)
    mount.open_files.require_room()
    descriptor = Descriptor(os.open(node.path, os.O_RDONLY | os.O_DIRECTORY))
    number = mount.open_files.add(OpenDirectory(node, descriptor))
    return request.reply(OPEN_OUT.pack(number, mount.rules.cache.directory_flags))


def releasedir(mount: Mount, request: Request) -> int:
    """RELEASEDIR: close a directory."""
    mount.open_files.remove(request.args[0], OpenDirectory)
    return 0


def fsyncdir(mount: Mount, request: Request) -> int:
    """FSYNCDIR: write a directory back."""
    number, flags = request.args
    opened = mount.open_files.get(number, OpenDirectory)
    (os.fdatasync if flags & FUSE_FSYNC_FDATASYNC else os.fsync)(opened.fd)
    return 0


def readdir(mount: Mount, request: Request) -> int:
    """READDIR: list names from a cookie on."""
    return _list(mount, request, plus=False)


def readdirplus(mount: Mount, request: Request) -> int:
    """READDIRPLUS: list names from a cookie on, each looked up."""
    return _list(mount, request, plus=True)


def _list(mount: Mount, request: Request, *, plus: bool) -> int:
    number, cookie, size, _, _, _ = request.args
    opened = mount.open_files.get(number, OpenDirectory)
    room = min(size, request.space_bytes, _REPLY_BYTES)
    fixed_bytes = DIRENT.size + len(NO_ENTRY) if plus else DIRENT.size
    ino_mask = opened.node.ino_mask
    listed = bytearray()
    with opened.mutex:
        for ino, following, kind, name in entries(opened, cookie):
            if len(listed) + align8(fixed_bytes + len(name)) > room:
                # A reply without any entry would look like the end of the directory.
                if not listed:
                    raise refusal(errno.EINVAL)
                break
            if kind == _DT_REG and mount.rules.metadata:
                kind = _DT_UNKNOWN  # the mode that is kept may have another type
            if name == b".." and opened.node.id == mount.root_id:
                # The guest must not learn what is above the share.
                ino = os.fstat(opened.node.fd).st_ino
            if plus:
                dots = name in (b".", b"..")
                listed += NO_ENTRY if dots else _looked_up(mount, opened, name)
            listed += dirent(ino ^ ino_mask, following, kind, name)
    return request.reply(bytes(listed))


def _looked_up(mount: Mount, directory: OpenDirectory, name: bytes) -> bytes:
    """Look up an entry; one that was removed meanwhile must not hide the others."""
    try:
        return mount.entry(*mount.enter(directory, name))
    except OSError:
        return NO_ENTRY


def dirent(ino: int, cookie: int, kind: int, name: bytes) -> bytes:
    """Pack a fuse_dirent with its name, padded."""
    length = len(name)
    return DIRENT.pack(ino, cookie, length, kind) + name + _PADDING[length % 8]
