"""The life of each device: added, attached, in use, removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.trace.clause import (
    Absence,
    Clause,
    Last,
    Once,
    Presence,
    Tags,
    Value,
    values,
)
from services.handshake.trace.vocabulary import ATTACHED, OF_DEVICE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.handshake.trace.vm_trace import VmTrace

_CLASSES: Final = (events.FS, events.NET)
_ONCE: Final = tuple(name for name in OF_DEVICE if name != events.LINK_CHANGED)


def _device_unknown(vm: VmTrace) -> Iterator[str]:
    for device in vm.devices:
        if device.first(events.DEVICE_ADDED) is None:
            yield f"{device} has a {device.events[0].name}, but was never added"


def _device_mismatch(vm: VmTrace) -> Iterator[str]:
    for device in vm.devices:
        if device.device_class not in _CLASSES:
            yield f"{device} is of an unknown class"
        for event in device.events:
            shown = event.text(events.DEVICE_CLASS), event.text(events.DEVICE_TAG)
            if shown != (device.device_class, device.tag):
                yield f"{device}: {event.name} has the class and tag {shown}"
        if device.options and device.options[0] != device.tag:
            yield f"{device}: its options are those of {device.options[0]!r}"


def _device_repeated(vm: VmTrace) -> Iterator[str]:
    for device in vm.devices:
        names = [event.name for event in device.events]
        for name in _ONCE:
            if names.count(name) > 1:
                yield f"{device}: {name} happened {names.count(name)} times"


def _tag_repeated(vm: VmTrace) -> Iterator[str]:
    holders: dict[str, str] = {}
    for event in vm.all(events.DEVICE_ADDED, events.DEVICE_REMOVED):
        tag, device_id = event.text(events.DEVICE_TAG), event.text(events.DEVICE_ID)
        if event.name == events.DEVICE_REMOVED:
            if holders.get(tag) == device_id:
                del holders[tag]
        elif holders.setdefault(tag, device_id) != device_id:
            yield f"device {device_id} was added with tag {tag!r}, which {holders[tag]} has"


def _order_removed(vm: VmTrace) -> Iterator[str]:
    for device in vm.devices:
        names = [event.name for event in device.events]
        if events.DEVICE_REMOVED in names:
            for name in names[names.index(events.DEVICE_REMOVED) + 1 :]:
                yield f"{device}: {name} came after {events.DEVICE_REMOVED}"


def _device_left(vm: VmTrace) -> Iterator[str]:
    if vm.first(events.VM_TERMINATED):
        for device in vm.added_devices:
            if device.first(events.DEVICE_REMOVED) is None:
                yield f"{device} was never removed, and the VM has ended"


def _aperture_missing(vm: VmTrace) -> Iterator[str]:
    for device in vm.added_devices:
        attached = device.first(events.APERTURE_CREATED)
        if device.tokens and not device.add_failed and not attached:
            yield f"{device} has a token, and never got its aperture"


def _aperture_unexpected(vm: VmTrace) -> Iterator[str]:
    for device in vm.added_devices:
        if not device.tokens and device.first(events.APERTURE_CREATED):
            yield f"{device} has no token, and got an aperture"


def _windows_missing(vm: VmTrace) -> Iterator[str]:
    for device in vm.added_devices:
        if not device.tokens and not device.add_failed and not device.first(*ATTACHED):
            yield f"{device} has no token, and never got windows"


def _windows_unexpected(vm: VmTrace) -> Iterator[str]:
    for device in vm.added_devices:
        if device.tokens and device.first(events.WINDOWS_ENABLED):
            yield f"{device} has a token, and got windows"


def _first_request_missing(vm: VmTrace) -> Iterator[str]:
    """Yield the attached devices that never completed a request.

    A virtio-fs driver sends INIT while the device is being attached, so every virtio-fs device has
    a request. A network adapter has none until its guest uses the network, so an adapter that was
    removed, or whose VM ended, may have none. The caller names further exceptions by tag.
    """
    ended = vm.first(events.VM_TERMINATED) is not None
    for device in vm.devices:
        if device.first(*ATTACHED) is None or device.first(events.FIRST_REQUEST):
            continue
        if device.tag in vm.may_be_idle:
            continue
        gone = ended or device.first(events.DEVICE_REMOVED) is not None
        if not (device.device_class == events.NET and gone):
            yield f"{device} attached, and never completed a request"


_OPTIONS: Final = Value(events.DEVICE_ADDED, events.DEVICE_OPTIONS)

CLAUSES: Final = (
    Clause(
        "DEVICE_UNKNOWN",
        10,
        "A device is added before anything else happens to it.",
        (
            Presence(events.DEVICE_ADDED),
            *(Value(event, events.DEVICE_ID) for event in OF_DEVICE),
        ),
        _device_unknown,
    ),
    Clause(
        "DEVICE_MISMATCH",
        6,
        "All events of a device have the same known class and the same tag, which begins its "
        "options.",
        (
            *values(*OF_DEVICE, keys=(events.DEVICE_CLASS, events.DEVICE_TAG)),
            _OPTIONS,
        ),
        _device_mismatch,
    ),
    Clause(
        "DEVICE_REPEATED",
        7,
        "A device is added, attached and removed once, and has one first request.",
        tuple(Once(event) for event in _ONCE),
        _device_repeated,
    ),
    Clause(
        "TAG_REPEATED",
        10,
        "No two devices have a tag at the same time.",
        (Tags(),),
        _tag_repeated,
    ),
    Clause(
        "ORDER_REMOVED",
        10,
        "Nothing happens to a device after its removal.",
        (Last(events.DEVICE_REMOVED),),
        _order_removed,
    ),
    Clause(
        "DEVICE_LEFT",
        10,
        "A VM that ends has removed its devices.",
        (Presence(events.DEVICE_REMOVED),),
        _device_left,
    ),
    Clause(
        "APERTURE_MISSING",
        7,
        "A device with a token gets its aperture.",
        (Presence(events.APERTURE_CREATED), _OPTIONS),
        _aperture_missing,
    ),
    Clause(
        "APERTURE_UNEXPECTED",
        7,
        "A device without a token gets no aperture.",
        (Absence(events.APERTURE_CREATED), _OPTIONS),
        _aperture_unexpected,
    ),
    Clause(
        "WINDOWS_MISSING",
        7,
        "A device without a token works by windows.",
        (Presence(events.WINDOWS_ENABLED), _OPTIONS),
        _windows_missing,
    ),
    Clause(
        "WINDOWS_UNEXPECTED",
        7,
        "A device with a token does not work by windows.",
        (Absence(events.WINDOWS_ENABLED), _OPTIONS),
        _windows_unexpected,
    ),
    Clause(
        "FIRST_REQUEST_MISSING",
        9,
        "A device that attached completes a request, but for an adapter that goes unused; "
        "`--idle TAG` excepts others.",
        (Presence(events.FIRST_REQUEST, events.FS),),
        _first_request_missing,
    ),
)
