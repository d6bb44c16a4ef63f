"""The eventfds that a front-end hands over: which descriptors are taken, and how one is written to.

A front-end shares the flags of an eventfd and may rely on them, so none is changed. It can make a
write block (`peer_writes`). Must not know rings, queues or messages.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Final

from services.devicehost.peer_writes import notify_peer
from services.handshake.errors import InvalidArgumentError

_EVENTFD: Final = "anon_inode:[eventfd]"
_TRIALS: Final = 8


def check_event_fd(index: int, fd: int | None, *, is_read: bool) -> None:
    """Refuse a descriptor that could block a worker or keep it busy: anything but an eventfd.

    A semaphore (EFD_SEMAPHORE) with a large count would stay readable for that many reads.

    Args:
        index: Of the ring that it is for.
        fd: The descriptor; None: nothing to check.
        is_read: Whether a worker is to read it; a kick that it has may be taken here then, so a
            worker must look at its ring first. Where the kernel does not say what a semaphore is
            (before Linux 6.5), only a descriptor that is read is found to be one: the others keep
            nobody busy.

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
    said = kernel_says_semaphore(fd)
    if said or (said is None and is_read and _counts_one_by_one(fd)):
        raise InvalidArgumentError(
            "RING_EVENT_FD",
            f"ring {index}: the descriptor is an eventfd with EFD_SEMAPHORE; hand over one that a "
            "single read sets to 0",
            queue=index,
        )


def kernel_says_semaphore(fd: int) -> bool | None:
    """Return whether an eventfd is a semaphore; None if the kernel does not say that.

    Source: kernel, fs/eventfd.c, eventfd_show_fdinfo.
    """
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        field, _, value = line.partition(":")
        if field == "eventfd-semaphore":
            return value.strip() != "0"
    return None


def _counts_one_by_one(fd: int) -> bool:
    """Find out by reading: only what is no semaphore ever returns more than 1.

    Others may read and write it at the same time, so this tries more than once.
    """
    for _ in range(_TRIALS):
        count = _take(fd)
        if count > 1:
            return False
        notify_peer(fd)
        notify_peer(fd)
    return True


def _take(fd: int) -> int:
    room = bytearray(8)
    try:
        os.preadv(fd, [room], -1, os.RWF_NOWAIT)
    except BlockingIOError:
        return 0
    return int.from_bytes(room, sys.byteorder)


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
                notify_peer(fd)
        finally:
            self.release()
