"""Unpacking has a bound."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dashboard.receiver.inflation import (
    INFLATED_LIMIT_BYTES,
    TooLargeError,
    inflate,
    is_packed,
)
from services.handshake.errors import InvalidArgumentError
from tests.support.handshake_traces import VALID
from tests.support.otlp_requests import trace_request


@given(st.binary(max_size=1000))
def test_what_was_packed_is_unpacked(body: bytes) -> None:
    for packed in (gzip.compress(body), zlib.compress(body)):
        assert is_packed(packed)
        assert inflate(packed) == body


def test_several_members_are_one_body() -> None:
    assert inflate(gzip.compress(b"a") + gzip.compress(b"b")) == b"ab"


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_the_bound(pack: object) -> None:
    assert callable(pack)
    assert len(inflate(pack(bytes(INFLATED_LIMIT_BYTES)))) == INFLATED_LIMIT_BYTES
    with pytest.raises(TooLargeError) as caught:
        inflate(pack(bytes(INFLATED_LIMIT_BYTES + 1)))
    assert (caught.value.reason, caught.value.kind) == ("OTLP_TOO_LARGE", "RESOURCE_EXHAUSTED")


def test_the_bound_is_that_of_all_members() -> None:
    member = gzip.compress(bytes(INFLATED_LIMIT_BYTES // 2 + 1))
    with pytest.raises(TooLargeError):
        inflate(member * 2)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"\0\0",
        b"\x1f\x8b",
        gzip.compress(b"abc")[:-1],
        gzip.compress(b"abc")[:-5] + b"12345",
        gzip.compress(b"abc") + b"rest",
    ],
)
def test_damage_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        inflate(body)
    assert caught.value.reason == "OTLP_ENCODING"


@pytest.mark.parametrize("case", VALID)
def test_no_request_is_taken_for_a_packed_one(case: str) -> None:
    assert not is_packed(trace_request(VALID[case]()))
    assert not is_packed(b"")
    assert not is_packed(b"x")
