"""Extended attributes: those of the host's file system, and the one that `case=dir` adds."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.share.lx_metadata import HIDDEN
from services.devicehost.devices.fs.share.name_case import (
    CASE_XATTR,
    case_sensitive,
    set_case_sensitive,
)
from services.wire.fuse import GETXATTR_OUT

if TYPE_CHECKING:
    from services.devicehost.devices.fs.mount.mount import Mount
    from services.devicehost.devices.fs.mount.nodes import Node
    from services.devicehost.devices.fs.operations.request import Request


def setxattr(mount: Mount, request: Request) -> int:
    """SETXATTR: set a value, whose length must be the one that the request names."""
    size, flags = request.args
    node = mount.nodes.get(request.nodeid)
    name, end, value = request.body.partition(b"\0")
    if not end or len(value) != size:
        raise refusal(errno.EINVAL)
    if name in HIDDEN:
        raise refusal(errno.EPERM)
    if _is_case_flag(mount, node, name):
        set_case_sensitive(node, value)
    else:
        os.setxattr(node.path, name, value, flags)
    return 0


def getxattr(mount: Mount, request: Request) -> int:
    """GETXATTR: return a value, or its length when the guest gives no room."""
    (size,) = request.args
    node = mount.nodes.get(request.nodeid)
    name = _visible_name(request)
    if _is_case_flag(mount, node, name):
        return _sized(request, size, case_sensitive(node))
    return _sized(request, size, os.getxattr(node.path, name))


def listxattr(mount: Mount, request: Request) -> int:
    """LISTXATTR: return the names, or their length when the guest gives no room."""
    (size,) = request.args
    node = mount.nodes.get(request.nodeid)
    names = map(os.fsencode, os.listxattr(node.path))
    return _sized(request, size, b"".join(name + b"\0" for name in names if name not in HIDDEN))


def removexattr(mount: Mount, request: Request) -> int:
    """REMOVEXATTR: remove a value."""
    node = mount.nodes.get(request.nodeid)
    name = _visible_name(request)
    os.removexattr(node.path, name)
    return 0


def _visible_name(request: Request) -> bytes:
    (name,) = request.strings(1)
    if name in HIDDEN:
        raise refusal(errno.ENODATA)
    return name


def _is_case_flag(mount: Mount, node: Node, name: bytes) -> bool:
    return mount.rules.case_flags and name == CASE_XATTR and node.kind == stat.S_IFDIR


def _sized(request: Request, size: int, value: bytes) -> int:
    if size == 0:
        return request.reply(GETXATTR_OUT.pack(len(value)))
    if len(value) > size:
        raise refusal(errno.ERANGE)
    return request.reply(value)
