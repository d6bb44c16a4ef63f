"""The cache policy of a share: the options `cache=` and `writeback`.

A guest may keep:

- none: nothing. Names and attributes are asked for each time, and data never stay in the guest's
  page cache (FOPEN_DIRECT_IO), except data of files that are mapped into memory.
- auto: names and attributes for a second, because the host changes files without notice; data until
  a file is opened again or its attributes have changed.
- always: everything, for a day. It is for shares that only this guest changes.

Attributes of a file with set-id bits are never kept: the host clears the bits when the file is
written, and nothing tells the guest, which would go on running the file with them.

With `writeback` the guest also keeps its writes back for a while, and then its own sizes and times
are the valid ones. Must not know requests or nodes.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from services.wire import fuse

if TYPE_CHECKING:
    from services.handshake.options import FsOptions


SUPPORTED: Final = (
    fuse.FUSE_ASYNC_READ
    | fuse.FUSE_ATOMIC_O_TRUNC
    | fuse.FUSE_BIG_WRITES
    | fuse.FUSE_DONT_MASK
    | fuse.FUSE_AUTO_INVAL_DATA
    | fuse.FUSE_DO_READDIRPLUS
    | fuse.FUSE_READDIRPLUS_AUTO
    | fuse.FUSE_ASYNC_DIO
    | fuse.FUSE_PARALLEL_DIROPS
    | fuse.FUSE_POSIX_LOCKS
    | fuse.FUSE_FLOCK_LOCKS
    | fuse.FUSE_POSIX_ACL
    | fuse.FUSE_MAX_PAGES
    | fuse.FUSE_HANDLE_KILLPRIV_V2
    | fuse.FUSE_SETXATTR_EXT
    | fuse.FUSE_INIT_EXT
    | fuse.FUSE_CREATE_SUPP_GROUP
    | fuse.FUSE_SUBMOUNTS
)
"""Capabilities that are accepted when a guest offers them; a cache policy adds or removes some."""


class _Policy(NamedTuple):
    valid_s: int
    file_flags: int
    directory_flags: int


_POLICIES: Final = {
    "none": _Policy(0, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES, 0),
    "auto": _Policy(1, 0, 0),
    "always": _Policy(
        86_400,
        fuse.FOPEN_KEEP_CACHE,
        # Without KEEP_CACHE, Linux drops a cached listing when the directory is opened again.
        fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE,
    ),
}
_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
_READDIRPLUS: Final = fuse.FUSE_DO_READDIRPLUS | fuse.FUSE_READDIRPLUS_AUTO


class CachePolicy:
    """How long a guest may keep names, attributes and data of one share.

    Attributes:
        valid_s: How long names hold, and most attributes.
        file_flags: FOPEN_* of files.
        directory_flags: FOPEN_* of directories.
    """

    def __init__(self, options: FsOptions) -> None:
        self.valid_s, self.file_flags, self.directory_flags = _POLICIES[options.cache]
        self._direct: Final = options.cache == "none"
        self._writeback: Final = options.writeback

    def attr_valid_s(self, mode: int) -> int:
        """Return how long the attributes of a file with this mode hold."""
        return 0 if mode & _SET_IDS and stat.S_ISREG(mode) else self.valid_s

    def capabilities(self) -> int:
        """Return the FUSE_* that may be agreed on at INIT."""
        if self._direct:
            # The lookups of READDIRPLUS are made in vain if they are valid for no time. Without the
            # flag, Linux refuses shared mappings of files that it does not cache (ENODEV).
            return SUPPORTED & ~_READDIRPLUS | fuse.FUSE_DIRECT_IO_ALLOW_MMAP
        return SUPPORTED | fuse.FUSE_WRITEBACK_CACHE if self._writeback else SUPPORTED


def writeback_flags(flags: int) -> int:
    """Return the flags for opening a file on the host when the guest keeps writes back.

    The guest reads the bytes around a write, so the file must be readable.
    """
    return flags ^ os.O_WRONLY ^ os.O_RDWR if flags & os.O_ACCMODE == os.O_WRONLY else flags
