"""POSIX ACLs: which attributes they are, and how a share shows them.

The guest's kernel checks permissions (FUSE_POSIX_ACL), so it is shown the ACL that the host's file
has, with the effect of the options `umask=`, `dmask=` and `fmask=`: bits that they take away from
modes are taken away from an ACL as well. `uid=` and `gid=` need nothing: an ACL does not name the
owner. Must not know requests.
"""

from __future__ import annotations

import os
from struct import Struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from services.devicehost.devices.fs.host_files.file import HostFile

ACCESS_ACL: Final = b"system.posix_acl_access"
DEFAULT_ACL: Final = b"system.posix_acl_default"
ACLS: Final = frozenset({ACCESS_ACL, DEFAULT_ACL})
"""The attributes by which Linux reads and sets ACLs (include/uapi/linux/xattr.h)."""

# include/uapi/linux/posix_acl_xattr.h and posix_acl.h.
_VERSION_BYTES: Final = 4
_ENTRY: Final = Struct("<HHI")
"""Tag, permissions, and the id of a named user or group."""
_USER_OBJ: Final = 0x01
_USER: Final = 0x02
_GROUP_OBJ: Final = 0x04
_GROUP: Final = 0x08
_MASK: Final = 0x10
_OTHER: Final = 0x20
_SHIFTS: Final = {_USER_OBJ: 6, _GROUP_OBJ: 3, _MASK: 3, _OTHER: 0}
"""Where the bits of an entry are in a mode. The mask bounds all that are not here."""
_RWX: Final = 0o7
_NO_ID: Final = (1 << 32) - 1
_OVERFLOW_ID: Final = 65534
"""The id that Linux shows where a user namespace has none (/proc/sys/kernel/overflowuid)."""


def has_default_acl(directory: HostFile) -> bool:
    """Return whether an ACL decides the permissions of what is made in a directory."""
    try:
        return bool(os.getxattr(directory.path, DEFAULT_ACL))
    except OSError:
        return False


def shown(acl: bytes, keep: int) -> bytes:
    """Return an ACL of the host as a guest sees it.

    Args:
        acl: Value of one of ACLS.
        keep: The bits of a mode that are shown.
    """
    entries = []
    for tag, given, number in _ENTRY.iter_unpack(acl[_VERSION_BYTES:]):
        permissions, name = given, number
        if tag in _SHIFTS:
            permissions &= keep >> _SHIFTS[tag] & _RWX
        elif tag in (_USER, _GROUP) and number == _NO_ID:
            # Linux takes no ACL without the id, and would refuse everybody.
            name = _OVERFLOW_ID
        entries.append(_ENTRY.pack(tag, permissions, name))
    return acl[:_VERSION_BYTES] + b"".join(entries)
