"""The verdict of the owner on a handshake: a span, an event on it, and metrics.

Owns their names, which dashboards and alerts are made of. The verdict itself is computed in
services.handshake.trace.judgement; `porthole handshake verify` has the whole trace and stays the
judge.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.rpc import tracing

if TYPE_CHECKING:
    from services.handshake.events import Event

VERDICTS: Final = "porthole.handshake.verdicts"
"""Counts verdicts by stage, verdict and kind of the VM."""

BREACHES: Final = "porthole.handshake.breaches"
"""Counts broken rules by stage, rule and kind of the VM."""

RULE: Final = "porthole.handshake.rule"

DURATION: Final = "porthole.handshake.duration"
"""Measures the time from CreateVm until the VM is RUNNING, by verdict and kind of the VM."""

BOUNDS_S: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper bounds of the buckets of the duration, in seconds."""


def trace_verdict(kind: str, began_s: float, verdict: Event) -> None:
    """Record a verdict below the current span, and count it.

    Args:
        kind: Kind of the VM.
        began_s: When the VM was made, of time.monotonic.
        verdict: As of services.handshake.trace.judgement.judge_owner.
    """
    stage, rules = verdict.attributes[events.STAGE], str(verdict.attributes[events.BROKEN_RULES])
    tracing.emit_as_span(verdict, failed=f"broken: {rules}" if rules else "")
    seen = {events.STAGE: stage, events.VM_KIND: str(kind)}
    tracing.count(
        VERDICTS,
        "{verdict}",
        "verdicts of the owner on the handshakes of its VMs",
        {**seen, events.VERDICT: verdict.attributes[events.VERDICT]},
    )
    if stage == events.RUNNING:
        tracing.measure(
            DURATION,
            time.monotonic() - began_s,
            "time from the creation of a VM until its capabilities were applied",
            {events.VM_KIND: str(kind), events.VERDICT: verdict.attributes[events.VERDICT]},
            BOUNDS_S,
        )
    for rule in rules.split():
        tracing.count(
            BREACHES,
            "{breach}",
            "rules of the handshake that the owner found broken",
            {**seen, RULE: rule},
        )
