"""The device side of a split virtqueue: take chains, give them back, notify, sleep.

Source: VIRTIO 1.2, section 2.7. One thread drives a queue (`pop`, `push`, `notify`, `wait`); any
other may `stop` it or replace its call descriptor. Guest memory is read once per fact. The stores
to the used ring rely on x86 store ordering; where a store must be seen before a load, taking the
queue's lock is the fence. Must not know devices or vhost-user.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from services.devicehost import peer_writes
from services.devicehost.memory import TranslationError
from services.devicehost.throttle import Throttle
from services.devicehost.virtio.chain import Chain, ChainReader, QueueError
from services.devicehost.virtio.queue_setup import QueueState
from services.devicehost.virtio.wake_ups import WakeUps
from services.handshake.errors import DeadlineExceededError, ResourceExhaustedError
from services.wire.virtio_ring import (
    AVAIL_F_NO_INTERRUPT,
    AVAIL_RING,
    U16_MASK,
    USED_F_NO_NOTIFY,
    USED_RING,
    avail_bytes,
    avail_event_offset,
    desc_table_bytes,
    need_event,
    used_bytes,
    used_event_offset,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.devicehost.virtio.queue_setup import QueueSetup

__all__ = ["Chain", "Queue", "QueueError"]

_LOG = logging.getLogger(__name__)

SPIN_NS: Final = 50_000
"""How long a queue looks for more work before it sleeps, if looking has paid off lately. A driver
that sleeps takes some 30 µs to wake up in a virtual machine, so looking for 20 µs never met its
next request."""

SPIN_MIN_NS: Final = 1_000
"""How long it looks when looking has not paid off."""

BATCH_REQUESTS: Final = 8
BATCH_BYTES: Final = 1 << 20
"""A driver is notified after so many completions or bytes, and always before the queue sleeps. The
native loop also does so when few requests are left (ring.c). In Python serving a request takes as
long as notifying: more notifications cost more than a driver gains by waking up earlier."""

POLL_INTERVAL_MS: Final = 1
"""How often a queue without a kick descriptor looks at its ring: its front-end wants polling."""


class Queue:
    """One started virtqueue.

    Attributes:
        index: Of the queue in its device.
        size: Entries of the ring.
        stopped: Set by `stop`; the thread that serves the queue returns when it sees this.
    """

    def __init__(self, setup: QueueSetup, state: QueueState) -> None:
        """Take over a ring.

        Args:
            setup: The ring and its surroundings.
            state: Where to go on.
        """
        size = setup.size
        self.index = setup.index
        self.size = size
        self.stopped = False
        self._closed = False
        self._mask = size - 1
        self._reader = ChainReader(
            setup.desc[: desc_table_bytes(size)], size, setup.memory, indirect=setup.indirect
        )
        avail = setup.avail[: avail_bytes(size)]
        used = setup.used[: used_bytes(size)]
        self._avail_head = avail[:AVAIL_RING].cast("H")
        self._avail_ring = avail[AVAIL_RING : used_event_offset(size)].cast("H")
        self._used_event = avail[used_event_offset(size) :].cast("H")
        self._used_head = used[:USED_RING].cast("H")
        # An element is stored whole, as one 64-bit word: le32 id, le32 len.
        self._used_ring = used[USED_RING : avail_event_offset(size)].cast("Q")
        self._avail_event = used[avail_event_offset(size) :].cast("H")
        self._event_idx = setup.event_idx
        self._next_avail = state.next_avail & U16_MASK
        self._seen_avail = self._next_avail
        self._next_used = self._used_head[1]
        self._signalled_used = self._next_used
        self._signal_due = True
        self._unsignalled = 0
        self._unsignalled_bytes = 0
        self._spin_ns = SPIN_NS
        self._call_fd = setup.call_fd
        self._lock = threading.Lock()
        self._wake_ups = WakeUps(setup.kick_fd)
        self._throttle = Throttle()
        self._counters = setup.counters
        self._on_first_request = setup.on_first_request

    @property
    def state(self) -> QueueState:
        """Where the queue is in its ring; of use to start another one when it has stopped."""
        return QueueState(self._next_avail)

    @property
    def first_request_is_due(self) -> bool:
        """Whether the first request has not been reported yet."""
        return self._on_first_request is not None

    def has_next(self) -> bool:
        """Return whether the driver has made a chain available.

        Raises:
            QueueError: The available index jumped.
        """
        return self._next_avail != self._seen_avail or self._look()

    def pop(self) -> Chain | None:
        """Take the next chain; None when the driver has made no more available, or after `stop`.

        Raises:
            QueueError: The guest broke a rule of the ring; do not call again.
            TranslationError: The device may not reach a buffer; do not call again.
                The chain was given back, with nothing written, so that its request fails at once.
        """
        while not self.stopped:
            if self._next_avail == self._seen_avail and not self._look():
                return None
            head = self._avail_ring[self._next_avail & self._mask]
            self._next_avail = (self._next_avail + 1) & U16_MASK
            try:
                chain = self._reader.read(head)
            except TranslationError:
                self._give_back_unserved(head)
                self.notify()
                raise
            except (DeadlineExceededError, ResourceExhaustedError) as error:
                # The request fails, the device lives: there was no room to map its buffers.
                held_back = self._throttle.admit()
                if held_back is not None:
                    _LOG.warning(
                        "queue %d gives a request back unserved: %s [%d more not logged]",
                        *(self.index, error, held_back),
                    )
                self._give_back_unserved(head)
                continue
            self._counters.bytes_in += chain.readable_bytes
            return chain
        return None

    def push(self, chain: Chain, written_bytes: int) -> None:
        """Give a chain back; its buffers must not be touched any more.

        Args:
            chain: A chain that `pop` returned.
            written_bytes: Bytes that the device wrote, from the first writable byte on.

        Raises:
            ValueError: More than the chain's writable buffers hold.
        """
        if self._closed:
            chain.lease.close()
            return
        self._hand_back(chain, written_bytes)
        self._publish(1, written_bytes)
        if self._on_first_request is not None:
            self._report_first_request(self._on_first_request)

    def push_together(self, used: Sequence[tuple[Chain, int]]) -> None:
        """Give chains back in one step: the driver sees all of them or none (section 5.1.6.3).

        Args:
            used: Each chain with the bytes written to it, as in `push`.

        Raises:
            ValueError: See `push`.
        """
        if self._closed:
            for chain, _ in used:
                chain.lease.close()
            return
        for chain, written_bytes in used:
            self._hand_back(chain, written_bytes)
        self._publish(len(used), sum(written_bytes for _, written_bytes in used))
        if self._on_first_request is not None:
            self._report_first_request(self._on_first_request)

    def put_back(self, chain: Chain) -> None:
        """Undo the latest `pop` whose chain was neither pushed nor put back: it can be repeated.

        Args:
            chain: The chain that this `pop` returned.
        """
        chain.lease.close()
        self._next_avail = (self._next_avail - 1) & U16_MASK

    def notify(self) -> None:
        """Notify the driver of what was pushed, if it wants to know (section 2.7.7)."""
        used, self._unsignalled, self._unsignalled_bytes = self._next_used, 0, 0
        with self._lock:
            if self._closed:
                return
            # The lock is the fence: the used index is visible before the driver's wish is read.
            if self._event_idx:
                old, self._signalled_used = self._signalled_used, used
                wanted = self._signal_due or need_event(self._used_event[0], used, old)
                self._signal_due = False
            else:
                wanted = not self._avail_head[0] & AVAIL_F_NO_INTERRUPT
            call_fd = self._call_fd if wanted else None
        if call_fd is not None:  # the write may block, so no lock is held
            peer_writes.notify_peer(call_fd)

    def wait(self, *fds: int, buffers: bool = True, timeout_s: float | None = None) -> set[int]:
        """Notify, look around for some microseconds, then sleep until there is something to do.

        Args:
            fds: Further descriptors to wake up for when they are readable.
            buffers: Whether to wake up for available buffers as well as for `fds`.
            timeout_s: How long to sleep at most; None: as long as it takes. Without `buffers` only.

        Returns:
            Those of `fds` that are readable; empty when buffers came, the time is over or the queue
            was stopped. A ring whose queue was stopped is not touched.

        Raises:
            QueueError: The available index jumped.
        """
        if self._unsignalled:
            self.notify()
        if self.stopped:
            return set()
        if buffers and not fds and self._spin():
            return set()
        if buffers and self._arm():
            return set()
        polling = buffers and self._wake_ups.kick_fd is None
        timeout_ms = POLL_INTERVAL_MS if polling else timeout_s and timeout_s * 1000
        ready: set[int] = set()
        while not ready and not self.stopped:
            ready = self._wake_ups.sleep(fds, kick=buffers, timeout_ms=timeout_ms)
            if timeout_s is not None or (polling and not self.stopped and self._look()):
                break
        if buffers and not self.stopped:
            self._disarm()
        return ready & set(fds)

    def wait_for_room(self, fd: int) -> None:
        """Notify, then sleep until a descriptor is writable or broken, or the queue was stopped.

        Args:
            fd: A descriptor of the device.
        """
        if self._unsignalled:
            self.notify()
        if not self.stopped:
            self._wake_ups.sleep_for_room(fd)

    def stop(self) -> None:
        """Make the thread that serves the queue return; from any thread, harmless when repeated."""
        self.stopped = True
        with self._lock:
            if not self._closed:
                self._wake_ups.stop()

    def replace_call(self, call_fd: int | None) -> None:
        """Notify through another descriptor from now on, and once immediately.

        Args:
            call_fd: See QueueSetup.
        """
        with self._lock:
            self._call_fd = call_fd
        if call_fd is not None:  # what was signalled through the old one may have been lost
            peer_writes.notify_peer(call_fd)

    def interrupt(self, thread: threading.Thread) -> None:
        """Get a thread out of a write to a peer, if it is in one; see `peer_writes.join`.

        Args:
            thread: The one that serves the queue.
        """
        peer_writes.interrupt(thread)

    def close(self) -> None:
        """Release what the queue itself made; call it after `stop`.

        The thread that serves the queue should have returned. A thread that is stuck may give its
        chain back later; that touches neither the ring nor a descriptor.
        """
        with self._lock:
            self._closed = True
            self._wake_ups.close()

    def _look(self) -> bool:
        """See whether the driver has made chains available."""
        seen = self._avail_head[1]
        waiting = (seen - self._next_avail) & U16_MASK
        if waiting > self.size:
            raise QueueError(
                "AVAILABLE_INDEX",
                f"queue {self.index}: the available index jumped from {self._next_avail} to "
                f"{seen}, more than the {self.size} entries of the ring",
                queue=self.index,
                bound=self.size,
            )
        self._seen_avail = seen
        return waiting > 0

    def _hand_back(self, chain: Chain, written_bytes: int) -> None:
        """Write one used element; the driver does not see it before `_publish`."""
        if not 0 <= written_bytes <= chain.writable_bytes:
            raise ValueError(
                f"{written_bytes} bytes written to a chain with {chain.writable_bytes} writable"
            )
        chain.lease.close()
        next_used = self._next_used
        self._used_ring[next_used & self._mask] = chain.head | written_bytes << 32
        self._next_used = (next_used + 1) & U16_MASK
        counters = self._counters
        counters.requests += 1
        counters.bytes_out += written_bytes

    def _give_back_unserved(self, head: int) -> None:
        if self._closed:
            return
        self._used_ring[self._next_used & self._mask] = head
        self._next_used = (self._next_used + 1) & U16_MASK
        self._publish(1, 0)

    def _report_first_request(self, report: Callable[[], None]) -> None:
        self._on_first_request = None
        report()

    def _publish(self, count: int, written_bytes: int) -> None:
        self._used_head[1] = self._next_used
        self._unsignalled += count
        self._unsignalled_bytes += written_bytes
        if self._unsignalled >= BATCH_REQUESTS or self._unsignalled_bytes >= BATCH_BYTES:
            self.notify()

    def _spin(self) -> bool:
        """Look for chains for a while; longer when that has paid off lately."""
        deadline = time.monotonic_ns() + self._spin_ns
        while not self.stopped:
            if self._look():
                self._spin_ns = SPIN_NS
                return True
            if time.monotonic_ns() >= deadline:
                break
        self._spin_ns = max(self._spin_ns // 2, SPIN_MIN_NS)
        return False

    def _arm(self) -> bool:
        """Ask the driver for a kick; return whether chains came before it could see the wish."""
        if self._event_idx:
            self._avail_event[0] = self._next_avail
        else:
            self._used_head[0] = 0
        with self._lock:  # the fence: the wish is visible before the index is read
            return self._look()

    def _disarm(self) -> None:
        """Take note of a kick, and ask for no more while the queue is awake."""
        self._wake_ups.take_kick()
        if not self._event_idx:
            self._used_head[0] = USED_F_NO_NOTIFY
