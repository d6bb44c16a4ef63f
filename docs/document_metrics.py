"""Writes docs/metrics.md: `python -m docs.document_metrics docs/metrics.md`.

Owns the form of that document, and which process exports which table. Its facts are the definitions
from which the instruments are made.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.devicehost import telemetry as devicehost
from services.rpc import calls, providers
from services.simguest import telemetry as simguest
from services.vm_owner import telemetry as owner
from services.vm_owner import verdicts

if TYPE_CHECKING:
    from services.rpc.metrics import Metric

SECTIONS: Final[dict[str, tuple[str, tuple[Metric, ...]]]] = {
    "Every service": (
        "Processes `owner`, `devicehost`, `simguest` and `guest-init`; a command (`porthole-cli`) "
        "has them in the file of PORTHOLE_METRICS_FILE only. Those of `porthole.telemetry` exist "
        "in a process that has a collector.",
        (*calls.METRICS, *providers.METRICS),
    ),
    "VM owner": ("Process `owner`.", (*owner.METRICS, *verdicts.METRICS)),
    "Device host": ("Process `devicehost`.", devicehost.METRICS),
    "User-space guest": ("Process `simguest`.", simguest.METRICS),
}
"""What is exported, by title: which processes do, and the metrics."""

_HEAD: Final = """# Metrics

[//]: # (Generated from the definitions in services/ by `make schemas`; edit those.)

Services export metrics over OTLP every 10 s (`OTEL_METRIC_EXPORT_INTERVAL`) and when they end, to
the collector of `--otlp-endpoint` or of OpenTelemetry's variables, and into the file of
`--metrics-file`. Names are those of OpenTelemetry: Prometheus writes `_` for each `.`, and appends
the unit and `_total`. Units are in UCUM: `By` is bytes, `s` seconds, and a word in braces is what
is counted. The process is the resource attribute `service.name`. An attribute that does not apply
is left out, such as `error.type` of a call that has not failed. `porthole.resource` is one of
[the limits](limits.md), and `porthole.handshake.rule` a rule of
[the checker](handshake.md#9-the-trace-and-its-checker).
"""
_TABLE: Final = "| metric | instrument | unit | attributes | meaning |\n|---|---|---|---|---|\n"


def document() -> str:
    """Return the text of docs/metrics.md."""
    parts = [_HEAD]
    for title, (processes, metrics) in SECTIONS.items():
        rows = "".join(_row(metric) for metric in metrics)
        parts.append(f"## {title}\n\n{processes}\n\n{_TABLE}{rows}")
    return "\n".join(parts)


def _row(metric: Metric) -> str:
    attributes = ", ".join(f"`{name}`" for name in metric.attributes) or "-"
    buckets = ", ".join(f"{bound:g}" for bound in metric.bounds)
    meaning = metric.description + (f"; buckets up to {buckets}" if buckets else "")
    return f"| `{metric.name}` | {metric.kind} | `{metric.unit}` | {attributes} | {meaning} |\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
