"""Open directories: listing them, with or without a lookup of each entry."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.descriptors import Descriptor
from services.devicehost.devices.fs.directory import Entry, entries
from services.devicehost.devices.fs.errors import refusal
from services.devicehost.devices.fs.handles import OpenDirectory
from services.wire.fuse import (
    ATTR,
    DIRENT,
    ENTRY_OUT,
    FUSE_FSYNC_FDATASYNC,
    OPEN_OUT,
    align8,
)

if TYPE_CHECKING:
    from services.devicehost.devices.fs.mount import Mount
    from services.devicehost.devices.fs.nodes import Node
    from services.devicehost.devices.fs.request import Request

NO_ENTRY: Final = bytes(ENTRY_OUT.size + ATTR.size)
"""Node id 0 in READDIRPLUS: the name is listed, nothing was looked up."""
_DT_UNKNOWN: Final = 0
_DT_REG: Final = 8
_REPLY_BYTES: Final = 1 << 20


def opendir(mount: Mount, request: Request) -> int:
    """OPENDIR: open a directory, with a position of its own."""
    node = mount.nodes.get(request.nodeid)
    if node.kind != stat.S_IFDIR:
        raise refusal(errno.ENOTDIR)
    mount.handles.require_room()
    descriptor = Descriptor(os.open(node.path, os.O_RDONLY | os.O_DIRECTORY))
    number = mount.handles.add(OpenDirectory(node, descriptor))
    return request.reply(OPEN_OUT.pack(number, mount.rules.cache.directory_flags))


def releasedir(mount: Mount, request: Request) -> int:
    """RELEASEDIR: close a directory."""
    mount.handles.remove(request.args[0], OpenDirectory)
    return 0


def fsyncdir(mount: Mount, request: Request) -> int:
    """FSYNCDIR: write a directory back."""
    number, flags = request.args
    opened = mount.handles.get(number, OpenDirectory)
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
    opened = mount.handles.get(number, OpenDirectory)
    room = min(size, request.space_bytes, _REPLY_BYTES)
    prefix_bytes = len(NO_ENTRY) if plus else 0
    listed = bytearray()
    with opened.lock:
        for entry in entries(opened, cookie):
            length = prefix_bytes + align8(DIRENT.size + len(entry.name))
            if len(listed) + length > room:
                # Not even one: the guest would take silence for the end of the directory.
                if not listed:
                    raise refusal(errno.EINVAL)
                break
            if mount.rules.metadata and entry.kind == _DT_REG:
                entry = entry._replace(kind=_DT_UNKNOWN)  # its mode may be another's
            if plus:
                listed += _looked_up(mount, opened, entry)
            listed += dirent(entry, _ino(mount, opened.node, entry))
    return request.reply(bytes(listed))


def _looked_up(mount: Mount, directory: OpenDirectory, entry: Entry) -> bytes:
    """Look an entry up; one that cannot be (removed meanwhile, say) must not hide the others."""
    if entry.name in (b".", b".."):
        return NO_ENTRY
    try:
        return mount.entry(*mount.enter(directory, entry.name))
    except OSError:
        return NO_ENTRY


def _ino(mount: Mount, node: Node, entry: Entry) -> int:
    ino = entry.ino
    if node.id == mount.root_id and entry.name == b"..":
        # What lies above the share is not the guest's to know.
        ino = os.fstat(node.fd).st_ino
    return ino ^ mount.rules.presentation.ino_mask


def dirent(entry: Entry, ino: int) -> bytes:
    """Pack a fuse_dirent with its name, padded."""
    head = DIRENT.pack(ino, entry.cookie, len(entry.name), entry.kind)
    return (head + entry.name).ljust(align8(len(head) + len(entry.name)), b"\0")
