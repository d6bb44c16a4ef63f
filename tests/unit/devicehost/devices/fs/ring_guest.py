"""A guest whose requests lie in the memory of a ring, as the queue of a device finds them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self, cast

from services.devicehost.virtio.native_queue import make_queue
from services.devicehost.virtio.queue_setup import QueueState
from tests.unit.devicehost.devices.fs.fuse_guest import FuseGuest
from tests.unit.devicehost.virtio.conftest import DATA, Rig

if TYPE_CHECKING:
    from services.devicehost.virtio.queue import Queue

_SIZE = 64
"""Entries of the ring, and so most requests of one test."""
_REQUEST_BYTES = 4096
_SOON_S = 10.0


class RingGuest(FuseGuest):
    """Has its own ring and memory; whoever serves `queue` answers its requests.

    Attributes:
        queue: The device's side of the ring.
    """

    def __init__(self, *, natively: bool) -> None:
        super().__init__(cast("Any", None))  # the queue's thread has the session
        self._rig = Rig()
        self.ring = self._rig.ring(_SIZE)
        setup = self._rig.setup(self.ring)
        self.queue: Queue = make_queue(setup, QueueState(), natively=natively)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.queue.close()
        self._rig.close()

    def offer(self, request: bytes, room: int) -> int:
        """Put a request into the ring; returns the address of its reply."""
        number = self.ring.next_avail
        assert number < _SIZE
        request_at = DATA + 2 * number * _REQUEST_BYTES
        reply_at = request_at + _REQUEST_BYTES
        head = number * 2 % _SIZE
        self._rig.ram.write(request_at, request)
        self.ring.chain(head, [(request_at, len(request))], [(reply_at, room)])
        self.ring.offer(head)
        self._rig.kick()
        return reply_at

    def serve(self, readable: list[memoryview], writable: list[memoryview]) -> int:
        """Have the device serve one request; returns the length of the reply."""
        before = self.ring.used_idx
        room = min(sum(map(len, writable)), _REQUEST_BYTES)
        reply_at = self.offer(b"".join(readable), room)
        deadline = time.monotonic() + _SOON_S
        while self.ring.used_idx == before:
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.001)
        _, written = self.ring.completions()[-1]
        reply = self._rig.ram.read(reply_at, written)
        for piece in writable:
            piece[: len(reply)], reply = reply[: len(piece)], reply[len(piece) :]
        return written
