"""The rules of a valid handshake, one function each, and their stable names.

Owns what makes the trace of one VM valid (handshake.md section 9). A rule yields one sentence
per breach. Rules are independent: a missing event breaks only the rule that demands it, not the
rules about its order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.pool import Gpa, SwiotlbPool, format_token
from services.handshake.trace_events import NO_POOL, VOCABULARY, WSL2, WSLC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from services.handshake.trace_events import DeviceTrace, Numbers, TraceEvent, VmTrace

    Rule = Callable[[VmTrace], Iterator[str]]

_CAPABILITIES: Final = (events.GUEST_KERNEL_INFO, events.WSLC_APPLY)
_ATTACHED: Final = (events.APERTURE_CREATED, events.WINDOWS_ENABLED)

# One row per step: the events of the step, and the events of which one must come before.
_VM_ORDER: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "ORDER_CREATED": (
        tuple(name for name in VOCABULARY if name != events.VM_CREATED),
        (events.VM_CREATED,),
    ),
    "ORDER_BOOTED": (
        (events.GUEST_KERNEL_INFO, events.WSLC_READ, events.WSLC_APPLY),
        (events.GUEST_BOOTED,),
    ),
    "ORDER_APPLIED": ((events.WSLC_APPLY,), (events.WSLC_READ,)),
    "ORDER_POOL": ((events.POOL_LATCHED, events.POOL_REFUSED), _CAPABILITIES),
    "ORDER_WARNING": ((events.KERNEL_UNSUPPORTED,), _CAPABILITIES),
    "ORDER_DEVICE": ((events.DEVICE_ADDED,), _CAPABILITIES),
    "ORDER_DEVICE_HOST_WARNING": ((events.DEVICE_HOST_UNSUPPORTED,), (events.DEVICE_ADDED,)),
}
_DEVICE_ORDER: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "ORDER_ADDED": ((*_ATTACHED, events.FIRST_REQUEST), (events.DEVICE_ADDED,)),
    "ORDER_FIRST_REQUEST": ((events.FIRST_REQUEST,), _ATTACHED),
}
_ONCE: Final = (
    events.VM_CREATED,
    events.GUEST_BOOTED,
    events.POOL_LATCHED,
    events.VM_TERMINATED,
)
_OF_OTHER_KIND: Final = {
    WSL2: (events.WSLC_READ, events.WSLC_APPLY),
    WSLC: (events.GUEST_KERNEL_INFO,),
}


def _show(numbers: Numbers) -> str:
    return f"base 0x{numbers[0]:x}, size {numbers[1]}"


def _attribute_invalid(vm: VmTrace) -> Iterator[str]:
    for event in vm.events:
        for key, kind in {events.VM_ID: str, **VOCABULARY[event.name]}.items():
            value = event.attributes.get(key)
            if type(value) is not kind:
                yield f"{event.name} ({event.where}) has {key} = {value!r}, not a {kind.__name__}"


def _kind_mismatch(vm: VmTrace) -> Iterator[str]:
    if vm.kind and vm.kind not in _OF_OTHER_KIND:
        yield f"the VM is of kind {vm.kind!r}, which is neither WSL2 nor WSLC"
    for event in vm.all(*_OF_OTHER_KIND.get(vm.kind, ())):
        yield f"{event.name} in the life of a {vm.kind} VM"


def _trace_split(vm: VmTrace) -> Iterator[str]:
    traces = dict.fromkeys(event.trace_id for event in vm.events)
    if len(traces) > 1:
        yield f"its events are spread over {len(traces)} traces: {', '.join(traces)}"


def _created_missing(vm: VmTrace) -> Iterator[str]:
    if vm.first(events.VM_CREATED) is None:
        yield f"there is no {events.VM_CREATED}"


def _booted_missing(vm: VmTrace) -> Iterator[str]:
    if vm.first(events.GUEST_BOOTED) is None:
        yield f"there is no {events.GUEST_BOOTED}"


def _capabilities_missing(vm: VmTrace) -> Iterator[str]:
    if not vm.announcements:
        yield "its owner never learned its capabilities"


def _read_missing(vm: VmTrace) -> Iterator[str]:
    if vm.first(events.WSLC_APPLY) and not vm.first(events.WSLC_READ):
        yield f"{events.WSLC_APPLY} without {events.WSLC_READ}: nobody asked the guest"


def _event_repeated(vm: VmTrace) -> Iterator[str]:
    for name in _ONCE:
        count = len(vm.all(name))
        if count > 1:
            yield f"{name} happened {count} times"


def _vm_order(name: str) -> Rule:
    late, needed = _VM_ORDER[name]

    def rule(vm: VmTrace) -> Iterator[str]:
        yield from _too_early(vm.events, late, needed)

    return rule


def _device_order(name: str) -> Rule:
    late, needed = _DEVICE_ORDER[name]

    def rule(vm: VmTrace) -> Iterator[str]:
        for device in vm.devices:
            for breach in _too_early(device.events, late, needed):
                yield f"{device}: {breach}"

    return rule


def _too_early(
    listed: Sequence[TraceEvent], late: tuple[str, ...], needed: tuple[str, ...]
) -> Iterator[str]:
    names = [event.name for event in listed]
    places = [index for index, name in enumerate(names) if name in needed]
    if not places:
        return
    for name in dict.fromkeys(name for name in names[: places[0]] if name in late):
        yield f"{name} came before {' or '.join(needed)}"


def _order_removed(vm: VmTrace) -> Iterator[str]:
    for device in vm.devices:
        names = [event.name for event in device.events]
        if events.DEVICE_REMOVED in names:
            for name in names[names.index(events.DEVICE_REMOVED) + 1 :]:
                yield f"{device}: {name} came after {events.DEVICE_REMOVED}"


def _order_terminated(vm: VmTrace) -> Iterator[str]:
    names = [event.name for event in vm.events]
    if events.VM_TERMINATED in names:
        for name in dict.fromkeys(names[names.index(events.VM_TERMINATED) + 1 :]):
            if name != events.VM_TERMINATED:
                yield f"{name} came after {events.VM_TERMINATED}"


def _pool_unanswered(vm: VmTrace) -> Iterator[str]:
    answers = vm.all(events.POOL_LATCHED, events.POOL_REFUSED)
    for event in vm.announcements:
        if event.numbers != NO_POOL and not answers:
            yield f"{event.name} announced {_show(event.numbers)}, neither latched nor refused"


def _pool_mismatch(vm: VmTrace) -> Iterator[str]:
    announced = {event.numbers for event in vm.announcements}
    answers = vm.all(events.POOL_LATCHED, events.POOL_REFUSED)
    for event in answers if announced else ():
        if event.numbers not in announced:
            yield f"{event.name} has {_show(event.numbers)}, which was never announced"
    answered = {event.numbers for event in answers}
    for event in vm.announcements if answers else ():
        if event.numbers != NO_POOL and event.numbers not in answered:
            yield f"{event.name} has {_show(event.numbers)}, which no answer of the owner has"
    yield from _read_and_applied_differ(vm)


def _read_and_applied_differ(vm: VmTrace) -> Iterator[str]:
    # A refused application changed nothing, so it may differ from the values that were read.
    refused = {event.numbers for event in vm.all(events.POOL_REFUSED)}
    read: TraceEvent | None = None
    for event in vm.all(events.WSLC_READ, events.WSLC_APPLY):
        if event.name == events.WSLC_READ:
            read = event
        elif read and event.numbers != read.numbers and event.numbers not in refused:
            yield (
                f"{events.WSLC_READ} has {_show(read.numbers)}, {events.WSLC_APPLY} has "
                f"{_show(event.numbers)}"
            )


def _aperture_mismatch(vm: VmTrace) -> Iterator[str]:
    for device in vm.devices:
        for event in device.events:
            if (
                event.name == events.APERTURE_CREATED
                and vm.latched is not None
                and event.numbers != vm.latched.numbers
            ):
                yield (
                    f"{device}: its aperture has {_show(event.numbers)}, the latched pool has "
                    f"{_show(vm.latched.numbers)}"
                )


def _token_malformed(vm: VmTrace) -> Iterator[str]:
    for event in vm.all(events.POOL_LATCHED):
        base, size_bytes = event.numbers
        due = format_token(SwiotlbPool(Gpa(base), size_bytes))
        if event.text(events.TOKEN) != due:
            yield f"the token is {event.text(events.TOKEN)!r}, but this pool's token is {due!r}"


def _added(vm: VmTrace) -> Iterator[tuple[DeviceTrace, list[str], list[str]]]:
    """Yield every added device, the items of its options, and the tokens among them."""
    for device in vm.devices:
        added = device.first(events.DEVICE_ADDED)
        if added is not None:
            items = added.text(events.DEVICE_OPTIONS).split(";")
            yield device, items, [item for item in items if item.startswith("swiotlb")]


def _token_missing(vm: VmTrace) -> Iterator[str]:
    for device, items, tokens in _added(vm):
        if vm.token_due(device) is not None and not tokens:
            yield f"{device} was added after the pool was latched: {';'.join(items)!r} lacks it"


def _token_mismatch(vm: VmTrace) -> Iterator[str]:
    for device, _, tokens in _added(vm):
        due = vm.token_due(device)
        if due is not None and tokens and tokens != [due]:
            yield f"{device} got {';'.join(tokens)!r}, but the VM's token is {due!r}"


def _token_unexpected(vm: VmTrace) -> Iterator[str]:
    for device, _, tokens in _added(vm):
        if vm.token_due(device) is None and tokens:
            why = "its device host takes none" if vm.latched else "no pool was latched"
            yield f"{device} got {';'.join(tokens)!r} although {why}"


def _options_malformed(vm: VmTrace) -> Iterator[str]:
    for device, items, _ in _added(vm):
        if not all(items):
            yield f"{device}: its options {';'.join(items)!r} have a stray ';'"
        elif items[-1] != f"vm_id={vm.vm_id}":
            yield f"{device}: its options {';'.join(items)!r} do not end with this VM's id"


def _device_unknown(vm: VmTrace) -> Iterator[str]:
    for device in vm.devices:
        if device.first(events.DEVICE_ADDED) is None:
            yield f"{device} has a {device.events[0].name}, but was never added"


def _aperture_missing(vm: VmTrace) -> Iterator[str]:
    for device, _, tokens in _added(vm):
        if tokens and not device.add_failed and not device.first(events.APERTURE_CREATED):
            yield f"{device} has a token, and never got its aperture"


def _aperture_unexpected(vm: VmTrace) -> Iterator[str]:
    for device, _, tokens in _added(vm):
        if not tokens and device.first(events.APERTURE_CREATED):
            yield f"{device} has no token, and got an aperture"


def _windows_missing(vm: VmTrace) -> Iterator[str]:
    for device, _, tokens in _added(vm):
        if not tokens and not device.add_failed and not device.first(*_ATTACHED):
            yield f"{device} has no token, and never got windows"


def _windows_unexpected(vm: VmTrace) -> Iterator[str]:
    for device, _, tokens in _added(vm):
        if tokens and device.first(events.WINDOWS_ENABLED):
            yield f"{device} has a token, and got windows"


def _first_request_missing(vm: VmTrace) -> Iterator[str]:
    """Yield the attached devices that never completed a request.

    A virtio-fs driver sends INIT while the device is being attached, so every virtio-fs device has
    a request. A network adapter has none until its guest uses the network, so an adapter that was
    removed, or whose VM ended, may have none. The caller names further exceptions by tag.
    """
    ended = vm.first(events.VM_TERMINATED) is not None
    for device in vm.devices:
        if device.first(*_ATTACHED) is None or device.first(events.FIRST_REQUEST):
            continue
        if device.tag in vm.may_be_idle:
            continue
        gone = ended or device.first(events.DEVICE_REMOVED) is not None
        if not (device.device_class == events.NET and gone):
            yield f"{device} attached, and never completed a request"


def _warning_due(vm: VmTrace) -> bool:
    if vm.kind != WSL2 or vm.requested_bytes == 0:
        return False
    latched = vm.position(vm.latched) if vm.latched else len(vm.events)
    pushes = vm.all(events.GUEST_KERNEL_INFO)
    return any(e.numbers == NO_POOL and vm.position(e) < latched for e in pushes)


def _warning_missing(vm: VmTrace) -> Iterator[str]:
    if _warning_due(vm) and not vm.all(events.KERNEL_UNSUPPORTED):
        yield (
            f"{vm.requested_bytes} bytes were requested, the kernel published no pool, and nobody "
            "was warned"
        )


def _warning_unexpected(vm: VmTrace) -> Iterator[str]:
    if vm.all(events.KERNEL_UNSUPPORTED) and vm.kind and not _warning_due(vm):
        why = (
            "none was requested"
            if vm.requested_bytes == 0
            else "it is no WSL2 VM"
            if vm.kind != WSL2
            else "the kernel published one"
        )
        yield f"the user was warned of a kernel without a pool, although {why}"


def _warning_repeated(vm: VmTrace) -> Iterator[str]:
    count = len(vm.all(events.KERNEL_UNSUPPORTED))
    if count > 1:
        yield f"the user was warned {count} times"


def _device_host_warning(vm: VmTrace) -> Iterator[str]:
    count = len(vm.all(events.DEVICE_HOST_UNSUPPORTED))
    if vm.tokens_left_out and count != 1:
        device = vm.tokens_left_out[0]
        yield f"{device} lacks its token, and the user was warned {count} times, not once"
    elif count and not vm.tokens_left_out:
        yield "the user was warned of a device host without tokens, although no token was left out"


RULES: Final[Mapping[str, Rule]] = {
    "ATTRIBUTE_INVALID": _attribute_invalid,
    "KIND_MISMATCH": _kind_mismatch,
    "TRACE_SPLIT": _trace_split,
    "CREATED_MISSING": _created_missing,
    "BOOTED_MISSING": _booted_missing,
    "CAPABILITIES_MISSING": _capabilities_missing,
    "READ_MISSING": _read_missing,
    "EVENT_REPEATED": _event_repeated,
    **{name: _vm_order(name) for name in _VM_ORDER},
    **{name: _device_order(name) for name in _DEVICE_ORDER},
    "ORDER_REMOVED": _order_removed,
    "ORDER_TERMINATED": _order_terminated,
    "POOL_UNANSWERED": _pool_unanswered,
    "POOL_MISMATCH": _pool_mismatch,
    "APERTURE_MISMATCH": _aperture_mismatch,
    "TOKEN_MALFORMED": _token_malformed,
    "TOKEN_MISSING": _token_missing,
    "TOKEN_MISMATCH": _token_mismatch,
    "TOKEN_UNEXPECTED": _token_unexpected,
    "OPTIONS_MALFORMED": _options_malformed,
    "DEVICE_UNKNOWN": _device_unknown,
    "APERTURE_MISSING": _aperture_missing,
    "APERTURE_UNEXPECTED": _aperture_unexpected,
    "WINDOWS_MISSING": _windows_missing,
    "WINDOWS_UNEXPECTED": _windows_unexpected,
    "FIRST_REQUEST_MISSING": _first_request_missing,
    "WARNING_MISSING": _warning_missing,
    "WARNING_UNEXPECTED": _warning_unexpected,
    "WARNING_REPEATED": _warning_repeated,
    "DEVICE_HOST_WARNING": _device_host_warning,
}
"""Every rule by its stable name."""
