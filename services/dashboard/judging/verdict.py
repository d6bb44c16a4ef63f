"""The verdict on a VM, and what its row in the list says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.dashboard.records import TIME_LIMIT_MS, Judgement, Verdict
from services.handshake import events
from services.handshake.trace.checker import judge
from services.handshake.trace.vocabulary import ANNOUNCEMENTS

if TYPE_CHECKING:
    from services.dashboard.judging.recording import VmRecording
    from services.handshake.trace.checker import VmVerdict
    from services.handshake.trace.vm_trace import VmTrace

WORST_FIRST: Final = (
    Verdict.BROKEN,
    Verdict.UNJUDGED,
    Verdict.OPEN,
    Verdict.VALID,
    Verdict.UNSTARTED,
)
"""Of several lives, the first of these is the verdict on the VM."""

_RELEASES: Final = (*ANNOUNCEMENTS, events.WSLC_READ)


def judge_lives(vm: VmRecording) -> list[VmVerdict]:
    """Return what the checker says of each life; none when the VM is not judged."""
    return [] if vm.problem else [judge(life) for life in vm.lives]


def verdict_on(life: VmTrace, checked: VmVerdict, *, settled: bool) -> Verdict:
    """Return the verdict on one life.

    Args:
        life: The life.
        checked: What the checker says of it.
        settled: Whether no span has come for a while.
    """
    if life.never_booted:
        return Verdict.UNSTARTED
    if checked.valid:
        return Verdict.VALID
    return Verdict.BROKEN if settled else Verdict.OPEN


def judgement_on(vm: VmRecording, checked: list[VmVerdict], *, settled: bool) -> Judgement:
    """Return the judgement on a VM.

    Args:
        vm: The VM.
        checked: What `judge_lives` returned.
        settled: Whether no span has come for a while.
    """
    each = [
        verdict_on(life, found, settled=settled)
        for life, found in zip(vm.lives, checked, strict=False)
    ]
    verdict = Verdict.UNJUDGED
    if not vm.problem:
        verdict = next(worst for worst in WORST_FIRST if worst in each)
    rules = dict.fromkeys(
        violation.rule
        for found, on in zip(checked, each, strict=False)
        if on in (Verdict.BROKEN, Verdict.OPEN)
        for violation in found.violations
    )
    last = vm.lives[-1] if vm.lives else None
    return Judgement(
        verdict=verdict,
        rules=tuple(rules),
        problem=vm.problem,
        kind=last.kind if last else "",
        kernel=_kernel(last) if last else "",
        token=last.latched.text(events.TOKEN) if last and last.latched else "",
        devices=0 if vm.problem else sum(len(life.devices) for life in vm.lives),
        lives=len(vm.lives),
        spans=len(vm.documents),
        services=tuple(sorted({span.service for span in vm.recording.spans if span.service})),
        started_ms=started_ms(vm.lives[0]) if vm.lives else None,
        ended_ms=ended_ms(last) if last else None,
        latched_us=_latched_us(last) if last else None,
    )


def started_ms(life: VmTrace) -> int:
    """Return the time of the first event of a life."""
    return _ms(life.events[0].time_unix_nano)


def ended_ms(life: VmTrace) -> int | None:
    """Return the time at which a life ended; None: it has no end."""
    ended = life.first(events.VM_TERMINATED)
    return _ms(ended.time_unix_nano) if ended else None


def _kernel(life: VmTrace) -> str:
    releases = [event.text(events.KERNEL_RELEASE) for event in life.all(*_RELEASES)]
    return next((release for release in reversed(releases) if release), "")


def _latched_us(life: VmTrace) -> int | None:
    if life.created is None or life.latched is None:
        return None
    took_ns = life.latched.time_unix_nano - life.created.time_unix_nano
    return max(-TIME_LIMIT_MS, min(took_ns // 1000, TIME_LIMIT_MS))


def _ms(time_unix_nano: int) -> int:
    return max(0, min(time_unix_nano // 1_000_000, TIME_LIMIT_MS))
