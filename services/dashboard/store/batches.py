"""What a batch writes: the statements of one transaction.

Must not know threads. Each function is called in a transaction that its caller commits.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from services.dashboard.records import Verdict
from services.dashboard.store.listing import ROW_COLUMNS, row_of

if TYPE_CHECKING:
    import sqlite3

    from services.dashboard.records import Judgement, Points, Series, Source, Spans, VmRow

VMS_PER_TRACE: Final = 64
"""Most VMs of one trace; ours have one. Each is judged with all spans of the trace."""

CACHE_LIMIT: Final = 10_000
"""Most ids of sources, and of series, that are kept in memory."""


class Ids:
    """The ids of sources and series in the file, by their digests.

    A cache: it is cleared when it is full, when something was removed and when a transaction fails.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def get(self, digest: bytes) -> int | None:
        """Return an id; None: it is to be looked up."""
        return self._known.get(digest)

    def keep(self, digest: bytes, number: int) -> None:
        """Keep an id."""
        if len(self._known) >= CACHE_LIMIT:
            self._known.clear()
        self._known[digest] = number


def write_spans(
    connection: sqlite3.Connection, spans: Spans, ids: Ids, now_ms: int
) -> frozenset[str]:
    """Write spans; one that is there already stays as it is.

    Returns:
        The VMs of their traces, which are to be judged anew.
    """
    sources = {span.source.digest: span.source for span in spans.spans}
    numbers = {digest: _source_id(connection, source, ids) for digest, source in sources.items()}
    connection.executemany(
        "INSERT OR IGNORE INTO spans VALUES (?, ?, ?, ?)",
        (
            (span.trace_id, span.span_id, numbers[span.source.digest], span.body)
            for span in spans.spans
        ),
    )
    connection.executemany(
        "INSERT OR IGNORE INTO trace_sources VALUES (?, ?)",
        {(span.trace_id, numbers[span.source.digest]) for span in spans.spans},
    )
    traces: dict[bytes, dict[str, None]] = {}
    for span in spans.spans:
        traces.setdefault(span.trace_id, {}).update(dict.fromkeys(span.vm_ids))
    touched: set[str] = set()
    for trace_id, vm_ids in traces.items():
        connection.execute(
            "INSERT INTO traces VALUES (?, 0, ?)"
            " ON CONFLICT (trace_id) DO UPDATE SET received_ms = excluded.received_ms",
            (trace_id, now_ms),
        )
        if vm_ids:
            _add_vms(connection, trace_id, list(vm_ids), now_ms)
        touched |= _touch(connection, trace_id, now_ms)
    return frozenset(touched)


def write_points(
    connection: sqlite3.Connection, points: Points, ids: Ids, now_ms: int
) -> frozenset[str]:
    """Write points; one of the same series and time is replaced.

    Returns:
        The VMs that have new points.
    """
    series = {point.series.digest: point.series for point in points.points}
    numbers = {digest: _series_id(connection, each, ids, now_ms) for digest, each in series.items()}
    connection.executemany(
        "INSERT OR REPLACE INTO points VALUES (?, ?, ?)",
        ((numbers[point.series.digest], point.at_ms, point.value) for point in points.points),
    )
    return frozenset(each.vm_id for each in series.values())


