"""What one device counts."""

from __future__ import annotations

from services.devicehost.memory.bounds import bound
from services.devicehost.memory.counters import CounterValues, DeviceCounters


def test_each_number_is_counted_where_it_belongs() -> None:
    counters = DeviceCounters()
    for index, times in ((0, 1), (1, 2)):
        queue = counters.queue(index)
        assert counters.queue(index) is queue
        queue.requests, queue.bytes_in, queue.bytes_out = times, 10 * times, 100 * times
        native = queue.native
        native.requests, native.bytes_in, native.bytes_out = 1000, 10_000, 100_000
    assert counters.queue(0) is not counters.queue(1)
    counters.bounds.add(bound("things", 1, lambda: 1))
    for _ in range(2):
        counters.count_refusal()
        counters.count_windows(mapped=3)
        counters.count_windows(evicted=4)
        counters.count_windows(waited=5)
        counters.count_drop()
        counters.count_drop()
        counters.count_hold()
        counters.bounds.hit("things")
    counters.note_slot(9)
    counters.note_slot(7)
    assert counters.snapshot() == CounterValues(
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
    counters.queue(1).native.highest_slot = 11
    assert counters.snapshot().highest_slot == 11
