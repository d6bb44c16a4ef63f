"""Writes to eventfds that are shared with a peer, and the way out of one that blocks.

A peer shares the flags and the counter of an eventfd: it can fill the counter, and have the write
wait for as long as it likes. No call writes without waiting whatever the flags are (eventfds know
RWF_NOWAIT for reads only), and the flags are the peer's, which may rely on them. So no lock is held
during such a write, and a thread that is to end is interrupted in it, by a signal that does nothing
else. A write that waits has met a full counter, which is a pending notification: nothing is lost.

Owns which threads are in such a write, and the signal. Must not know rings, queues or messages.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SIGNAL: Final = signal.SIGURG
"""The same as in native/queue.c. It is ignored by default, so nothing happens to a process that has
not called `allow_interrupts`."""

_PATIENCE_S: Final = 0.02
_INTERVAL_S: Final = 0.01

_lock: Final = threading.Lock()
_writing: Final[set[int]] = set()


def allow_interrupts() -> None:
    """Have the signal interrupt what blocks. Call it on the main thread, before others.

    Without it a thread that is in a write to a peer cannot be ended before the peer allows it.
    """
    signal.signal(SIGNAL, _do_nothing)
    # What started this process may have blocked it; later threads have this thread's mask.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {SIGNAL})


def notify_peer(fd: int) -> None:
    """Add 1 to an eventfd of a peer; a full counter is a pending notification already.

    This blocks if the peer wants that, until `join` ends this thread.
    """
    me = threading.get_ident()
    with _lock:
        _writing.add(me)
    try:
        # Not os.write, which goes on after a signal (PEP 475).
        with contextlib.suppress(BlockingIOError, InterruptedError):
            os.eventfd_write(fd, 1)
    finally:
        with _lock:
            _writing.discard(me)


def interrupt(thread: threading.Thread) -> None:
    """Interrupt a thread's write to a peer, if it is in one; nothing else is interrupted."""
    with _lock:
        if thread.ident is not None and thread.ident in _writing:
            signal.pthread_kill(thread.ident, SIGNAL)


def join(
    thread: threading.Thread,
    timeout_s: float,
    interrupt: Callable[[threading.Thread], None] = interrupt,
) -> bool:
    """Wait for a thread that was asked to end, and get it out of its writes to peers.

    Args:
        thread: Sees, after each write, that it is to end.
        timeout_s: How long to wait at most.
        interrupt: Called again and again, because a signal may come just before the write.

    Returns:
        Whether it has ended.
    """
    end = time.monotonic() + timeout_s
    thread.join(min(timeout_s, _PATIENCE_S))
    while thread.is_alive() and (left_s := end - time.monotonic()) > 0:
        interrupt(thread)
        thread.join(min(left_s, _INTERVAL_S))
    return not thread.is_alive()


def _do_nothing(_number: int, _frame: object) -> None:
    """Handle the signal: that there is a handler is all that is needed."""
