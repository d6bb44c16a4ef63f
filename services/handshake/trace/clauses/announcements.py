"""What a guest announces: its kernel and its pool, at every hop on the way to the owner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.capabilities import parse_kernel_release, publishes_pool
from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.answers import ANSWER_READS, answered, show
from services.handshake.trace.clause import Clause, Hops, values
from services.handshake.trace.recorded import NO_POOL
from services.handshake.trace.vocabulary import FIRST_KERNEL_WITH_POOL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.handshake.trace.recorded import TraceEvent
    from services.handshake.trace.vm_trace import VmTrace

_SAID_BY: Final = (events.GUEST_KERNEL_INFO, events.WSLC_READ, events.WSLC_APPLY)
_NUMBERS: Final = (events.POOL_BASE, events.POOL_SIZE_BYTES)
_TRIPLE: Final = (events.KERNEL_MAJOR, events.KERNEL_MINOR, events.KERNEL_PATCH)


def _version_mismatch(vm: VmTrace) -> Iterator[str]:
    for event in vm.all(events.GUEST_KERNEL_INFO):
        release = event.text(events.KERNEL_RELEASE)
        shown = tuple(event.number(key) for key in _TRIPLE)
        try:
            version = parse_kernel_release(release)
            true = (version.major, version.minor, version.patch)
        except InvalidArgumentError:
            true = (0, 0, 0)
        if shown != true:
            yield f"kernel release {release!r} has the version {true}, the event has {shown}"


def _kernel_too_old(vm: VmTrace) -> Iterator[str]:
    for event in vm.all(*_SAID_BY):
        release = event.text(events.KERNEL_RELEASE)
        if event.numbers == NO_POOL or (not release and event.name == events.WSLC_APPLY):
            continue
        try:
            publishes = publishes_pool(release, FIRST_KERNEL_WITH_POOL)
        except InvalidArgumentError:
            publishes = False
        if not publishes:
            yield (
                f"{event.name}: kernel {release!r} publishes a pool; the first that can is "
                f"{FIRST_KERNEL_WITH_POOL}"
            )


def _read_mismatch(vm: VmTrace) -> Iterator[str]:
    """Compare what was read with what was applied.

    Any number of services may report the same read. An application after a pool was latched changes
    nothing, so only its pool is compared. A refused application changed nothing, so it
    may differ from the values that were read.
    """
    if not vm.first(events.WSLC_READ):
        return
    refused = [answer.announcement for answer in answered(vm) if answer.was_refused]
    read: TraceEvent | None = None
    for event in vm.all(events.WSLC_READ, events.WSLC_APPLY):
        if event.name == events.WSLC_READ:
            read = event
        elif read and not _agree(vm, event, read) and event not in refused:
            yield (f"{events.WSLC_READ} has {_show(read)}, {events.WSLC_APPLY} has {_show(event)}")
    for event in vm.all(events.WSLC_READ):
        candidates = _applied_of(vm, event, refused)
        if candidates and not any(_agree(vm, other, event) for other in candidates):
            yield f"{events.WSLC_READ} has {_show(event)}, which was never applied"


def _applied_of(vm: VmTrace, read: TraceEvent, refused: list[TraceEvent]) -> list[TraceEvent]:
    """Return the applications of which one must have what was read."""
    applied = vm.all(events.WSLC_APPLY)
    later = [event for event in applied if vm.position(event) > vm.position(read)]
    accepted = [event for event in later if event not in refused]
    earlier = [event for event in applied if event not in later and event not in refused]
    if not later or _is_repeat(vm, later[0]):
        return earlier[-1:]
    return [*later[:1], *accepted[:1]]


def _agree(vm: VmTrace, applied: TraceEvent, read: TraceEvent) -> bool:
    same_kernel = applied.text(events.KERNEL_RELEASE) == read.text(events.KERNEL_RELEASE)
    return applied.numbers == read.numbers and (same_kernel or _is_repeat(vm, applied))


def _is_repeat(vm: VmTrace, applied: TraceEvent) -> bool:
    return vm.latched is not None and vm.position(vm.latched) < vm.position(applied)


def _show(event: TraceEvent) -> str:
    return f"{show(event.numbers)}, kernel {event.text(events.KERNEL_RELEASE)!r}"


CLAUSES: Final = (
    Clause(
        "VERSION_MISMATCH",
        8,
        "The version triple is that of the release string.",
        values(events.GUEST_KERNEL_INFO, keys=(events.KERNEL_RELEASE, *_TRIPLE)),
        _version_mismatch,
    ),
    Clause(
        "KERNEL_TOO_OLD",
        8,
        f"A kernel that publishes a pool is {FIRST_KERNEL_WITH_POOL} or later, or Porthole's own.",
        (*values(*_SAID_BY, keys=(events.KERNEL_RELEASE, *_NUMBERS)), Hops()),
        _kernel_too_old,
    ),
    Clause(
        "READ_MISMATCH",
        3,
        "What is applied to a WSLC VM is what was read from its guest, whoever read it.",
        (
            *values(events.WSLC_READ, events.WSLC_APPLY, keys=(*_NUMBERS, events.KERNEL_RELEASE)),
            *ANSWER_READS,
        ),
        _read_mismatch,
    ),
)
