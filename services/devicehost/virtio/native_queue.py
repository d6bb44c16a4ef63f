"""A virtqueue that the native loop can serve, and the choice of a ring's kind of queue.

Owns the hand-over: indices go to the loop and come back when there is something for Python to do.
The loop and Queue are two implementations of the same rules, never at work at the same time. Must
not know devices.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

from services.devicehost import fastpath
from services.devicehost.virtio.queue import Queue
from services.devicehost.virtio.queue_setup import QueueState
from services.handshake.errors import ResourceExhaustedError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from services.devicehost.memory import Span
    from services.devicehost.virtio.queue_setup import QueueSetup

_NO_FD: Final = -1
_HANDED_OVER: Final = [(name, f"_{name}") for name, _ in fastpath.PhQueueState._fields_]


def make_queue(setup: QueueSetup, state: QueueState, *, natively: bool) -> Queue:
    """Make the queue of a ring: one that the native loop can serve, if that is wanted and possible.

    The loop needs the library, guest memory that is mapped for good, and a kick descriptor.

    Args:
        setup: The ring and its surroundings.
        state: Where to go on.
        natively: Whether the device can serve a NativeQueue.

    Raises:
        ResourceExhaustedError: RING_MEMORY.
    """
    library = fastpath.library
    spans = setup.memory.spans()
    if not natively or library is None or spans is None or setup.kick_fd is None:
        return Queue(setup, state)
    return NativeQueue(setup, state, library, spans)


class NativeQueue(Queue):
    """A Queue whose thread may go into the native loop."""

    _pointer = 0

    def __init__(
        self, setup: QueueSetup, state: QueueState, library: ctypes.CDLL, spans: Sequence[Span]
    ) -> None:
        """Take over a ring.

        Args:
            setup: The ring and its surroundings; it has a kick descriptor.
            state: Where to go on.
            library: The native fast path.
            spans: The memory that buffers may be in; mapped as long as the queue's memory is.

        Raises:
            ResourceExhaustedError: RING_MEMORY.
        """
        super().__init__(setup, state)
        self._library: Final = library
        self._kept: Final = (fastpath.PhSpan * len(spans))(
            *(fastpath.PhSpan(span.gpa, span.size_bytes, span.address) for span in spans)
        )
        native_setup = fastpath.PhQueueSetup(
            desc=_address(setup.desc),
            avail=_address(setup.avail),
            used=_address(setup.used),
            spans=ctypes.addressof(self._kept),
            counters=ctypes.addressof(setup.counters.native),
            span_count=len(spans),
            size=setup.size,
            kick_fd=_fd(setup.kick_fd),
            call_fd=_fd(setup.call_fd),
            stop_fd=self._wake_ups.stop_fd,
            event_idx=setup.event_idx,
            indirect=setup.indirect,
            counts_slots=setup.memory.is_pool,
        )
        self._pointer = library.ph_queue_new(ctypes.byref(native_setup)) or 0
        if not self._pointer:
            super().close()
            raise ResourceExhaustedError(
                "RING_MEMORY", f"ring {self.index} gets no memory for its native side"
            )
        self._indices = library.ph_queue_state(self._pointer).contents
        self._lent = False

    def __del__(self) -> None:
        """Free the library's side of the ring; a thread that served it would reference this."""
        if self._pointer:
            self._library.ph_queue_free(self._pointer)

    @property
    def state(self) -> QueueState:
        """See Queue; also correct while the loop has the ring."""
        return QueueState(self._indices.next_avail if self._lent else self._next_avail)

    def lend(self, serve: Callable[[int], int], wake_fd: int = _NO_FD) -> int:
        """Let the native loop serve the ring on this thread.

        Args:
            serve: Runs the loop on the ring that it is given.
            wake_fd: A further descriptor; the loop returns when it is readable.

        Returns:
            What `serve` returned: fastpath.Outcome.PYTHON, STOPPED or WOKEN.
        """
        for name, mine in _HANDED_OVER:
            setattr(self._indices, name, getattr(self, mine))
        self._library.ph_queue_set_wake(self._pointer, wake_fd)
        self._lent = True
        outcome = serve(self._pointer)
        for name, mine in _HANDED_OVER:
            setattr(self, mine, getattr(self._indices, name))
        self._lent = False
        return outcome

    def stop(self) -> None:
        """Make the loop return too; see Queue.stop."""
        self._library.ph_queue_stop(self._pointer)
        super().stop()

    def replace_call(self, call_fd: int | None) -> None:
        """Replace the descriptor in the loop too; see Queue.replace_call."""
        self._library.ph_queue_set_call(self._pointer, _fd(call_fd))
        super().replace_call(call_fd)

    def interrupt(self, thread: threading.Thread) -> None:
        """Get the thread out of a write of the loop too; see Queue.interrupt."""
        self._library.ph_queue_interrupt(self._pointer)
        super().interrupt(thread)

    def close(self) -> None:
        """Close the ring of the loop too; see Queue.close."""
        self._library.ph_queue_close(self._pointer)
        super().close()


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _fd(fd: int | None) -> int:
    return _NO_FD if fd is None else fd
