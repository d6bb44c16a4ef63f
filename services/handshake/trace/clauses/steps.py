"""The steps of a handshake: which there are, how often, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.trace.clause import (
    Absence,
    Clause,
    Form,
    Last,
    Once,
    OneTrace,
    Order,
    Presence,
    Value,
)
from services.handshake.trace.vocabulary import (
    ANNOUNCEMENTS,
    ANSWERING,
    ANSWERS,
    ATTACHED,
    OF_OTHER_KIND,
    VOCABULARY,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from services.handshake.trace.clause import Check
    from services.handshake.trace.recorded import TraceEvent
    from services.handshake.trace.vm_trace import VmTrace

_ONCE: Final = (
    events.VM_CREATED,
    events.GUEST_BOOTED,
    events.POOL_LATCHED,
    events.POOL_NOT_AS_REQUESTED,
    events.GUEST_INIT_ENDED,
    events.VM_TERMINATED,
)
_OF_LIFE: Final = (*ANNOUNCEMENTS, *ANSWERS, events.DEVICE_ADDED)
"""The events that do not happen to a VM whose guest has no process 1 any more."""


def _attribute_invalid(vm: VmTrace) -> Iterator[str]:
    for event in vm.events:
        for key, kind in {events.VM_ID: str, **VOCABULARY[event.name]}.items():
            value = event.attributes.get(key)
            if type(value) is not kind:
                yield f"{event.name} ({event.where}) has {key} = {value!r}, not a {kind.__name__}"


def _kind_mismatch(vm: VmTrace) -> Iterator[str]:
    if vm.created and vm.kind not in OF_OTHER_KIND:
        yield f"the VM is of kind {vm.kind!r}, which is neither WSL2 nor WSLC"
    for event in vm.all(*OF_OTHER_KIND.get(vm.kind, ())):
        yield f"{event.name} in the life of a {vm.kind} VM"


def _trace_split(vm: VmTrace) -> Iterator[str]:
    traces = dict.fromkeys(event.span.trace_id for event in vm.events)
    if len(traces) > 1:
        yield f"its events are spread over {len(traces)} traces: {', '.join(traces)}"


def _created_missing(vm: VmTrace) -> Iterator[str]:
    if vm.created is None:
        yield f"there is no {events.VM_CREATED}"


def _booted_missing(vm: VmTrace) -> Iterator[str]:
    if vm.first(events.GUEST_BOOTED) is None:
        yield f"there is no {events.GUEST_BOOTED}"


def _capabilities_missing(vm: VmTrace) -> Iterator[str]:
    if not vm.announcements:
        yield "its owner never learned its capabilities"


def _read_missing(vm: VmTrace) -> Iterator[str]:
    answered = any(event.span.service in ANSWERING for event in vm.all(events.WSLC_READ))
    if vm.first(events.WSLC_APPLY) and not answered:
        yield f"{events.WSLC_APPLY} without {events.WSLC_READ}: nobody asked the guest"


def _event_repeated(vm: VmTrace) -> Iterator[str]:
    for name in _ONCE:
        count = len(vm.all(name))
        if count > 1:
            yield f"{name} happened {count} times"


def _order_terminated(vm: VmTrace) -> Iterator[str]:
    names = [event.name for event in vm.events]
    if events.VM_TERMINATED in names:
        for name in dict.fromkeys(names[names.index(events.VM_TERMINATED) + 1 :]):
            if name != events.VM_TERMINATED:
                yield f"{name} came after {events.VM_TERMINATED}"


def _guest_init_lost(vm: VmTrace) -> Iterator[str]:
    names = [event.name for event in vm.events]
    if events.GUEST_INIT_ENDED not in names:
        return
    after = names[names.index(events.GUEST_INIT_ENDED) :]
    for name in dict.fromkeys(name for name in after if name in _OF_LIFE):
        yield f"{name} came after {events.GUEST_INIT_ENDED}"
    if events.VM_TERMINATED not in names:
        yield f"{events.GUEST_INIT_ENDED}, and the VM was not shut down"


def _too_early(
    listed: Sequence[TraceEvent], late: tuple[str, ...], needed: tuple[str, ...]
) -> Iterator[str]:
    names = [event.name for event in listed]
    places = [index for index, name in enumerate(names) if name in needed]
    if not places:
        return
    for name in dict.fromkeys(name for name in names[: places[0]] if name in late):
        yield f"{name} came before {' or '.join(needed)}"


def _vm_order(late: tuple[str, ...], needed: tuple[str, ...]) -> Check:
    def check(vm: VmTrace) -> Iterator[str]:
        yield from _too_early(vm.events, late, needed)

    return check


def _device_order(late: tuple[str, ...], needed: tuple[str, ...]) -> Check:
    def check(vm: VmTrace) -> Iterator[str]:
        for device in vm.devices:
            for breach in _too_early(device.events, late, needed):
                yield f"{device}: {breach}"

    return check


def _order(
    rule: str, section: int, says: str, late: tuple[str, ...], needed: tuple[str, ...]
) -> Clause:
    of_device = all(events.DEVICE_ID in VOCABULARY[name] for name in (*late, *needed))
    check = (_device_order if of_device else _vm_order)(late, needed)
    return Clause(rule, section, says, tuple(Order(name, needed) for name in late), check)


CLAUSES: Final = (
    Clause(
        "ATTRIBUTE_INVALID",
        9,
        "Each event has its attributes, each of its type.",
        tuple(
            Form(event, key) for event, keys in VOCABULARY.items() for key in (events.VM_ID, *keys)
        ),
        _attribute_invalid,
    ),
    Clause(
        "KIND_MISMATCH",
        9,
        "The guest of a WSL2 VM pushes, the session of a WSLC VM reads and applies.",
        (
            Value(events.VM_CREATED, events.VM_KIND),
            *(Absence(name) for names in OF_OTHER_KIND.values() for name in names),
        ),
        _kind_mismatch,
    ),
    Clause("TRACE_SPLIT", 9, "One VM has one trace.", (OneTrace(),), _trace_split),
    Clause(
        "CREATED_MISSING",
        9,
        "The trace begins with the creation of the VM.",
        (
            Presence(events.VM_CREATED),
            *(Value(event, events.VM_ID) for event in VOCABULARY),
        ),
        _created_missing,
    ),
    Clause(
        "BOOTED_MISSING", 9, "The guest boots.", (Presence(events.GUEST_BOOTED),), _booted_missing
    ),
    Clause(
        "CAPABILITIES_MISSING",
        2,
        "The owner learns the guest's capabilities.",
        tuple(Presence(name) for name in ANNOUNCEMENTS),
        _capabilities_missing,
    ),
    Clause(
        "READ_MISSING",
        9,
        "Capabilities that are applied to a WSLC VM were read: its guest init, or the owner that "
        "forwards, says so.",
        (Presence(events.WSLC_READ),),
        _read_missing,
    ),
    Clause(
        "EVENT_REPEATED",
        4,
        "A VM is created, boots, latches a pool, loses its guest init and ends once.",
        tuple(Once(name) for name in _ONCE),
        _event_repeated,
    ),
    _order(
        "ORDER_CREATED",
        9,
        "Nothing happens to a VM before it is created.",
        tuple(name for name in VOCABULARY if name != events.VM_CREATED),
        (events.VM_CREATED,),
    ),
    _order(
        "ORDER_BOOTED",
        2,
        "Capabilities are read after the guest has booted.",
        (events.GUEST_KERNEL_INFO, events.WSLC_READ, events.WSLC_APPLY),
        (events.GUEST_BOOTED,),
    ),
    _order(
        "ORDER_APPLIED",
        4,
        "Capabilities are applied after they are read.",
        (events.WSLC_APPLY,),
        (events.WSLC_READ,),
    ),
    _order(
        "ORDER_POOL",
        4,
        "A pool is latched or refused after it is announced.",
        ANSWERS,
        ANNOUNCEMENTS,
    ),
    _order(
        "ORDER_NOT_AS_REQUESTED",
        4,
        "A pool that is not what was requested is latched first.",
        (events.POOL_NOT_AS_REQUESTED,),
        (events.POOL_LATCHED,),
    ),
    _order(
        "ORDER_WARNING",
        4,
        "The user is warned of a kernel without a pool after the guest has reported.",
        (events.KERNEL_UNSUPPORTED,),
        ANNOUNCEMENTS,
    ),
    _order(
        "ORDER_DEVICE",
        4,
        "Capabilities are read before any device is added.",
        (events.DEVICE_ADDED,),
        ANNOUNCEMENTS,
    ),
    _order(
        "ORDER_DEVICE_HOST_WARNING",
        8,
        "The user is warned of a device host without tokens after a device was added.",
        (events.DEVICE_HOST_UNSUPPORTED,),
        (events.DEVICE_ADDED,),
    ),
    _order(
        "ORDER_NETWORKING",
        10,
        "The user is warned of a networking mode before networking is configured without it.",
        (events.NETWORKING_CONFIGURED,),
        (events.NETWORKING_FALLBACK,),
    ),
    _order(
        "ORDER_ADDED",
        10,
        "A device is added before it attaches to guest memory, or its link changes.",
        (*ATTACHED, events.FIRST_REQUEST, events.LINK_CHANGED),
        (events.DEVICE_ADDED,),
    ),
    _order(
        "ORDER_FIRST_REQUEST",
        7,
        "A device attaches to guest memory before it completes a request.",
        (events.FIRST_REQUEST,),
        ATTACHED,
    ),
    Clause(
        "GUEST_INIT_LOST",
        10,
        "A VM whose guest init has ended is shut down: nothing is announced, latched or added any "
        "more.",
        (
            Presence(events.VM_TERMINATED, given=events.GUEST_INIT_ENDED),
            Order(events.GUEST_INIT_ENDED, _OF_LIFE),
        ),
        _guest_init_lost,
    ),
    Clause(
        "ORDER_TERMINATED",
        10,
        "Nothing happens to a VM after its end.",
        (Last(events.VM_TERMINATED),),
        _order_terminated,
    ),
)
