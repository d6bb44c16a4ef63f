"""Volumes: the files of one file system that are reached through one mount of the host.

A file that is seen through two mounts is in two volumes, because a mount decides what may be done
with it (read-only, nosuid, mapped ids). So a file is opened again through its own mount or not at
all.

Owns how a file is opened again by the kernel's file handle (name_to_handle_at(2)), which names an
inode and its generation, so it never leads to another file, even after files were renamed, removed
or made. File handles are made here, from the descriptors of lookups. None comes from a guest: a
guest's handles are numbers of open files. Some file systems have no handles, a process without
CAP_DAC_READ_SEARCH may not open any, and those of some FUSE file systems lead to nothing once their
process has forgotten the file. So each volume finds out whether its handles can be trusted. Must
not know nodes or requests.

A guest takes all files of a share for one file system, unless a directory of another volume is
announced as a submount. Where it is not, the inode numbers of other file systems get bits that tell
them from the share's own (`foreign_mask`); they are the same as long as the file system is mounted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.descriptors import Descriptor
from services.devicehost.devices.fs.host_files.errors import SHORTAGE, refusal

_U32: Final = (1 << 32) - 1


class Volume:
    """Opens files of one volume again by their handles; usable from any thread.

    It keeps its mount in use while it is referenced.

    Attributes:
        ino_mask: Bits that are flipped in the inode numbers that a guest sees.
    """

    __slots__ = ("__weakref__", "_anchor", "_mount", "_trusts_handles", "ino_mask")

    def __init__(self, mount: int, ino_mask: int = 0) -> None:
        """Begin without a descriptor.

        Args:
            mount: Id of the mount (Statx.mount).
            ino_mask: See Volume.
        """
        self.ino_mask: Final = ino_mask
        self._mount = mount
        self._anchor: Descriptor | None = None
        self._trusts_handles: bool | None = None

    def trusts_handles(self, descriptor: Descriptor) -> bool:
        """Return whether files can be opened again by their handles.

        Args:
            descriptor: O_PATH descriptor of a file in this volume, to try with if it is not known.
        """
        if self._trusts_handles is None:
            # Without the id of its mount, a file could be opened again through another one.
            if not self._mount or not self._has_anchor(descriptor):
                return False
            try:
                self._open(syscalls.name_to_handle(descriptor.fd))
                self._trusts_handles = True
            except OSError as error:
                if error.errno in SHORTAGE:
                    return False
                self._trusts_handles = False
        return self._trusts_handles

    def distrust_handles(self) -> None:
        """Use no handles of this volume from now on: one led to no file, but the file was there."""
        self._trusts_handles = False

    def prepare(self, descriptor: Descriptor) -> bytes:
        """Return the kernel's file handle of a file, for `reopen`; empty if handles are no help.

        Args:
            descriptor: O_PATH descriptor of the file, which is in this volume.
        """
        if not self.trusts_handles(descriptor):
            return b""
        try:
            return syscalls.name_to_handle(descriptor.fd)
        except OSError:
            return b""

    def reopen(self, handle: bytes) -> Descriptor:
        """Open a file again, as an O_PATH descriptor.

        Args:
            handle: What `prepare` returned for it.

        Raises:
            OSError: ESTALE when the handle leads to no file, is empty, or is not trusted.
        """
        if not handle or not self._trusts_handles:
            raise refusal(errno.ESTALE)
        return self._open(handle)

    def _open(self, handle: bytes) -> Descriptor:
        if self._anchor is None:
            raise refusal(errno.ESTALE)
        return Descriptor(syscalls.open_by_handle(self._anchor.fd, handle, os.O_PATH))

    def _has_anchor(self, descriptor: Descriptor) -> bool:
        """Keep an ordinary descriptor of a file on the mount: open_by_handle_at(2) needs one."""
        if self._anchor is None:
            # Opening a FIFO, a device or a socket would have an effect.
            if stat.S_IFMT(os.fstat(descriptor.fd).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                return False
            with contextlib.suppress(OSError):
                self._anchor = Descriptor(os.open(descriptor.path, os.O_RDONLY | os.O_NONBLOCK))
        return self._anchor is not None


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
