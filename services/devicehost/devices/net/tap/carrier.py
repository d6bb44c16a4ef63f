"""Whether a TAP interface has a carrier, as it changes: an administrator sets it up and down.

Owns the thread that listens to the kernel (rtnetlink), and how often it looks. Must not know
frames, or what follows from a carrier.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
from typing import TYPE_CHECKING, Final

from services.wire import rtnetlink

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG: Final = logging.getLogger(__name__)

PAUSE_S: Final = 0.05
"""Between two looks, however many messages come: the first is looked at without delay."""
RETRY_S: Final = 1.0
"""After a look that failed, for want of memory for instance."""

_ANSWER_BYTES: Final = 32 << 10
"""More than the description of an interface takes."""
_ANSWER_S: Final = 5.0
_SCRAP_BYTES: Final = 4096
"""As much of a message as is read: what it says is asked for anew."""
_MOST_MESSAGES: Final = 1024
"""How many are thrown away between two looks; with more the next look comes after a pause."""


class CarrierWatch:
    """The carrier of one interface of the network namespace of the thread that makes this.

    Attributes:
        is_up: Whether it had a carrier at the last look; False as well when the interface is gone.
    """

    def __init__(self, name: str, on_change: Callable[[bool], None]) -> None:
        """Look, and go on looking on a thread of its own.

        Args:
            name: Of an interface that exists.
            on_change: Called with each change, on that thread, with no lock held.

        Raises:
            OSError: There is no such interface, or the kernel does not answer.
        """
        self._on_change = on_change
        self._index = socket.if_nametoindex(name)
        with contextlib.ExitStack() as undo:
            self._changes = undo.enter_context(_netlink())
            self._changes.bind((0, rtnetlink.GROUP_LINK))  # before the first look
            self._changes.setblocking(False)
            self._questions = undo.enter_context(_netlink())
            self._questions.settimeout(_ANSWER_S)
            self.is_up = self._look()
            self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.pop_all()
        self._thread = threading.Thread(target=self._run, name=f"carrier-{name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Call it once, and from another one."""
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join()
        os.close(self._stop_fd)
        self._changes.close()
        self._questions.close()

    def _run(self) -> None:
        timeout_ms: float | None = None
        while not self._stops(self._changes.fileno(), timeout_ms):
            self._drain()
            try:
                is_up, timeout_ms = self._look(), None
            except OSError as error:
                _LOG.warning("the link of a TAP cannot be looked at for now: %s", error)
                timeout_ms = RETRY_S * 1000
                continue
            if is_up != self.is_up:
                self.is_up = is_up
                self._on_change(is_up)
            if self._stops(-1, PAUSE_S * 1000):
                return

    def _stops(self, fd: int, timeout_ms: float | None) -> bool:
        """Wait for a descriptor, if any, and at most so long; return whether this is closed."""
        poll = select.poll()
        poll.register(self._stop_fd, select.POLLIN)
        if fd >= 0:
            poll.register(fd, select.POLLIN)
        return any(ready == self._stop_fd for ready, _ in poll.poll(timeout_ms))

    def _drain(self) -> None:
        for _ in range(_MOST_MESSAGES):
            try:
                self._changes.recv(_SCRAP_BYTES)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: some were lost, which makes no difference
                continue

    def _look(self) -> bool:
        self._questions.send(rtnetlink.link_request(self._index))
        for message in rtnetlink.messages(self._questions.recv(_ANSWER_BYTES)):
            if message.kind == rtnetlink.RTM_NEWLINK:
                flags: int = rtnetlink.LINK.unpack_from(message.body)[3]
                return bool(flags & rtnetlink.IFF_LOWER_UP)
        return False


def _netlink() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, rtnetlink.NETLINK_ROUTE)
