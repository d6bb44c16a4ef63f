"""One ring as a front-end sets it up: size, base, addresses and descriptors.

Owns the ring's pinned pages, its descriptors and its state; each event of `ring_states` is a method
here. A worker ends as soon as its ring is not SERVED any more. Only the front-end thread calls the
methods, except for those marked "from any thread". Must not know messages or other rings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.devicehost.vhost_user.event_fds import Notification
from services.devicehost.vhost_user.ring_states import RingEvent, RingState, ring_life
from services.devicehost.vhost_user.worker import Worker
from services.devicehost.virtio.native_queue import make_queue
from services.devicehost.virtio.queue_setup import QueueSetup, QueueState
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.wire.virtio_ring import (
    AVAIL_ALIGN,
    AVAIL_IDX,
    DESC_ALIGN,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    MAX_QUEUE_SIZE,
    USED_ALIGN,
    avail_bytes,
    desc_table_bytes,
    is_queue_size,
    used_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.accounting import QueueCounters
    from services.devicehost.memory import GuestMemory, PinnedPart, RegionTable
    from services.devicehost.virtio.device import VirtioDevice
    from services.devicehost.virtio.queue import Queue
    from services.handshake.errors import PortholeError
    from services.wire.vhost_user import VringAddr


@dataclass(frozen=True, slots=True)
class RingContext:
    """What a ring needs from its device to be served.

    Attributes:
        device: Serves the queue.
        memory: Where rings and buffers are.
        features: Virtio features that were negotiated.
        counters: Of the queue.
        on_first_request: Called by the worker after the first chain was given back.
        on_failure: Called by the worker when the guest broke a rule, or the device failed.
    """

    device: VirtioDevice
    memory: GuestMemory
    features: int
    counters: QueueCounters
    on_first_request: Callable[[], None]
    on_failure: Callable[[PortholeError], None]


class Ring:
    """One virtqueue of a device, as the front-end has set it up so far."""

    def __init__(self, index: int) -> None:
        self.index = index
        self._life = ring_life(index)
        self._size = 0
        self._queue_state = QueueState()
        self._addr: VringAddr | None = None
        self._addr_is_current = False
        self._parts: tuple[PinnedPart, PinnedPart, PinnedPart] | None = None
        self._kick_fd: int | None = None
        self._call = Notification()
        self._err = Notification()
        self._worker: Worker | None = None

    @property
    def state(self) -> RingState:
        """Where the ring is in its life."""
        return self._life.state

    @property
    def reachable(self) -> bool:
        """Whether the ring's parts are pinned."""
        return self._parts is not None

    @property
    def placed(self) -> bool:
        """Whether the ring is reachable, at addresses sent after it was last stopped or disabled.

        Some front-ends only disable a ring whose driver is reset, and place it anew later.
        """
        return self.reachable and self._addr_is_current

    @property
    def has_requests(self) -> bool:
        """Whether the driver has made chains available that were not taken when the ring started.

        A worker that takes them does not change the answer. It is False for a moment after exactly
        65,536 of them.
        """
        if self._parts is None:
            return False
        _, avail, _ = self._parts
        index = int.from_bytes(avail.view[AVAIL_IDX : AVAIL_IDX + 2], "little")
        return index != self._queue_state.next_avail

    def set_size(self, size: int) -> None:
        """SET_VRING_NUM.

        Raises:
            InvalidArgumentError: RING_SIZE.
            FailedPreconditionError: RING_RUNNING.
        """
        if not is_queue_size(size):
            raise InvalidArgumentError(
                "RING_SIZE",
                f"ring {self.index} cannot have {size} entries; give a power of two up to "
                f"{MAX_QUEUE_SIZE}",
                size=size,
                bound=MAX_QUEUE_SIZE,
            )
        if size != self._size:
            self._configure()
            self.unpin()
            self._addr = None
            self._size = size

    def set_base(self, base: int) -> None:
        """SET_VRING_BASE: the available index to go on from.

        Raises:
            InvalidArgumentError: RING_BASE.
            FailedPreconditionError: RING_RUNNING.
        """
        if base > 0xFFFF:
            raise InvalidArgumentError(
                "RING_BASE", f"ring {self.index}: base {base} is not a 16-bit index", base=base
            )
        self._configure()
        self._queue_state = QueueState(base)

    def set_addr(self, addr: VringAddr, table: RegionTable, memory: GuestMemory | None) -> None:
        """SET_VRING_ADDR: pin the ring's three parts, now or as soon as there is memory.

        Raises:
            FailedPreconditionError: RING_RUNNING, or RING_SIZE_FIRST: the size is not known yet.
            InvalidArgumentError: RING_ALIGNMENT, or TranslationError for a part that is not in
                guest memory.
        """
        if self._size == 0:
            raise FailedPreconditionError(
                "RING_SIZE_FIRST", f"ring {self.index} has no size yet; send SET_VRING_NUM first"
            )
        if self._addr is not None and addr[2:5] == self._addr[2:5]:
            self._addr_is_current = True
            return
        self._configure()
        self.unpin()
        self._addr = addr
        self._addr_is_current = True
        if memory is not None:
            self.pin(table, memory)

    def pin(self, table: RegionTable, memory: GuestMemory) -> None:
        """Make the ring's parts reachable; nothing to do for a ring without addresses.

        Raises:
            InvalidArgumentError: See `set_addr`; nothing is pinned then, and the addresses are
                forgotten.
        """
        if self._addr is None:
            return
        wanted = (
            (self._addr.desc, desc_table_bytes(self._size), DESC_ALIGN),
            (self._addr.avail, avail_bytes(self._size), AVAIL_ALIGN),
            (self._addr.used, used_bytes(self._size), USED_ALIGN),
        )
        parts: list[PinnedPart] = []
        try:
            for user_addr, length, align in wanted:
                parts.append(self._pin_part(table, memory, user_addr, length, align))
        except InvalidArgumentError:
            for part in parts:
                part.close()
            self._addr = None
            raise
        desc, avail, used = parts
        self._parts = (desc, avail, used)

    def unpin(self) -> None:
        """Give up the ring's pages; the ring must not be served."""
        for part in self._parts or ():
            part.close()
        self._parts = None

    def set_kick(self, fd: int | None) -> None:
        """SET_VRING_KICK: start the ring; None asks for polling. Takes the descriptor."""
        self._life.fire(RingEvent.START)
        self._end_worker()
        _close(self._kick_fd)
        self._kick_fd = fd

    def set_call(self, fd: int | None) -> None:
        """SET_VRING_CALL: how the driver is notified; None: it polls. Takes the descriptor."""
        self._call.replace(fd)
        if self._worker is not None:
            self._worker.replace_call(self._call.fd)

    def set_err(self, fd: int | None) -> None:
        """SET_VRING_ERR: how the front-end learns that the ring is broken. Takes the descriptor."""
        self._err.replace(fd)

    def enable(self) -> None:
        """Enable the ring: it may be served once it is started."""
        self._life.fire(RingEvent.ENABLE)

    def disable(self) -> None:
        """Disable the ring: nobody serves it from now on."""
        self._life.fire(RingEvent.DISABLE)
        self._end_worker()
        self._addr_is_current = False

    def serve(self, context: RingContext) -> None:
        """Have a worker serve the ring from now on.

        Raises:
            FailedPreconditionError: ILLEGAL_EVENT: the ring is not started and enabled, or is
                served already; or RING_NOT_STARTED: it is not reachable.
            ResourceExhaustedError: RING_THREAD or RING_MEMORY: there is no thread, or no memory,
                for a worker.
        """
        if self._parts is None:
            raise FailedPreconditionError(
                "RING_NOT_STARTED", f"ring {self.index} has no addresses yet"
            )
        self._life.fire(RingEvent.SERVE)
        try:
            queue = self._make_queue(context, *self._parts)
            self._worker = Worker(
                queue, context.device, context.memory, self._call, context.on_failure
            )
        except BaseException:
            self._life.fire(RingEvent.PAUSE)
            raise

    def ask_to_stop(self) -> None:
        """Ask the worker, if there is one, to end soon; does not wait for it. From any thread."""
        worker = self._worker
        if worker is not None:
            worker.ask_to_stop()

    def pause(self, deadline: float | None = None) -> None:
        """End the worker, if there is one, by the deadline; the ring can be served again at once.

        Args:
            deadline: See `Worker.stop`.
        """
        if self.state is RingState.SERVED:
            self._life.fire(RingEvent.PAUSE)
            self._end_worker(deadline)

    def halt(self, deadline: float | None = None) -> int:
        """GET_VRING_BASE: stop the ring until the next SET_VRING_KICK; return where it stopped.

        Args:
            deadline: See `Worker.stop`.
        """
        self._life.fire(RingEvent.STOP)
        self._end_worker(deadline)
        self._addr_is_current = False
        _close(self._kick_fd)
        self._kick_fd = None
        self._call.release()
        self._call = Notification()
        return self._queue_state.next_avail

    def report_broken(self) -> None:
        """Notify the front-end by the error descriptor, if it gave one; from any thread."""
        self._err.notify()

    def close(self, deadline: float | None = None) -> None:
        """Stop the ring by the deadline and release everything; it is of no use afterwards.

        Args:
            deadline: See `Worker.stop`.
        """
        self.halt(deadline)
        self.unpin()
        self._call.release()
        self._err.release()

    def _pin_part(
        self, table: RegionTable, memory: GuestMemory, user_addr: int, length: int, align: int
    ) -> PinnedPart:
        gpa = table.user_to_gpa(user_addr, length)
        if gpa is None:
            raise memory.refusal(user_addr, length, "guest memory (an address of the front-end)")
        if gpa % align:
            raise InvalidArgumentError(
                "RING_ALIGNMENT",
                f"ring {self.index}: guest address 0x{gpa:x} is not a multiple of {align}",
                gpa=gpa,
                bound=align,
            )
        return memory.pin(gpa, length)

    def _make_queue(
        self, context: RingContext, desc: PinnedPart, avail: PinnedPart, used: PinnedPart
    ) -> Queue:
        setup = QueueSetup(
            index=self.index,
            size=self._size,
            desc=desc.view,
            avail=avail.view,
            used=used.view,
            memory=context.memory,
            kick_fd=self._kick_fd,
            call_fd=self._call.fd,
            event_idx=bool(context.features & F_EVENT_IDX),
            indirect=bool(context.features & F_INDIRECT_DESC),
            counters=context.counters,
            on_first_request=context.on_first_request,
        )
        return make_queue(setup, self._queue_state, natively=context.device.goes_native)

    def _configure(self) -> None:
        """Refuse to change what a worker relies on.

        Raises:
            FailedPreconditionError: RING_RUNNING.
        """
        try:
            self._life.fire(RingEvent.CONFIGURE)
        except FailedPreconditionError as error:
            raise FailedPreconditionError(
                "RING_RUNNING",
                f"ring {self.index} is running; stop it with GET_VRING_BASE first",
                queue=self.index,
            ) from error

    def _end_worker(self, deadline: float | None = None) -> None:
        """End the worker, if there is one, after an event has led out of SERVED.

        This waits for the thread; see `Worker.stop`.
        """
        worker = self._worker
        if worker is None:
            return
        if not worker.stop(deadline) and self._parts is not None:
            # The thread that is left behind may still touch the ring's own pages.
            desc, avail, used = map(worker.memory.keep, self._parts)
            self._parts = (desc, avail, used)
        self._queue_state = worker.queue_state
        self._worker = None


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
