"""The answer of the owner to a pool, and the pool at every hop behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.handshake.pool import check_aperture, format_token, parse_aperture, parse_token
from services.handshake.trace.answers import ANSWER_READS, answered, as_pool, show, why_invalid
from services.handshake.trace.clause import Clause, Hops, Presence, Value, values
from services.handshake.trace.recorded import NO_POOL
from services.handshake.trace.vocabulary import ANSWERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.handshake.trace.recorded import Numbers
    from services.handshake.trace.vm_trace import DeviceTrace, VmTrace

_NUMBERS: Final = (events.POOL_BASE, events.POOL_SIZE_BYTES)
_OPTIONS: Final = Value(events.DEVICE_ADDED, events.DEVICE_OPTIONS)


def _pool_unanswered(vm: VmTrace) -> Iterator[str]:
    for each in answered(vm):
        if each.due.name and not each.answers:
            event = each.announcement
            yield (
                f"{event.name} announced {show(event.numbers)}; {each.due.name} is due, and missing"
            )


def _pool_mismatch(vm: VmTrace) -> Iterator[str]:
    for each in answered(vm):
        for answer in each.answers:
            if answer.numbers != each.announcement.numbers:
                yield (
                    f"{answer.name} has {show(answer.numbers)}, {each.announcement.name} has "
                    f"{show(each.announcement.numbers)}"
                )


def _answer_mismatch(vm: VmTrace) -> Iterator[str]:
    if vm.created is None:
        return
    for each in answered(vm):
        announced = f"{each.announcement.name} announced {show(each.announcement.numbers)}"
        if len(each.answers) > 1:
            yield f"{announced}, and was answered {len(each.answers)} times"
        for answer in each.answers:
            if answer.name != each.due.name:
                yield f"{announced}: {answer.name} followed, not {each.due.name or 'nothing'}"
            elif each.due.reason and answer.text(events.REASON) != each.due.reason:
                reason = answer.text(events.REASON)
                yield f"{announced}: it was refused for {reason!r}, not {each.due.reason}"


def _pool_invalid(vm: VmTrace) -> Iterator[str]:
    if vm.created is None:
        return
    for hop, numbers in _hops(vm):
        reason = "no pool" if numbers == NO_POOL else why_invalid(numbers, vm)
        if reason:
            yield f"{hop} has {show(numbers)}, which this VM cannot have: {reason}"


def _hops(vm: VmTrace) -> Iterator[tuple[str, Numbers]]:
    """Yield the pool at every hop that comes after the owner's check."""
    for event in vm.all(events.POOL_LATCHED):
        yield event.name, event.numbers
        token = _token_numbers(event.text(events.TOKEN))
        if token:
            yield "the token", token
    for device in vm.devices:
        for item in device.tokens:
            token = _token_numbers(item)
            if token:
                yield f"the token of {device}", token
        for event in device.events:
            if event.name == events.APERTURE_CREATED:
                yield f"the aperture of {device}", event.numbers


def _token_numbers(token: str) -> Numbers | None:
    try:
        pool = parse_token(token)
    except InvalidArgumentError as refusal:
        if refusal.reason == "SWIOTLB_TOKEN_SYNTAX":  # another rule's
            return None
        base, _, size = token.removeprefix("swiotlb=0x").partition(",")
        return int(base, 16), int(size)
    return pool.base, pool.size_bytes


def _token_malformed(vm: VmTrace) -> Iterator[str]:
    for event in vm.all(events.POOL_LATCHED):
        due = format_token(as_pool(event.numbers))
        if event.text(events.TOKEN) != due:
            yield f"the token is {event.text(events.TOKEN)!r}, but this pool's token is {due!r}"


def _aperture_mismatch(vm: VmTrace) -> Iterator[str]:
    for device in vm.devices:
        for event in device.events:
            if event.name == events.WINDOWS_ENABLED and event.numbers != NO_POOL:
                yield f"{device}: it works by windows, and has {show(event.numbers)}"
            if event.name != events.APERTURE_CREATED or vm.latched is None:
                continue
            part = device.own_part
            due = (part.base, part.size_bytes) if part else vm.latched.numbers
            if event.numbers != due:
                whose = "its part of the pool" if part else "the latched pool"
                yield f"{device}: its aperture has {show(event.numbers)}, {whose} has {show(due)}"


