"""What was written is read, by whom it is asked for."""

from __future__ import annotations

import sqlite3
import stat
from typing import TYPE_CHECKING, Any

import pytest

from services.dashboard.records import Judgement, Spans, Verdict
from services.dashboard.store import Filters, Limits, Writer
from services.dashboard.store import writer as writer_module
from services.handshake.errors import FailedPreconditionError, UnavailableError
from tests.support.handshake_traces import wsl2, wslc
from tests.support.otlp_requests import spans_of, vm_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.dashboard.store.conftest import Store


def test_a_vm_is_listed_as_soon_as_it_is_known(store: Store) -> None:
    assert store.add_vm(1) == {vm_id(1)}
    [row] = store.listed().rows
    assert (row.vm_id, row.judgement.verdict) == (vm_id(1), Verdict.OPEN)
    assert (row.started_ms, row.last_ms, row.revision) == (store.now_ms[0], store.now_ms[0], 0)
    assert store.listed().counts[Verdict.OPEN] == 1


def test_all_spans_of_a_vm_are_read(store: Store) -> None:
    store.add_vm(1)
    store.add_vm(2, wsl2())
    stored = store.reader.vm(vm_id(1), 1000)
    assert stored is not None
    assert {span.body for span in stored.spans} == {span.body for span in spans_of(wslc(), 1).spans}
    assert not stored.more
    few = store.reader.vm(vm_id(1), 3)
    assert few is not None
    assert (len(few.spans), few.more) == (3, True)
    assert store.reader.vm("nobody", 10) is None


def test_a_span_that_comes_again_stays_as_it_is(store: Store) -> None:
    store.add_vm(1)
    store.add_vm(1)
    stored = store.reader.vm(vm_id(1), 1000)
    assert stored is not None
    assert len(stored.spans) == len(spans_of(wslc(), 1).spans)
    assert stored.seen == 2


def test_a_span_that_comes_before_its_vm_belongs_to_it(store: Store) -> None:
    spans = spans_of(wslc(), 1)
    first = tuple(span for span in spans.spans if not span.vm_ids)
    rest = tuple(span for span in spans.spans if span.vm_ids)
    assert store.writer.put_spans(Spans(first)).result(10).vm_ids == frozenset()
    assert store.listed().rows == ()
    assert store.writer.put_spans(Spans(rest)).result(10).vm_ids == {vm_id(1)}
    assert store.writer.put_spans(Spans(first)).result(10).vm_ids == {vm_id(1)}
    stored = store.reader.vm(vm_id(1), 1000)
    assert stored is not None
    assert len(stored.spans) == len(spans.spans)


def test_one_span_is_read_by_its_vm(store: Store) -> None:
    store.add_vm(1)
    [span, *_] = spans_of(wslc(), 1).spans
    found = store.reader.span(vm_id(1), span.trace_id, span.span_id)
    assert found is not None
    assert (found.body, found.source_body) == (span.body, span.source.body)
    assert store.reader.span(vm_id(2), span.trace_id, span.span_id) is None
    assert store.reader.span(vm_id(1), span.trace_id, b"12345678") is None


def test_a_judgement_changes_the_row_once(store: Store) -> None:
    store.add_vm(1)
    judgement = Judgement(
        Verdict.BROKEN,
        rules=("TOKEN_MISSING",),
        kind="WSLC",
        kernel="6.18.26.3",
        token="t",
        devices=1,
        lives=1,
        spans=10,
        services=("owner",),
        started_ms=5,
        ended_ms=6,
        latched_us=7,
    )
    row = store.judge(vm_id(1), judgement)
    assert row is not None
    assert (row.judgement, row.revision, row.started_ms) == (judgement, 1, 5)
    assert store.listed().rows == (row,)
    assert store.judge(vm_id(1), judgement) is None
    assert store.judge("nobody", judgement) is None


