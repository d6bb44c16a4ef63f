"""Upper and lower case in names, in directories of the host that ignore case.

Owns the effect of the option `case=`: with `force` a guest finds an entry under exactly its own
bytes; with `dir` it sees and sets a directory's flag (FS_CASEFOLD_FL) by the attribute that WSL has
for it. Must not know requests.
"""

from __future__ import annotations

import errno
import fcntl
import os
from struct import Struct
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.descriptors import Descriptor
from services.devicehost.devices.fs.host_files.errors import refusal

if TYPE_CHECKING:
    from services.devicehost.devices.fs.host_files.file import HostFile
    from services.devicehost.devices.fs.host_files.syscalls import Statx

CASE_XATTR: Final = b"system.wsl_case_sensitive"
"""A directory's flag as WSL shows it: "1" where case counts, "0" where it does not."""

# include/uapi/linux/fs.h; the ioctls are declared for a long, but read and write an int.
_FS_IOC_GETFLAGS: Final = 0x8008_6601
_FS_IOC_SETFLAGS: Final = 0x4008_6602
_FS_CASEFOLD_FL: Final = 0x4000_0000
_FLAGS: Final = Struct("i4x")
_NO_FLAGS: Final = (errno.ENOTTY, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def require_exact(parent: HostFile, name: bytes, found: Statx) -> None:
    """Refuse an entry that was found by another spelling than its own.

    Most directories do not find an entry by a second spelling, so a second spelling is tried first.
    All names are read only if it leads to the entry, or if the name is not ASCII: folding such a
    name changes more than case.

    Args:
        parent: The directory.
        name: The name that the entry was found by.
        found: The entry's status.

    Raises:
        OSError: ENOENT.
    """
    if name.isascii():
        other = name.swapcase()
        if other == name or not _leads_to(parent, other, found):
            return
    if not _lists(parent, name):
        raise refusal(errno.ENOENT)


def require_exact_entry(parent: HostFile, name: bytes) -> None:
    """Look up an entry, and refuse one that has another spelling.

    Raises:
        OSError: ENOENT.
    """
    require_exact(parent, name, syscalls.status_at(parent.fd, name))


def require_no_other_spelling(parent: HostFile, name: bytes) -> None:
    """Refuse a new name that would replace an entry of another spelling.

    That entry may be the one that is renamed: Linux takes the two names for one, and would report
    success without renaming it (vfs_rename). The guest can rename it by a third name.

    Raises:
        OSError: EEXIST.
    """
    try:
        found = syscalls.status_at(parent.fd, name)
    except FileNotFoundError:
        return
    try:
        require_exact(parent, name, found)
    except FileNotFoundError:
        raise refusal(errno.EEXIST) from None


def case_sensitive(directory: HostFile) -> bytes:
    """Return a directory's flag as the value of CASE_XATTR."""
    opened = Descriptor(os.open(directory.path, os.O_RDONLY | os.O_DIRECTORY))
    return b"0" if _flags(opened) & _FS_CASEFOLD_FL else b"1"


def set_case_sensitive(directory: HostFile, value: bytes) -> None:
    """Set a directory's flag by a value of CASE_XATTR.

    Raises:
        OSError: EINVAL for another value; EOPNOTSUPP when the file system cannot fold; ENOTEMPTY
            when the directory has entries.
    """
    if value not in (b"0", b"1"):
        raise refusal(errno.EINVAL)
    opened = Descriptor(os.open(directory.path, os.O_RDONLY | os.O_DIRECTORY))
    flags = _flags(opened)
    wanted = flags | _FS_CASEFOLD_FL if value == b"0" else flags & ~_FS_CASEFOLD_FL
    if wanted == flags:
        return
    try:
        fcntl.ioctl(opened.fd, _FS_IOC_SETFLAGS, _FLAGS.pack(wanted))
    except OSError as error:
        if error.errno in _NO_FLAGS:
            raise refusal(errno.EOPNOTSUPP) from error
        raise


def _flags(directory: Descriptor) -> int:
    try:
        packed = fcntl.ioctl(directory.fd, _FS_IOC_GETFLAGS, _FLAGS.pack(0))
    except OSError as error:
        if error.errno in _NO_FLAGS:
            return 0
        raise
    flags: int = _FLAGS.unpack(packed)[0]
    return flags


def _leads_to(parent: HostFile, name: bytes, found: Statx) -> bool:
    """Return whether a name leads to this file."""
    try:
        return syscalls.status_at(parent.fd, name).file == found.file
    except OSError:
        return False


def _lists(parent: HostFile, name: bytes) -> bool:
    """Return whether a directory has an entry of exactly this name."""
    opened = Descriptor(os.open(parent.path, os.O_RDONLY | os.O_DIRECTORY))
    with os.scandir(opened.fd) as entries:
        return any(os.fsencode(entry.name) == name for entry in entries)
