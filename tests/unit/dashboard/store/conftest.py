"""A store of its own for each test, with a clock that the test sets."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from services.dashboard.otlp import read_points
from services.dashboard.store import Filters, Limits, Reader, Writer
from tests.support.handshake_traces import wslc
from tests.support.otlp_requests import metrics_document, metrics_request, spans_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from services.dashboard.records import Judgement, VmRow
    from services.dashboard.store import Page

DAY_MS = 86_400_000


@dataclass
class Store:
    path: Path
    writer: Writer
    reader: Reader
    now_ms: list[int]
    removed: list[tuple[frozenset[str], frozenset[str]]] = field(default_factory=list)

    def add_vm(self, number: int, steps: Any = None) -> frozenset[str]:
        return self.writer.put_spans(spans_of(steps or wslc(), number)).result(10).vm_ids

    def add_points(self, number: int, *values: tuple[int, float], **changes: Any) -> None:
        document = metrics_document(number, values, **changes)
        self.writer.put_points(read_points(metrics_request(document), as_json=False)).result(10)

    def judge(self, vm_id: str, judgement: Judgement, seen: int = 1) -> VmRow | None:
        return self.writer.put_judgement(vm_id, judgement, seen).result(10)

    def listed(self, **filters: Any) -> Page:
        return self.reader.list_vms(Filters(**filters))


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Any]:
    @contextmanager
    def opening(limits: Limits | None = None) -> Iterator[Store]:
        path = tmp_path / "state" / "d.sqlite"
        now_ms, removed = [1_000_000_000_000], list[tuple[frozenset[str], frozenset[str]]]()
        writer = Writer(
            path,
            limits or Limits(7 * DAY_MS, 1 << 30),
            lambda gone, touched: removed.append((gone, touched)),
            lambda: now_ms[0],
        )
        reader = Reader(path)
        try:
            yield Store(path, writer, reader, now_ms, removed)
        finally:
            reader.close()
            writer.close()

    return opening


@pytest.fixture
def store(opened: Callable[..., Any]) -> Iterator[Store]:
    with opened() as made:
        yield made