def write_judgement(
    connection: sqlite3.Connection, vm_id: str, judgement: Judgement, seen: int
) -> VmRow | None:
    """Write the judgement on a VM.

    Args:
        connection: In a transaction.
        vm_id: The VM.
        judgement: The judgement.
        seen: `unjudged` of the VM when its spans were read: what came later stays to be judged.

    Returns:
        The row, if it has changed; None: it has not, or the VM is gone.
    """
    values = (
        judgement.verdict,
        json.dumps(judgement.rules),
        judgement.problem,
        judgement.kind,
        judgement.kernel,
        judgement.token,
        judgement.devices,
        judgement.lives,
        judgement.spans,
        json.dumps(judgement.services),
        judgement.ended_ms,
        judgement.latched_us,
    )
    columns = (
        "verdict, rules, problem, kind, kernel, token, devices, lives, spans, services,"
        " ended_ms, latched_us"
    )
    connection.execute(
        "UPDATE vms SET unjudged = 0 WHERE vm_id = ? AND unjudged = ?", (vm_id, seen)
    )
    changed = connection.execute(
        f"UPDATE vms SET ({columns}, started_ms) = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,"  # noqa: S608
        " coalesce(?, started_ms)), revision = revision + 1"
        f" WHERE vm_id = ? AND (({columns}) IS NOT (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " OR started_ms IS NOT coalesce(?, started_ms))"
        f" RETURNING {ROW_COLUMNS}",
        (*values, judgement.started_ms, vm_id, *values, judgement.started_ms),
    ).fetchall()
    if not changed:
        return None
    connection.execute("DELETE FROM vm_rules WHERE vm_id = ?", (vm_id,))
    connection.executemany(
        "INSERT OR IGNORE INTO vm_rules VALUES (?, ?)", ((rule, vm_id) for rule in judgement.rules)
    )
    return row_of(changed[0])


def _source_id(connection: sqlite3.Connection, source: Source, ids: Ids) -> int:
    known = ids.get(source.digest)
    if known is not None:
        return known
    [[number]] = connection.execute(
        # An update that changes nothing, because a conflict that is ignored returns nothing.
        "INSERT INTO sources (digest, service, body) VALUES (?, ?, ?)"
        " ON CONFLICT (digest) DO UPDATE SET service = excluded.service RETURNING id",
        (source.digest, source.service, source.body),
    ).fetchall()
    ids.keep(source.digest, number)
    return int(number)


def _series_id(connection: sqlite3.Connection, series: Series, ids: Ids, now_ms: int) -> int:
    known = ids.get(series.digest)
    if known is not None:
        connection.execute("UPDATE series SET seen_ms = ? WHERE id = ?", (now_ms, known))
        return known
    [[number]] = connection.execute(
        "INSERT INTO series (digest, vm_id, name, unit, kind, description, service, device_id,"
        " device_class, tag, attributes, seen_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (digest) DO UPDATE SET seen_ms = excluded.seen_ms RETURNING id",
        (
            series.digest,
            series.vm_id,
            series.name,
            series.unit,
            series.kind,
            series.description,
            series.service,
            series.device_id,
            series.device_class,
            series.tag,
            series.attributes,
            now_ms,
        ),
    ).fetchall()
    ids.keep(series.digest, number)
    return int(number)


def _add_vms(
    connection: sqlite3.Connection, trace_id: bytes, vm_ids: list[str], now_ms: int
) -> None:
    known = {
        vm_id
        for (vm_id,) in connection.execute(
            "SELECT vm_id FROM vm_traces WHERE trace_id = ?", (trace_id,)
        )
    }
    new = [vm_id for vm_id in vm_ids if vm_id not in known][: VMS_PER_TRACE - len(known)]
    connection.executemany(
        "INSERT INTO vm_traces VALUES (?, ?)", ((vm_id, trace_id) for vm_id in new)
    )
    connection.executemany(
        "INSERT OR IGNORE INTO vms (vm_id, verdict, started_ms, last_ms) VALUES (?, ?, ?, ?)",
        ((vm_id, Verdict.OPEN, now_ms, now_ms) for vm_id in new),
    )
    connection.execute("UPDATE traces SET has_vm = 1 WHERE trace_id = ?", (trace_id,))


def _touch(connection: sqlite3.Connection, trace_id: bytes, now_ms: int) -> set[str]:
    touched = connection.execute(
        "UPDATE vms SET unjudged = unjudged + 1, last_ms = ? WHERE vm_id IN"
        " (SELECT vm_id FROM vm_traces WHERE trace_id = ?) RETURNING vm_id",
        (now_ms, trace_id),
    ).fetchall()
    return {vm_id for (vm_id,) in touched}
