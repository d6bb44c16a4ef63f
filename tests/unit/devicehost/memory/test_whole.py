from __future__ import annotations

import ctypes
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.devicehost.accounting import DeviceMeter
from services.devicehost.memory import (
    ApertureMemory,
    Region,
    RegionTable,
    Span,
    TranslationError,
    WholeMemory,
    WindowMemory,
    WindowQuota,
)
from services.handshake.errors import FailedPreconditionError
from services.handshake.pool import Gpa, SwiotlbPool
from tests.support.guest_ring import GuestRam
from tests.unit.devicehost.memory.test_aperture import mapped_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
HIGH = 1 << 32
LOW_BYTES = 4 * MIB
U64 = 1 << 64


@pytest.fixture
def high_ram() -> Iterator[GuestRam]:
    """2 MiB that a guest sees from 4 GiB on."""
    ram = GuestRam(2 * MIB, gpa=HIGH)
    yield ram
    ram.close()


@pytest.fixture
def low_ram() -> Iterator[GuestRam]:
    ram = GuestRam(LOW_BYTES, file_offset=MIB)
    yield ram
    ram.close()


@pytest.fixture
def table(low_ram: GuestRam, high_ram: GuestRam) -> Iterator[RegionTable]:
    """Low and high memory, announced the wrong way round."""
    table = RegionTable()
    table.replace([high_ram.region(), low_ram.region()])
    yield table
    table.close()


@pytest.fixture
def memory(table: RegionTable) -> Iterator[WholeMemory]:
    memory = WholeMemory(table, DeviceMeter())
    yield memory
    memory.release()


def test_every_region_is_mapped_and_given_back(table: RegionTable, low_ram: GuestRam) -> None:
    before = mapped_bytes()
    memory = WholeMemory(table, DeviceMeter())
    new = Counter(mapped_bytes()) - Counter(before)
    assert sorted(new.elements()) == [(0, 2 * MIB), (low_ram.file_offset, LOW_BYTES)]
    memory.release()
    assert mapped_bytes() == before


def test_bytes_are_shared_with_the_guest_both_ways(
    memory: WholeMemory, low_ram: GuestRam, high_ram: GuestRam
) -> None:
    low_ram.write(100, b"low")
    high_ram.write(HIGH + 100, b"high")
    low, high = memory.views((100, HIGH + 100), (3, 4))
    assert (bytes(low), bytes(high)) == (b"low", b"high")
    memory.view(LOW_BYTES - 4, 4)[:] = b"host"
    assert low_ram.read(LOW_BYTES - 4, 4) == b"host"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gpa=st.one_of(
        st.integers(0, LOW_BYTES + 64),
        st.integers(HIGH - 64, HIGH + 2 * MIB + 64),
        st.integers(0, U64 - 1),
    ),
    length=st.one_of(st.integers(1, 128), st.integers(1, (1 << 32) - 1)),
)
@example(gpa=0, length=LOW_BYTES)
@example(gpa=0, length=LOW_BYTES + 1)
@example(gpa=LOW_BYTES, length=1)
@example(gpa=HIGH - 1, length=2)
@example(gpa=HIGH, length=2 * MIB)
@example(gpa=HIGH + 2 * MIB, length=1)
@example(gpa=U64 - 1, length=2)
def test_exactly_what_lies_in_one_region_is_admitted(
    memory: WholeMemory, gpa: int, length: int
) -> None:
    inside = gpa + length <= LOW_BYTES or (gpa >= HIGH and gpa + length <= HIGH + 2 * MIB)
    if inside:
        assert len(memory.view(gpa, length)) == length
    else:
        with pytest.raises(TranslationError) as caught:
            memory.view(gpa, length)
        assert f"0x{gpa:x}" in caught.value.message


def test_refusals_are_counted(table: RegionTable) -> None:
    meter = DeviceMeter()
    memory = WholeMemory(table, meter)
    for gpa in (LOW_BYTES, HIGH + 2 * MIB):
        with pytest.raises(TranslationError):
            memory.view(gpa, 1)
    assert meter.snapshot().translations_refused == 2
    memory.release()


def test_a_ring_needs_no_mapping_of_its_own(memory: WholeMemory, high_ram: GuestRam) -> None:
    before = mapped_bytes()
    ring = memory.pin(HIGH + 4096, 128)
    assert mapped_bytes() == before
    ring.view[:4] = b"ring"
    ring.close()
    assert high_ram.read(HIGH + 4096, 4) == b"ring"
    with pytest.raises(TranslationError, match="guest memory"):
        memory.pin(LOW_BYTES - 64, 128)


def test_spans_lead_to_the_guests_bytes(
    memory: WholeMemory, low_ram: GuestRam, high_ram: GuestRam
) -> None:
    low, high = memory.spans()
    assert (low.gpa, low.size_bytes) == (0, LOW_BYTES)
    assert (high.gpa, high.size_bytes) == (HIGH, 2 * MIB)
    high_ram.write(HIGH + 2 * MIB - 8, b"the last")
    low_ram.write(0, b"first")
    assert ctypes.string_at(high.address + high.size_bytes - 8, 8) == b"the last"
    assert ctypes.string_at(low.address, 5) == b"first"


def test_an_aperture_has_one_span_and_windows_have_none(ram: GuestRam) -> None:
    pool = SwiotlbPool(Gpa(8 * MIB), 2 * MIB)
    table = ram.table()
    aperture = ApertureMemory(table, pool, DeviceMeter())
    (span,) = aperture.spans()
    assert span == Span(pool.base, pool.size_bytes, span.address)
    ram.write(pool.base + 5, b"pool")
    assert ctypes.string_at(span.address + 5, 4) == b"pool"
    windows = WindowMemory(table, WindowQuota(), DeviceMeter())
    assert windows.spans() is None
    for memory in (aperture, windows):
        memory.release()
    table.close()


def test_a_region_that_cannot_be_mapped_leaves_nothing_behind(table: RegionTable) -> None:
    before = mapped_bytes()
    regions: list[Region] = sorted(table, key=lambda region: region.gpa)
    regions[-1].close_fd()
    with pytest.raises(FailedPreconditionError) as caught:
        WholeMemory(table, DeviceMeter())
    assert caught.value.reason == "REGION_CLOSED"
    assert mapped_bytes() == before


def test_a_region_that_was_given_up_is_named(table: RegionTable) -> None:
    table.close_fds()
    with pytest.raises(FailedPreconditionError, match="region at guest address 0x0 was") as caught:
        WholeMemory(table, DeviceMeter())
    assert caught.value.metadata == {"gpa": "0"}


def test_a_refused_address_is_named_with_its_bound(memory: WholeMemory) -> None:
    with pytest.raises(TranslationError, match="is not inside one region of guest memory"):
        memory.view(LOW_BYTES - 4, 8)
