"""Waking up a thread that waits in a system call, here for a lock.

Linux has no call that ends another thread's F_OFD_SETLKW, but a signal ends it. A handler in Python
will not do: it can be installed on the main thread only, and runs there. So the handler is a
function of the C library that has no effect and may be called in a handler (signal-safety(7)).
SIGURG is ignored by default, so without the handler it does no harm. Must not know locks.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
from typing import Final

WAKE_SIGNAL: Final = signal.SIGURG

_libc = ctypes.CDLL(None)
_libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.signal.restype = ctypes.c_void_p


def allow_waking() -> None:
    """Make WAKE_SIGNAL end a system call with EINTR from now on, in the whole process."""
    _libc.signal(WAKE_SIGNAL, ctypes.cast(_libc.getppid, ctypes.c_void_p))
    signal.siginterrupt(WAKE_SIGNAL, True)


def wake(thread_ident: int) -> None:
    """Send WAKE_SIGNAL to a thread that has not ended."""
    with contextlib.suppress(ProcessLookupError):  # it is about to end
        signal.pthread_kill(thread_ident, WAKE_SIGNAL)
