"""The list of VMs: which rows a reader asks for, page by page.

Owns the columns of a row. Must not know connections beyond the one that it is given.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from services.dashboard.records import Judgement, Verdict, VmRow

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

ROW_COLUMNS: Final = (
    "vm_id, verdict, rules, problem, kind, kernel, token, devices, lives, spans, services,"
    " started_ms, ended_ms, latched_us, last_ms, revision"
)

KERNELS_LISTED: Final = 100
"""Most kernels that are offered to choose from."""

_LAST_CHARACTER: Final = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Filters:
    """Which VMs are asked for; an empty member asks for all.

    Attributes:
        verdicts: One of these verdicts.
        kind: WSL2 or WSLC.
        kernel: How the kernel's release begins.
        rule: A broken rule.
        vm: How the id begins.
        since_ms: Started then or later; None: at any time.
        until_ms: Started before; None: at any time.
        after: The start and the id of the last row of the page before; None: the first page.
        limit: Most rows of a page.
    """

    verdicts: tuple[Verdict, ...] = ()
    kind: str = ""
    kernel: str = ""
    rule: str = ""
    vm: str = ""
    since_ms: int | None = None
    until_ms: int | None = None
    after: tuple[int, str] | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Page:
    """Rows, the newest first.

    Attributes:
        after: What `Filters.after` of the next page is; None: this is the last.
        counts: How many VMs have each verdict, whatever was asked for.
    """

    rows: tuple[VmRow, ...]
    after: tuple[int, str] | None
    counts: dict[Verdict, int]


def row_of(values: Sequence[Any]) -> VmRow:
    """Return a row from the values of ROW_COLUMNS."""
    (vm_id, verdict, rules, problem, kind, kernel, token, devices, lives, spans, services), rest = (
        values[:11],
        values[11:],
    )
    started_ms, ended_ms, latched_us, last_ms, revision = rest
    judgement = Judgement(
        verdict=Verdict(verdict),
        rules=tuple(json.loads(rules)),
        problem=problem,
        kind=kind,
        kernel=kernel,
        token=token,
        devices=devices,
        lives=lives,
        spans=spans,
        services=tuple(json.loads(services)),
        started_ms=started_ms,
        ended_ms=ended_ms,
        latched_us=latched_us,
    )
    return VmRow(vm_id, judgement, started_ms, last_ms, revision)


def list_vms(connection: sqlite3.Connection, filters: Filters) -> Page:
    """Return one page of VMs."""
    where, values = _conditions(filters)
    found = connection.execute(
        f"SELECT {ROW_COLUMNS} FROM vms WHERE {' AND '.join(where)}"  # noqa: S608 - fixed texts
        " ORDER BY started_ms DESC, vm_id LIMIT ?",
        (*values, filters.limit + 1),
    ).fetchall()
    rows = tuple(row_of(each) for each in found[: filters.limit])
    more = len(found) > filters.limit
    return Page(rows, (rows[-1].started_ms, rows[-1].vm_id) if more else None, counts(connection))


def counts(connection: sqlite3.Connection) -> dict[Verdict, int]:
    """Return how many VMs have each verdict."""
    found = dict(connection.execute("SELECT verdict, count(*) FROM vms GROUP BY verdict"))
    return {verdict: int(found.get(verdict, 0)) for verdict in Verdict}


def choices(connection: sqlite3.Connection) -> tuple[list[str], list[str], list[tuple[str, int]]]:
    """Return the kinds, the most frequent kernels, and the broken rules with their numbers."""
    kinds = [
        kind
        for (kind,) in connection.execute(
            "SELECT DISTINCT kind FROM vms WHERE kind <> '' ORDER BY kind"
        )
    ]
    kernels = [
        kernel
        for kernel, _ in connection.execute(
            "SELECT kernel, count(*) AS number FROM vms WHERE kernel <> ''"
            " GROUP BY kernel ORDER BY number DESC, kernel LIMIT ?",
            (KERNELS_LISTED,),
        )
    ]
    rules = connection.execute(
        "SELECT rule, count(*) AS number FROM vm_rules GROUP BY rule ORDER BY number DESC, rule"
    ).fetchall()
    return kinds, kernels, rules


def _conditions(filters: Filters) -> tuple[list[str], list[object]]:
    where, values = ["true"], list[object]()
    if filters.verdicts:
        where.append(f"verdict IN ({', '.join('?' * len(filters.verdicts))})")
        values += filters.verdicts
    if filters.kind:
        where.append("kind = ?")
        values.append(filters.kind)
    for column, beginning in (("kernel", filters.kernel), ("vm_id", filters.vm)):
        if beginning:
            where.append(f"{column} >= ? AND {column} < ?")
            values += (beginning, beginning + _LAST_CHARACTER)
    if filters.rule:
        where.append("vm_id IN (SELECT vm_id FROM vm_rules WHERE rule = ?)")
        values.append(filters.rule)
    if filters.since_ms is not None:
        where.append("started_ms >= ?")
        values.append(filters.since_ms)
    if filters.until_ms is not None:
        where.append("started_ms < ?")
        values.append(filters.until_ms)
    if filters.after is not None:
        # The first condition is what an index can use.
        started_ms, vm_id = filters.after
        where.append("started_ms <= ? AND (started_ms < ? OR vm_id > ?)")
        values += (started_ms, started_ms, vm_id)
    return where, values
