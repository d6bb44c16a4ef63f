"""Listing a directory: cookies that hold while entries come and go.

A cookie is the d_off of the host's file system, unchanged: the host promises that continuing from
it neither skips nor repeats entries that stay. Positions in a list would do both.
Must not know requests or nodes.
"""

from __future__ import annotations

import os
from struct import Struct
from typing import TYPE_CHECKING, Final, TypeAlias

from services.devicehost.devices.fs.host_files import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.devicehost.devices.fs.mount.open_files import OpenDirectory

_LINUX_DIRENT64: Final = Struct("<QqHB")
"""struct linux_dirent64 without its name: d_ino, d_off, d_reclen, d_type (getdents64(2))."""
_BUFFER_BYTES: Final = 32768


Entry: TypeAlias = tuple[int, int, int, bytes]
"""One entry: inode number, the cookie that continues after it, its kind (DT_*) and its name."""


def entries(directory: OpenDirectory, cookie: int) -> Iterator[Entry]:
    """List entries from a cookie on, 0 being the start. Hold `directory.mutex` meanwhile.

    Raises:
        OSError: EINVAL for a cookie that the host does not know.
        OverflowError: The cookie does not fit 63 bits.
    """
    os.lseek(directory.fd, cookie, os.SEEK_SET)
    while block := syscalls.getdents(directory.fd, _BUFFER_BYTES):
        position = 0
        while position < len(block):
            ino, following, length, kind = _LINUX_DIRENT64.unpack_from(block, position)
            start = position + _LINUX_DIRENT64.size
            name = block[start : block.index(b"\0", start)]
            yield ino, following, kind, name
            position += length
