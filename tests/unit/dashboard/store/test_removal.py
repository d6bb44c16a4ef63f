"""What is too old, or too much, is removed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from services.dashboard.records import ReceivedSpan, Source, Spans
from services.dashboard.store import Limits
from services.dashboard.store.removal import remove_old_points, remove_some
from tests.support.handshake_traces import wslc
from tests.support.otlp_requests import spans_of, vm_id
from tests.unit.dashboard.store.conftest import DAY_MS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from tests.unit.dashboard.store.conftest import Store

MIB = 1 << 20


def remove(store: Store, limits: Limits, *, too_large: bool = False) -> tuple[set[str], set[str]]:
    gone, touched = set[str](), set[str]()

    def one_step(connection: sqlite3.Connection) -> bool:
        step = remove_some(connection, limits, store.now_ms[0], too_large=too_large)
        gone.update(step.gone)
        touched.update(step.touched)
        return step.more

    while store.writer._put(one_step, 0).result(10):
        pass
    store.writer._ids.clear()
    return gone, touched


def count(store: Store, table: str) -> int:
    with store.reader._reading() as connection:
        [[number]] = connection.execute(f"SELECT count(*) FROM {table}")
    return int(number)


def test_what_is_old_is_removed_whole(store: Store) -> None:
    store.add_vm(1)
    store.add_points(1, (store.now_ms[0], 5))
    store.now_ms[0] += 5 * DAY_MS
    store.add_vm(2)
    store.now_ms[0] += 5 * DAY_MS
    assert remove(store, Limits(7 * DAY_MS, 1 << 30)) == ({vm_id(1)}, set())
    assert [row.vm_id for row in store.listed().rows] == [vm_id(2)]
    assert count(store, "spans") == len(spans_of(wslc()).spans)
    assert count(store, "points") == count(store, "series") == 0
    store.now_ms[0] += 5 * DAY_MS
    remove(store, Limits(7 * DAY_MS, 1 << 30))
    for table in ("spans", "traces", "vms", "vm_traces", "vm_rules", "sources", "trace_sources"):
        assert count(store, table) == 0, table


def test_a_vm_whose_spans_still_come_is_kept_whole(store: Store) -> None:
    spans = spans_of(wslc(), 1).spans
    store.writer.put_spans(Spans(spans[:5])).result(10)
    store.now_ms[0] += 6 * DAY_MS
    store.writer.put_spans(Spans(spans[5:])).result(10)
    store.now_ms[0] += 2 * DAY_MS
    assert remove(store, Limits(7 * DAY_MS, 1 << 30)) == (set(), set())
    assert count(store, "spans") == len(spans)


def test_old_points_of_a_series_that_goes_on_are_removed(store: Store) -> None:
    now_ms = store.now_ms[0]
    store.add_points(1, (now_ms - 8 * DAY_MS, 1), (now_ms, 2))
    limits = Limits(7 * DAY_MS, 1 << 30)
    store.writer._put(lambda connection: remove_old_points(connection, limits, now_ms), 0).result()
    [series] = store.reader.series(vm_id(1), "")
    assert store.reader.points(series["id"], 0, 1 << 53, 10, highest=False) == [(now_ms, 2)]


def test_a_source_goes_with_its_last_trace(store: Store) -> None:
    store.add_vm(1)
    sources = count(store, "sources")
    store.now_ms[0] += DAY_MS
    store.add_vm(2)
    store.now_ms[0] += 1
    remove(store, Limits(DAY_MS, 1 << 30))
    assert count(store, "sources") == sources
    stored = store.reader.vm(vm_id(2), 1000)
    assert stored is not None
    assert len(stored.spans) == len(spans_of(wslc()).spans)


def _orphan(number: int, size: int) -> ReceivedSpan:
    source = Source(b"s" * 16, "other", b"")
    body = random.Random(number).randbytes(size)
    return ReceivedSpan(number.to_bytes(16, "big"), b"12345678", source, (), body)


def test_with_too_much_traces_without_a_vm_go_first(store: Store) -> None:
    store.add_vm(1)
    store.now_ms[0] += 1
    orphans = tuple(_orphan(number, 10_000) for number in range(1 << 20, (1 << 20) + 1000))
    store.writer.put_spans(Spans(orphans)).result(10)
    assert store.reader.used_bytes() > 8 * MIB
    assert remove(store, Limits(7 * DAY_MS, 8 * MIB), too_large=True) == (set(), set())
    assert store.reader.used_bytes() <= 8 * MIB
    assert 0 < count(store, "traces") < 1000
    assert [row.vm_id for row in store.listed().rows] == [vm_id(1)]


def test_with_too_much_the_oldest_vms_go(store: Store) -> None:
    for number in range(300):
        store.now_ms[0] += 1
        store.add_vm(number)
    used = store.reader.used_bytes()
    gone, _ = remove(store, Limits(7 * DAY_MS, int(used * 0.8)), too_large=True)
    left = {row.vm_id for row in store.listed(limit=500).rows}
    assert left
    assert gone == {vm_id(number) for number in range(len(gone))}
    assert left == {vm_id(number) for number in range(len(gone), 300)}


def test_the_writer_keeps_the_file_below_its_limit(opened: Callable[..., Any]) -> None:
    limit = 4 * MIB
    with opened(Limits(7 * DAY_MS, limit)) as store:
        for number in range(400):
            store.now_ms[0] += 1
            spans = tuple(_orphan(number * 10 + each, 5_000) for each in range(10))
            store.writer.put_spans(Spans(spans)).result(10)
        store.writer.put_spans(Spans(())).result(10)
        store.add_vm(1)
        assert store.reader.used_bytes() < limit + MIB
        assert [row.vm_id for row in store.listed().rows] == [vm_id(1)]


def test_the_writer_reports_vms_that_are_gone(opened: Callable[..., Any]) -> None:
    with opened(Limits(DAY_MS, 1 << 30)) as store:
        store.add_vm(1)
        store.now_ms[0] += 2 * DAY_MS
        store.writer._upkeep_at = -1e9
        store.add_vm(2)
        store.add_vm(2)
    assert store.removed == [(frozenset({vm_id(1)}), frozenset())]


def test_a_vm_of_which_a_part_is_left_is_judged_anew(store: Store) -> None:
    [span, *_] = (each for each in spans_of(wslc(), 1).spans if each.vm_ids)
    store.writer.put_spans(Spans((span,))).result(10)
    store.now_ms[0] += DAY_MS
    later = type(span)(b"t" * 16, span.span_id, span.source, span.vm_ids, span.body)
    store.writer.put_spans(Spans((later,))).result(10)
    store.now_ms[0] += 1
    assert remove(store, Limits(DAY_MS, 1 << 30)) == (set(), {vm_id(1)})
    stored = store.reader.vm(vm_id(1), 10)
    assert stored is not None
    assert [each.trace_id for each in stored.spans] == [b"t" * 16]
