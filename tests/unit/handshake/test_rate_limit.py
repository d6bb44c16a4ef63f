"""Rate limits: their bounds, their default bursts, and their text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handshake.errors import InvalidArgumentError
from services.handshake.options import parse_net_options
from services.handshake.rate_limit import (
    LEAST_BPS,
    MOST_BPS,
    MOST_BURST,
    MOST_PPS,
    NO_LIMIT,
    RateLimit,
    checked,
    parse_rate_limit,
)

VM_ID = "6f1a2f5e-5f3e-4f53-9d5c-2b8f0a4f7c11"


@given(
    bps=st.integers(LEAST_BPS, MOST_BPS),
    pps=st.integers(1, MOST_PPS),
    burst_bytes=st.integers(0, MOST_BURST),
    burst_packets=st.integers(0, MOST_BURST),
)
def test_the_text_of_a_limit_is_read_as_the_same_limit(
    bps: int, pps: int, burst_bytes: int, burst_packets: int
) -> None:
    limit = RateLimit(bps, pps, burst_bytes, burst_packets)
    assert parse_rate_limit(str(limit)) == limit


def test_no_limit_is_a_word_and_zeros() -> None:
    assert str(NO_LIMIT) == "none"
    assert parse_rate_limit("none") == parse_rate_limit("bps=0,pps=0") == NO_LIMIT


@pytest.mark.parametrize(
    ("limit", "burst_bytes", "burst_packets"),
    [
        (RateLimit(bps=1000, pps=1), 65_550, 1),
        (RateLimit(bps=10**9, pps=10**6), 10**8, 10**5),
        (RateLimit(bps=MOST_BPS, pps=MOST_PPS), MOST_BURST, 10**8),
        (RateLimit(bps=1000, pps=1, burst_bytes=7, burst_packets=8), 7, 8),
    ],
)
def test_a_burst_is_a_tenth_of_a_second_by_default(
    limit: RateLimit, burst_bytes: int, burst_packets: int
) -> None:
    assert (limit.most_bytes, limit.most_packets) == (burst_bytes, burst_packets)


@pytest.mark.parametrize(
    ("limit", "field", "bound"),
    [
        (RateLimit(bps=LEAST_BPS - 1), "bps", LEAST_BPS),
        (RateLimit(bps=MOST_BPS + 1), "bps", MOST_BPS),
        (RateLimit(pps=MOST_PPS + 1), "pps", MOST_PPS),
        (RateLimit(bps=LEAST_BPS, burst_bytes=MOST_BURST + 1), "burst_bytes", MOST_BURST),
        (RateLimit(pps=1, burst_packets=MOST_BURST + 1), "burst_packets", MOST_BURST),
        (RateLimit(pps=MOST_PPS + 1), "pps", "or 0 for none"),
        (RateLimit(pps=1, burst_packets=MOST_BURST + 1), "burst_packets", "or 0 for the default"),
        (RateLimit(pps=1, burst_bytes=9), "burst_bytes", "bps"),
        (RateLimit(bps=LEAST_BPS, burst_packets=9), "burst_packets", "pps"),
    ],
)
def test_a_limit_out_of_bounds_is_refused_with_the_bound(
    limit: RateLimit, field: str, bound: object
) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        checked(limit)
    assert refused.value.reason == "RATE_LIMIT_VALUE"
    assert refused.value.metadata["field"] == field
    assert str(bound) in refused.value.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is not known; write some of bps=N, pps=N"),
        ("none,pps=1", "'none' is not known"),
        ("bps", "'bps' must have a number"),
        ("bps=", "'bps=' must have a number"),
        ("bps=1e6", "'bps=1e6' must have a number up to 100000000000"),
        ("bps=-1", "must have a number"),
        ("bits=9", "'bits=9' is not known; .*, or none"),
        ("pps=1,pps=1", "'pps=1' gives pps twice; give it once"),
        ("pps=1,", "'' is not known"),
        ("pps=٣", "must have a number"),
        ("=1", "'=1' is not known"),
    ],
)
def test_another_text_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says) as refused:
        parse_rate_limit(text)
    assert refused.value.reason == "RATE_LIMIT_VALUE"


def test_the_options_of_an_adapter_have_a_limit_for_each_direction() -> None:
    options = parse_net_options(f"eth0;limit_tx=bps=5000,pps=7;limit_rx=none;vm_id={VM_ID}")
    assert (options.limit_tx, options.limit_rx) == (RateLimit(5000, 7), NO_LIMIT)
    assert parse_net_options(f"eth0;vm_id={VM_ID}").limit_tx is None
