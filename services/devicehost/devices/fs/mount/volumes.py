"""Volumes: the files of one file system that are reached through one mount of the host.

A file that is seen through two mounts is in two volumes, because a mount decides what may be done
with it (read-only, nosuid, mapped ids). So a file is opened again through its own mount or not at
all.

Owns how a file is opened again after its descriptor was closed, by the kernel's
name_to_handle_at(2). The kernel's file handle names an inode and its generation, so it never leads
to another file, even after files were renamed, removed or made. File handles are made here, from
the descriptors of lookups. None comes from a guest: a guest's handles are numbers of open files.
Must not know nodes or requests.

A guest takes all files of a share for one file system, unless a directory of another volume is
announced as a submount. Where it is not, the inode numbers of other file systems get bits that tell
them from the share's own (`foreign_mask`); they are the same as long as the file system is mounted.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.descriptors import Descriptor
from services.devicehost.devices.fs.host_files.errors import refusal

_U32: Final = (1 << 32) - 1


class Volume:
    """Opens files of one volume again; usable from any thread.

    It keeps its mount in use while it is referenced.

    Attributes:
        ino_mask: Bits that are flipped in the inode numbers that a guest sees.
    """

    __slots__ = ("__weakref__", "_anchor", "_mount", "ino_mask")

    def __init__(self, mount: int, ino_mask: int = 0) -> None:
        """Begin without a descriptor.

        Args:
            mount: Id of the mount (Statx.mount).
            ino_mask: See Volume.
        """
        self.ino_mask: Final = ino_mask
        self._mount = mount
        self._anchor: Descriptor | None = None

    def prepare(self, descriptor: Descriptor) -> bytes:
        """Return the kernel's file handle of a file, for `reopen`.

        Args:
            descriptor: O_PATH descriptor of the file, which is in this volume.

        Raises:
            OSError: The file could not be opened again, or only through another mount.
        """
        if not self._mount:
            raise refusal(errno.EOPNOTSUPP)
        if self._anchor is None:
            # open_by_handle_at(2) needs an ordinary descriptor of any file on the mount, but
            # opening a FIFO, a device or a socket would have an effect.
            kind = stat.S_IFMT(os.fstat(descriptor.fd).st_mode)
            if kind not in (stat.S_IFREG, stat.S_IFDIR):
                raise refusal(errno.EOPNOTSUPP)
            self._anchor = Descriptor(os.open(descriptor.path, os.O_RDONLY | os.O_NONBLOCK))
        return syscalls.name_to_handle(descriptor.fd)

    def reopen(self, reopen_with: bytes) -> Descriptor:
        """Open a file again, as an O_PATH descriptor.

        Args:
            reopen_with: What `prepare` returned for it.

        Raises:
            OSError: ESTALE when the file is gone; EPERM without CAP_DAC_READ_SEARCH.
        """
        anchor = self._anchor
        if anchor is None:
            raise refusal(errno.ESTALE)
        return Descriptor(syscalls.open_by_handle(anchor.fd, reopen_with, os.O_PATH))

    def can_reopen(self, descriptor: Descriptor) -> bool:
        """Try with one file whether files can be opened again."""
        try:
            self.reopen(self.prepare(descriptor))
        except OSError:
            return False
        return True


def foreign_mask(device: int, root_device: int) -> int:
    """Return the bits that are flipped in inode numbers of a file system that is not announced.

    They fill the upper half, which few numbers reach into, and differ wherever the device numbers
    do (a step of MurmurHash3 has an inverse). native/nodes.c has the same.

    Args:
        device: Device number of the file system.
        root_device: That of the shared directory; its own files have no bits flipped.
    """
    mixed = (device ^ root_device) & _U32
    mixed = (mixed ^ mixed >> 16) * 0x85EB_CA6B & _U32
    mixed = (mixed ^ mixed >> 13) * 0xC2B2_AE35 & _U32
    return (mixed ^ mixed >> 16) << 32