def test_what_came_while_a_vm_was_judged_stays_to_be_judged(store: Store) -> None:
    store.add_vm(1)
    seen = store.reader.vm(vm_id(1), 1)
    store.add_vm(1)
    assert seen is not None
    store.judge(vm_id(1), Judgement(Verdict.VALID, started_ms=5), seen.seen)
    assert store.reader.unjudged() == [vm_id(1)]
    store.judge(vm_id(1), Judgement(Verdict.VALID, started_ms=5), 2)
    assert store.reader.unjudged() == []


def test_an_open_verdict_is_judged_again_after_a_restart(store: Store) -> None:
    store.add_vm(1)
    store.judge(vm_id(1), Judgement(Verdict.OPEN, started_ms=5))
    assert store.reader.unjudged() == [vm_id(1)]


def _five_vms(store: Store) -> None:
    for number in range(5):
        store.add_vm(number)
        broken = number % 2 == 0
        store.judge(
            vm_id(number),
            Judgement(
                Verdict.BROKEN if broken else Verdict.VALID,
                rules=("TOKEN_MISSING", "POOL_INVALID")[: 1 + number // 4] if broken else (),
                kind="WSL2" if number < 3 else "WSLC",
                kernel="6.18.26" if broken else "5.15.1",
                started_ms=100 * number,
            ),
        )


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        ({}, [4, 3, 2, 1, 0]),
        ({"verdicts": (Verdict.VALID,)}, [3, 1]),
        ({"verdicts": (Verdict.VALID, Verdict.BROKEN)}, [4, 3, 2, 1, 0]),
        ({"kind": "WSLC"}, [4, 3]),
        ({"kernel": "6."}, [4, 2, 0]),
        ({"kernel": "6.18.26"}, [4, 2, 0]),
        ({"rule": "POOL_INVALID"}, [4]),
        ({"vm": "00000003"}, [3]),
        ({"since_ms": 200, "until_ms": 400}, [3, 2]),
        ({"kernel": "%"}, []),
        ({"rule": "TOKEN_MISSING", "kind": "WSL2", "verdicts": (Verdict.BROKEN,)}, [2, 0]),
    ],
)
def test_filters(store: Store, filters: dict[str, Any], numbers: list[int]) -> None:
    _five_vms(store)
    page = store.listed(**filters)
    assert [row.vm_id for row in page.rows] == [vm_id(number) for number in numbers]
    assert page.counts == {
        Verdict.VALID: 2,
        Verdict.BROKEN: 3,
        Verdict.OPEN: 0,
        Verdict.UNSTARTED: 0,
        Verdict.UNJUDGED: 0,
    }


