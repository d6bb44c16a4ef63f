"""A timer that threads sleep on: timerfd_create(2), which Python names from 3.13 on.

Must not know what is waited for.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Final

_ABSOLUTE: Final = 1
"""TFD_TIMER_ABSTIME (sys/timerfd.h); its flags for a new timer are those of open(2)."""
_NS: Final = 10**9

_libc = ctypes.CDLL(None, use_errno=True)


class _TimeSpec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("it_interval", _TimeSpec), ("it_value", _TimeSpec))


class Timer:
    """A timer of CLOCK_MONOTONIC, which any thread may set; it fires once.

    Attributes:
        fd: Readable from the moment at which it fires until it is set again; nobody reads it.
    """

    def __init__(self) -> None:
        """Make a timer that is not set.

        Raises:
            OSError: The process may have no further descriptor.
        """
        self.fd: Final = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def __del__(self) -> None:
        """Close the descriptor; a thread that sleeps on it references this."""
        if getattr(self, "fd", -1) >= 0:
            os.close(self.fd)

    def set(self, at_ns: int) -> None:
        """Fire at a time of time.monotonic_ns, and not before; at once if it is over."""
        at_ns = max(at_ns, 1)  # 0 would stop it
        value = _TimerSpec(it_value=_TimeSpec(at_ns // _NS, at_ns % _NS))
        _libc.timerfd_settime(self.fd, _ABSOLUTE, ctypes.byref(value), None)
