"""The notice that the host's network may have changed: rtnetlink, and inotify for resolv.conf.

Owns both descriptors. What is said is thrown away: who is told looks for itself. Must not know what
a change means.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from typing import Final

from services.devicehost.devices.net.host_network.view import RESOLV_CONF
from services.wire import rtnetlink

_GROUPS: Final = (
    rtnetlink.GROUP_LINK
    | rtnetlink.GROUP_IPV4_IFADDR
    | rtnetlink.GROUP_IPV4_ROUTE
    | rtnetlink.GROUP_IPV6_IFADDR
    | rtnetlink.GROUP_IPV6_ROUTE
)
_SCRAP_BYTES: Final = 4096
"""As much of a message as is read."""
_MOST_MESSAGES: Final = 1024
"""How many are thrown away at a time; with more the descriptor stays readable."""

# inotify(7)
_IN_MODIFY: Final = 0x2
_IN_CLOSE_WRITE: Final = 0x8
_IN_MOVED_TO: Final = 0x80
_IN_CREATE: Final = 0x100
_IN_DELETE: Final = 0x200
_ENTRIES: Final = _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
_CONTENTS: Final = _IN_MODIFY | _IN_CLOSE_WRITE

_libc: Final = ctypes.CDLL(None, use_errno=True)


class HostChanges:
    """Changes in the network namespace of the thread that makes this.

    Attributes:
        fds: Readable when there may be one.
    """

    def __init__(self) -> None:
        """Begin to listen.

        Raises:
            OSError: There is no room for another descriptor.
        """
        self._netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, rtnetlink.NETLINK_ROUTE
        )
        try:
            self._netlink.bind((0, _GROUPS))
            self._inotify = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
            if self._inotify < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        except BaseException:
            self._netlink.close()
            raise
        self.fds: Final = (self._netlink.fileno(), self._inotify)
        self._watch_files()

    def drain(self) -> None:
        """Take what has been said; a bounded amount."""
        for _ in range(_MOST_MESSAGES):
            try:
                self._netlink.recv(_SCRAP_BYTES)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: some were lost, which makes no difference
                continue
        with contextlib.suppress(BlockingIOError):
            os.read(self._inotify, 16 * _SCRAP_BYTES)
        self._watch_files()

    def close(self) -> None:
        """Close the descriptors."""
        self._netlink.close()
        os.close(self._inotify)

    def _watch_files(self) -> None:
        """Watch the file, which may be another one now, and the directories where it is replaced.

        A file that is mounted, as in containers, is written in place; one of a resolver is
        renamed, maybe behind a symbolic link. What is watched already stays so.
        """
        try:
            real = RESOLV_CONF.resolve()
        except (OSError, RuntimeError):  # links that lead in a circle
            real = RESOLV_CONF
        for path, mask in (
            (RESOLV_CONF.parent, _ENTRIES),
            (real.parent, _ENTRIES),
            (real, _CONTENTS),
        ):
            _libc.inotify_add_watch(self._inotify, os.fsencode(path), mask)
