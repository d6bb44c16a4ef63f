"""The eventfds that a front-end hands over: which descriptors are taken, and how one is written to.

A front-end shares the flags and the counter of an eventfd, so it can make a write block. Therefore
no lock is held during a write. Must not know rings, queues or messages.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from services.devicehost.virtio.wake_ups import signal
from services.handshake.errors import InvalidArgumentError

_EVENTFD: Final = "anon_inode:[eventfd]"


def check_event_fd(index: int, fd: int | None) -> None:
    """Refuse a descriptor that could block a worker or keep it busy: anything but an eventfd.

    Args:
        index: Of the ring that it is for.
        fd: The descriptor; None: nothing to check.

    Raises:
        InvalidArgumentError: RING_EVENT_FD.
    """
    if fd is None:
        return
    kind = str(Path(f"/proc/self/fd/{fd}").readlink())
    if kind != _EVENTFD:
        raise InvalidArgumentError(
            "RING_EVENT_FD",
            f"ring {index}: the descriptor is {kind!r}, not an eventfd",
            queue=index,
        )
    os.set_blocking(fd, False)


class Notification:
    """The eventfd by which a front-end is notified of one thing; the front-end may replace it.

    Every eventfd is put under the number of the first, and the number stays open until its last
    reference is released. So a holder of one writes to it without a lock: meanwhile the number
    cannot come to mean another file.
    """

    def __init__(self) -> None:
        """Begin without an eventfd, and with one reference, the caller's."""
        self._number: int | None = None
        self._is_wanted = False
        self._references = 1
        self._lock = threading.Lock()

    @property
    def fd(self) -> int | None:
        """The number, for holders of a reference; None: the front-end wants no notification."""
        return self._number if self._is_wanted else None

    def replace(self, fd: int | None) -> None:
        """Notify by another eventfd from now on; None: not at all.

        Args:
            fd: Belongs to this object from now on.
        """
        if fd is not None:
            if self._number is None:
                self._number = fd
            else:
                os.dup2(fd, self._number, inheritable=False)
                os.close(fd)
        self._is_wanted = fd is not None

    def retain(self) -> bool:
        """Keep the number open until the matching `release`; from any thread.

        Returns:
            Whether the number is open; False: the last reference was released.
        """
        with self._lock:
            if self._references:
                self._references += 1
            return self._references > 0

    def release(self) -> None:
        """Give up one reference; the last one closes the number. From any thread."""
        with self._lock:
            self._references -= 1
            is_last = not self._references
        if is_last and self._number is not None:
            os.close(self._number)

    def notify(self) -> None:
        """Notify the front-end, if it wants that; from any thread."""
        if not self.retain():
            return
        try:
            fd = self.fd
            if fd is not None:
                signal(fd)
        finally:
            self.release()