def _aperture_invalid(vm: VmTrace) -> Iterator[str]:
    for device in vm.added_devices:
        if not device.aperture_items:
            continue
        pool = as_pool(vm.latched.numbers) if vm.latched and device.tokens else None
        try:
            if len(device.aperture_items) > 1:
                yield f"{device} has {';'.join(device.aperture_items)!r}"
            for item in device.aperture_items:
                check_aperture(parse_aperture(item), pool)
        except InvalidArgumentError as refusal:
            yield f"{device}: {refusal.message}"


def _aperture_shared(vm: VmTrace) -> Iterator[str]:
    """Yield the devices that reach memory which another one has for itself at the time."""
    present: dict[str, DeviceTrace] = {}
    added = {id(device.first(events.DEVICE_ADDED)): device for device in vm.added_devices}
    for event in vm.all(events.DEVICE_ADDED, events.DEVICE_REMOVED):
        device = added.get(id(event))
        if event.name == events.DEVICE_REMOVED:
            present.pop(event.text(events.DEVICE_ID), None)
        elif device is not None:
            for other in present.values():
                if _reach_the_same(vm, device, other):
                    yield f"{device} reaches memory that {other} reaches, and one has it alone"
            present[device.device_id] = device


def _reach_the_same(vm: VmTrace, device: DeviceTrace, other: DeviceTrace) -> bool:
    """Return whether one has for itself what the other reaches: the pool, if it has no part."""
    parts = [device.own_part, other.own_part]
    if parts == [None, None] or vm.latched is None:
        return False
    pool = as_pool(vm.latched.numbers)
    first, second = (part or pool for part in parts)
    return first.overlaps(second)


CLAUSES: Final = (
    Clause(
        "POOL_UNANSWERED",
        4,
        "A pool that a guest announces is latched or refused.",
        (Presence(events.POOL_LATCHED), Presence(events.POOL_REFUSED), *ANSWER_READS),
        _pool_unanswered,
    ),
    Clause(
        "POOL_MISMATCH",
        4,
        "The pool that is latched or refused is the one that was announced.",
        (*ANSWER_READS, *values(*ANSWERS, keys=_NUMBERS)),
        _pool_mismatch,
    ),
    Clause(
        "ANSWER_MISMATCH",
        4,
        "A pool is latched, or refused with the right reason, exactly as the checks and the pool "
        "that is latched decide.",
        (
            *ANSWER_READS,
            Value(events.POOL_REFUSED, events.REASON),
            Hops(),
        ),
        _answer_mismatch,
    ),
    Clause(
        "POOL_INVALID",
        4,
        "The pool is aligned, below 4 GiB and in the VM's RAM at every hop: latched, in tokens and "
        "as apertures.",
        (
            Hops(),
            *values(events.POOL_LATCHED, events.APERTURE_CREATED, keys=_NUMBERS),
            Value(events.POOL_LATCHED, events.TOKEN),
            Value(events.DEVICE_ADDED, events.DEVICE_OPTIONS),
            Value(events.VM_CREATED, events.RAM_BYTES),
            Value(events.GUEST_BOOTED, events.RAM_BASE),
        ),
        _pool_invalid,
    ),
    Clause(
        "TOKEN_MALFORMED",
        4,
        "The token is `swiotlb=0x{base:x},{size}` of the latched pool.",
        values(events.POOL_LATCHED, keys=(*_NUMBERS, events.TOKEN)),
        _token_malformed,
    ),
    Clause(
        "APERTURE_MISMATCH",
        7,
        "An aperture is exactly the latched pool, or the device's own part of it; windows have no "
        "pool.",
        (
            *values(
                events.POOL_LATCHED, events.APERTURE_CREATED, events.WINDOWS_ENABLED, keys=_NUMBERS
            ),
            _OPTIONS,
        ),
        _aperture_mismatch,
    ),
    Clause(
        "APERTURE_INVALID",
        7,
        "A device's own part of the pool, `aperture=0x{base:x},{size}`, is one, inside the latched "
        "pool, and of a device with the token.",
        (*values(events.POOL_LATCHED, keys=_NUMBERS), _OPTIONS),
        _aperture_invalid,
    ),
    Clause(
        "APERTURE_SHARED",
        7,
        "What a device has for itself, no other device reaches at the same time.",
        (*values(events.POOL_LATCHED, keys=_NUMBERS), _OPTIONS),
        _aperture_shared,
    ),
)
