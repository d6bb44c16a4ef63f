"""What is made of a Hello: capabilities with all their fields, and the time that mini_init took."""

from __future__ import annotations

import pytest
from porthole.guest.v1 import mini_init_pb2
from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities, SwiotlbPool

from services.guest_init.channel.guest_kernel import reading_of, span_times
from services.guest_init.channel.mini_init import Greeted
from services.handshake.pool import Gpa
from services.handshake.pool import SwiotlbPool as Pool
from services.rpc.convert import capabilities_to_proto
from tests.support.fake_mini_init import RELEASE, hello

UNKNOWN = b"\x82\xb5\x18\x03new"  # field 50000, 3 bytes
NOW_NS = 1_800_000_000_000_000_000
S = 1_000_000_000


def test_a_field_that_this_version_does_not_know_is_kept() -> None:
    said = hello().hello
    raw = said.SerializeToString()
    # The field comes twice, as in a frame of mini_init; a parser merges both.
    again = mini_init_pb2.Hello.FromString(raw + b"\x0a" + bytes([len(UNKNOWN)]) + UNKNOWN)
    reading = reading_of(again)
    assert reading.capabilities.pool == Pool(Gpa(0x3C00_0000), 64 << 20)
    assert reading.capabilities.kernel_release == RELEASE
    assert reading.capabilities.seccomp_user_notification is True
    assert reading.unknown_fields == UNKNOWN
    message = capabilities_to_proto(reading.capabilities)
    message.MergeFromString(reading.unknown_fields)
    assert message == again.capabilities


@pytest.mark.parametrize("pool", [SwiotlbPool(base=1 << 20), SwiotlbPool(size_bytes=1 << 20)])
def test_half_a_pool_is_none(pool: SwiotlbPool) -> None:
    said = mini_init_pb2.Hello(capabilities=GuestCapabilities(swiotlb_pool=pool))
    assert reading_of(said).capabilities.pool is None


def test_an_empty_hello_reports_nothing() -> None:
    reading = reading_of(mini_init_pb2.Hello())
    assert reading.capabilities.pool is None
    assert reading.capabilities.seccomp_user_notification is None
    assert reading.unknown_fields == b""


def test_the_guests_times_are_placed_by_the_age_of_the_message() -> None:
    greeted = Greeted(hello().hello, NOW_NS)
    assert span_times(greeted) == (NOW_NS - 300_000_000, NOW_NS - 100_000_000)


@pytest.mark.parametrize(
    ("started", "read", "sent"),
    [(0, 1, 2), (3, 2, 4), (1, 5, 4), (1, 2, 1 + 3601 * S), (1 << 63, 1, 2)],
)
def test_times_that_cannot_be_are_no_span(started: int, read: int, sent: int) -> None:
    said = mini_init_pb2.Hello(started_ns=started, read_ns=read, sent_ns=sent)
    assert span_times(Greeted(said, NOW_NS)) is None
