from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.wire import vhost_user as wire

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
REGIONS = st.builds(wire.MemRegion, U64, U64, U64, U64)


def test_layouts_have_the_sizes_of_the_specification() -> None:
    assert wire.HEADER.size == wire.HEADER_BYTES == 12
    assert wire.VRING_STATE.size == 8
    assert wire.VRING_ADDR.size == 40
    assert wire.REGION.size == 32
    assert wire.SINGLE_REGION_BYTES == 40
    assert wire.CONFIG.size == 12


@given(U32, U32, U32)
def test_unknown_requests_and_flags_survive_parsing(request: int, flags: int, size: int) -> None:
    header = wire.Header.parse(wire.HEADER.pack(request, flags, size))
    assert header == (request, flags, size)
    assert wire.request_name(request)


def test_messages_carry_version_length_and_flags() -> None:
    header = wire.Header.parse(wire.message(wire.Request.SET_OWNER, b"xy", wire.FLAG_NEED_REPLY))
    assert (header.version, header.size, header.need_reply) == (1, 2, True)
    answer = wire.Header.parse(wire.reply(wire.Request.GET_FEATURES, b""))
    assert answer.flags == wire.VERSION | wire.FLAG_REPLY


@given(st.lists(REGIONS, max_size=8))
def test_mem_table_round_trip(regions: list[wire.MemRegion]) -> None:
    assert wire.parse_mem_table(wire.pack_mem_table(regions)) == regions


@given(st.lists(REGIONS, max_size=3), st.integers(1, 50))
def test_a_mem_table_of_the_wrong_length_does_not_parse(
    regions: list[wire.MemRegion], cut: int
) -> None:
    payload = wire.pack_mem_table(regions)
    assert wire.parse_mem_table(payload[:-cut]) is None
    assert wire.parse_mem_table(payload + b"\0" * cut) is None


@given(REGIONS)
def test_single_region_round_trip(region: wire.MemRegion) -> None:
    assert wire.parse_single_region(wire.pack_single_region(region)) == region


@given(U32, U32, U64, U64, U64, U64)
def test_vring_addr_round_trip(
    queue: int, flags: int, desc: int, used: int, avail: int, log: int
) -> None:
    addr = wire.VringAddr(queue, flags, desc, used, avail, log)
    assert wire.VringAddr.parse(addr.pack()) == addr


def test_config_round_trip_and_short_payload() -> None:
    config = wire.Config(4, 3, wire.CONFIG_F_WRITABLE, b"abc")
    assert wire.Config.parse(config.pack()) == config
    assert wire.Config.parse(b"\0" * 11) is None
