"""An adapter with rate limits: who waits, for how long, and what ends a wait; nothing is lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import pytest

from services.handshake.rate_limit import NO_LIMIT, RateLimit, RateLimits
from services.wire import virtio_net
from services.wire.virtio_net import HEADER_BYTES, NetHeader
from tests.unit.devicehost.virtio.conftest import DATA, eventually

if TYPE_CHECKING:
    from tests.support.guest_ring import GuestRing
    from tests.unit.devicehost.devices.net.conftest import Rig

RX, TX = virtio_net.RX_QUEUE, virtio_net.TX_QUEUE
HEADER: Final = virtio_net.HEADER.pack(*NetHeader())
SLOW: Final = RateLimit(bps=1000, burst_bytes=1)
"""A frame of 60 KB goes at once; the next one waits for a minute."""
LONG: Final = bytes(60_000)
SHORT: Final = bytes(60)
DIRECTIONS = pytest.mark.parametrize("index", [TX, RX], ids=["transmit", "receive"])


class Adapter:
    """Frames in one direction of a limited adapter."""

    def __init__(self, rig: Rig, index: int) -> None:
        self.rig = rig
        self.transmits = index == TX
        self._index = index
        self._place = 0
        self.ring: GuestRing = rig.queues.ring(8)
        if not self.transmits:
            for place in range(8):
                self.ring.chain(place, writable=[(DATA + 70_000 * place, 70_000)])
            self.ring.offer(*range(8))

    def limit(self, limit: RateLimit) -> None:
        limits = RateLimits(transmit=limit) if self.transmits else RateLimits(receive=limit)
        self.rig.device.set_rate_limits(limits)

    def serve(self) -> None:
        self.rig.serve_ring(self._index, self.ring)
        self.rig.queues.kick()

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            if not self.transmits:
                self.rig.send_to_guest(frame)
                continue
            at = DATA + 70_000 * self._place
            self.rig.queues.ram.write(at, HEADER + frame)
            self.ring.chain(self._place, readable=[(at, HEADER_BYTES + len(frame))])
            self.ring.offer(self._place)
            self._place += 1
        self.rig.queues.kick()

    def await_frames(self, count: int) -> None:
        self.rig.await_used(self.ring, count)
        if self.transmits:
            for _ in range(count):
                self.rig.wire.recv(70_000)

    @property
    def throttled(self) -> int:
        return self.rig.queues.meter.snapshot().throttled

    @property
    def dropped(self) -> int:
        return self.rig.queues.meter.snapshot().frames_dropped


@DIRECTIONS
def test_frames_go_as_fast_as_the_limit_allows_and_each_waits_once(rig: Rig, index: int) -> None:
    adapter = Adapter(rig, index)
    adapter.limit(RateLimit(pps=20, burst_packets=2))
    adapter.send(*[SHORT] * 5)
    began = time.monotonic()
    adapter.serve()
    adapter.await_frames(5)
    # Two go at once, and a third one for any part of a token: two have waited.
    assert time.monotonic() - began >= 2 / 20
    assert 2 <= adapter.throttled <= 4
    assert adapter.dropped == 0


@DIRECTIONS
def test_a_frame_that_is_longer_than_the_burst_goes_and_the_next_one_waits(
    rig: Rig, index: int
) -> None:
    adapter = Adapter(rig, index)
    adapter.limit(SLOW)
    adapter.serve()
    adapter.send(LONG, SHORT)
    assert eventually(lambda: adapter.throttled == 1)
    adapter.await_frames(1)
    assert adapter.ring.used_idx == 1


@DIRECTIONS
@pytest.mark.parametrize("limit", [NO_LIMIT, RateLimit(bps=10**9)], ids=["none", "higher"])
def test_a_change_ends_a_wait(rig: Rig, index: int, limit: RateLimit) -> None:
    adapter = Adapter(rig, index)
    adapter.limit(SLOW)
    adapter.serve()
    adapter.send(LONG, SHORT)
    assert eventually(lambda: adapter.throttled == 1)
    adapter.limit(limit)
    adapter.await_frames(2)
    assert adapter.dropped == 0


@DIRECTIONS
def test_a_limit_holds_from_the_moment_at_which_it_is_set(rig: Rig, index: int) -> None:
    adapter = Adapter(rig, index)
    adapter.serve()
    adapter.send(LONG, LONG)
    adapter.await_frames(2)
    adapter.limit(SLOW)
    adapter.send(LONG, SHORT)
    assert eventually(lambda: adapter.throttled >= 1)
    adapter.rig.await_used(adapter.ring, 3)
    assert adapter.ring.used_idx == 3


@DIRECTIONS
def test_a_queue_that_waits_stops_at_once_and_leaves_the_frame(rig: Rig, index: int) -> None:
    adapter = Adapter(rig, index)
    adapter.limit(SLOW)
    adapter.serve()
    adapter.send(LONG, SHORT)
    assert eventually(lambda: adapter.throttled == 1)
    began = time.monotonic()
    rig.stop()
    assert time.monotonic() - began < 5
    assert rig.queue is not None
    assert rig.queue.state.next_avail == 1
    assert adapter.dropped == 0


@DIRECTIONS
def test_the_other_direction_is_not_limited(rig: Rig, index: int) -> None:
    adapter = Adapter(rig, index)
    other = RateLimits(receive=SLOW) if adapter.transmits else RateLimits(transmit=SLOW)
    rig.device.set_rate_limits(other)
    adapter.serve()
    adapter.send(LONG, LONG)
    adapter.await_frames(2)
    assert adapter.throttled == 0


def test_what_is_dropped_costs_tokens_too(rig: Rig) -> None:
    adapter = Adapter(rig, TX)
    adapter.limit(RateLimit(pps=1))
    adapter.serve()
    adapter.send(b"", b"", SHORT)  # the second one for any part of a token
    assert eventually(lambda: adapter.throttled == 1)
    assert adapter.dropped == 2
