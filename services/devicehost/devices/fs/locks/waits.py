"""Waiting for locks: one thread per wait. Waits are bounded in number and can be called off.

A wait is settled once: by its thread, with the result of the system call, or after a deadline
without the thread, which may hang in the kernel (a lock on a dead network drive). A lock that such
a thread gets in the end is undone. Must not know queues or requests.
"""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files.errors import errno_of, refusal
from services.devicehost.devices.fs.locks.wake import allow_waking, wake
from services.devicehost.virtio.deferral import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.devices.fs.locks.host_locks import HostLock

MAX_WAITS: Final = 96
"""Threads that wait for locks of one mount; a further wait fails with ENOLCK. There may be more of
them than queued requests of a device (deferral.MAX_QUEUED): a thread that hangs outlives its
request."""

REMEMBERED: Final = 128
"""INTERRUPTs that are remembered, since their request may come later by another queue."""

INTERRUPT_DEADLINE_S: Final = 1.0
"""How long an INTERRUPT waits for the thread to wake up."""

_WAKE_INTERVAL_S: Final = 0.001
_LONGEST_WAKE_INTERVAL_S: Final = 0.1


class LockWait(Deferred):
    """One request that waits for a lock."""

    def __init__(
        self, waits: LockWaits, unique: int, answer: Callable[[int], int], wanted: HostLock
    ) -> None:
        super().__init__()
        self._waits = waits
        self._unique = unique
        self._answer = answer
        self._wanted = wanted
        self._called_off = 0
        self._running = True
        self._thread_mutex = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="lock-wait", daemon=True)

    def start(self) -> None:
        """Begin to wait.

        Raises:
            RuntimeError: The process may have no further thread.
            OSError: See HostLock.begin_wait.
        """
        self._wanted.begin_wait()
        try:
            self._thread.start()
        except RuntimeError:
            self._wanted.end_wait()
            raise

    def call_off(self, number: int) -> None:
        """Make the thread settle this with an errno, unless it has the lock by then.

        Repeat this until it is settled: a signal that comes before the thread has entered its
        system call is lost.
        """
        with self._thread_mutex:
            self._called_off = self._called_off or number
            if self._running and self._thread.ident is not None:
                wake(self._thread.ident)

    def end(self, number: int, deadline: float) -> None:
        """Call this off until it is settled, and settle it at the deadline.

        Args:
            number: The errno.
            deadline: By time.monotonic().
        """
        pause_s = _WAKE_INTERVAL_S
        while not self.wait(0):
            self.call_off(number)
            if self.wait(pause_s):
                return
            if time.monotonic() >= deadline:
                self.settle(number)
            pause_s = min(2 * pause_s, _LONGEST_WAKE_INTERVAL_S)

    def write(self) -> int:
        """Write an answer without data; see Deferred.write."""
        return self._answer(self.result)

    def give_up(self) -> None:
        """Call this off with ENOLCK; see Deferred.give_up."""
        self.call_off(errno.ENOLCK)

    def expire(self, deadline: float) -> None:
        """End this with ENOLCK; see Deferred.expire."""
        self.end(errno.ENOLCK, deadline)

    def _run(self) -> None:
        result = self._wait_for_lock()
        with self._thread_mutex:
            self._running = False
        self._wanted.end_wait()
        self._waits.remove(self._unique)
        if not self.settle(result) and result == 0:
            self._wanted.undo()

    def _wait_for_lock(self) -> int:
        while not self._called_off:
            try:
                self._wanted.set(wait=True)
            except InterruptedError:
                continue
            except (OSError, OverflowError) as error:
                return errno_of(error)
            return 0
        return self._called_off


class LockWaits:
    """All waits of one mount; safe to use from every queue's thread."""

    def __init__(self) -> None:
        self._by_unique: dict[int, LockWait] = {}
        self._interrupted: dict[int, None] = {}
        self._ended = 0
        self._mutex = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_unique)

    def start(self, unique: int, answer: Callable[[int], int], wanted: HostLock) -> LockWait:
        """Wait for a lock on behalf of a request.

        Args:
            unique: The request's number.
            answer: Answers the request with an errno, or 0; returns the bytes that it wrote.
            wanted: The lock.

        Raises:
            OSError: ENOLCK when there are too many waits; EINTR when the request was interrupted
                before it came; EINVAL when another request of the same number waits; EDEADLK when
                the wait would be for ever.
        """
        wait = LockWait(self, unique, answer, wanted)
        with self._mutex:
            if self._ended:
                raise refusal(self._ended)
            if unique in self._interrupted:
                del self._interrupted[unique]
                raise refusal(errno.EINTR)
            if unique in self._by_unique:
                raise refusal(errno.EINVAL)
            if len(self._by_unique) >= MAX_WAITS:
                raise refusal(errno.ENOLCK)
            self._by_unique[unique] = wait
        allow_waking()
        try:
            wait.start()
        except RuntimeError:
            self.remove(unique)
            raise refusal(errno.ENOLCK) from None
        except OSError:
            self.remove(unique)
            raise
        return wait

    def interrupt(self, unique: int) -> bool:
        """End the wait of a request with EINTR; returns whether there was such a wait.

        Otherwise the number is remembered for a while: the request may be under way on another
        queue.
        """
        with self._mutex:
            wait = self._by_unique.get(unique)
            if wait is None:
                self._interrupted[unique] = None
                if len(self._interrupted) > REMEMBERED:
                    del self._interrupted[next(iter(self._interrupted))]
                return False
        wait.end(errno.EINTR, time.monotonic() + INTERRUPT_DEADLINE_S)
        return True

    def end(self, number: int) -> None:
        """End all waits with an errno, and refuse every new one with it."""
        with self._mutex:
            self._ended = number
            waits = list(self._by_unique.values())
        for wait in waits:
            wait.call_off(number)
        deadline = time.monotonic() + INTERRUPT_DEADLINE_S
        for wait in waits:
            wait.end(number, deadline)

    def remove(self, unique: int) -> None:
        """Forget a wait that is over."""
        with self._mutex:
            del self._by_unique[unique]
