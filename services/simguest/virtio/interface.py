"""What a virtio driver of this guest sees: a probed device and its queues.

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
"""How long a submitter waits for a free descriptor and for pool slots, unless it says otherwise."""


class DriverQueue(Protocol):
    """One virtqueue, from its driver's side. Every method may be called from any thread."""

    @property
    def index(self) -> int:
        """Number of the queue in its device."""
        ...

    @property
    def size(self) -> int:
        """Entries of the ring: as many requests can be in flight."""
        ...

    def submit(
        self,
        out: Sequence[Buffer],
        in_sizes: Sequence[int],
        *,
        deadline_s: float = REQUEST_DEADLINE_S,
    ) -> Future[list[bytes]]:
        """Make one request available to the device and kick it when it asks for that.

        The `out` buffers are copied before this returns and may then be reused. Blocks while the
        ring or the pool is full.

        Args:
            out: Device-readable buffers, one descriptor each, in order. None may be empty or longer
                than 256 KiB behind a pool: split longer ones.
            in_sizes: Device-writable buffers by size, in bytes; the same bounds.
            deadline_s: How long to wait for a descriptor and for slots, in seconds.

        Returns:
            A future of the device's answer: one bytes object per entry of `in_sizes`, cut to what
            the device wrote (which may leave the last ones short or empty). Callbacks added to the
            future run on the queue's completion thread and must not block on this queue. The
            future cannot be cancelled. It fails with UnavailableError (DEVICE_GONE) when the device
            disappears, and with FailedPreconditionError: DEVICE_NEEDS_RESET when it reports errors,
            DEVICE_BROKEN when it breaks the ring's rules, QUEUE_CLOSED when the queue is closed.

        Raises:
            InvalidArgumentError: MAPPING_TOO_LONG, BUFFER_EMPTY or CHAIN_LENGTH; for good.
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
        """Submit and wait for the answer.

        Args:
            out: As in `submit`.
            in_sizes: As in `submit`.
            deadline_s: As in `submit`.
            timeout_s: How long to wait for the answer, in seconds; None: until the device is gone.

        Raises:
            DeadlineExceededError: REQUEST_TIMEOUT; the request is still the device's.
            PortholeError: As `submit` and its future.
        """
        ...

    def post_receive(self, buffers: int, size_bytes: int, on_data: Callable[[bytes], None]) -> None:
        """Give the device long-lived receive buffers; at most once per queue.

        Each completed buffer is copied out, posted again, and its bytes given to `on_data`, in the
        order of completion, on the queue's completion thread, which the callback must not block.

        Args:
            buffers: How many, 1 to `size`.
            size_bytes: Length of each, 1 to 256 KiB.
            on_data: Called with the bytes that the device wrote; when it raises, the queue fails
                (DRIVER_FAILED).

        Raises:
            PortholeError: As `submit`.
        """
        ...


class ProbedDevice(Protocol):
    """A device whose features are negotiated and whose queues run."""

    @property
    def features(self) -> int:
        """Feature bits that both sides agreed on."""
        ...

    @property
    def queues(self) -> Sequence[DriverQueue]:
        """The queues, in virtqueue order."""
        ...

    @property
    def max_mapping_bytes(self) -> int:
        """The longest buffer that can be mapped: 256 KiB behind a pool."""
        ...

    def config(self) -> bytes:
        """Read the device's configuration space.

        Raises:
            UnavailableError: DEVICE_GONE.
        """
        ...
