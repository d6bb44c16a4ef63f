"""Owner, mode and device number as a guest has set them: the option `metadata`.

They are kept in extended attributes of the host's file, which belongs to the device host's own
user. Their names and layouts are those that WSL gives to files of Windows. A device node, FIFO or
socket is kept as an empty regular file. Linux has such attributes for regular files and directories
only: a symlink shows its real owner, and a special file of the host its real attributes. Must not
know requests.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from struct import Struct
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.share.attributes import Overrides
from services.wire.fuse import ATTR, Attr

if TYPE_CHECKING:
    from services.devicehost.devices.fs.host_files.credentials import User
    from services.devicehost.devices.fs.host_files.file import HostFile
    from services.devicehost.devices.fs.share.attributes import Presentation

_UID: Final = b"user.$LXUID"
_GID: Final = b"user.$LXGID"
_MODE: Final = b"user.$LXMOD"
_DEVICE: Final = b"user.$LXDEV"
HIDDEN: Final = frozenset({_UID, _GID, _MODE, _DEVICE})
"""Attributes that no guest of any share sees or sets by name. Otherwise a guest could set a mode
with a set-user-id bit, which takes effect in each share of the same files that has `metadata`."""

_VALUE: Final = Struct("<I")
_NUMBERS: Final = Struct("<II")
"""Major and minor number of a device."""
_MAJORS: Final = 1 << 12
_MINORS: Final = 1 << 20
"""How many of each FUSE can encode (include/linux/kdev_t.h, new_encode_dev)."""

_DEVICES: Final = (stat.S_IFCHR, stat.S_IFBLK)
SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
_TYPES: Final = {
    stat.S_IFREG: frozenset(
        {stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}
    ),
    stat.S_IFDIR: frozenset({stat.S_IFDIR}),
}
"""The types that a mode may have, by the type of the host's file."""


class LxMetadata:
    """The owners, modes and device numbers that one share keeps."""

    def __init__(self, presentation: Presentation, *, set_ids: bool = True) -> None:
        """Keep nothing yet.

        Args:
            presentation: How the share shows files for which nothing is kept.
            set_ids: Whether set-id bits of files are kept, and shown.
        """
        self._presentation: Final = presentation
        self._file_bits: Final = ~0 if set_ids else ~SET_IDS

    @staticmethod
    def keeps(file: HostFile) -> bool:
        """Return whether something can be kept for a file."""
        return file.kind in _TYPES

    @staticmethod
    def host_mode(mode: int, *, directory: bool) -> int:
        """Return the mode for the host's file, which the device host itself can always use."""
        return mode & 0o777 | (0o700 if directory else 0o600)

    def overrides(self, file: HostFile) -> Overrides:
        """Return what is kept for a regular file or directory."""
        path = file.path
        mode, rdev = _read_value(path, _MODE), None
        if mode is not None:
            kind = stat.S_IFMT(mode)
            if kind not in _TYPES[file.kind]:  # another program has written it
                mode = file.kind | stat.S_IMODE(mode)
            elif kind in _DEVICES:
                rdev = _read_device(path)
            mode = self._kept_mode(mode)
        return Overrides(_read_value(path, _UID), _read_value(path, _GID), mode, rdev)

    def shown(self, file: HostFile) -> Attr:
        """Return the attributes of a regular file or directory as the guest sees them."""
        packed = self._presentation.attr(syscalls.status_of(file.fd), self.overrides(file))
        return Attr._make(ATTR.unpack(packed))

    def keep_new(self, parent: HostFile, path: bytes, creator: User, mode: int, rdev: int) -> None:
        """Keep owner, mode and device number of a new file; its group follows inode_init_owner().

        Args:
            parent: The directory that it was made in.
            path: A path that leads to it.
            creator: The user that has made it.
            mode: Type and permissions.
            rdev: Device number, as fuse_mknod_in has it.

        Raises:
            OSError: An error of setxattr(2); a part may have been kept already.
        """
        directory = self.shown(parent)
        gid = creator.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
            elif mode & stat.S_IXGRP and creator.uid and not creator.member and creator.gid != gid:
                mode &= ~stat.S_ISGID
        os.setxattr(path, _UID, _VALUE.pack(creator.uid))
        os.setxattr(path, _GID, _VALUE.pack(gid))
        if stat.S_IFMT(mode) in _DEVICES:
            os.setxattr(path, _DEVICE, _NUMBERS.pack(os.major(rdev), os.minor(rdev)))
        os.setxattr(path, _MODE, _VALUE.pack(self._kept_mode(mode)))

    def keep_owner(self, file: HostFile, uid: int | None, gid: int | None) -> None:
        """Keep another owner, group, or both; this clears set-id bits, except of directories.

        Raises:
            OSError: An error of setxattr(2).
        """
        if uid is not None:
            os.setxattr(file.path, _UID, _VALUE.pack(uid))
        if gid is not None:
            os.setxattr(file.path, _GID, _VALUE.pack(gid))
        self.drop_set_ids(file)

    def keep_mode(self, file: HostFile, permissions: int) -> None:
        """Keep other permissions; the type stays.

        Raises:
            OSError: An error of setxattr(2).
        """
        mode = stat.S_IFMT(self.shown(file).mode) | stat.S_IMODE(permissions)
        os.setxattr(file.path, _MODE, _VALUE.pack(self._kept_mode(mode)))

    def drop_set_ids(self, file: HostFile) -> None:
        """Clear set-id bits, as chown(2) and write(2) of a plain user do.

        Raises:
            OSError: An error of setxattr(2).
        """
        if file.kind != stat.S_IFREG:
            return
        mode = self.shown(file).mode
        # Without S_IXGRP, S_ISGID stands for mandatory locking.
        falls = SET_IDS if mode & stat.S_IXGRP else stat.S_ISUID
        if mode & falls:
            os.setxattr(file.path, _MODE, _VALUE.pack(mode & ~falls))

    def _kept_mode(self, mode: int) -> int:
        return mode if stat.S_ISDIR(mode) else mode & self._file_bits

    def permits(self, file: HostFile, uid: int, gid: int, wanted: int) -> bool:
        """Return whether access(2) grants a user a mask of R_OK, W_OK, X_OK."""
        shown = self.shown(file)
        if uid == 0:
            return not wanted & os.X_OK or stat.S_ISDIR(shown.mode) or bool(shown.mode & 0o111)
        shift = 6 if uid == shown.uid else 3 if gid == shown.gid else 0
        return not wanted & ~(shown.mode >> shift)


def can_keep(path: bytes) -> bool:
    """Return whether the file system of a directory has user extended attributes."""
    try:
        os.getxattr(path, _MODE)
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def _read_value(path: bytes, name: bytes) -> int | None:
    value = _read(path, name, _VALUE.size)
    return None if value is None else int(_VALUE.unpack(value)[0])


def _read_device(path: bytes) -> int:
    value = _read(path, _DEVICE, _NUMBERS.size)
    major, minor = (0, 0) if value is None else _NUMBERS.unpack(value)
    return os.makedev(major, minor) if major < _MAJORS and minor < _MINORS else 0


def _read(path: bytes, name: bytes, size: int) -> bytes | None:
    """Return an attribute; None when there is none, or one of another length than ours."""
    with contextlib.suppress(OSError):
        value = os.getxattr(path, name)
        if len(value) == size:
            return value
    return None
