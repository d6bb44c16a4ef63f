"""Changes of the host's network, for all who ask.

Owns the thread that looks, one for each network namespace that is asked about, which is one in a
device host; and how often it looks, whatever the kernel says. Must not know what follows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from pathlib import Path
from typing import Final

from services.devicehost.devices.net.host_network.changes import HostChanges
from services.devicehost.devices.net.host_network.view import HostView, look

SETTLE_S: Final = 0.5
"""From the first message to the look: what belongs to one change comes in several messages. So
there are two looks a second at most, and what is said meanwhile costs nothing."""

_LOG = logging.getLogger(__name__)


class Subscription:
    """One who wants to know.

    Attributes:
        fd: Readable when `take` has something.
    """

    def __init__(self, watcher: _Watcher) -> None:
        """Begin; `watch` does that."""
        self.fd: Final = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watcher = watcher

    def take(self) -> HostView:
        """Return the network as it is now; `fd` is not readable any more."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        return self._watcher.view

    def close(self) -> None:
        """End it. Call it once."""
        _leave(self._watcher, self)
        os.close(self.fd)


class _Watcher:
    """The thread of one network namespace; _lock guards the subscriptions.

    Attributes:
        view: What there was at the last look.
        subscriptions: Those who want to know of the next.
    """

    def __init__(self, namespace: int) -> None:
        self.namespace = namespace
        self.subscriptions: set[Subscription] = set()
        self._changes = HostChanges()  # before the first look
        try:
            self.view = look()
            self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            self._changes.close()
            raise
        self._thread = threading.Thread(target=self._run, name="host-network", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join()
        self._changes.close()
        os.close(self._stop_fd)

    def _run(self) -> None:
        while not self._stops(*self._changes.fds):
            if self._stops(timeout_ms=SETTLE_S * 1000):
                return
            self._changes.drain()
            try:
                view = look()
            except OSError as error:
                _LOG.warning("the host's network cannot be looked at: %s", error)
                continue
            if view != self.view:
                self.view = view
                with _lock:
                    for subscription in self.subscriptions:
                        os.eventfd_write(subscription.fd, 1)

    def _stops(self, *fds: int, timeout_ms: float | None = None) -> bool:
        poll = select.poll()
        for fd in (self._stop_fd, *fds):
            poll.register(fd, select.POLLIN)
        return any(ready == self._stop_fd for ready, _ in poll.poll(timeout_ms))


_lock: Final = threading.Lock()
_watchers: Final[dict[int, _Watcher]] = {}
"""By the inode of the namespace."""


def watch() -> Subscription:
    """Ask for the changes of the network namespace of this thread.

    Raises:
        OSError: There is no room for another descriptor, or the kernel does not answer.
    """
    namespace = Path("/proc/thread-self/ns/net").stat().st_ino
    with _lock:
        watcher = _watchers.get(namespace)
        if watcher is None:
            watcher = _watchers[namespace] = _Watcher(namespace)
        subscription = Subscription(watcher)
        watcher.subscriptions.add(subscription)
    return subscription


def _leave(watcher: _Watcher, subscription: Subscription) -> None:
    """Forget a subscription; the last one ends the thread."""
    with _lock:
        watcher.subscriptions.remove(subscription)
        is_last = not watcher.subscriptions
        if is_last:
            del _watchers[watcher.namespace]
    if is_last:
        watcher.close()
