"""The owner's answer to each announcement: the one that was due, and those that were recorded.

Owns the computation of the due answer, with the checks that the owner uses. Must not know rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.handshake.pool import Gpa, SwiotlbPool, check_pool, pool_from_announcement
from services.handshake.sizing import low_ram_bytes
from services.handshake.trace.clause import Value, values
from services.handshake.trace.recorded import NO_POOL
from services.handshake.trace.vocabulary import ANNOUNCEMENTS, ANSWERS

if TYPE_CHECKING:
    from services.handshake.trace.recorded import Numbers, TraceEvent
    from services.handshake.trace.vm_trace import VmTrace

ANSWER_READS: Final = (
    Value(events.VM_CREATED, events.RAM_BYTES),
    Value(events.GUEST_BOOTED, events.RAM_BASE),
    *values(*ANNOUNCEMENTS, events.POOL_LATCHED, keys=(events.POOL_BASE, events.POOL_SIZE_BYTES)),
)
"""What `answered` reads of a trace."""

OTHER_POOL: Final = "SWIOTLB_ALREADY_LATCHED"
"""The reason of a refusal of another pool than the latched one."""


@dataclass(frozen=True, slots=True)
class Due:
    """The answer that an announcement must have.

    Attributes:
        name: The event; empty: none.
        reason: The reason of a refusal; empty: any, as the trace has not the announced numbers.
    """

    name: str = ""
    reason: str = ""


@dataclass(slots=True)
class Answered:
    """An announcement, the answer that was due, and the answers before the next announcement."""

    announcement: TraceEvent
    due: Due
    answers: list[TraceEvent] = field(default_factory=list)

    @property
    def was_refused(self) -> bool:
        """Whether it was refused."""
        return any(answer.name == events.POOL_REFUSED for answer in self.answers)


def answered(vm: VmTrace) -> list[Answered]:
    """Return every announcement with its answers. Answers before the first are left out."""
    found: list[Answered] = []
    latched: Numbers = NO_POOL
    for event in vm.all(*ANNOUNCEMENTS, *ANSWERS):
        if event.name in ANNOUNCEMENTS:
            found.append(Answered(event, _due(event.numbers, latched, vm)))
            continue
        if found:
            found[-1].answers.append(event)
        if event.name == events.POOL_LATCHED:
            latched = event.numbers
    return found


def why_invalid(numbers: Numbers, vm: VmTrace) -> str:
    """Return the reason why an owner refuses a pool of a VM; empty: it does not."""
    try:
        pool = pool_from_announcement(*numbers)
        if pool is not None:
            check_pool(pool, low_ram_bytes(vm.ram_bytes), vm.ram_base)
    except InvalidArgumentError as refusal:
        return refusal.reason
    return ""


def show(numbers: Numbers) -> str:
    """Write a pool for people."""
    return f"base 0x{numbers[0]:x}, size {numbers[1]}"


def as_pool(numbers: Numbers) -> SwiotlbPool:
    """Return the pool of an event, unchecked."""
    return SwiotlbPool(Gpa(numbers[0]), numbers[1])


def _due(numbers: Numbers, latched: Numbers, vm: VmTrace) -> Due:
    if events.LARGEST_NUMBER in numbers:
        return Due(events.POOL_REFUSED)
    reason = why_invalid(numbers, vm)
    if reason:
        return Due(events.POOL_REFUSED, reason)
    if latched != NO_POOL:
        # Other fields may be refused beside the latched pool, of which the trace says nothing.
        return Due() if numbers == latched else Due(events.POOL_REFUSED, OTHER_POOL)
    return Due() if numbers == NO_POOL else Due(events.POOL_LATCHED)
