"""The umask of a thread that serves requests.

A guest's umask comes with each request that makes a file, because only the host's kernel can say
whether it counts: where the directory has a default ACL, that takes the umask's place. So a thread
has the umask 0, and the guest's for the time of one system call. It must be the thread's own;
threads of a process share one unless they ask for theirs. Must not know FUSE.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from services.devicehost.devices.fs.host_files import syscalls

_this_thread: Final = threading.local()


def clear() -> None:
    """Give the calling thread the umask 0, for itself alone if it may have its own.

    Raises:
        OSError: An error of unshare(2) other than EPERM.
    """
    _this_thread.private = syscalls.use_private_umask(0)


def is_private() -> bool:
    """Return whether the calling thread's umask is no other thread's."""
    return getattr(_this_thread, "private", False)


class Umask:
    """While this is entered, the calling thread, whose umask is private, has this umask."""

    __slots__ = ("_mask",)

    def __init__(self, mask: int) -> None:
        """Remember the mask; 0 changes nothing."""
        self._mask = mask

    def __enter__(self) -> None:
        """Set it."""
        if self._mask:
            os.umask(self._mask)

    def __exit__(self, *_: object) -> None:
        """Set 0 again."""
        if self._mask:
            os.umask(0)
