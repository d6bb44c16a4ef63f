"""The thread that serves one queue: started, asked to stop, joined, or left behind.

Owns the thread, its queue, and what it holds of guest memory and descriptors. A failure ends the
service of one device, never the process. Must not know rings, their states or the front-end.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from services.devicehost import peer_writes
from services.handshake.errors import (
    FailedPreconditionError,
    PortholeError,
    ResourceExhaustedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.memory import GuestMemory
    from services.devicehost.vhost_user.event_fds import Notification
    from services.devicehost.virtio.device import VirtioDevice
    from services.devicehost.virtio.queue import Queue

_LOG = logging.getLogger(__name__)

STOP_DEADLINE_S: Final = 10.0
"""How long the workers of a device may take to end, together, after their queues were stopped."""

STOP_LEAST_S: Final = 0.5
"""How long each may take at least, when others have used up the time."""


def stop_deadline() -> float:
    """Return when workers that are asked to stop now must have ended, on the monotonic clock."""
    return time.monotonic() + STOP_DEADLINE_S


class Worker:
    """A thread that serves a queue, from construction to `stop`.

    Attributes:
        memory: Guest memory, which the thread keeps mapped until it ends.
        queue_state: What the next queue of the ring starts from, once `stop` has returned.
    """

    def __init__(
        self,
        queue: Queue,
        device: VirtioDevice,
        memory: GuestMemory,
        call: Notification,
        on_failure: Callable[[PortholeError], None],
    ) -> None:
        """Start the thread.

        Args:
            queue: The worker's from now on; it is closed by `stop`, and by a failure to start.
            device: Serves the queue.
            memory: Where ring and buffers are; retained until the thread ends.
            call: The eventfd for notifying the driver; retained until the thread ends.
            on_failure: Called by the thread when the guest broke a rule, or the device failed.

        Raises:
            ResourceExhaustedError: RING_THREAD: the process may have no further thread.
        """
        self.memory = memory
        self.queue_state = queue.state
        self._queue = queue
        self._device = device
        self._call = call
        self._on_failure = on_failure
        self._thread = threading.Thread(
            target=self._serve, name=f"{device.device_class}-q{queue.index}", daemon=True
        )
        memory.retain()
        call.retain()
        try:
            self._thread.start()
        except RuntimeError as error:
            call.release()
            memory.release()
            queue.close()
            raise ResourceExhaustedError(
                "RING_THREAD",
                f"ring {queue.index} gets no thread: {error}; raise the limit on processes "
                "(RLIMIT_NPROC, or the container's pids limit)",
                queue=queue.index,
            ) from error

    def ask_to_stop(self) -> None:
        """Make the thread end soon, without waiting for it; from any thread."""
        self._queue.stop()

    def replace_call(self, fd: int | None) -> None:
        """Notify the driver through another descriptor; see `Queue.replace_call`."""
        self._queue.replace_call(fd)

    def stop(self, deadline: float | None = None) -> bool:
        """End the thread and release its queue. Call once.

        A front-end cannot prevent that: the thread is got out of a write that it makes block. A
        thread that is stuck elsewhere, for instance in a system call on a dead network drive, is
        not interrupted there, and is left behind at the deadline. It keeps guest memory mapped, and
        its call descriptor open, until it ends.

        Args:
            deadline: What `stop_deadline` returned when all workers that end together were asked to
                stop; None: this one is asked now.

        Returns:
            Whether the thread has ended; if not, it may still touch its ring.
        """
        self._queue.stop()
        left_s = (stop_deadline() if deadline is None else deadline) - time.monotonic()
        has_ended = peer_writes.join(self._thread, max(left_s, STOP_LEAST_S), self._queue.interrupt)
        if not has_ended:
            _LOG.error(
                "%s does not end within %g s of being stopped; leaving it behind",
                *(self._thread.name, STOP_DEADLINE_S),
            )
        self.queue_state = self._queue.state
        self._queue.close()
        return has_ended

    def _serve(self) -> None:
        device, queue, loss = self._device, self._queue, self.memory.loss
        try:
            loss.report_to(queue.stop)
            device.serve(queue.index, queue)
            queue.notify()
            if loss.has_happened:
                self._on_failure(loss.error)
        except PortholeError as error:
            # What the driver seems to have done wrong may be the zeros of lost pages.
            self._on_failure(loss.error if loss.has_happened else error)
        except Exception:
            _LOG.exception("%s: queue %d failed", device.device_class, queue.index)
            self._on_failure(
                FailedPreconditionError(
                    "DEVICE_FAILED",
                    f"queue {queue.index} failed by a fault of the device; see its log",
                )
            )
        finally:
            loss.report_no_more_to(queue.stop)
            self._call.release()
            self.memory.release()
