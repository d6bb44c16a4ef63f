"""Extended attributes: those of the host's file system, and the one that `case=dir` adds.

Every name passes the rules of the share: what a guest may not use by a name it does not see.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files.errors import refusal
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


_ACL: Final = b"system.posix_acl_access"
"""Who else may use a file: a permission like those of its mode."""


def setxattr(mount: Mount, request: Request) -> int:
    """SETXATTR: set a value, whose length must be the one that the request names."""
    size, flags = request.args
    node = mount.nodes.get(request.nodeid)
    name, end, value = request.body.partition(b"\0")
    if not end or len(value) != size:
        raise refusal(errno.EINVAL)
    if _is_case_flag(mount, node, name):
        set_case_sensitive(node, value)
        return 0
    on_host = mount.rules.xattrs.on_host(name, hidden=errno.EPERM)
    mount.rules.privileges.require_attribute(on_host)
    _before_change(mount, node, on_host)
    os.setxattr(node.path, on_host, value, flags)
    return 0


def getxattr(mount: Mount, request: Request) -> int:
    """GETXATTR: return a value, or its length when the guest gives no room."""
    (size,) = request.args
    node = mount.nodes.get(request.nodeid)
    (name,) = request.strings(1)
    if _is_case_flag(mount, node, name):
        return _sized(request, size, case_sensitive(node))
    return _sized(request, size, os.getxattr(node.path, mount.rules.xattrs.on_host(name)))


def listxattr(mount: Mount, request: Request) -> int:
    """LISTXATTR: return the names, or their length when the guest gives no room."""
    (size,) = request.args
    node = mount.nodes.get(request.nodeid)
    names = mount.rules.xattrs.shown(node.path)
    return _sized(request, size, b"".join(name + b"\0" for name in names))


def removexattr(mount: Mount, request: Request) -> int:
    """REMOVEXATTR: remove a value."""
    node = mount.nodes.get(request.nodeid)
    (name,) = request.strings(1)
    on_host = mount.rules.xattrs.on_host(name)
    _before_change(mount, node, on_host)
    os.removexattr(node.path, on_host)
    return 0


def _before_change(mount: Mount, node: Node, on_host: bytes) -> None:
    """Keep a change of an ACL from giving others what the guest may not hand out.

    Raises:
        OSError: EPERM; an error of chmod(2) or removexattr(2).
    """
    if on_host == _ACL:
        mount.rules.privileges.require_permits(node)
        mount.rules.privileges.strip(node)


def _is_case_flag(mount: Mount, node: Node, name: bytes) -> bool:
    return mount.rules.case_flags and name == CASE_XATTR and node.kind == stat.S_IFDIR


def _sized(request: Request, size: int, value: bytes) -> int:
    if size == 0:
        return request.reply(GETXATTR_OUT.pack(len(value)))
    if len(value) > size:
        raise refusal(errno.ERANGE)
    return request.reply(value)
