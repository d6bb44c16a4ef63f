"""The meter of a device, and the declarations of its counters."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

from porthole.handshake.v1 import device_pb2

from services.devicehost.accounting import COUNTERS, Bound, Counters, DeviceMeter


def test_each_number_is_counted_where_it_belongs() -> None:
    meter = DeviceMeter()
    for index, times in ((0, 1), (1, 2)):
        queue = meter.queue(index)
        assert meter.queue(index) is queue
        queue.requests, queue.bytes_in, queue.bytes_out = times, 10 * times, 100 * times
        native = queue.native
        native.requests, native.bytes_in, native.bytes_out = 1000, 10_000, 100_000
    assert meter.queue(0) is not meter.queue(1)
    meter.bounds.add(Bound("things", 1, lambda: 1))
    for _ in range(2):
        with meter.counting as counters:
            counters.translations_refused += 1
            counters.windows_mapped += 3
            counters.windows_evicted += 4
            counters.windows_waited += 5
            counters.frames_dropped += 2
            counters.held_back += 1
        meter.bounds.hit("things")
    with meter.counting as counters:
        counters.highest_slot = 9
    assert meter.snapshot() == Counters(
        requests=2003,
        bytes_in=20_030,
        bytes_out=200_300,
        translations_refused=2,
        windows_mapped=6,
        windows_evicted=8,
        windows_waited=10,
        highest_slot=9,
        frames_dropped=4,
        held_back=2,
        exhaustions=1,
    )
    meter.queue(1).native.highest_slot = 11
    assert meter.snapshot().highest_slot == 11


def test_a_snapshot_stays_as_it_was() -> None:
    meter = DeviceMeter()
    before = meter.snapshot()
    with meter.counting as counters:
        counters.held_back += 1
    assert before == Counters()
    assert meter.snapshot() == Counters(held_back=1)


def test_a_device_begins_without_descriptors_of_guest_memory() -> None:
    assert DeviceMeter().guest_descriptors == 0


def test_threads_that_count_at_once_lose_nothing_and_an_error_leaves_the_lock_free() -> None:
    meter = DeviceMeter()

    def count(_: int) -> None:
        for _ in range(1000):
            with meter.counting as counters:
                counters.frames_dropped += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    assert meter.snapshot().frames_dropped == 4000
    try:
        with meter.counting:
            raise RuntimeError
    except RuntimeError:
        count(0)
    assert meter.snapshot().frames_dropped == 5000


def test_every_counter_is_declared_with_unit_and_description() -> None:
    assert list(COUNTERS) == [each.name for each in dataclasses.fields(Counters)]
    for meaning in COUNTERS.values():
        assert meaning.unit == "By" or (meaning.unit[0], meaning.unit[-1]) == ("{", "}")
        assert meaning.description
    assert [name for name, meaning in COUNTERS.items() if meaning.is_highest] == ["highest_slot"]


def test_every_counter_has_a_field_in_the_proto_and_every_field_is_counted() -> None:
    assert list(COUNTERS) == [each.name for each in device_pb2.DeviceCounters.DESCRIPTOR.fields]
