"""The reader: connections that only read, for any thread.

Each method is one read transaction, so that it sees one state of the file. Must not know what is
written, or what a span means.
"""

from __future__ import annotations

import queue
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from services.dashboard.store.file import open_to_read, used_bytes
from services.dashboard.store.listing import ROW_COLUMNS, Page, choices, list_vms, row_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

    from services.dashboard.records import VmRow
    from services.dashboard.store.listing import Filters

CONNECTIONS: Final = 4
"""Most reads at a time; further ones wait."""


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """A span as it was received: its own message, and that of its source."""

    trace_id: bytes
    span_id: bytes
    source_body: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class StoredVm:
    """All spans of a VM, at one moment.

    Attributes:
        row: The VM's row.
        seen: How often it was touched since it was judged; for Writer.put_judgement.
        spans: The spans of its traces, at most as many as were asked for.
        more: Whether there are more.
    """

    row: VmRow
    seen: int
    spans: tuple[StoredSpan, ...]
    more: bool


class Reader:
    """Connections to a file that a Writer has open.

    Args:
        path: The file.
        connections: How many reads there may be at a time.

    Raises:
        sqlite3.Error: It cannot be opened.
    """

    def __init__(self, path: Path, connections: int = CONNECTIONS) -> None:
        self._free: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._all = [open_to_read(path) for _ in range(connections)]
        for connection in self._all:
            self._free.put(connection)

    def close(self) -> None:
        """Close all connections; no read is under way."""
        for connection in self._all:
            connection.close()

    def list_vms(self, filters: Filters) -> Page:
        """Return a page of VMs."""
        with self._reading() as connection:
            return list_vms(connection, filters)

    def choices(self) -> tuple[list[str], list[str], list[tuple[str, int]]]:
        """Return kinds, kernels, and broken rules with their numbers."""
        with self._reading() as connection:
            return choices(connection)

    def row(self, vm_id: str) -> VmRow | None:
        """Return the row of a VM; None: it is not known."""
        with self._reading() as connection:
            return _row(connection, vm_id)

    def vm(self, vm_id: str, limit: int) -> StoredVm | None:
        """Return a VM with `limit` spans at most; None: it is not known."""
        with self._reading() as connection:
            row = _row(connection, vm_id)
            if row is None:
                return None
            [[seen]] = connection.execute("SELECT unjudged FROM vms WHERE vm_id = ?", (vm_id,))
            found = connection.execute(
                "SELECT spans.trace_id, span_id, sources.body, spans.body FROM vm_traces"
                " JOIN spans USING (trace_id) JOIN sources ON sources.id = source_id"
                " WHERE vm_id = ? LIMIT ?",
                (vm_id, limit + 1),
            ).fetchall()
        spans = tuple(StoredSpan(*each) for each in found[:limit])
        return StoredVm(row, seen, spans, more=len(found) > limit)

    def span(self, vm_id: str, trace_id: bytes, span_id: bytes) -> StoredSpan | None:
        """Return one span of a VM's traces; None: there is none."""
        with self._reading() as connection:
            found = connection.execute(
                "SELECT spans.trace_id, span_id, sources.body, spans.body FROM spans"
                " JOIN sources ON sources.id = source_id JOIN vm_traces USING (trace_id)"
                " WHERE spans.trace_id = ? AND span_id = ? AND vm_id = ?",
                (trace_id, span_id, vm_id),
            ).fetchone()
        return StoredSpan(*found) if found else None

    def used_bytes(self) -> int:
        """Return how many bytes of the file are in use."""
        with self._reading() as connection:
            return used_bytes(connection)

    def unjudged(self) -> list[str]:
        """Return the VMs that are to be judged anew, and those whose verdict is open."""
        with self._reading() as connection:
            return [
                vm_id
                for (vm_id,) in connection.execute(
                    "SELECT vm_id FROM vms WHERE unjudged > 0"
                    " UNION SELECT vm_id FROM vms WHERE verdict = 'open'"
                )
            ]

    def series(self, vm_id: str, beginning: str) -> list[dict[str, Any]]:
        """Return the series of a VM whose names begin so, with `id`, sorted."""
        columns = (
            "id",
            "name",
            "unit",
            "kind",
            "description",
            "service",
            "device_id",
            "device_class",
            "tag",
            "attributes",
        )
        with self._reading() as connection:
            found = connection.execute(
                f"SELECT {', '.join(columns)} FROM series WHERE vm_id = ?"  # noqa: S608
                " AND substr(name, 1, length(?)) = ? ORDER BY name, device_id, attributes, id",
                (vm_id, beginning, beginning),
            ).fetchall()
        return [dict(zip(columns, each, strict=True)) for each in found]

    def points(
        self, series_id: int, since_ms: int, until_ms: int, most: int, *, highest: bool
    ) -> list[tuple[int, float | None]]:
        """Return the points of a series, thinned out to about `most`.

        Args:
            series_id: The series.
            since_ms: The first time.
            until_ms: The time after the last.
            most: How many intervals the time between the first and last point is divided into.
            highest: Whether the highest point of an interval is returned, or the last one.
        """
        within = "series_id = ? AND at_ms >= ? AND at_ms < ?"
        values = (series_id, since_ms, until_ms)
        with self._reading() as connection:
            [[first, last, number]] = connection.execute(
                f"SELECT min(at_ms), max(at_ms), count(*) FROM points WHERE {within}",  # noqa: S608
                values,
            )
            if number <= most:
                return connection.execute(
                    f"SELECT at_ms, value FROM points WHERE {within} ORDER BY at_ms",  # noqa: S608
                    values,
                ).fetchall()
            step = (last - first) // most + 1
            # With one max() or min() the other columns are of its row (sqlite.org, "Quirks").
            chosen = "at_ms, max(value)" if highest else "max(at_ms), value"
            return connection.execute(
                f"SELECT {chosen} FROM points WHERE {within}"  # noqa: S608
                " GROUP BY (at_ms - ?) / ? ORDER BY at_ms",
                (*values, first, step),
            ).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        connection = self._free.get()
        try:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")
        finally:
            self._free.put(connection)


def _row(connection: sqlite3.Connection, vm_id: str) -> VmRow | None:
    found = connection.execute(
        f"SELECT {ROW_COLUMNS} FROM vms WHERE vm_id = ?",  # noqa: S608
        (vm_id,),
    ).fetchone()
    return row_of(found) if found else None
