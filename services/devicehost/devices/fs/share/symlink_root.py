"""Absolute symlinks: where the host's root is in the guest (the option `symlinkroot=`).

A guest has the share, and often others beside it, mounted somewhere below such a root. An absolute
target of the host is shown below the root. A target of the guest that is below the root is stored
without the root. Another absolute target of the guest is stored with one slash more in front, which
the host takes for the same path (path_resolution(7)), so that the guest reads it back unchanged.
Must not know requests or nodes.
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
"""PATH_MAX without its NUL: the longest target that readlink(2) returns in the guest."""


class SymlinkRoot:
    """The place in the guest where it sees the host's root."""

    def __init__(self, root: str) -> None:
        """Take the root.

        Args:
            root: An absolute path of the guest; slashes at its end do not count.
        """
        self._root: Final = os.fsencode(root).rstrip(b"/")

    def shown(self, stored: bytes) -> bytes:
        """Return a stored target as the guest sees it.

        Raises:
            OSError: ENAMETOOLONG when it is too long with the root in front.
        """
        if stored.startswith(b"//"):
            return stored[1:]
        target = self._root + stored if stored.startswith(b"/") else stored
        if len(target) > _LONGEST_TARGET:
            raise refusal(errno.ENAMETOOLONG)
        return target

    def stored(self, target: bytes) -> bytes:
        """Return a target of the guest as it is stored."""
        if not target.startswith(b"/"):
            return target
        below = target[len(self._root) :]
        if target.startswith(self._root) and below.startswith(b"/") and below[1:2] != b"/":
            return below
        return b"/" + target

    def overrides(self, file: HostFile) -> Overrides | None:
        """Return a symlink's size as the guest sees it: the length of its target."""
        try:
            return Overrides(size=len(self.shown(os.readlink(b"", dir_fd=file.fd))))
        except OSError:
            return None
