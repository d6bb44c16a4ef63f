"""Extended attributes: those of the host's file system, ACLs, and what `case=dir` adds.

Every name passes the rules of the share: what a guest may not use by a name it does not see.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.share.acls import ACCESS_ACL, ACLS, shown
from services.devicehost.devices.fs.share.name_case import (
    CASE_XATTR,
    case_sensitive,
    set_case_sensitive,
)
from services.wire.fuse import (
    FUSE_SETXATTR_ACL_KILL_SGID,
    GETXATTR_OUT,
    SETXATTR_COMPAT_IN,
    SETXATTR_IN,
)

if TYPE_CHECKING:
    from services.devicehost.devices.fs.mount.mount import Mount
    from services.devicehost.devices.fs.mount.nodes import Node
    from services.devicehost.devices.fs.operations.request import Request


_EXTENSION_BYTES: Final = SETXATTR_IN.size - SETXATTR_COMPAT_IN.size
_ALL: Final = 0o777


def setxattr(mount: Mount, request: Request) -> int:
    """SETXATTR: set a value, whose length must be the one that the request names."""
    size, flags = request.args
    node = mount.nodes.get(request.nodeid)
    body, kinds = request.body, None
    if mount.long_setxattr:
        kinds, body = int.from_bytes(body[:4], "little"), body[_EXTENSION_BYTES:]
    name, end, value = body.partition(b"\0")
    if not end or len(value) != size:
        raise refusal(errno.EINVAL)
    if _is_case_flag(mount, node, name):
        set_case_sensitive(node, value)
        return 0
    if name in ACLS:
        _require_acls(mount)
    on_host = mount.rules.xattrs.on_host(name, hidden=errno.EPERM)
    mount.rules.privileges.require_attribute(on_host)
    _before_change(mount, node, on_host)
    os.setxattr(node.path, on_host, value, flags)
    if name == ACCESS_ACL:
        _drop_set_group_id(request, node, kinds)
    return 0


def getxattr(mount: Mount, request: Request) -> int:
    """GETXATTR: return a value, or its length when the guest gives no room."""
    (size,) = request.args
    node = mount.nodes.get(request.nodeid)
    (name,) = request.strings(1)
    if _is_case_flag(mount, node, name):
        return _sized(request, size, case_sensitive(node))
    if name in ACLS:
        return _sized(request, size, _acl(mount, node, name))
    return _sized(request, size, os.getxattr(node.path, mount.rules.xattrs.on_host(name)))


def listxattr(mount: Mount, request: Request) -> int:
    """LISTXATTR: return the names, or their length when the guest gives no room."""
    (size,) = request.args
    node = mount.nodes.get(request.nodeid)
    names = mount.rules.xattrs.shown(node.path)
    if not (mount.checks_acls and mount.rules.shows_acls):
        names = [name for name in names if name not in ACLS]
    return _sized(request, size, b"".join(name + b"\0" for name in names))


def removexattr(mount: Mount, request: Request) -> int:
    """REMOVEXATTR: remove a value."""
    node = mount.nodes.get(request.nodeid)
    (name,) = request.strings(1)
    if name in ACLS:
        _require_acls(mount)
    on_host = mount.rules.xattrs.on_host(name)
    _before_change(mount, node, on_host)
    os.removexattr(node.path, on_host)
    return 0


def _before_change(mount: Mount, node: Node, on_host: bytes) -> None:
    """Keep a change of an ACL from giving others what the guest may not hand out.

    Raises:
        OSError: EPERM; an error of chmod(2) or removexattr(2).
    """
    if on_host == ACCESS_ACL:
        mount.rules.privileges.require_permits(node)
        mount.rules.privileges.strip(node)


def _acl(mount: Mount, node: Node, name: bytes) -> bytes:
    """Return an ACL as the guest is to obey it.

    Raises:
        OSError: ENODATA when there is none, also where there can be none: a guest that checks ACLs
            would refuse all access to a file whose ACL it cannot get. EOPNOTSUPP for a guest that
            does not check them.
    """
    if not mount.checks_acls:
        raise refusal(errno.EOPNOTSUPP)
    if not mount.rules.shows_acls:
        raise refusal(errno.ENODATA)
    try:
        value = os.getxattr(node.path, name)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise refusal(errno.ENODATA) from error
        raise
    return shown(value, mount.rules.presentation.keep(node.kind) if name == ACCESS_ACL else _ALL)


def _require_acls(mount: Mount) -> None:
    """Refuse to change an ACL that would not be obeyed.

    Raises:
        OSError: EOPNOTSUPP.
    """
    if not (mount.checks_acls and mount.rules.shows_acls):
        raise refusal(errno.EOPNOTSUPP)


def _drop_set_group_id(request: Request, node: Node, kinds: int | None) -> None:
    """Clear the bit if the user who has set an ACL is not in the file's group, as Linux does.

    Args:
        request: SETXATTR.
        node: The file.
        kinds: FUSE_SETXATTR_*; None: the guest's request has no room for them. Then its groups are
            not known but one, and the bit may fall in vain.
    """
    status = syscalls.status_of(node.fd)
    if kinds is None:
        outside = request.uid and request.gid != status.gid
    else:
        outside = kinds & FUSE_SETXATTR_ACL_KILL_SGID
    if outside and status.mode & stat.S_ISGID:
        os.chmod(node.path, stat.S_IMODE(status.mode) & ~stat.S_ISGID)  # noqa: PTH101 - bytes


def _is_case_flag(mount: Mount, node: Node, name: bytes) -> bool:
    return mount.rules.case_flags and name == CASE_XATTR and node.kind == stat.S_IFDIR


def _sized(request: Request, size: int, value: bytes) -> int:
    if size == 0:
        return request.reply(GETXATTR_OUT.pack(len(value)))
    if len(value) > size:
        raise refusal(errno.ERANGE)
    return request.reply(value)
