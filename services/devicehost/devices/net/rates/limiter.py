"""The limits of an adapter, one for each direction, by token buckets that its queues share.

Owns the arithmetic, which is exact and in integers: a bucket counts billionths of a token, of which
each nanosecond brings as many as a second brings tokens. A frame may go while there is more than
nothing of both bytes and packets, and takes what it costs. So one that is longer than the burst
goes too, and those behind it wait until its debt is paid. A queue that has to wait sleeps on the
timer, which is set to the moment at which a frame may go; a change of the limit makes it fire.
native/rate_limit.c has the same rules and, where the library is loaded, the state. Must not know
frames or queues.
"""

from __future__ import annotations

import ctypes
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from services.devicehost import fastpath
from services.devicehost.devices.net.rates.timer import Timer
from services.handshake.errors import ResourceExhaustedError
from services.handshake.rate_limit import NO_LIMIT
from services.wire.virtio_net import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.handshake.rate_limit import RateLimit

_PARTS: Final = 10**9


class Buckets(Protocol):
    """The buckets of one direction; any thread may use them. Times are of time.monotonic_ns.

    Attributes:
        pointer: For the native loop; 0: there is no library.
    """

    pointer: int

    def set(self, limit: RateLimit, now_ns: int) -> None:
        """Replace the limit, and have the timer fire."""

    def admits(self, now_ns: int) -> bool:
        """Return whether a frame may go."""

    def charge(self, now_ns: int, frame_bytes: int) -> None:
        """Take the cost of a frame out of both."""

    def arm(self, now_ns: int) -> int:
        """Have the timer fire when a frame may go; return when that is."""


class _Bucket:
    def __init__(self) -> None:
        self._rate = 0
        self._full = 0
        self._parts = 0

    def set(self, rate: int, burst: int) -> None:
        was_limited = self._rate > 0
        self._rate, self._full = rate, burst * _PARTS
        self._parts = min(self._parts, self._full) if was_limited else self._full

    def fill(self, elapsed_ns: int) -> None:
        self._parts = min(self._parts + elapsed_ns * self._rate, self._full)

    def admits(self) -> bool:
        return not self._rate or self._parts > 0

    def charge(self, cost: int) -> None:
        if self._rate:
            self._parts -= cost * _PARTS

    def wait_ns(self) -> int:
        return 0 if self.admits() else -self._parts // self._rate + 1


class PythonBuckets:
    """The reference; see Buckets."""

    pointer = 0

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self._lock = threading.Lock()
        self._filled_ns = 0
        self._bytes = _Bucket()
        self._packets = _Bucket()

    def set(self, limit: RateLimit, now_ns: int) -> None:
        """See Buckets."""
        with self._lock:
            self._fill(now_ns)
            self._bytes.set(limit.bps, limit.most_bytes)
            self._packets.set(limit.pps, limit.most_packets)
            self._timer.set(0)

    def admits(self, now_ns: int) -> bool:
        """See Buckets."""
        with self._lock:
            self._fill(now_ns)
            return self._bytes.admits() and self._packets.admits()

    def charge(self, now_ns: int, frame_bytes: int) -> None:
        """See Buckets."""
        with self._lock:
            self._fill(now_ns)
            self._bytes.charge(frame_bytes)
            self._packets.charge(1)

    def arm(self, now_ns: int) -> int:
        """See Buckets."""
        with self._lock:
            self._fill(now_ns)
            at_ns = self._filled_ns + max(self._bytes.wait_ns(), self._packets.wait_ns())
            self._timer.set(at_ns)
            return at_ns

    def _fill(self, now_ns: int) -> None:
        # Another thread may have looked at the clock later, and come first.
        elapsed_ns = max(now_ns - self._filled_ns, 0)
        self._bytes.fill(elapsed_ns)
        self._packets.fill(elapsed_ns)
        self._filled_ns += elapsed_ns


class NativeBuckets:
    """Those of the library, for its loops and for Python alike; see Buckets."""

    pointer = 0

    def __init__(self, timer: Timer, library: ctypes.CDLL) -> None:
        """Make them.

        Raises:
            ResourceExhaustedError: RING_MEMORY.
        """
        self._timer: Final = timer  # open as long as the library may set it
        self._library: Final = library
        self.pointer = library.ph_limiter_new(timer.fd) or 0
        if not self.pointer:
            raise ResourceExhaustedError(
                "RING_MEMORY", "a rate limit gets no memory for its native side"
            )

    def __del__(self) -> None:
        """Free the library's side; a thread in a loop that uses it references this."""
        if self.pointer:
            self._library.ph_limiter_free(self.pointer)

    def set(self, limit: RateLimit, now_ns: int) -> None:
        """See Buckets."""
        rates = fastpath.PhRateLimit(
            bytes=fastpath.PhRate(limit.bps, limit.most_bytes),
            packets=fastpath.PhRate(limit.pps, limit.most_packets),
        )
        self._library.ph_limiter_set(self.pointer, ctypes.byref(rates), now_ns)

    def admits(self, now_ns: int) -> bool:
        """See Buckets."""
        nothing = fastpath.PhCost()
        return bool(self._library.ph_limiter_admits(self.pointer, now_ns, ctypes.byref(nothing)))

    def charge(self, now_ns: int, frame_bytes: int) -> None:
        """See Buckets."""
        cost = fastpath.PhCost(frame_bytes, 1)
        self._library.ph_limiter_charge(self.pointer, now_ns, ctypes.byref(cost))

    def arm(self, now_ns: int) -> int:
        """See Buckets."""
        at_ns: int = self._library.ph_limiter_arm(self.pointer, now_ns)
        return at_ns


class Limiter:
    """One direction of an adapter; any thread may use it.

    Attributes:
        limit: What is in force.
        timer_fd: Readable when a queue that waits is to look again.
        buckets: The state.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Begin without a limit.

        Raises:
            ResourceExhaustedError: RING_MEMORY.
            OSError: The process may have no further descriptor.
        """
        timer = Timer()
        library = fastpath.library
        self.limit = NO_LIMIT
        self.timer_fd: Final = timer.fd
        self.buckets: Final[Buckets] = (
            PythonBuckets(timer) if library is None else NativeBuckets(timer, library)
        )
        self._clock_ns = clock_ns

    def set(self, limit: RateLimit) -> None:
        """Replace the limit, which is within its bounds; queues go by it at once."""
        self.limit = NO_LIMIT if limit == NO_LIMIT else limit
        self.buckets.set(limit, self._clock_ns())

    def admits(self) -> bool:
        """Return whether a frame may go."""
        return self.limit is NO_LIMIT or self.buckets.admits(self._clock_ns())

    def charge(self, frame_bytes: int) -> None:
        """Take what a frame costs; one that is longer than any frame costs as much as the longest.

        Args:
            frame_bytes: Its length; below 0 for what is shorter than a header.
        """
        if self.limit is not NO_LIMIT:
            cost = max(min(frame_bytes, MAX_FRAME_BYTES), 0)
            self.buckets.charge(self._clock_ns(), cost)

    def arm(self) -> int:
        """Have the timer fire when a frame may go, and whenever the limit changes; return when."""
        return self.buckets.arm(self._clock_ns())


class Limits:
    """Both directions of an adapter.

    Attributes:
        transmit: Of frames that the guest sends.
        receive: Of frames that the guest gets.
    """

    def __init__(self) -> None:
        """Begin without limits; see Limiter."""
        self.transmit: Final = Limiter()
        self.receive: Final = Limiter()
