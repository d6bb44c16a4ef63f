"""The forms of answers: rows, metrics, and links to traces elsewhere.

Must not know HTTP.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from services.dashboard.records import TIME_LIMIT_MS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.dashboard.records import VmRow
    from services.dashboard.store import Reader

SERIES_LISTED: Final = 500
"""Most series of a VM that are listed."""

LINKED_TRACES: Final = 16
"""Most traces of a VM that are linked to; ours have one."""


def row_document(row: VmRow) -> dict[str, Any]:
    """Return a row as it is in the list."""
    judgement = row.judgement
    return {
        "vm_id": row.vm_id,
        "kind": judgement.kind,
        "kernel": judgement.kernel,
        "verdict": judgement.verdict,
        "rules": list(judgement.rules),
        "problem": judgement.problem,
        "token": judgement.token,
        "devices": judgement.devices,
        "lives": judgement.lives,
        "spans": judgement.spans,
        "services": list(judgement.services),
        "started_ms": row.started_ms,
        "ended_ms": judgement.ended_ms,
        "latched_us": judgement.latched_us,
        "last_ms": row.last_ms,
        "revision": row.revision,
    }


def links(
    templates: Mapping[str, str], vm_id: str, trace_ids: Sequence[str]
) -> list[dict[str, str]]:
    """Return the links to the traces of a VM elsewhere.

    Args:
        templates: Addresses with {trace_id} or {vm_id} in them, by the name of what is there.
        vm_id: The VM.
        trace_ids: Its traces.
    """
    return [
        {
            "name": name,
            "url": template.replace("{trace_id}", trace_id).replace(
                "{vm_id}", quote(vm_id, safe="")
            ),
            "trace_id": trace_id,
        }
        for name, template in templates.items()
        for trace_id in trace_ids[:LINKED_TRACES]
    ]


def metrics_document(
    reader: Reader, vm_id: str, name: str, times: tuple[int | None, int | None], points: int
) -> dict[str, Any]:
    """Return the metrics of a VM.

    Args:
        reader: The store.
        vm_id: The VM.
        name: How the names of metrics begin.
        times: The first time in milliseconds, and the one after the last; None: no bound.
        points: How many points of each series.
    """
    since_ms = 0 if times[0] is None else times[0]
    until_ms = TIME_LIMIT_MS + 1 if times[1] is None else times[1]
    series = reader.series(vm_id, name)
    return {
        "series": [
            {
                "name": each["name"],
                "unit": each["unit"],
                "kind": each["kind"],
                "description": each["description"],
                "service": each["service"],
                "device_id": each["device_id"],
                "class": each["device_class"],
                "tag": each["tag"],
                "attributes": json.loads(each["attributes"]),
                "points": [
                    [at_ms, _number(value)]
                    for at_ms, value in reader.points(
                        each["id"], since_ms, until_ms, points, highest=each["kind"] == "gauge"
                    )
                ],
            }
            for each in series[:SERIES_LISTED]
        ],
        "series_left_out": max(len(series) - SERIES_LISTED, 0),
    }


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
