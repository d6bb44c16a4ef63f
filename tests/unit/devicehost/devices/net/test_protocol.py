"""Headers that a driver writes: what of them reaches the kernel (virtio 1.2, section 5.1.6.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.devicehost.devices.net.protocol import checked_header, received_flags
from services.wire.virtio_net import (
    F_CSUM,
    F_GUEST_CSUM,
    F_HOST_ECN,
    F_HOST_TSO4,
    F_HOST_TSO6,
    F_HOST_USO,
    HDR_F_DATA_VALID,
    HDR_F_NEEDS_CSUM,
    HDR_F_RSC_INFO,
    HDR_GSO_ECN,
    HDR_GSO_TCPV4,
    HDR_GSO_TCPV6,
    HDR_GSO_UDP,
    HDR_GSO_UDP_L4,
    NetHeader,
)

ALL = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_USO
FRAME_BYTES = 1000
CSUM = HDR_F_NEEDS_CSUM
SUMMED = NetHeader(flags=CSUM, csum_start=34, csum_offset=16)
SEGMENTS = SUMMED._replace(gso_type=HDR_GSO_TCPV4, gso_size=100, hdr_len=54)

u8 = st.integers(0, 255)
u16 = st.integers(0, 65535)
HEADERS = st.builds(
    NetHeader,
    flags=st.sampled_from([0, CSUM]) | u8,
    gso_type=st.sampled_from([0, HDR_GSO_TCPV4, HDR_GSO_TCPV6, HDR_GSO_UDP_L4]) | u8,
    hdr_len=st.integers(0, 2000) | u16,
    gso_size=u16,
    csum_start=st.integers(0, 2000) | u16,
    csum_offset=st.integers(0, 40) | u16,
    num_buffers=u16,
)


@pytest.mark.parametrize(
    ("header", "sent"),
    [
        (NetHeader(), NetHeader()),
        (SUMMED, SUMMED),
        (SEGMENTS, SEGMENTS),
        (SEGMENTS._replace(gso_type=HDR_GSO_TCPV6), SEGMENTS._replace(gso_type=HDR_GSO_TCPV6)),
        (SEGMENTS._replace(gso_type=HDR_GSO_UDP_L4), SEGMENTS._replace(gso_type=HDR_GSO_UDP_L4)),
        # The checksum is the last two bytes of the frame, and the headers are all of it.
        (SUMMED._replace(csum_start=982), SUMMED._replace(csum_start=982)),
        (SEGMENTS._replace(hdr_len=1000), SEGMENTS._replace(hdr_len=1000)),
        (SUMMED._replace(csum_start=14), SUMMED._replace(csum_start=14)),
        # What has no meaning does not reach the kernel.
        (NetHeader(flags=HDR_F_DATA_VALID | HDR_F_RSC_INFO | 0xF8), NetHeader()),
        (NetHeader(0, 0, 1, 2, 3, 4, 5), NetHeader()),
        (SUMMED._replace(hdr_len=60000, gso_size=7, num_buffers=9), SUMMED),
    ],
)
def test_what_a_header_asks_for_is_kept_and_nothing_else(
    header: NetHeader, sent: NetHeader
) -> None:
    assert checked_header(header, FRAME_BYTES, ALL) == sent


@pytest.mark.parametrize(
    "header",
    [
        SUMMED._replace(csum_start=983),
        SUMMED._replace(csum_start=13),
        SUMMED._replace(csum_offset=65535),
        SUMMED._replace(csum_start=65535, csum_offset=65535),
        SEGMENTS._replace(gso_size=0),
        SEGMENTS._replace(hdr_len=1001),
        SEGMENTS._replace(flags=0),
        SEGMENTS._replace(flags=HDR_F_DATA_VALID),
        SEGMENTS._replace(gso_type=HDR_GSO_UDP),
        SEGMENTS._replace(gso_type=HDR_GSO_TCPV4 | HDR_GSO_ECN),
        SEGMENTS._replace(gso_type=HDR_GSO_ECN),
        SEGMENTS._replace(gso_type=2),
        SEGMENTS._replace(gso_type=0x7F),
    ],
)
def test_a_header_that_breaks_a_rule_stops_its_frame(header: NetHeader) -> None:
    assert checked_header(header, FRAME_BYTES, ALL) is None


@pytest.mark.parametrize(
    ("header", "feature"),
    [
        (SUMMED, F_CSUM),
        (SEGMENTS, F_HOST_TSO4),
        (SEGMENTS._replace(gso_type=HDR_GSO_TCPV6), F_HOST_TSO6),
        (SEGMENTS._replace(gso_type=HDR_GSO_UDP_L4), F_HOST_USO),
        (SEGMENTS._replace(gso_type=HDR_GSO_TCPV4 | HDR_GSO_ECN), F_HOST_ECN),
        (SEGMENTS._replace(gso_type=HDR_GSO_TCPV6 | HDR_GSO_ECN), F_HOST_ECN),
    ],
)
def test_an_offload_is_served_exactly_when_it_was_negotiated(
    header: NetHeader, feature: int
) -> None:
    assert checked_header(header, FRAME_BYTES, ALL | feature) == header
    assert checked_header(header, FRAME_BYTES, (ALL | feature) & ~feature) is None


def test_segments_of_datagrams_have_no_ecn_bit() -> None:
    header = SEGMENTS._replace(gso_type=HDR_GSO_UDP_L4 | HDR_GSO_ECN)
    assert checked_header(header, FRAME_BYTES, ALL | F_HOST_ECN) is None


@given(header=HEADERS, frame_bytes=st.integers(14, 65550), features=st.integers(0, 1 << 57))
def test_the_kernel_gets_only_what_it_may_believe(
    header: NetHeader, frame_bytes: int, features: int
) -> None:
    sent = checked_header(header, frame_bytes, features)
    if sent is None:
        return
    assert sent.flags in (0, CSUM)
    assert sent.num_buffers == 0
    if sent.flags:
        assert features & F_CSUM
        assert sent.csum_start + sent.csum_offset + 2 <= frame_bytes
    else:
        assert sent == NetHeader()
    if sent.gso_type:
        assert sent.gso_size > 0
        assert sent.hdr_len <= frame_bytes
    else:
        assert sent.gso_size == sent.hdr_len == 0
    assert checked_header(sent, frame_bytes, features) == sent


def test_a_driver_without_checksums_gets_no_flags() -> None:
    assert received_flags(0) == 0
    assert received_flags(~F_GUEST_CSUM) == 0
    assert received_flags(F_GUEST_CSUM) == HDR_F_NEEDS_CSUM | HDR_F_DATA_VALID
