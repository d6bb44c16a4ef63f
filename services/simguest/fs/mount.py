"""Mounting a FUSE connection: mount(2), umount2(2), and errors that name the remedy.

Owns the system calls and the mount options. Must not know virtqueues or the FUSE protocol.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from pathlib import Path
from typing import Final

from services.handshake.errors import FailedPreconditionError

FUSE_DEVICE: Final = "/dev/fuse"
SUBTYPE: Final = "porthole"
"""Subtype of the mounts; a mount table shows `fuse.porthole`."""
MOUNT_TABLE: Final = Path("/proc/self/mountinfo")

# linux/mount.h and sys/mount.h.
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MNT_DETACH: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def mount(tag: str, mount_point: Path) -> int:
    """Mount a new FUSE connection; the kernel's first request waits to be read.

    Args:
        tag: Shown as the source of the mount.
        mount_point: An existing directory.

    Returns:
        The connection, a non-blocking descriptor; closing it ends the file system.

    Raises:
        FailedPreconditionError: FUSE_UNAVAILABLE; it names the cause and the remedy.
    """
    try:
        if not stat.S_ISDIR(mount_point.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise _unavailable(tag, mount_point, "create the directory first", error) from error
    try:
        fd = os.open(FUSE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        remedy = f"{FUSE_DEVICE} must exist and be readable and writable: modprobe fuse, or pass it"
        raise _unavailable(tag, mount_point, f"{remedy} into the container", error) from error
    options = (
        f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},"
        f"default_permissions,allow_other,subtype={SUBTYPE}"
    )
    flags = _MS_NOSUID | _MS_NODEV
    target = os.fsencode(mount_point)
    if _libc.mount(tag.encode(), target, b"fuse", flags, options.encode()) != 0:
        number = ctypes.get_errno()
        os.close(fd)
        failure = OSError(number, os.strerror(number))
        remedy = "mounting needs CAP_SYS_ADMIN; run the guest as root, or use its Python API"
        raise _unavailable(tag, mount_point, remedy, failure)
    return fd


def unmount(mount_point: Path) -> None:
    """Detach the mount from the directory tree, busy or not; does nothing when it is gone.

    Args:
        mount_point: A resolved path.
    """
    # MNT_DETACH frees the mount point even while programs have files of the share open.
    if is_mounted(mount_point):
        _libc.umount2(os.fsencode(mount_point), _MNT_DETACH)


def is_mounted(mount_point: Path) -> bool:
    """Return whether a share is the topmost mount here; reads the mount table, not the share."""
    wanted = os.fsencode(mount_point)
    topmost = b""
    for line in MOUNT_TABLE.read_bytes().splitlines():
        # proc(5), mountinfo: the fifth field is the mount point, the type follows " - ".
        fields, _, source = line.partition(b" - ")
        if _unescape(fields.split()[4]) == wanted:
            topmost = source.split()[0]
    return topmost == f"fuse.{SUBTYPE}".encode()


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


def _unavailable(
    tag: str, mount_point: Path, remedy: str, error: OSError
) -> FailedPreconditionError:
    return FailedPreconditionError(
        "FUSE_UNAVAILABLE",
        f"share {tag} cannot be mounted at {mount_point}: {error.strerror}; {remedy}",
        tag=tag,
        mount_point=str(mount_point),
        errno=error.errno or 0,
    )
