from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.devicehost.accounting import DeviceMeter
from services.devicehost.memory import ApertureMemory, RegionTable, TranslationError
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.handshake.pool import Gpa, SwiotlbPool
from tests.support.guest_ring import GuestRam

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
POOL = SwiotlbPool(Gpa(8 * MIB), 2 * MIB)
U64 = 1 << 64


@pytest.fixture
def meter() -> DeviceMeter:
    return DeviceMeter()


@pytest.fixture
def aperture(ram: GuestRam, meter: DeviceMeter) -> Iterator[ApertureMemory]:
    table = ram.table()
    memory = ApertureMemory(table, POOL, meter)
    table.close_fds()
    yield memory
    memory.release()


def mapped_bytes(pid: int | str = "self") -> list[tuple[int, int]]:
    """File offset and length of every mapping of the guest's memory in a process."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "memfd:guest" in line:
            span, _, offset, *_ = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            found.append((int(offset, 16), end - start))
    return found


def test_exactly_the_pool_is_mapped(ram: GuestRam, meter: DeviceMeter) -> None:
    before = mapped_bytes()
    memory = ApertureMemory(ram.table(), POOL, meter)
    new = [span for span in mapped_bytes() if span not in before]
    assert new == [(ram.file_offset + POOL.base, POOL.size_bytes)]
    memory.release()
    assert mapped_bytes() == before


def test_bytes_are_shared_with_the_guest_both_ways(ram: GuestRam, aperture: ApertureMemory) -> None:
    ram.write(POOL.base + 100, b"from guest")
    assert bytes(aperture.view(POOL.base + 100, 10)) == b"from guest"
    aperture.view(POOL.end - 4, 4)[:] = b"host"
    assert ram.read(POOL.end - 4, 4) == b"host"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gpa=st.integers(0, U64 - 1), length=st.integers(0, (1 << 32) - 1))
@example(gpa=POOL.base, length=POOL.size_bytes)
@example(gpa=POOL.base, length=POOL.size_bytes + 1)
@example(gpa=POOL.base - 1, length=2)
@example(gpa=POOL.end, length=1)
@example(gpa=POOL.end - 1, length=1)
@example(gpa=U64 - 1, length=POOL.base + 2)
def test_translate_admits_exactly_the_pool(aperture: ApertureMemory, gpa: int, length: int) -> None:
    inside = POOL.base <= gpa and gpa + length <= POOL.end
    if inside:
        assert aperture.translate(gpa, length) == gpa - POOL.base
    else:
        with pytest.raises(TranslationError) as caught:
            aperture.translate(gpa, length)
        assert f"0x{gpa:x}" in caught.value.message


ADDRESSES = st.one_of(st.integers(POOL.base - 64, POOL.end + 64), st.integers(0, U64 - 1))
BUFFERS = st.lists(st.tuples(ADDRESSES, st.integers(1, 1 << 20)), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(buffers=BUFFERS)
def test_many_ranges_are_admitted_exactly_as_one_by_one(
    aperture: ApertureMemory, buffers: list[tuple[int, int]]
) -> None:
    addresses, lengths = [gpa for gpa, _ in buffers], [length for _, length in buffers]
    if all(POOL.base <= gpa and gpa + length <= POOL.end for gpa, length in buffers):
        for (gpa, length), view in zip(buffers, aperture.views(addresses, lengths), strict=True):
            view[:1] = b"!"
            assert len(view) == length
            assert bytes(aperture.view(gpa, 1)) == b"!"
    else:
        with pytest.raises(TranslationError):
            aperture.views(addresses, lengths)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gpa=st.integers(POOL.base, POOL.end - 1), length=st.integers(1, POOL.size_bytes))
def test_near_the_bounds(aperture: ApertureMemory, gpa: int, length: int) -> None:
    if gpa + length <= POOL.end:
        assert len(aperture.view(gpa, length)) == length
    else:
        with pytest.raises(TranslationError):
            aperture.view(gpa, length)


def test_refusals_and_the_highest_slot_are_counted(
    aperture: ApertureMemory, meter: DeviceMeter
) -> None:
    for gpa, length in ((POOL.end, 1), (0, 8), (POOL.base, POOL.size_bytes + 1)):
        with pytest.raises(TranslationError):
            aperture.view(gpa, length)
    aperture.view(POOL.base + 4096, 2049)
    aperture.view(POOL.base, 1)
    values = meter.snapshot()
    assert values.translations_refused == 3
    assert values.highest_slot == 4


def test_a_pool_that_no_region_covers_is_refused_clearly(ram: GuestRam, meter: DeviceMeter) -> None:
    straddling = SwiotlbPool(Gpa(15 * MIB), 2 * MIB)
    with pytest.raises(FailedPreconditionError) as caught:
        ApertureMemory(ram.table(), straddling, meter)
    assert caught.value.reason == "POOL_NOT_IN_GUEST_MEMORY"
    assert "[0x0, 0x1000000)" in caught.value.message


def test_a_ring_inside_the_pool_needs_no_mapping_of_its_own(
    aperture: ApertureMemory, ram: GuestRam
) -> None:
    before = mapped_bytes()
    ring = aperture.pin(POOL.base + 4096, 128)
    assert mapped_bytes() == before
    ring.view[:4] = b"ring"
    assert ram.read(POOL.base + 4096, 4) == b"ring"


def test_a_ring_outside_the_pool_maps_its_pages_only_and_gives_them_back(
    ram: GuestRam, meter: DeviceMeter
) -> None:
    memory = ApertureMemory(ram.table(), POOL, meter)
    before = mapped_bytes()
    ring = memory.pin(3 * 4096 + 4000, 200)
    new = [span for span in mapped_bytes() if span not in before]
    assert new == [(ram.file_offset + 3 * 4096, 2 * 4096)]
    ring.view[:4] = b"ring"
    assert ram.read(3 * 4096 + 4000, 4) == b"ring"
    ring.close()
    assert mapped_bytes() == before
    memory.release()


@pytest.mark.parametrize(
    ("rings_inside", "remedy"),
    [(False, "send the table anew before they are placed"), (True, "or leave the option out")],
)
def test_after_the_descriptors_are_closed_no_ring_outside_is_taken(
    ram: GuestRam, meter: DeviceMeter, rings_inside: bool, remedy: str
) -> None:
    table = ram.table()
    aperture = ApertureMemory(table, POOL, meter, rings_inside=rings_inside)
    assert table.close_fds() == 1
    with pytest.raises(InvalidArgumentError, match=remedy) as caught:
        aperture.pin(4096, 8192)
    assert caught.value.reason == "RING_OUTSIDE_APERTURE"
    assert "guest address 0x1000, length 0x2000, is outside" in caught.value.message
    assert caught.value.metadata == {"gpa": "4096", "length": "8192"}
    assert meter.snapshot().translations_refused == 1
    with pytest.raises(InvalidArgumentError):
        aperture.pin(4096, 8192)
    assert meter.snapshot().translations_refused == 2
    aperture.release()


def test_memory_stays_mapped_while_somebody_retains_it(ram: GuestRam, meter: DeviceMeter) -> None:
    before = mapped_bytes()
    memory = ApertureMemory(ram.table(), POOL, meter)
    memory.retain()
    memory.release()
    memory.view(POOL.base, 1)[:] = b"x"
    memory.release()
    assert mapped_bytes() == before


def test_a_ring_may_fill_the_pool_from_its_first_byte_to_its_last(
    aperture: ApertureMemory, ram: GuestRam
) -> None:
    for gpa, length in ((POOL.base, 8), (POOL.end - 8, 8), (POOL.base, POOL.size_bytes)):
        ring = aperture.pin(gpa, length)
        ring.view[-4:] = b"ring"
        assert len(ring.view) == length
        assert ram.read(gpa + length - 4, 4) == b"ring"
    for gpa in (POOL.base - 1, POOL.end - 7):
        with pytest.raises(InvalidArgumentError) as caught:
            aperture.pin(gpa, 8)
        assert caught.value.reason == "RING_OUTSIDE_APERTURE"


def test_several_ranges_may_reach_the_last_byte_of_the_pool_and_none_further(
    aperture: ApertureMemory,
) -> None:
    first, last = aperture.views((POOL.base, POOL.end - 8), (8, 8))
    assert (len(first), len(last)) == (8, 8)
    for gpa in (POOL.base - 1, POOL.end - 7):
        with pytest.raises(TranslationError, match="is not inside the aperture") as caught:
            aperture.views((POOL.base, gpa), (8, 8))
        assert (caught.value.gpa, caught.value.length) == (gpa, 8)
        assert caught.value.metadata["bound"] == f"the aperture {POOL}"


def test_a_ring_that_is_kept_stays_mapped_until_memory_is_given_up(
    ram: GuestRam, meter: DeviceMeter
) -> None:
    before = mapped_bytes()
    memory = ApertureMemory(ram.table(), POOL, meter)
    kept = memory.keep(memory.pin(3 * 4096, 128))
    kept.close()
    assert (ram.file_offset + 3 * 4096, 4096) in mapped_bytes()
    kept.view[:4] = b"ring"
    assert ram.read(3 * 4096, 4) == b"ring"
    memory.release()
    assert mapped_bytes() == before


def test_a_refused_address_is_named_with_the_aperture(aperture: ApertureMemory) -> None:
    with pytest.raises(TranslationError, match=r"length 0x8, is not inside the aperture") as caught:
        aperture.view(POOL.end, 8)
    assert (caught.value.gpa, caught.value.length) == (POOL.end, 8)
    assert caught.value.reason == "ADDRESS_OUT_OF_BOUNDS"
    facts = {"gpa": POOL.end, "length": 8, "bound": f"the aperture {POOL}"}
    assert caught.value.metadata == {key: str(value) for key, value in facts.items()}


def test_the_first_slot_is_counted_from_its_first_byte(
    aperture: ApertureMemory, meter: DeviceMeter
) -> None:
    aperture.view(POOL.base, 1)
    assert meter.snapshot().highest_slot == 1


def test_a_pool_in_a_region_that_begins_above_0_is_mapped_where_it_is(
    meter: DeviceMeter,
) -> None:
    ram = GuestRam(4 * MIB, gpa=POOL.base - MIB, file_offset=4096)
    ram.write(POOL.base + 5, b"here")
    memory = ApertureMemory(ram.table(), POOL, meter)
    assert memory.read(POOL.base + 5, 4) == b"here"
    memory.release()
    ram.close()


def test_a_pool_that_is_not_in_memory_is_named_with_what_there_is(
    meter: DeviceMeter,
) -> None:
    table = RegionTable()
    with pytest.raises(FailedPreconditionError, match=r"the front-end shares none$") as caught:
        ApertureMemory(table, POOL, meter)
    assert caught.value.metadata == {"base": str(POOL.base), "size": str(POOL.size_bytes)}
    low, high = GuestRam(MIB), GuestRam(MIB, gpa=2 * MIB)
    table.replace([low.region(), high.region()])
    shown = re.escape("shares [0x0, 0x100000), [0x200000, 0x300000)")
    with pytest.raises(FailedPreconditionError, match=shown):
        ApertureMemory(table, POOL, meter)
    for ram in (low, high):
        ram.close()
    table.close()
