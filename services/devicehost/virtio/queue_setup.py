"""The setup of a queue that is started, and its position in the ring.

Owns these two values only. Must not know queues, rings or devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.accounting import QueueCounters
    from services.devicehost.memory import GuestMemory


@dataclass(frozen=True, slots=True)
class QueueSetup:
    """A ring and its surroundings; they stay the same until the queue has stopped.

    Attributes:
        index: Of the queue in its device.
        size: Entries of the ring, a power of two up to 32768.
        desc: The descriptor table; at least desc_table_bytes(size).
        avail: The available ring; at least avail_bytes(size).
        used: The used ring; at least used_bytes(size).
        memory: Where the buffers are.
        kick_fd: Eventfd of the driver's notifications; None: the ring is polled. The
            caller keeps it, and closes it after the queue.
        call_fd: Eventfd for notifying the driver; None: it polls. The caller keeps it
            likewise, and may exchange it by `Queue.replace_call`: the number must stay open until
            the queue's thread has returned, for the thread writes to it without a lock.
        event_idx: Whether EVENT_IDX was negotiated.
        indirect: Whether INDIRECT_DESC was negotiated.
        counters: Of this queue.
        on_first_request: Called once, by the queue's thread, after the first push.
    """

    index: int
    size: int
    desc: memoryview
    avail: memoryview
    used: memoryview
    memory: GuestMemory
    kick_fd: int | None
    call_fd: int | None
    event_idx: bool
    indirect: bool
    counters: QueueCounters
    on_first_request: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class QueueState:
    """The position of a queue in its ring, when it starts or after it has stopped.

    Everything else is in guest memory: a queue reads the used index when it starts.

    Attributes:
        next_avail: Available index of the next chain to be taken, 16 bits; what SET_VRING_BASE and
            GET_VRING_BASE carry.
    """

    next_avail: int = 0
