"""Removal of what is too old, or too much: step by step, so that a batch never waits for long.

Owns the order: traces without a VM first, then the traces to which nothing was added for longest.
Must not know threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.dashboard.store.file import used_bytes

if TYPE_CHECKING:
    import sqlite3

    from services.dashboard.store.file import Limits

TRACES_PER_STEP: Final = 200
SERIES_PER_STEP: Final = 20

ROOM: Final = 0.9
"""The part of `keep_bytes` to which a file that is too large is reduced."""

PAGES_PER_STEP: Final = 2_000
"""Most pages that are given back to the file system in one step."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step removed.

    Attributes:
        gone: VMs of which nothing is left.
        touched: VMs of which a part is left, which are to be judged anew.
        more: Whether another step is needed.
    """

    gone: frozenset[str] = frozenset()
    touched: frozenset[str] = frozenset()
    more: bool = False


def is_too_large(connection: sqlite3.Connection, limits: Limits) -> bool:
    """Return whether the file has more than its limit."""
    return used_bytes(connection) > limits.keep_bytes


def remove_some(
    connection: sqlite3.Connection, limits: Limits, now_ms: int, *, too_large: bool
) -> Step:
    """Remove a step of the oldest traces and series, in a transaction that the caller commits.

    Args:
        connection: In a transaction.
        limits: What is kept.
        now_ms: The time.
        too_large: Whether a removal because of the size is under way.
    """
    if too_large and used_bytes(connection) > limits.keep_bytes * ROOM:
        traces, series = _oldest(connection)
    else:
        traces, series = _outdated(connection, now_ms - limits.keep_ms)
    gone, touched = _remove_traces(connection, traces)
    for number in series:
        connection.execute("DELETE FROM points WHERE series_id = ?", (number,))
        connection.execute("DELETE FROM series WHERE id = ?", (number,))
    return Step(gone, touched, more=bool(traces or series))


def remove_old_points(connection: sqlite3.Connection, limits: Limits, now_ms: int) -> None:
    """Remove the points that are too old from the series that still get some."""
    connection.execute(
        "DELETE FROM points WHERE series_id IN (SELECT id FROM series) AND at_ms < ?",
        (now_ms - limits.keep_ms,),
    )


def shrink(connection: sqlite3.Connection) -> None:
    """Give pages back to the file system if a quarter of the file is free; in no transaction."""
    [[free, pages]] = connection.execute(
        "SELECT freelist_count, page_count FROM pragma_freelist_count, pragma_page_count"
    )
    if free > pages // 4:
        connection.execute(f"PRAGMA incremental_vacuum({PAGES_PER_STEP})").fetchall()


def _outdated(connection: sqlite3.Connection, before_ms: int) -> tuple[list[bytes], list[int]]:
    """Return the traces and series to which nothing was added since a time."""
    traces = [
        trace_id
        for has_vm in (0, 1)
        for (trace_id,) in connection.execute(
            "SELECT trace_id FROM traces WHERE has_vm = ? AND received_ms < ? LIMIT ?",
            (has_vm, before_ms, TRACES_PER_STEP),
        ).fetchall()
    ]
    return traces, _series_before(connection, before_ms)


def _oldest(connection: sqlite3.Connection) -> tuple[list[bytes], list[int]]:
    """Return the traces that go first, and series that are older."""
    found = connection.execute(
        "SELECT trace_id, has_vm, received_ms FROM traces ORDER BY has_vm, received_ms LIMIT ?",
        (TRACES_PER_STEP,),
    ).fetchall()
    traces = [trace_id for trace_id, has_vm, _ in found if has_vm == found[0][1]]
    if not found:
        return [], _series_before(connection, None)
    if not found[0][1]:
        return traces, []
    return traces, _series_before(connection, found[-1][2])


def _series_before(connection: sqlite3.Connection, before_ms: int | None) -> list[int]:
    found = connection.execute(
        "SELECT id FROM series WHERE ?1 IS NULL OR seen_ms < ?1 ORDER BY seen_ms LIMIT ?2",
        (before_ms, SERIES_PER_STEP),
    ).fetchall()
    return [number for (number,) in found]


def _remove_traces(
    connection: sqlite3.Connection, traces: list[bytes]
) -> tuple[frozenset[str], frozenset[str]]:
    vm_ids: set[str] = set()
    sources: set[int] = set()
    for trace_id in traces:
        vm_ids |= {
            vm_id
            for (vm_id,) in connection.execute(
                "DELETE FROM vm_traces WHERE trace_id = ? RETURNING vm_id", (trace_id,)
            ).fetchall()
        }
        sources |= {
            number
            for (number,) in connection.execute(
                "DELETE FROM trace_sources WHERE trace_id = ? RETURNING source_id", (trace_id,)
            ).fetchall()
        }
        connection.execute("DELETE FROM spans WHERE trace_id = ?", (trace_id,))
        connection.execute("DELETE FROM traces WHERE trace_id = ?", (trace_id,))
    connection.executemany(
        "DELETE FROM sources WHERE id = ?1"
        " AND NOT EXISTS (SELECT 1 FROM trace_sources WHERE source_id = ?1)",
        ((number,) for number in sources),
    )
    gone = {vm_id for vm_id in vm_ids if _remove_vm(connection, vm_id)}
    touched = vm_ids - gone
    connection.executemany(
        "UPDATE vms SET unjudged = unjudged + 1 WHERE vm_id = ?", ((vm_id,) for vm_id in touched)
    )
    return frozenset(gone), frozenset(touched)


def _remove_vm(connection: sqlite3.Connection, vm_id: str) -> bool:
    """Remove a VM that is in no trace any more; return whether it is gone."""
    left = connection.execute(
        "SELECT 1 FROM vm_traces WHERE vm_id = ? LIMIT 1", (vm_id,)
    ).fetchone()
    if left:
        return False
    connection.execute("DELETE FROM vm_rules WHERE vm_id = ?", (vm_id,))
    connection.execute("DELETE FROM vms WHERE vm_id = ?", (vm_id,))
    return True
