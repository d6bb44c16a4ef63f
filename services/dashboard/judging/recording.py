"""The recording of a VM: its spans in the form that the checker reads, and its lives.

Must not know verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.dashboard.records import EVENTS_PER_VM, SPANS_PER_VM
from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.checker import IDLE_TAGS
from services.handshake.trace.otlp import parse_otlp_request
from services.handshake.trace.recorded import Recording
from services.handshake.trace.vm_trace import VmTrace, group_by_vm

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.handshake.trace.recorded import Span, TraceEvent


@dataclass(frozen=True, slots=True)
class VmRecording:
    """All spans of a VM's traces, and its lives.

    Attributes:
        vm_id: The VM.
        documents: Each span with its source, in the JSON form of OTLP.
        recording: The same, as the checker reads it; without spans that it cannot read.
        lives: The VM's lives, in the order of time.
        problem: Why it cannot be judged; empty when it can.
    """

    vm_id: str
    documents: tuple[dict[str, Any], ...]
    recording: Recording
    lives: tuple[VmTrace, ...]
    problem: str = ""


def record(vm_id: str, documents: Iterable[dict[str, Any]], *, more: bool = False) -> VmRecording:
    """Read the spans of a VM.

    Args:
        vm_id: The VM.
        documents: ResourceSpans with one span each, in the JSON form of OTLP.
        more: Whether the VM has more spans than these.
    """
    kept = tuple(documents)
    spans: list[Span] = []
    events: list[TraceEvent] = []
    unreadable = ""
    for document in kept:
        span = span_of(document)
        try:
            read = parse_otlp_request({"resourceSpans": [document]}, f"span {span['spanId']}")
        except InvalidArgumentError as error:
            unreadable = error.message
            continue
        spans += read.spans
        events += read.events
    recording = Recording(tuple(spans), tuple(events))
    lives = tuple(life for life in group_by_vm(recording, IDLE_TAGS) if life.vm_id == vm_id)
    return VmRecording(vm_id, kept, recording, lives, _problem(lives, unreadable, more=more))


def span_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the span of a document that has one."""
    span: dict[str, Any] = document["scopeSpans"][0]["spans"][0]
    return span


def _problem(lives: tuple[VmTrace, ...], unreadable: str, *, more: bool) -> str:
    if more:
        return f"it has more than {SPANS_PER_VM} spans, which are not judged"
    if sum(len(life.events) for life in lives) > EVENTS_PER_VM:
        return f"it has more than {EVENTS_PER_VM} events, which are not judged"
    if unreadable:
        return f"a span cannot be read: {unreadable}"
    return "" if lives else "no event of it is left"
