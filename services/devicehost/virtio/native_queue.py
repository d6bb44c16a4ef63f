"""A virtqueue that the native loop serves in between.

Owns the hand-over: indices go to the loop and come back when there is something for Python to do.
The loop and Queue are two implementations of the same rules, never at work at the same time. Must
not know devices.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

from services.devicehost import fastpath
from services.devicehost.virtio.queue import Queue
from services.handshake.errors import ResourceExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.devicehost.memory import Span

_NO_FD: Final = -1
_HANDED_OVER: Final = [(name, f"_{name}") for name, _ in fastpath.RingState._fields_]


class NativeQueue(Queue):
    """A Queue whose thread may go into the native loop."""

    _ring = 0

    def __init__(
        self, library: ctypes.CDLL, spans: Sequence[Span], *, is_pool: bool, **ring: Any
    ) -> None:
        """Take over a ring.

        Args:
            library: The native fast path.
            spans: All memory that buffers may be in; mapped as long as the queue's memory is.
            is_pool: Whether the one span is a bounce pool, whose highest slot in use is counted.
            ring: What Queue takes; `kick_fd` is not None.

        Raises:
            ResourceExhaustedError: RING_MEMORY.
        """
        super().__init__(**ring)
        self._library: Final = library
        self._kept: Final = (fastpath.Span * len(spans))(
            *(fastpath.Span(span.gpa, span.size_bytes, span.address) for span in spans)
        )
        setup = fastpath.RingSetup(
            desc=_address(ring["desc"]),
            avail=_address(ring["avail"]),
            used=_address(ring["used"]),
            spans=ctypes.addressof(self._kept),
            counters=ctypes.addressof(self._counters.native),
            span_count=len(spans),
            size=self.size,
            kick_fd=ring["kick_fd"],
            call_fd=_NO_FD if ring["call_fd"] is None else ring["call_fd"],
            stop_fd=self._stop_fd,
            event_idx=ring["event_idx"],
            indirect=ring["indirect"],
            counts_slots=is_pool,
        )
        self._ring = library.ph_ring_new(ctypes.byref(setup)) or 0
        if not self._ring:
            super().close()
            raise ResourceExhaustedError(
                "RING_MEMORY", f"ring {self.index} gets no memory for its native side"
            )
        self._state = library.ph_ring_state(self._ring).contents
        self._lent = False

    def __del__(self) -> None:
        """Free what the library has of the ring; its thread has returned, for it had the queue."""
        if self._ring:
            self._library.ph_ring_free(self._ring)

    @property
    def next_avail(self) -> int:
        """As Queue's, also while the loop has the ring."""
        state: fastpath.RingState = self._state
        return state.next_avail if self._lent else self._next_avail

    def lend(self, serve: Callable[[int], int], wake_fd: int = _NO_FD) -> int:
        """Let the native loop serve the ring on this thread.

        Args:
            serve: Runs the loop on the ring that it is given.
            wake_fd: A further descriptor to come back for when it is readable.

        Returns:
            What `serve` returned: fastpath.Outcome.PYTHON, STOPPED or WOKEN.
        """
        for name, mine in _HANDED_OVER:
            setattr(self._state, name, getattr(self, mine))
        self._library.ph_ring_set_wake(self._ring, wake_fd)
        self._lent = True
        outcome = serve(self._ring)
        for name, mine in _HANDED_OVER:
            setattr(self, mine, getattr(self._state, name))
        self._lent = False
        return outcome

    def stop(self) -> None:
        """As Queue's."""
        self._library.ph_ring_stop(self._ring)
        super().stop()

    def replace_call(self, call_fd: int | None) -> None:
        """As Queue's."""
        self._library.ph_ring_set_call(self._ring, _NO_FD if call_fd is None else call_fd)
        super().replace_call(call_fd)

    def close(self) -> None:
        """As Queue's."""
        self._library.ph_ring_close(self._ring)
        super().close()


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
