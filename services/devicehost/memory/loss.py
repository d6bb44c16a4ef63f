"""Pages of guest memory that are lost while they are mapped, and who learns of it.

A touch of a lost page would end the process (SIGBUS). The native library puts zeros in the place of
its mapping (native/lost_memory.c), so the thread goes on; but what it then reads is not the guest's
memory any more, and its device must end. Owns which mapping belongs to which guest memory, and the
thread that reports losses. Must not know what guest memory is used for.
"""

from __future__ import annotations

import os
import select
import threading
from typing import TYPE_CHECKING, Final

from services.devicehost import fastpath
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable


class Loss:
    """Whether pages were lost of the guest memory of one device."""

    def __init__(self) -> None:
        """Begin without mappings."""
        self._lock = threading.Lock()
        self._numbers: set[int] = set()
        self._has_happened = False
        self._reports: set[Callable[[], None]] = set()

    @property
    def has_happened(self) -> bool:
        """Whether it has; true for the thread that touched a lost page as soon as it goes on."""
        with self._lock:
            return self._look()

    @property
    def error(self) -> FailedPreconditionError:
        """Why the device cannot go on."""
        return FailedPreconditionError(
            "GUEST_MEMORY_LOST",
            "pages of guest memory are gone: its file has a hole that cannot be filled, since no "
            "huge page is free, or it shrank, or the memory has failed; send the table of guest "
            "memory anew",
        )

    def watch(self, address: int, length: int) -> int | None:
        """Watch a mapping until `unwatch`.

        Returns:
            Its number; None: nothing can be watched, because there is no native library.

        Raises:
            InvalidArgumentError: MAPPING_FAILED: too many mappings are watched.
        """
        library = _library()
        if library is None:
            return None
        with self._lock:
            number: int = library.ph_lost_watch(address, length)
            if number < 0:
                raise InvalidArgumentError(
                    "MAPPING_FAILED",
                    f"the process has {fastpath.MAX_WATCHED} mappings of guest memory already",
                    bound=fastpath.MAX_WATCHED,
                )
            self._numbers.add(number)
        with _lock:
            _watched[number] = self
        return number

    def unwatch(self, number: int) -> None:
        """Watch a mapping no more; nobody touches it any more."""
        with _lock:
            del _watched[number]
        was_lost = False
        with self._lock:
            self._numbers.discard(number)
            if _installed is not None:  # it is, because only it gives numbers
                was_lost = _installed.ph_lost_unwatch(number)
                self._has_happened |= was_lost
        # Looking at all others would cost each window that is unmapped several times its price.
        if was_lost:
            self._report()

    def report_to(self, report: Callable[[], None]) -> None:
        """Call `report` when it happens, at once if it has happened already; from any thread.

        Args:
            report: Must not wait for anything, because all devices share the thread that calls it.
        """
        with self._lock:
            self._reports.add(report)
        self._report()

    def report_no_more_to(self, report: Callable[[], None]) -> None:
        """Undo `report_to`."""
        with self._lock:
            self._reports.discard(report)

    def _report(self) -> None:
        with self._lock:
            reports = list(self._reports) if self._look() else []
        for report in reports:
            report()

    def _look(self) -> bool:
        if not self._has_happened and _installed is not None:
            self._has_happened = any(map(_installed.ph_lost_is, self._numbers))
        return self._has_happened


def survives_lost_pages() -> bool:
    """Return whether a touch of a lost page ends the device alone, and not the process."""
    return _library() is not None


def _library() -> ctypes.CDLL | None:
    """Return the library, with its handler installed; None without it."""
    global _installed
    if _installed is None and fastpath.library is not None:
        with _lock:
            if _installed is None:
                event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                if not fastpath.library.ph_lost_install(event_fd):
                    os.close(event_fd)
                    return None
                threading.Thread(
                    target=_report_losses, args=(event_fd,), name="lost-memory", daemon=True
                ).start()
                _installed = fastpath.library
    return _installed


def _report_losses(event_fd: int) -> None:
    poll = select.poll()
    poll.register(event_fd, select.POLLIN)
    while True:
        poll.poll()
        os.eventfd_read(event_fd)
        with _lock:
            losses = set(_watched.values())
        for loss in losses:
            loss._report()


_lock: Final = threading.Lock()
_watched: Final[dict[int, Loss]] = {}
_installed: ctypes.CDLL | None = None
