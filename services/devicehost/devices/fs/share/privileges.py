"""What a guest may leave on the host that has effect there: the options `suid` and `dev`.

Set-id bits and file capabilities give a program of the host more rights than its user has; a device
node gives its user a device of the host. Owns what becomes of a guest's wish to set or keep them.
Owners and modes that the share keeps itself (lx_metadata.py) have no effect on the host. Must not
know requests.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.throttle import Throttle

if TYPE_CHECKING:
    from services.devicehost.devices.fs.host_files.file import HostFile
    from services.handshake.options import FsOptions

SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
CAPABILITY: Final = b"security.capability"
"""The extended attribute that a program's file capabilities are in."""

_DEVICES: Final = (stat.S_IFCHR, stat.S_IFBLK)
_LOG_INTERVAL_S: Final = 60.0

_LOG = logging.getLogger(__name__)


class Privileges:
    """What the guests of one share may leave on the host.

    Attributes:
        given: Whether the host's files may have set-id bits and file capabilities of a guest.
    """

    def __init__(self, options: FsOptions) -> None:
        """Take the options of the share."""
        self.given: Final = options.suid and not options.metadata
        self._makes_devices: Final = options.dev
        self._changes_devices: Final = options.dev and not options.metadata
        self._whose: Final = (options.name, options.vm_id)
        self._drops: Final = Throttle(_LOG_INTERVAL_S)

    def host_mode(self, mode: int, *, directory: bool = False) -> int:
        """Return the permissions that the host's file gets when a guest asks for `mode`.

        POSIX lets chmod(2) ignore set-id bits. A directory keeps them: they hand down its group,
        and give nobody a right.
        """
        mode = stat.S_IMODE(mode)
        if directory or self.given or not mode & SET_IDS:
            return mode
        if self._drops.admit() is not None:
            _LOG.info(
                "share %r of VM %s: set-id bits of its guest were dropped; with the option suid "
                "they reach the host",
                *self._whose,
            )
        return mode & ~SET_IDS

    def require_makes(self, mode: int, rdev: int) -> None:
        """Refuse a device node that a guest wants to make, as mknod(2) refuses it to a plain user.

        A whiteout (overlayfs) is a character device 0:0, which nobody can open.

        Raises:
            OSError: EPERM.
        """
        if stat.S_IFMT(mode) in _DEVICES and not (
            self._makes_devices or (stat.S_ISCHR(mode) and rdev == 0)
        ):
            raise refusal(errno.EPERM)

    def require_permits(self, file: HostFile) -> None:
        """Refuse a change of who may use a device node of the host.

        Raises:
            OSError: EPERM.
        """
        if file.kind in _DEVICES and not self._changes_devices:
            raise refusal(errno.EPERM)

    def require_attribute(self, name: bytes) -> None:
        """Refuse file capabilities that a guest wants to set.

        Args:
            name: Of the extended attribute, on the host.

        Raises:
            OSError: EPERM.
        """
        if name == CAPABILITY and not self.given:
            raise refusal(errno.EPERM)

    def must_strip(self, file: HostFile) -> bool:
        """Return whether a file has set-id bits that do not outlast a change by a guest."""
        return (
            not self.given
            and file.kind == stat.S_IFREG
            and bool(syscalls.status_of(file.fd).mode & SET_IDS)
        )

    def strip(self, file: HostFile) -> None:
        """Take set-id bits and file capabilities from a file before others get rights to it.

        A change of contents or owner needs no call: the kernel does it then.

        Raises:
            OSError: An error of chmod(2) or removexattr(2).
        """
        if self.given or file.kind != stat.S_IFREG:
            return
        mode = syscalls.status_of(file.fd).mode
        if mode & SET_IDS:
            os.chmod(file.path, stat.S_IMODE(mode) & ~SET_IDS)  # noqa: PTH101 - bytes
        remove_attribute(file, CAPABILITY)


def remove_attribute(file: HostFile, name: bytes) -> None:
    """Remove an extended attribute, if there is one.

    Raises:
        OSError: An error of removexattr(2).
    """
    try:
        os.getxattr(file.path, name)
    except OSError:
        return  # removing what is not there may take a right that this process does not have
    os.removexattr(file.path, name)