def test_pages_have_every_row_once_also_when_starts_are_equal(store: Store) -> None:
    for number in range(7):
        store.add_vm(number)
        store.judge(vm_id(number), Judgement(Verdict.VALID, started_ms=number // 3))
    found, after, pages = [], None, 0
    while pages == 0 or after is not None:
        page = store.listed(limit=2, after=after)
        found += [row.vm_id for row in page.rows]
        after = page.after
        pages += 1
    assert pages == 4
    assert found == [vm_id(number) for number in (6, 3, 4, 5, 0, 1, 2)]


def test_choices(store: Store) -> None:
    _five_vms(store)
    kinds, kernels, rules = store.reader.choices()
    assert kinds == ["WSL2", "WSLC"]
    assert kernels == ["6.18.26", "5.15.1"]
    assert rules == [("TOKEN_MISSING", 3), ("POOL_INVALID", 1)]


def test_rules_that_are_kept_again_are_no_choice(store: Store) -> None:
    _five_vms(store)
    for number in (0, 2, 4):
        store.judge(vm_id(number), Judgement(Verdict.VALID, started_ms=1))
    assert store.reader.choices()[2] == []


def test_points_are_read_in_the_order_of_time(store: Store) -> None:
    now = store.now_ms[0]
    store.add_points(1, (now + 3, 3), (now + 1, 1))
    store.add_points(1, (now + 2, 2.5), (now + 3, 4))
    [series] = store.reader.series(vm_id(1), "porthole.device")
    assert (series["name"], series["kind"], series["tag"]) == (
        "porthole.device.bytes",
        "counter",
        "",
    )
    points = store.reader.points(series["id"], 0, 1 << 53, 100, highest=False)
    assert points == [(now + 1, 1), (now + 2, 2.5), (now + 3, 4)]
    some = store.reader.points(series["id"], now + 2, now + 3, 100, highest=False)
    assert some == [(now + 2, 2.5)]
    assert store.reader.series(vm_id(1), "porthole_device") == []
    assert store.reader.series(vm_id(2), "") == []


def test_many_points_are_thinned_out(store: Store) -> None:
    now = store.now_ms[0]
    store.add_points(1, *((now + time, time % 100) for time in range(1000)))
    [series] = store.reader.series(vm_id(1), "")
    last = store.reader.points(series["id"], 0, 1 << 53, 10, highest=False)
    assert last == [(now + time, 99) for time in range(99, 1000, 100)]
    highest = store.reader.points(series["id"], 0, now + 990, 9, highest=True)
    assert len(highest) <= 9
    assert {value for _, value in highest} == {99}


def test_the_file_is_its_users_alone(store: Store) -> None:
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_one_dashboard_has_a_file(store: Store) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        Writer(store.path, Limits(1, 1))
    assert caught.value.reason == "DATABASE_IN_USE"


def test_a_file_is_opened_again(opened: Callable[..., Any]) -> None:
    with opened() as store:
        store.add_vm(1)
    with opened() as store:
        assert [row.vm_id for row in store.listed().rows] == [vm_id(1)]


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"x"])
def test_another_file_is_refused(tmp_path: Any, content: bytes) -> None:
    path = tmp_path / "d.sqlite"
    path.write_bytes(content)
    for _ in range(2):  # the lock is let go
        with pytest.raises(FailedPreconditionError) as caught:
            Writer(path, Limits(1, 1))
        assert caught.value.reason == "DATABASE_UNUSABLE"
    assert path.read_bytes() == content


def test_a_file_of_another_version_is_refused(opened: Callable[..., Any]) -> None:
    with opened() as store:
        path = store.path
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(FailedPreconditionError, match="it has version 99") as caught:
        Writer(path, Limits(1, 1))
    assert caught.value.reason == "DATABASE_UNUSABLE"


def test_a_reader_cannot_write(store: Store) -> None:
    with (
        store.reader._reading() as connection,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        connection.execute("DELETE FROM vms")


def test_too_much_that_waits_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "PENDING_LIMIT_BYTES", 100)
    with store.writer._pending:
        store.writer._pending_bytes = 1
    with pytest.raises(UnavailableError) as caught:
        store.writer.put_spans(Spans((), size_bytes=100))
    assert caught.value.reason == "STORE_BUSY"
    store.writer.put_spans(Spans((), size_bytes=99)).result(10)


def test_a_failure_to_write_is_reported_and_over_when_it_works_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> frozenset[str]:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(writer_module, "write_spans", full)
        # Looking after the file would succeed at once.
        broken.setattr(writer_module, "UPKEEP_S", 1e9)
        with pytest.raises(UnavailableError, match="disk is full") as caught:
            store.writer.put_spans(spans_of(wslc())).result(10)
    assert caught.value.reason == "STORE_FAILED"
    failing = [store.writer.failing]
    store.add_vm(1)
    failing.append(store.writer.failing)
    assert failing == [True, False]
    assert [row.vm_id for row in store.listed().rows] == [vm_id(1)]


def test_nothing_is_taken_after_the_end(opened: Callable[..., Any]) -> None:
    with opened() as store:
        writer = store.writer
    writer.close()
    with pytest.raises(UnavailableError) as caught:
        writer.put_spans(Spans(()))
    assert caught.value.reason == "SERVICE_STOPPING"


def test_a_trace_has_few_vms(store: Store) -> None:
    [span, *_] = (each for each in spans_of(wslc(), 1).spans if each.vm_ids)
    many = tuple(f"vm-{number:03}" for number in range(200))
    put = type(span)(span.trace_id, span.span_id, span.source, many, span.body)
    assert len(store.writer.put_spans(Spans((put,))).result(10).vm_ids) == 64
    assert len(store.reader.list_vms(Filters(limit=500)).rows) == 64
