from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.wire import virtio_ring as ring

U16 = st.integers(0, 0xFFFF)


def test_layouts_have_the_sizes_of_the_specification() -> None:
    assert ring.DESC.size == ring.DESC_BYTES == 16
    assert ring.USED_ELEM.size == ring.USED_ELEM_BYTES == 8
    assert ring.desc_table_bytes(256) == 4096
    assert ring.avail_bytes(256) == 6 + 2 * 256
    assert ring.used_bytes(256) == 6 + 8 * 256


def test_events_are_the_last_field_of_each_ring() -> None:
    assert ring.used_event_offset(8) + 2 == ring.avail_bytes(8)
    assert ring.avail_event_offset(8) + 2 == ring.used_bytes(8)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), U16, U16)
def test_descriptor_round_trip(addr: int, length: int, flags: int, following: int) -> None:
    descriptor = ring.Descriptor(addr, length, flags, following)
    assert ring.Descriptor(*ring.DESC.unpack(descriptor.pack())) == descriptor


@pytest.mark.parametrize(
    ("size", "lawful"),
    [(0, False), (1, True), (3, False), (1024, True), (32768, True), (65536, False)],
)
def test_queue_sizes(size: int, lawful: bool) -> None:
    assert ring.is_queue_size(size) is lawful


@given(old=U16, moved=st.integers(0, 300), event=U16)
def test_need_event_is_whether_the_index_passes_the_event(old: int, moved: int, event: int) -> None:
    passed = {(old + step) & 0xFFFF for step in range(moved)}
    assert ring.need_event(event, (old + moved) & 0xFFFF, old) is (event in passed)
