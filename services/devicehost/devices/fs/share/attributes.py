"""A file's status as a guest sees it: the host's, with the share's options applied.

Owns the mapping from stat to fuse_attr and fuse_statx, and the effects of the options `uid=`,
`gid=`, `umask=`, `dmask=` and `fmask=` on it. A mask takes permission bits away from the modes that
are shown: `umask=` from all modes, `dmask=` also from those of directories, and `fmask=` also from
those of all other files. Must not know requests or nodes.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from services.wire.fuse import ATTR, STATX, Attr

if TYPE_CHECKING:
    from services.devicehost.devices.fs.host_files.syscalls import Statx
    from services.handshake.options import FsOptions

STATX_MASK: Final = 0xFFF
"""STATX_BASIC_STATS and STATX_BTIME: what fuse_statx has fields for."""

_U64: Final = (1 << 64) - 1
_U32: Final = (1 << 32) - 1


class Overrides(NamedTuple):
    """Values that one file shows instead of the host's or an option's; None: no other value.

    A mode is shown as it is, with its type; masks do not apply to it.
    """

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    rdev: int | None = None
    size: int | None = None


class Presentation:
    """How one share shows owners and modes.

    Attributes:
        uid, gid: Shown as every file's owner and group; None shows the real ones.
        keep_dir, keep_file: Bits of the mode that are shown.
        is_whole: Whether all of them are.
    """

    def __init__(self, options: FsOptions) -> None:
        """Take the options of the share."""
        self.uid: Final = options.uid
        self.gid: Final = options.gid
        self.keep_dir: Final = _U32 & ~(options.umask | (options.dmask or 0))
        self.keep_file: Final = _U32 & ~(options.umask | (options.fmask or 0))
        self.is_whole: Final = self.keep_dir & self.keep_file == _U32

    def keep(self, kind: int) -> int:
        """Return the bits of the mode that are shown of a file with these S_IFMT bits."""
        return self.keep_dir if stat.S_ISDIR(kind) else self.keep_file

    def attr(
        self,
        status: Statx,
        overrides: Overrides | None = None,
        ino_mask: int = 0,
        flags: int = 0,
    ) -> bytes:
        """Pack a fuse_attr.

        Args:
            status: Of the file.
            overrides: Values that are shown instead.
            ino_mask: Bits that are flipped in the inode number.
            flags: FUSE_ATTR_*.
        """
        if overrides is not None:
            return _with(overrides, self.attr(status, None, ino_mask, flags))
        mode, rdev = status.mode, 0
        if status.rdev_major or status.rdev_minor:
            rdev = os.makedev(status.rdev_major, status.rdev_minor)
        return ATTR.pack(
            status.ino ^ ino_mask,
            status.size,
            status.blocks,
            # seconds before 1970 travel in two's complement
            status.atime & _U64,
            status.mtime & _U64,
            status.ctime & _U64,
            status.atime_ns,
            status.mtime_ns,
            status.ctime_ns,
            mode & self.keep(mode),
            status.nlink,
            status.uid if self.uid is None else self.uid,
            status.gid if self.gid is None else self.gid,
            rdev & _U32,
            status.blksize,
            flags,
        )

    def statx(self, status: Statx, overrides: Overrides | None = None, ino_mask: int = 0) -> bytes:
        """Pack a fuse_statx; see `attr`."""
        shown = status._replace(
            mask=status.mask & STATX_MASK,
            ino=status.ino ^ ino_mask,
            mode=status.mode & self.keep(status.mode),
            uid=status.uid if self.uid is None else self.uid,
            gid=status.gid if self.gid is None else self.gid,
        )
        if overrides is not None:
            uid, gid, mode, rdev, size = overrides
            shown = shown._replace(
                uid=_either(uid, shown.uid),
                gid=_either(gid, shown.gid),
                mode=_either(mode, shown.mode),
                rdev_major=shown.rdev_major if rdev is None else os.major(rdev),
                rdev_minor=shown.rdev_minor if rdev is None else os.minor(rdev),
                size=_either(size, shown.size),
            )
        return STATX.pack(*shown[:-1])  # there is no field for the mount


def _with(overrides: Overrides, attr: bytes) -> bytes:
    shown = Attr._make(ATTR.unpack(attr))
    uid, gid, mode, rdev, size = overrides
    return ATTR.pack(
        *shown._replace(
            uid=_either(uid, shown.uid),
            gid=_either(gid, shown.gid),
            mode=_either(mode, shown.mode),
            rdev=_either(rdev, shown.rdev) & _U32,
            size=_either(size, shown.size),
        )
    )


def _either(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value
