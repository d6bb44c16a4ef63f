"""A device that counts the requests of its driver by FUSE operation.

Owns the counts. Must not know the meaning of an operation, only whether a caller waits for it.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Final

from services.simguest.virtio.interface import REQUEST_DEADLINE_S
from services.wire import fuse
from services.wire.fuse import InHeader, Opcode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from services.simguest.memory.dma import Buffer
    from services.simguest.virtio.interface import DriverQueue, ProbedDevice

UNAWAITED: Final = frozenset(
    {
        *(Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT),
        *(Opcode.RELEASE, Opcode.RELEASEDIR),
    }
)
"""The kernel sends these asynchronously, after the call that caused them has returned."""


class Operations:
    """The requests that a driver has sent to a device so far, by operation.

    A request counts before the device has it, so whatever a call needed counts when it returns.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[int] = Counter()
        self._read_bytes = 0

    def note(self, out: Sequence[Buffer]) -> None:
        """Count one request, given its device-readable buffers; the first has the header."""
        opcode = InHeader._make(fuse.IN_HEADER.unpack_from(out[0])).opcode
        size_bytes = 0
        if opcode == Opcode.READ:
            size_bytes = fuse.READ_IN.unpack_from(b"".join(out), fuse.IN_HEADER.size)[2]
        with self._lock:
            self._counts[opcode] += 1
            self._read_bytes += size_bytes

    def count(self, opcode: Opcode) -> int:
        """Return the number of requests with this operation."""
        with self._lock:
            return self._counts[opcode]

    def awaited(self) -> dict[int, int]:
        """Return the number of requests with each operation that a caller waits for."""
        with self._lock:
            return {code: n for code, n in self._counts.items() if code not in UNAWAITED}

    @property
    def read_bytes(self) -> int:
        """The sum of the sizes of all READs."""
        with self._lock:
            return self._read_bytes


class WatchedDevice:
    """A device whose `operations` counts the requests of its driver."""

    def __init__(self, device: ProbedDevice) -> None:
        self.operations = Operations()
        self._device = device
        self.queues: Sequence[DriverQueue] = [
            WatchedQueue(queue, self.operations) for queue in device.queues
        ]

    @property
    def features(self) -> int:
        return self._device.features

    @property
    def max_mapping_bytes(self) -> int:
        return self._device.max_mapping_bytes

    def config(self) -> bytes:
        return self._device.config()


class WatchedQueue:
    """A queue of a watched device."""

    def __init__(self, queue: DriverQueue, operations: Operations) -> None:
        self._queue, self._operations = queue, operations
        self.index, self.size = queue.index, queue.size
        self.post_receive = queue.post_receive

    def submit(
        self,
        out: Sequence[Buffer],
        in_sizes: Sequence[int],
        *,
        deadline_s: float = REQUEST_DEADLINE_S,
    ) -> Future[list[bytes]]:
        self._operations.note(out)
        return self._queue.submit(out, in_sizes, deadline_s=deadline_s)

    def transact(
        self,
        out: Sequence[Buffer],
        in_sizes: Sequence[int],
        *,
        deadline_s: float = REQUEST_DEADLINE_S,
        timeout_s: float | None = None,
    ) -> list[bytes]:
        self._operations.note(out)
        return self._queue.transact(out, in_sizes, deadline_s=deadline_s, timeout_s=timeout_s)
