"""The interface of a virtio driver of this guest: a probed device and its queues.

Owns the interface only; device.py and queue.py provide it. Drivers (virtio-fs, virtio-net) code
against it and must not know the ring, the bounce pool or the vhost-user front-end below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from services.simguest.memory.dma import Buffer

REQUEST_DEADLINE_S: Final = 30.0
"""Default time for which a submitter waits for free descriptors and pool slots."""


class DriverQueue(Protocol):
    """One virtqueue, from its driver's side. Every method may be called from any thread."""

    @property
    def index(self) -> int:
        """Number of the queue in its device."""
        ...

    @property
    def size(self) -> int:
        """Entries of the ring, and thereby the most requests in flight."""
        ...

    def submit(
        self,
        out: Sequence[Buffer],
        in_sizes: Sequence[int],
        *,
        deadline_s: float = REQUEST_DEADLINE_S,
    ) -> Future[list[bytes]]:
        """Make one request available to the device, and kick the device if it asked for kicks.

        The `out` buffers are copied before this returns and may then be reused. Blocks while the
        ring or the pool is full.

        Args:
            out: Device-readable buffers, one descriptor each, in order. Each has 1 to
                `max_mapping_bytes` of its device.
            in_sizes: Sizes of the device-writable buffers, in bytes; the same bounds.
            deadline_s: How long to wait for descriptors and slots, in seconds.

        Returns:
            A future of the answer: one bytes object per entry of `in_sizes`; the last ones are
            short or empty when the device wrote less. Its callbacks run on the queue's completion
            thread and must not block on this queue. It cannot be cancelled. It fails with
            UnavailableError (DEVICE_GONE) when the device disappears, and with
            FailedPreconditionError for one of these reasons: DEVICE_NEEDS_RESET when the device
            reports an error, DEVICE_BROKEN when it breaks the ring's rules, QUEUE_CLOSED when the
            queue is closed.

        Raises:
            InvalidArgumentError: MAPPING_TOO_LONG, BUFFER_EMPTY or CHAIN_LENGTH.
            ResourceExhaustedError: POOL_EXHAUSTED, naming pool, used and total, or RING_FULL.
            UnavailableError: DEVICE_GONE.
            FailedPreconditionError: DEVICE_NEEDS_RESET, DEVICE_BROKEN or QUEUE_CLOSED.
        """
        ...

    def transact(
        self,
        out: Sequence[Buffer],
        in_sizes: Sequence[int],
        *,
        deadline_s: float = REQUEST_DEADLINE_S,
        timeout_s: float | None = None,
    ) -> list[bytes]:
        """Submit a request and wait for its answer.

        Args:
            out: As in `submit`.
            in_sizes: As in `submit`.
            deadline_s: As in `submit`.
            timeout_s: How long to wait for the answer, in seconds; None waits for ever.

        Raises:
            DeadlineExceededError: REQUEST_TIMEOUT; the device keeps the request.
            PortholeError: An error of `submit` or of its future.
        """
        ...

    def post_receive(self, buffers: int, size_bytes: int, on_data: Callable[[bytes], None]) -> None:
        """Give the device long-lived receive buffers; at most once per queue.

        The bytes of each completed buffer are copied, the buffer is posted again, and `on_data` is
        called with the bytes, in the order of completion. It runs on the queue's completion thread
        and must not block on this queue.

        Args:
            buffers: How many, 1 to `size`.
            size_bytes: Length of each, 1 to `max_mapping_bytes` of its device.
            on_data: Takes the bytes that the device wrote; when it raises, the queue fails
                (DRIVER_FAILED).

        Raises:
            PortholeError: An error of `submit`.
        """
        ...


class ProbedDevice(Protocol):
    """A device whose features are negotiated and whose queues run."""

    @property
    def features(self) -> int:
        """The negotiated feature bits."""
        ...

    @property
    def queues(self) -> Sequence[DriverQueue]:
        """The queues, in virtqueue order."""
        ...

    @property
    def max_mapping_bytes(self) -> int:
        """Length of the longest buffer that can be mapped, in bytes; 256 KiB behind a pool."""
        ...

    def config(self) -> bytes:
        """Read the device's configuration space.

        Raises:
            UnavailableError: DEVICE_GONE.
        """
        ...


class ReportingDevice(ProbedDevice, Protocol):
    """A probed device that reports changes of its configuration space."""

    def watch_config(self, on_change: Callable[[], None]) -> None:
        """Have a function called after each change of the configuration space; at most once.

        It runs on a thread of the device's and may call `config`. A device that cannot tell of
        changes has none that a driver learns of.

        Raises:
            PortholeError: The device is gone, or refuses.
        """
        ...
