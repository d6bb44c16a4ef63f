"""The descriptors that a queue sleeps on: the driver's kick, its own stop, and its device's.

Owns the eventfd that stops a queue, and the rules for descriptors that a front-end shares. Must not
know rings: when to sleep is the queue's business.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import Final


class WakeUps:
    """The descriptors that end a queue's sleep.

    Attributes:
        kick_fd: Of the driver; None when it gave none.
        stop_fd: Readable, and never read, once `stop` was called.
    """

    def __init__(self, kick_fd: int | None) -> None:
        """Make the eventfd that stops the queue.

        Args:
            kick_fd: Of the driver; the caller keeps it.
        """
        self.kick_fd: Final = kick_fd
        self.stop_fd: Final = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._polls: dict[tuple[tuple[int, ...], bool], select.poll] = {}

    def sleep(self, fds: tuple[int, ...], *, kick: bool, timeout_ms: float | None) -> set[int]:
        """Sleep until a descriptor is readable.

        Args:
            fds: Descriptors of the device.
            kick: Whether a kick ends the sleep as well.
            timeout_ms: How long to sleep at most; None: as long as it takes.

        Returns:
            All descriptors that are readable; empty when the time is over.
        """
        poll = self._polls.get((fds, kick))
        if poll is None:
            poll = self._polls[fds, kick] = self._poll_on(fds, kick)
        return {fd for fd, _ in poll.poll(timeout_ms)}

    def sleep_for_room(self, fd: int) -> None:
        """Sleep until a descriptor is writable or broken, or `stop` was called.

        Args:
            fd: A descriptor of the device.
        """
        poll = select.poll()
        poll.register(self.stop_fd, select.POLLIN)
        poll.register(fd, select.POLLOUT)
        poll.poll()

    def take_kick(self) -> None:
        """Take note of a kick, so that only the next one ends a sleep; never blocks."""
        if self.kick_fd is not None:
            # The front-end shares the descriptor's flags and could make a mere read(2) block.
            with contextlib.suppress(BlockingIOError):
                os.preadv(self.kick_fd, [bytearray(8)], -1, os.RWF_NOWAIT)

    def stop(self) -> None:
        """End the present sleep and all later ones; from any thread, before `close`."""
        with contextlib.suppress(BlockingIOError):  # full: it is readable
            os.eventfd_write(self.stop_fd, 1)

    def close(self) -> None:
        """Release the eventfd."""
        os.close(self.stop_fd)

    def _poll_on(self, fds: tuple[int, ...], kick: bool) -> select.poll:
        poll = select.poll()
        kicks = (self.kick_fd,) if kick and self.kick_fd is not None else ()
        for fd in (self.stop_fd, *kicks, *fds):
            poll.register(fd, select.POLLIN)
        return poll
