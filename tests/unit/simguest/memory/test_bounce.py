"""The bounce pool: geometry, no overlap, no crossing of segments, exact release, exhaustion."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.handshake.errors import InvalidArgumentError, ResourceExhaustedError
from services.handshake.exhaustion import Exhaustion
from services.handshake.pool import MAX_MAPPING_BYTES, Gpa, SwiotlbPool
from services.simguest.memory.bounce import BouncePool, find_run, slots_of
from services.simguest.memory.ram import GuestRam

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.simguest.memory.dma import Mapping

BASE = 0x1000000
SEGMENT = 128 * 2048


@pytest.fixture(scope="module")
def ram() -> Iterator[GuestRam]:
    memory = GuestRam(32 << 20)
    yield memory
    memory.close()


def make_pool(ram: GuestRam, segments: int, areas: int = 4) -> BouncePool:
    return BouncePool(ram, SwiotlbPool(Gpa(BASE), segments * SEGMENT), areas)


def occupied(mapping: Mapping) -> range:
    first = (mapping.gpa - BASE) // 2048
    return range(first, first + slots_of(mapping.length))


@pytest.mark.parametrize(
    ("length", "slots"), [(1, 1), (2048, 1), (2049, 2), (4096, 2), (MAX_MAPPING_BYTES, 128)]
)
def test_a_mapping_takes_whole_slots(ram: GuestRam, length: int, slots: int) -> None:
    pool = make_pool(ram, 4)
    [mapping] = pool.map([length], 0)
    assert pool.usage().slots_used == slots == slots_of(length)
    assert (mapping.gpa - BASE) % 2048 == 0
    assert len(mapping.view) == mapping.length == length
    pool.unmap([mapping])
    assert pool.usage().slots_used == 0


def test_find_run_takes_the_lowest_run_that_fits() -> None:
    assert find_run(0b0, 1) == -1
    assert find_run(0b1000, 1) == 3
    assert find_run(0b0110, 2) == -1  # two slots are a page, and a page starts on an even slot
    assert find_run(0b1100, 2) == 2
    assert find_run(0b111101, 3) == 2
    assert find_run((1 << 128) - 1, 128) == 0
    assert find_run((1 << 128) - 2, 128) == -1


lengths = st.integers(1, MAX_MAPPING_BYTES) | st.integers(1, 8192)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(st.lists(lengths, min_size=1, max_size=4), st.integers(0, 1000)), max_size=60
    ),
    areas=st.integers(1, 8),
)
def test_mappings_never_overlap_nor_cross_segments_and_are_freed_exactly(
    ram: GuestRam, steps: list[list[int] | int], areas: int
) -> None:
    pool = make_pool(ram, 5, areas)
    live: list[list[Mapping]] = []
    high_water = 0
    for step in steps:
        if isinstance(step, int):
            if live:
                pool.unmap(live.pop(step % len(live)))
        else:
            with contextlib.suppress(ResourceExhaustedError):
                live.append(pool.map(step, 0))
        slots = [slot for group in live for mapping in group for slot in occupied(mapping)]
        assert len(slots) == len(set(slots)) == pool.usage().slots_used
        assert all(0 <= slot < 5 * 128 for slot in slots)
        for group in live:
            for mapping in group:
                taken = occupied(mapping)
                assert taken[0] // 128 == taken[-1] // 128
                if len(taken) > 1:
                    assert mapping.gpa % 4096 == 0
        high_water = max(high_water, len(slots))
    assert pool.usage().slots_used_high_water == high_water
    for group in live:
        pool.unmap(group)
    assert pool.usage().slots_used == 0
    whole = pool.map([MAX_MAPPING_BYTES] * 5, 0)  # every segment is whole again
    assert pool.usage().slots_used == 5 * 128
    pool.unmap(whole)


def test_data_is_copied_in_and_out_and_counted(ram: GuestRam) -> None:
    pool = make_pool(ram, 2)
    data = bytes(range(256)) * 20
    [mapping] = pool.map([len(data)], 0)
    pool.sync_for_device([mapping], [data])
    assert bytes(ram.view(mapping.gpa, len(data))) == data
    ram.view(mapping.gpa, 4)[:] = b"DONE"
    assert pool.sync_for_cpu([mapping], 6) == [b"DONE\x04\x05"]
    assert pool.usage().bytes_bounced == len(data) + 6
    pool.unmap([mapping])


def test_a_mapping_over_256_kib_is_refused_by_name(ram: GuestRam) -> None:
    pool = make_pool(ram, 4)
    with pytest.raises(InvalidArgumentError, match=r"262145 bytes .* at most 262144") as caught:
        pool.map([1, MAX_MAPPING_BYTES + 1], 0)
    assert caught.value.reason == "MAPPING_TOO_LONG"
    with pytest.raises(InvalidArgumentError) as caught:
        pool.map([16, 0], 0)
    assert caught.value.reason == "BUFFER_EMPTY"
    assert pool.usage().slots_used == 0


def test_exhaustion_names_pool_used_and_total(ram: GuestRam) -> None:
    pool = make_pool(ram, 2)
    held = pool.map([MAX_MAPPING_BYTES, 2048], 0)
    with pytest.raises(ResourceExhaustedError) as caught:
        pool.map([2048, MAX_MAPPING_BYTES], 0.01)
    assert caught.value.reason == "POOL_EXHAUSTED"
    assert caught.value.metadata == {
        "pool": "[0x1000000, 0x1080000)",
        "used": "129",
        "total": "256",
    }
    assert (
        pool.usage().slots_used == 129
    )  # the slots taken for a part of the request are free again
    pool.unmap(held)


def test_exhaustion_is_reported_once_with_the_first_device(ram: GuestRam) -> None:
    reports: list[tuple[str, Exhaustion]] = []
    pool = BouncePool(
        ram,
        SwiotlbPool(Gpa(BASE), 2 * SEGMENT),
        on_exhausted=lambda device, what: reports.append((device, what)),
    )
    first, second = pool.for_device("first"), pool.for_device("second")
    for turn in range(2):
        held = [*first.map([MAX_MAPPING_BYTES], 0), *second.map([2048], 0)]
        for device in (first, second, first):
            with pytest.raises(ResourceExhaustedError):
                device.map([MAX_MAPPING_BYTES], 0)
        assert reports == [("first", Exhaustion("bounce_pool", 129, 256))] * (turn + 1)
        first.unmap(held)
        for _ in range(2):
            pool._look()


def test_a_request_larger_than_the_pool_does_not_wait(ram: GuestRam) -> None:
    pool = make_pool(ram, 1)
    start = time.monotonic()
    with pytest.raises(ResourceExhaustedError, match="129 slots are needed at once"):
        pool.map([MAX_MAPPING_BYTES, 1], 60)
    assert time.monotonic() - start < 10


def test_a_submitter_waits_for_slots_and_gets_them(ram: GuestRam) -> None:
    pool = make_pool(ram, 1)
    held = pool.map([MAX_MAPPING_BYTES], 0)
    got: list[list[Mapping]] = []
    waiter = threading.Thread(target=lambda: got.append(pool.map([4096], 30)))
    waiter.start()
    while not pool._waiting:
        time.sleep(0)
    assert got == []
    pool.unmap(held)
    waiter.join(10)
    assert len(got) == 1
    pool.unmap(got[0])
    assert pool.usage().slots_used == 0


def test_many_threads_leak_and_share_nothing(ram: GuestRam) -> None:
    pool = make_pool(ram, 2)
    errors: list[str] = []

    def work(mark: int) -> None:
        data = bytes([mark]) * 40_000
        for _ in range(150):
            mappings = pool.map([40_000, 100], 30)
            pool.sync_for_device(mappings[:1], [data])
            if pool.sync_for_cpu(mappings, 40_000) != [data, b""]:
                errors.append(f"{mark} found another's data")
            pool.unmap(mappings)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    usage = pool.usage()
    assert usage.slots_used == 0
    assert usage.slots_used_high_water <= usage.slots_total == 256
    assert usage.bytes_bounced == 16 * 150 * 80_000
