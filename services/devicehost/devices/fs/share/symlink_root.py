"""Absolute symlinks: where the host's root is in the guest (the option `symlinkroot=`).

A guest has the share, and often others beside it, mounted somewhere below such a root. An absolute
target of the host is shown below it, and a target that the guest has below it is stored without it.
A target elsewhere in the guest's own tree is stored with one slash more in front, which the host
takes for the same path (path_resolution(7)), so that it comes back as it was. Must not know
requests or nodes.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.share.attributes import Overrides

if TYPE_CHECKING:
    from services.devicehost.devices.fs.host_files.file import HostFile

_LONGEST_TARGET: Final = 4095
"""PATH_MAX without its NUL: what readlink(2) can tell of a guest's file system."""


class SymlinkRoot:
    """Where one share's guest sees the host's root."""

    def __init__(self, root: str) -> None:
        """Take the root.

        Args:
            root: An absolute path of the guest; slashes at its end do not count.
        """
        self._root: Final = os.fsencode(root).rstrip(b"/")

    def shown(self, stored: bytes) -> bytes:
        """Tell what the guest sees of a target.

        Raises:
            OSError: ENAMETOOLONG when it is too long with the root before it.
        """
        if stored.startswith(b"//"):
            return stored[1:]
        target = self._root + stored if stored.startswith(b"/") else stored
        if len(target) > _LONGEST_TARGET:
            raise refusal(errno.ENAMETOOLONG)
        return target

    def stored(self, target: bytes) -> bytes:
        """Tell how a target of the guest is stored."""
        if not target.startswith(b"/"):
            return target
        below = target[len(self._root) :]
        if target.startswith(self._root) and below.startswith(b"/") and below[1:2] != b"/":
            return below
        return b"/" + target

    def overrides(self, file: HostFile) -> Overrides | None:
        """Tell a symlink's size as the guest sees it: the length of its target."""
        try:
            return Overrides(size=len(self.shown(os.readlink(b"", dir_fd=file.fd))))
        except OSError:
            return None
