"""The arithmetic of rate limits: in Python and in the library exactly that of fractions."""

from __future__ import annotations

import math
import select
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.devicehost import fastpath
from services.devicehost.devices.net.rates.limiter import (
    Limiter,
    NativeBuckets,
    PythonBuckets,
)
from services.devicehost.devices.net.rates.timer import Timer
from services.handshake.rate_limit import (
    LEAST_BPS,
    MOST_BPS,
    MOST_BURST,
    MOST_PPS,
    NO_LIMIT,
    RateLimit,
)
from services.wire.virtio_net import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.devices.net.rates.limiter import Buckets

NS: Final = 10**9


def native(timer: Timer) -> Buckets:
    if fastpath.library is None:
        pytest.skip("the native fast path was not built")
    return NativeBuckets(timer, fastpath.library)


KINDS = pytest.mark.parametrize("make", [PythonBuckets, native], ids=["python", "native"])


class Exact:
    """One bucket in tokens, as a fraction."""

    def __init__(self) -> None:
        self.rate = self.burst = 0
        self.tokens = Fraction(0)

    def set(self, rate: int, burst: int) -> None:
        self.tokens = min(self.tokens, Fraction(burst)) if self.rate else Fraction(burst)
        self.rate, self.burst = rate, burst

    def pass_time(self, ns: int) -> None:
        self.tokens = min(self.tokens + Fraction(self.rate * ns, NS), Fraction(self.burst))

    def wait_ns(self) -> int:
        """The least whole number of nanoseconds after which there is more than nothing."""
        if not self.rate or self.tokens > 0:
            return 0
        return math.floor(-self.tokens * NS / self.rate) + 1


_rates = st.builds(
    RateLimit,
    bps=st.one_of(st.sampled_from([0, LEAST_BPS, MOST_BPS]), st.integers(LEAST_BPS, MOST_BPS)),
    pps=st.one_of(st.sampled_from([0, 1, MOST_PPS]), st.integers(1, MOST_PPS)),
)
_bursts = st.one_of(st.sampled_from([0, 1, MOST_BURST]), st.integers(1, MOST_BURST))
_limits = st.builds(
    lambda rate, of_bytes, of_packets: RateLimit(
        rate.bps, rate.pps, of_bytes if rate.bps else 0, of_packets if rate.pps else 0
    ),
    _rates,
    _bursts,
    _bursts,
)
_pauses = st.one_of(
    st.integers(0, 1000), st.integers(0, 10 * NS), st.sampled_from([1 << 40, 1 << 62])
)
_steps = st.lists(
    st.one_of(
        _limits,
        st.tuples(_pauses, st.lists(st.integers(0, MAX_FRAME_BYTES), max_size=3)),
    ),
    max_size=20,
)


@KINDS
@given(steps=_steps)
def test_tokens_are_exactly_those_of_fractions(
    make: Callable[[Timer], Buckets], steps: list[RateLimit | tuple[int, list[int]]]
) -> None:
    buckets = make(Timer())
    by_bytes, by_packets = Exact(), Exact()
    now = 0
    for step in steps:
        if isinstance(step, RateLimit):
            buckets.set(step, now)
            by_bytes.set(step.bps, step.most_bytes)
            by_packets.set(step.pps, step.most_packets)
            continue
        pause, frames = step
        pause = min(pause, (1 << 63) - now)
        now += pause
        by_bytes.pass_time(pause)
        by_packets.pass_time(pause)
        for frame in frames:
            wait = max(by_bytes.wait_ns(), by_packets.wait_ns())
            assert buckets.admits(now) == (wait == 0)
            if wait and wait < 1 << 62:
                assert not buckets.admits(now)
            assert buckets.arm(now) == now + wait
            # As many as there are queues may see the same tokens.
            buckets.charge(now, frame)
            by_bytes.tokens -= frame
            by_packets.tokens -= 1


@KINDS
def test_the_moment_at_which_the_timer_is_set_is_the_first_at_which_a_frame_may_go(
    make: Callable[[Timer], Buckets],
) -> None:
    buckets = make(Timer())
    buckets.set(RateLimit(bps=7000, pps=3), 1000)
    while buckets.admits(1000):
        buckets.charge(1000, 1514)
    at = buckets.arm(1000)
    assert not buckets.admits(at - 1)
    assert buckets.admits(at)


@KINDS
def test_a_clock_that_another_thread_read_later_is_no_step_back(
    make: Callable[[Timer], Buckets],
) -> None:
    buckets = make(Timer())
    buckets.set(RateLimit(pps=1), 0)
    buckets.charge(0, 60)
    assert buckets.admits(NS + 1)
    buckets.charge(5, 60)
    assert not buckets.admits(NS)
    assert buckets.admits(2 * NS + 1)


@KINDS
def test_a_debt_is_paid_at_the_rate_that_is_in_force(make: Callable[[Timer], Buckets]) -> None:
    buckets = make(Timer())
    buckets.set(RateLimit(bps=1000, burst_bytes=1), 0)
    buckets.charge(0, 50_001)
    assert buckets.arm(0) == 50 * NS + 1
    buckets.set(RateLimit(bps=1_000_000), 0)
    assert buckets.arm(0) == NS // 20 + 1


@KINDS
def test_a_change_fires_the_timer(make: Callable[[Timer], Buckets]) -> None:
    timer = Timer()
    buckets = make(timer)
    buckets.set(RateLimit(bps=1000, burst_bytes=1), 0)
    buckets.charge(0, 50_000)
    poll = select.poll()
    poll.register(timer.fd, select.POLLIN)
    assert poll.poll(10_000)
    buckets.arm((1 << 62) - 1)  # in some decades
    assert not poll.poll(0)
    buckets.set(NO_LIMIT, 0)
    assert poll.poll(10_000)


def test_what_is_longer_than_any_frame_costs_as_much_as_the_longest() -> None:
    limiter = Limiter(lambda: 0)
    limiter.set(RateLimit(bps=LEAST_BPS, burst_bytes=1))
    limiter.charge(1 << 32)
    assert limiter.arm() == (MAX_FRAME_BYTES - 1) * NS // LEAST_BPS + 1
    limiter.set(NO_LIMIT)
    limiter.set(RateLimit(bps=LEAST_BPS, burst_bytes=1))
    limiter.charge(-12)
    assert limiter.admits()
