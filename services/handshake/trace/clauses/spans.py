"""The spans of a VM: each service has its own, and all hang together.

All spans of a VM are below the span that created it, whose context the owner hands to every peer.
The parent of a span is in the file, with one exception: the span of a call by somebody who need not
record (vocabulary.UNRECORDED_CALLERS), at either side, may have a parent that is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.trace.clause import Ancestry, Clause, Emitter, Parents, Participation
from services.handshake.trace.vocabulary import (
    DEVICE_HOST,
    EMITTERS,
    FROM_DEVICE_HOST,
    GUEST_INIT,
    OWNER,
    UNRECORDED_CALLERS,
    VOCABULARY,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.handshake.trace.vm_trace import VmTrace


def _service_missing(vm: VmTrace) -> Iterator[str]:
    if vm.created is None:
        return
    below = {span.service for span in vm.tree.spans if vm.tree.is_below(span, vm.created.span)}
    due = [OWNER]
    if vm.announcements:
        due.append(GUEST_INIT)
    if not all(device.add_failed for device in vm.added_devices):
        due.append(DEVICE_HOST)
    for service in due:
        if service not in below:
            yield f"no span of {service} is below the one that created the VM"


def _service_mismatch(vm: VmTrace) -> Iterator[str]:
    for event in vm.events:
        may = EMITTERS.get(event.name)
        if may is not None and event.span.service not in may:
            yield f"{event.name} is on a {event.span}; only {' or '.join(may)} emits it"


def _parent_missing(vm: VmTrace) -> Iterator[str]:
    for span in vm.tree.spans:
        if (
            span.parent_id
            and span.called not in UNRECORDED_CALLERS
            and vm.tree.parent(span) is None
        ):
            yield f"the parent of the {span}, {span.parent_id}, was not recorded"


def _span_stray(vm: VmTrace) -> Iterator[str]:
    if vm.created is None:
        return
    for event in vm.events:
        if not vm.tree.is_below(event.span, vm.created.span):
            yield f"{event.name} is on a {event.span}, not below the one that created the VM"
    for device in vm.added_devices:
        added = device.first(events.DEVICE_ADDED)
        for event in device.events:
            if added is None or event.name not in FROM_DEVICE_HOST:
                continue
            if not vm.tree.is_below(event.span, added.span):
                yield f"{device}: {event.name} is not below the span that added it"


CLAUSES: Final = (
    Clause(
        "SERVICE_MISSING",
        9,
        "The owner has spans of its own, and so has guest init, and a device host when a device "
        "was added.",
        (Participation(OWNER), Participation(GUEST_INIT), Participation(DEVICE_HOST)),
        _service_missing,
    ),
    Clause(
        "SERVICE_MISMATCH",
        9,
        "An event is on a span of the service that emits it; a client may add a read of its own.",
        tuple(Emitter(event) for event in EMITTERS),
        _service_mismatch,
    ),
    Clause(
        "PARENT_MISSING",
        9,
        "The parent of each span was recorded, unless the span is that of a call by a client or by "
        "a guest's init.",
        (Parents(),),
        _parent_missing,
    ),
    Clause(
        "SPAN_STRAY",
        9,
        "Each event is below the span that created its VM, and those of a device host below the "
        "one that added the device.",
        tuple(Ancestry(event) for event in VOCABULARY if event != events.VM_CREATED),
        _span_stray,
    ),
)
