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

_NS: Final = 1_000_000_000
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
        ino_mask: Bits that are flipped in the inode numbers that are shown.
        uid, gid: Shown as every file's owner and group; None shows the real ones.
        keep_dir, keep_file: Bits of the mode that are shown.
    """

    def __init__(self, options: FsOptions, ino_mask: int = 0) -> None:
        """Take the options.

        Args:
            options: Of the share.
            ino_mask: Bits that differ from those of other shares on the same device.
        """
        self.ino_mask: Final = ino_mask
        self.uid: Final = options.uid
        self.gid: Final = options.gid
        self.keep_dir: Final = _U32 & ~(options.umask | (options.dmask or 0))
        self.keep_file: Final = _U32 & ~(options.umask | (options.fmask or 0))

    def attr(self, status: os.stat_result, overrides: Overrides | None = None) -> bytes:
        """Pack a fuse_attr."""
        if overrides is not None:
            return self._attr_with(status, overrides)
        # As a tuple, a stat_result has times in whole seconds, though its type has floats.
        fields: tuple[int, ...] = status  # type: ignore[assignment]
        mode, ino, _, nlink, uid, gid, size, atime, mtime, ctime = fields
        return ATTR.pack(
            ino ^ self.ino_mask,
            size,
            status.st_blocks,
            # seconds before 1970 travel in two's complement
            atime & _U64,
            mtime & _U64,
            ctime & _U64,
            status.st_atime_ns % _NS,
            status.st_mtime_ns % _NS,
            status.st_ctime_ns % _NS,
            mode & (self.keep_dir if stat.S_ISDIR(mode) else self.keep_file),
            nlink & _U32,
            uid if self.uid is None else self.uid,
            gid if self.gid is None else self.gid,
            status.st_rdev & _U32,
            status.st_blksize & _U32,
            0,
        )

    def statx(self, status: Statx, overrides: Overrides | None = None) -> bytes:
        """Pack a fuse_statx."""
        keep = self.keep_dir if stat.S_ISDIR(status.mode) else self.keep_file
        shown = status._replace(
            ino=status.ino ^ self.ino_mask,
            mode=status.mode & keep,
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
        return STATX.pack(*shown)

    def _attr_with(self, status: os.stat_result, overrides: Overrides) -> bytes:
        shown = Attr._make(ATTR.unpack(self.attr(status)))
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
