"""A broken handshake for each rule of the checker, as a service would send it.

Each is a valid trace in which one thing is changed (tests.support.trace_mutants), so that the rule
is broken. Must not know the page.
"""

from __future__ import annotations

import json
import time
import uuid
from functools import cache
from typing import TYPE_CHECKING, Any

from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.checker import verify
from services.handshake.trace.table import RULES
from tests.support.handshake_traces import TRACE, VALID, VM, not_as_requested, record, to_otlp
from tests.support.trace_mutants import UNKNOWN_ID, UNKNOWN_TRACE, mutants

if TYPE_CHECKING:
    from services.handshake.trace.recorded import Recording

SPAN_NS = 200_000_000
"""Length of a span that has no events, and what a span lasts beyond its last event."""


@cache
def breaking(rule: str) -> Recording:
    """Return a recording of one VM, in which a rule is broken, and as few others as can be."""
    best: tuple[int, Recording] | None = None
    for case in (*VALID.values(), not_as_requested):
        valid = record(case())
        for read in RULES[rule].reads:
            for _, mutant in mutants(read, valid):
                broken = _broken(mutant)
                if broken == {rule}:
                    return mutant
                if rule in broken and (best is None or len(broken) < best[0]):
                    best = len(broken), mutant
    if best is None:
        raise LookupError(f"no mutation of a valid trace breaks {rule}")
    return best[1]


def _broken(recording: Recording) -> set[str]:
    try:
        verdicts = verify(recording)
    except InvalidArgumentError:
        return set()
    # A mutation of an id makes two VMs of one; the page shows each by its own id.
    return {
        item.rule
        for verdict in verdicts
        if verdict.vm_id == VM and len(verdicts) == 1
        for item in verdict.violations
    }


def export(recording: Recording) -> tuple[str, list[str]]:
    """Write a recording as OTLP requests, of a VM and a trace of their own, at the present time.

    Returns:
        The id of the VM, and the requests, each a JSON document.
    """
    vm_id = str(uuid.uuid4())
    text = to_otlp(recording)
    for known, fresh in (
        (VM, vm_id),
        (TRACE, uuid.uuid4().hex),
        (UNKNOWN_TRACE, uuid.uuid4().hex),
        (UNKNOWN_ID, str(uuid.uuid4())),
    ):
        text = text.replace(known, fresh)
    now = time.time_ns()
    first = min(event.time_unix_nano for event in recording.events)
    return vm_id, [_timed(line, now - first) for line in text.splitlines()]


def _timed(line: str, later: int) -> str:
    request = json.loads(line)
    for resource in request["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                _time(span, later)
    return json.dumps(request)


def _time(span: dict[str, Any], later: int) -> None:
    for event in span["events"]:
        event["timeUnixNano"] = str(int(event["timeUnixNano"]) + later)
    times = [int(event["timeUnixNano"]) for event in span["events"]] or [later + 10**9]
    span["startTimeUnixNano"] = str(min(times) - SPAN_NS)
    span["endTimeUnixNano"] = str(max(times) + SPAN_NS)
    span["kind"] = 1
