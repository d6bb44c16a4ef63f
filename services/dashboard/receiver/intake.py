"""The intake: what has come, in whatever way, is read, kept and reported.

Owns the counters of what was received. Must not know gRPC or HTTP.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from services.dashboard import otlp

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from services.dashboard.records import Points, Spans
    from services.dashboard.store import Kept

T = TypeVar("T")

READ_AT_ONCE_BYTES: Final = 64 << 10
"""A body up to this is read on the event loop, which takes some milliseconds."""

READERS: Final = 2
"""Most longer bodies that are read at a time, each on a thread."""


class Keeper(Protocol):
    """What keeps spans and points: the store's writer."""

    def put_spans(self, spans: Spans) -> Future[Kept]:
        """Keep spans."""

    def put_points(self, points: Points) -> Future[Kept]:
        """Keep points."""


@dataclass(slots=True)
class Received:
    """What was received since the start."""

    spans: int = 0
    points: int = 0
    rejected: int = 0


class Intake:
    """One for all ways.

    Args:
        keeper: The store's writer.
        on_spans: Gets the VMs of which spans have come.
        on_points: Gets the VMs of which points have come.
    """

    def __init__(
        self,
        keeper: Keeper,
        on_spans: Callable[[frozenset[str]], None],
        on_points: Callable[[frozenset[str]], None],
    ) -> None:
        self._keeper = keeper
        self._on_spans = on_spans
        self._on_points = on_points
        self._readers = asyncio.Semaphore(READERS)
        self.received = Received()

    async def take_traces(self, body: bytes, *, as_json: bool = False) -> bytes:
        """Keep the spans of a request; return the answer, once they are kept.

        Raises:
            InvalidArgumentError: OTLP_SYNTAX.
            UnavailableError: STORE_BUSY, STORE_FAILED.
        """
        spans = await self._read(lambda: otlp.read_spans(body, as_json=as_json), len(body))
        if spans.spans:
            kept = await asyncio.wrap_future(self._keeper.put_spans(spans))
            self._on_spans(kept.vm_ids)
        self.received.spans += len(spans.spans)
        self.received.rejected += spans.rejected
        return otlp.trace_answer(spans, as_json=as_json)

    async def take_metrics(self, body: bytes, *, as_json: bool = False) -> bytes:
        """Keep the points of a request that are of VMs; return the answer, once they are kept.

        Raises:
            InvalidArgumentError: OTLP_SYNTAX.
            UnavailableError: STORE_BUSY, STORE_FAILED.
        """
        points = await self._read(lambda: otlp.read_points(body, as_json=as_json), len(body))
        if points.points:
            kept = await asyncio.wrap_future(self._keeper.put_points(points))
            self._on_points(kept.vm_ids)
        self.received.points += len(points.points)
        return otlp.metrics_answer(as_json=as_json)

    async def take_logs(self, body: bytes, *, as_json: bool = False) -> bytes:
        """Drop the logs of a request: an event is kept with its span, and must not be seen twice.

        Raises:
            InvalidArgumentError: OTLP_SYNTAX.
        """
        await self._read(lambda: otlp.check_logs(body, as_json=as_json), len(body))
        return otlp.logs_answer(as_json=as_json)

    async def _read(self, read: Callable[[], T], size_bytes: int) -> T:
        if size_bytes <= READ_AT_ONCE_BYTES:
            return read()
        async with self._readers:
            return await asyncio.to_thread(read)
