"""The interface of every virtio device to its transport, and the loops of a request queue.

A device knows requests and its own back end, and gets a Queue and the buffers of its Chains. Must
not know the transport: how rings are set up, or where guest memory is mapped.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from services.devicehost import fastpath
from services.devicehost.virtio.deferral import Deferred, KeptChains

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.virtio.deferral import QueuedRequests
    from services.devicehost.virtio.native_queue import NativeQueue
    from services.devicehost.virtio.queue import Chain, Queue


class VirtioDevice(Protocol):
    """One device, whatever its class.

    Life: constructed, then any number of rounds of `activate`, `serve` per queue, `reset`; at last
    `close`. `activate`, `reset` and `close` are called by one thread while no `serve` runs.
    """

    @property
    def device_class(self) -> str:
        """Either "virtio-fs" or "virtio-net", as in services.handshake.events."""

    @property
    def num_queues(self) -> int:
        """Virtqueues that the device has."""

    @property
    def features(self) -> int:
        """Feature bits of the device type (bits 0 to 23 and 50 up), as a mask."""

    @property
    def goes_native(self) -> bool:
        """Whether `serve` takes a NativeQueue where there can be one."""

    def config(self) -> bytes:
        """Return the device's configuration space; at most 256 bytes."""

    def activate(self, features: int) -> None:
        """Take the features that were accepted, as a mask; queues start after this."""

    def serve(self, index: int, queue: Queue) -> None:
        """Serve one queue on a thread of its own until `queue.stopped`, then return promptly.

        Buffers of a chain must not be touched after its push, nor after this returns.

        Raises:
            QueueError: From the queue, passed on; the device then needs a reset.
        """

    def reset(self) -> None:
        """Forget everything that a guest did, so that the next guest finds a new device."""

    def close(self) -> None:
        """Release what the constructor took. May be called once only."""


def serve_requests(
    queue: Queue,
    handle: Callable[[Chain], int | Deferred],
    queued: QueuedRequests | None = None,
) -> None:
    """Serve a request queue: pop, handle, push, and sleep when there is nothing to do.

    Args:
        queue: The queue of this thread.
        handle: Serves one chain; returns how many bytes it wrote, from the first writable byte on,
            or a Deferred for an answer that comes later.
        queued: The queued requests of the device; None: this queue has a bound of its own.

    Raises:
        QueueError: The guest broke a rule of the ring.
    """
    with contextlib.closing(KeptChains(queue, queued)) as kept:
        while not queue.stopped:
            while (chain := queue.pop()) is not None:
                _answer(queue, kept, chain, handle(chain))
            queue.wait(*kept.fds)
            if kept.due:
                kept.push_settled()


def serve_natively(
    queue: NativeQueue,
    loop: Callable[[int], int],
    handle: Callable[[Chain], int | Deferred],
    queued: QueuedRequests | None = None,
) -> None:
    """Serve a request queue: a native loop serves what it can, and `handle` the rest.

    `handle` always serves the first request, because Python reports that one.

    Args:
        queue: The queue of this thread.
        loop: Runs the native loop on a ring; see `NativeQueue.lend`.
        handle: Serves one chain; see `serve_requests`.
        queued: The queued requests of the device; see `serve_requests`.

    Raises:
        QueueError: The guest broke a rule of the ring.
    """
    with contextlib.closing(KeptChains(queue, queued)) as kept:
        while not queue.stopped:
            if queue.first_request_is_due or queue.lend(loop, *kept.fds) == fastpath.Outcome.PYTHON:
                chain = queue.pop()
                if chain is not None:
                    _answer(queue, kept, chain, handle(chain))
                elif queue.first_request_is_due:
                    queue.wait(*kept.fds)
            if kept.due:
                kept.push_settled()


def _answer(queue: Queue, kept: KeptChains, chain: Chain, answer: int | Deferred) -> None:
    if isinstance(answer, int):
        queue.push(chain, answer)
    else:
        kept.keep(chain, answer)
    if kept.due:
        kept.push_settled()
