"""The owner's own judgement: what follows from its events alone, and the clauses about it.

Owns which clauses an owner can judge while a VM lives, and how. An owner knows its own events and
no spans, so a clause that needs what another service has recorded is left to the checker, which has
all of it. Whatever the owner finds broken is broken in the whole trace, too. Must not know I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.trace.clause import (
    Ancestry,
    Clause,
    EachStage,
    Emitter,
    Form,
    Once,
    OneTrace,
    Order,
    Parents,
    Participation,
    Presence,
    Value,
    values,
)
from services.handshake.trace.clauses import (
    announcements,
    devices,
    networking,
    options,
    pool,
    sizing,
    spans,
    steps,
    warnings,
)
from services.handshake.trace.recorded import Span, TraceEvent
from services.handshake.trace.vm_trace import SpanTree, VmTrace
from services.handshake.trace.vocabulary import EMITTERS, OWNER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from services.handshake.events import Attribute, Event
    from services.handshake.trace.clause import Read

EVENTS_KEPT: Final = 500
"""Most events of a VM that its owner judges; a client adds and removes devices as it likes."""

OF_HANDSHAKE: Final[tuple[Clause, ...]] = (
    *steps.CLAUSES,
    *sizing.CLAUSES,
    *announcements.CLAUSES,
    *pool.CLAUSES,
    *options.CLAUSES,
    *devices.CLAUSES,
    *networking.CLAUSES,
    *warnings.CLAUSES,
    *spans.CLAUSES,
)
"""The clauses of the handshake itself."""

_STAGES: Final = (events.RUNNING, events.ENDED)

# It compares a read with what was applied, and another service may have answered a later read.
_NEEDS_ALL_READS: Final = "READ_MISMATCH"


def _is_owners(name: str) -> bool:
    return OWNER in EMITTERS.get(name, frozenset())


def _needs_others(read: Read) -> bool:
    """Return whether an owner that knows its own events alone could find a breach that is none."""
    match read:
        case OneTrace() | Parents() | Ancestry() | Participation() | Emitter():
            return True
        case Presence(event):
            return not _is_owners(event)
        case Order(_, after):
            return not all(_is_owners(name) for name in after)
    return False


OF_OWNER: Final = tuple(
    clause
    for clause in OF_HANDSHAKE
    if clause.rule != _NEEDS_ALL_READS and not any(_needs_others(read) for read in clause.reads)
)
"""The clauses that an owner can judge."""


def judge_owner(vm_id: str, stage: str, listed: Sequence[Event]) -> Event:
    """Return the verdict of an owner.

    Args:
        vm_id: Id of the VM.
        stage: events.RUNNING or events.ENDED.
        listed: The events of the VM that the owner has emitted, in order, without verdicts; at
            least EVENTS_KEPT + 1 of them if there are more. At its end its last event is added,
            which follows the verdict.
    """
    if len(listed) > EVENTS_KEPT:
        return events.handshake_verdict(vm_id, stage, None)
    known = [*listed, events.vm_terminated(vm_id)] if stage == events.ENDED else listed
    span = Span("", "")
    vm = VmTrace(
        vm_id,
        [TraceEvent(event.name, _as_traced(event), span, at) for at, event in enumerate(known)],
        SpanTree(()),
    )
    broken = [clause.rule for clause in OF_OWNER if any(True for _ in clause.check(vm))]
    return events.handshake_verdict(vm_id, stage, broken)


def _as_traced(event: Event) -> dict[str, Attribute]:
    """Return the attributes as a trace has them, in which a member of an enumeration is a text."""
    return {
        key: str(value) if isinstance(value, str) else value
        for key, value in event.attributes.items()
    }


def _verdict_mismatch(vm: VmTrace) -> Iterator[str]:
    known: list[Event] = []
    for event in vm.events:
        if event.name != events.HANDSHAKE_VERDICT:
            if event.span.service == OWNER:
                known.append(events.Event(event.name, event.attributes))
            continue
        stage = event.text(events.STAGE)
        if stage not in _STAGES:
            yield f"the owner judged at the stage {stage!r}"
            continue
        due = judge_owner(vm.vm_id, stage, known).attributes
        shown = (event.text(events.VERDICT), event.text(events.BROKEN_RULES))
        if shown != (due[events.VERDICT], due[events.BROKEN_RULES]):
            yield (
                f"the owner's verdict at the stage {stage!r} is {_show(*shown)}, and its events "
                f"show {_show(due[events.VERDICT], due[events.BROKEN_RULES])}"
            )


def _show(verdict: object, rules: object) -> str:
    return f"{verdict!r} ({rules})" if rules else repr(verdict)


def _verdict_miscounted(vm: VmTrace) -> Iterator[str]:
    judged = [event.text(events.STAGE) for event in vm.all(events.HANDSHAKE_VERDICT)]
    if not judged:
        return
    due = {
        # A VM whose guest reports nothing runs after a time, unless it ends before.
        events.RUNNING: (1,) if vm.announcements else (0, 1),
        events.ENDED: (0,) if vm.first(events.VM_TERMINATED) is None else (1,),
    }
    for stage, counts in due.items():
        count = judged.count(stage)
        if count not in counts:
            yield f"the owner judged {count} times at the stage {stage!r}, not {counts[-1]} times"


_READS_OF_OWNER: Final = dict.fromkeys(
    read for clause in OF_OWNER for read in clause.reads if isinstance(read, Value | Form)
)

CLAUSES: Final = (
    Clause(
        "VERDICT_MISMATCH",
        9,
        "What an owner judges is what its own events show.",
        (
            *values(
                events.HANDSHAKE_VERDICT, keys=(events.STAGE, events.VERDICT, events.BROKEN_RULES)
            ),
            *_READS_OF_OWNER,
        ),
        _verdict_mismatch,
    ),
    Clause(
        "VERDICT_MISCOUNTED",
        9,
        "An owner that judges does so once when the VM is RUNNING, and once when it ends.",
        (
            EachStage(),
            Once(events.HANDSHAKE_VERDICT),
            Value(events.HANDSHAKE_VERDICT, events.STAGE),
        ),
        _verdict_miscounted,
    ),
)
"""The clauses about the owner's verdicts. A trace need have none: they are no step of it."""
