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
from services.rpc.metrics import Kind, Metric

if TYPE_CHECKING:
    from services.handshake.events import Event

RULE: Final = "porthole.handshake.rule"

VERDICTS: Final = Metric(
    "porthole.handshake.verdicts",
    Kind.COUNTER,
    "{verdict}",
    "verdicts of the owner on the handshakes of its VMs",
    (events.STAGE, events.VERDICT, events.VM_KIND),
)
BREACHES: Final = Metric(
    "porthole.handshake.breaches",
    Kind.COUNTER,
    "{breach}",
    "rules of the handshake that the owner found broken",
    (events.STAGE, RULE, events.VM_KIND),
)
DURATION: Final = Metric(
    "porthole.handshake.duration",
    Kind.HISTOGRAM,
    "s",
    "time from the creation of a VM until its capabilities were applied",
    (events.VERDICT, events.VM_KIND),
    (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
METRICS: Final = (VERDICTS, BREACHES, DURATION)


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
    tracing.count(VERDICTS, {**seen, events.VERDICT: verdict.attributes[events.VERDICT]})
    if stage == events.RUNNING:
        tracing.measure(
            DURATION,
            time.monotonic() - began_s,
            {events.VM_KIND: str(kind), events.VERDICT: verdict.attributes[events.VERDICT]},
        )
    for rule in rules.split():
        tracing.count(BREACHES, {**seen, RULE: rule})
