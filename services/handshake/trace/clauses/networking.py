"""Networking: mode, adapters with their token, the warning of a fallback, ports and links."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.trace.clause import Absence, Clause, Once, Order, Presence, Value, values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.handshake.trace.recorded import TraceEvent
    from services.handshake.trace.vm_trace import DeviceTrace, VmTrace

_CONFIGURED: Final = events.NETWORKING_CONFIGURED
_FALLBACK: Final = events.NETWORKING_FALLBACK


def _networking_repeated(vm: VmTrace) -> Iterator[str]:
    count = len(vm.all(_CONFIGURED))
    if count > 1:
        yield f"networking was configured {count} times"


def _networking_fallback(vm: VmTrace) -> Iterator[str]:
    warnings = vm.all(_FALLBACK)
    configured = vm.first(_CONFIGURED)
    if configured is None:
        if warnings:
            yield f"{_FALLBACK}, and networking was not configured"
        return
    asked = configured.text(events.NETWORKING_ASKED)
    mode = configured.text(events.NETWORKING_MODE)
    if mode not in (asked, events.NONE):
        yield f"the mode {asked!r} was asked for, and {mode!r} is in force"
    due = 0 if mode == asked else 1
    if len(warnings) != due:
        yield (
            f"the mode {asked!r} was asked for and {mode!r} is in force: the user was warned "
            f"{len(warnings)} times, not {due} times"
        )
    for warning in warnings:
        if warning.text(events.NETWORKING_ASKED) != asked:
            yield (
                f"the user was warned of the mode {warning.text(events.NETWORKING_ASKED)!r}, and "
                f"{asked!r} was asked for"
            )


def _networking_adapters(vm: VmTrace) -> Iterator[str]:
    for configured in vm.all(_CONFIGURED):
        mode = configured.text(events.NETWORKING_MODE)
        due = events.ADAPTERS if mode in events.MODES_WITH_ADAPTERS else ()
        ids = configured.text(events.NETWORKING_ADAPTERS)
        found = _adapters(vm, configured)
        shown = [(each.tag, each.device_class) for each in found]
        if shown != [(tag, events.NET) for tag in due] or ids != " ".join(
            each.device_id for each in found
        ):
            yield (
                f"networking mode {mode!r} has the adapters {', '.join(due) or 'none'}; "
                f"{ids or 'no ids'} are {', '.join(map(str, found)) or 'no devices of this VM'}"
            )


def _networking_token(vm: VmTrace) -> Iterator[str]:
    for configured in vm.all(_CONFIGURED):
        for adapter in _adapters(vm, configured):
            due = vm.token_due(adapter)
            if adapter.tokens != ([due] if due else []):
                yield (
                    f"adapter {adapter} has {';'.join(adapter.tokens) or 'no token'}; "
                    f"{due or 'none'} is due"
                )


def _port_unexpected(vm: VmTrace) -> Iterator[str]:
    mode = ""
    for event in vm.all(_CONFIGURED, events.PORT_MAPPED):
        if event.name == _CONFIGURED:
            mode = event.text(events.NETWORKING_MODE)
        elif mode != events.VIRTIO_PROXY:
            yield f"{_port(event)} was mapped in the networking mode {mode or 'none yet'!r}"


def _port_repeated(vm: VmTrace) -> Iterator[str]:
    mapped: dict[str, int] = {}
    for event in vm.all(events.PORT_MAPPED, events.PORT_UNMAPPED):
        port, guest_port = _port(event), event.number(events.GUEST_PORT)
        if event.name == events.PORT_MAPPED:
            if port in mapped:
                yield f"{port} was mapped, and is mapped already"
            mapped[port] = guest_port
        elif mapped.pop(port, None) != guest_port:
            yield f"{port} was unmapped from port {guest_port}, to which it was not mapped"


def _link_repeated(vm: VmTrace) -> Iterator[str]:
    for device in vm.devices:
        states = [
            event.text(events.LINK) for event in device.events if event.name == events.LINK_CHANGED
        ]
        if states and device.device_class != events.NET:
            yield f"{device} is no adapter, and its link has changed"
        for before, after in pairwise(["", *states]):
            if after not in (events.UP, events.DOWN):
                yield f"the link of {device} is {after!r}"
            elif after == before:
                yield f"the link of {device} is {after} again"


def _port(event: TraceEvent) -> str:
    number = event.number(events.PORT_NUMBER)
    return f"{event.text(events.PORT_PROTOCOL)} {event.text(events.PORT_ADDRESS)} port {number}"


def _adapters(vm: VmTrace, configured: TraceEvent) -> list[DeviceTrace]:
    """Return the devices that an event names and that were there at the time."""
    at = vm.position(configured)
    present: dict[str, DeviceTrace] = {}
    for device in vm.added_devices:
        added, removed = device.first(events.DEVICE_ADDED), device.first(events.DEVICE_REMOVED)
        has_come = added is not None and vm.position(added) < at
        if has_come and (removed is None or vm.position(removed) > at):
            present[device.device_id] = device
    ids = configured.text(events.NETWORKING_ADAPTERS).split()
    return [present[each] for each in ids if each in present]


_ADAPTERS: Final = Value(_CONFIGURED, events.NETWORKING_ADAPTERS)
_MODE: Final = Value(_CONFIGURED, events.NETWORKING_MODE)

CLAUSES: Final = (
    Clause(
        "NETWORKING_REPEATED",
        10,
        "Networking is configured once.",
        (Once(_CONFIGURED),),
        _networking_repeated,
    ),
    Clause(
        "NETWORKING_FALLBACK",
        10,
        "The mode in force is the one that was asked for, or none; the user is warned once exactly "
        "when it is not the one that was asked for.",
        (
            Presence(_FALLBACK),
            Absence(_FALLBACK),
            Once(_FALLBACK),
            Presence(_CONFIGURED, given=_FALLBACK),
            Value(_CONFIGURED, events.NETWORKING_ASKED),
            _MODE,
            Value(_FALLBACK, events.NETWORKING_ASKED),
        ),
        _networking_fallback,
    ),
    Clause(
        "NETWORKING_ADAPTERS",
        10,
        "A mode that has adapters has eth0 and loopback0, and none has none.",
        (_MODE, _ADAPTERS),
        _networking_adapters,
    ),
    Clause(
        "NETWORKING_TOKEN",
        4,
        "Both adapters have the token of the latched pool exactly when one was latched.",
        (
            *values(events.DEVICE_ADDED, keys=(events.DEVICE_OPTIONS, events.DEVICE_HOST_FEATURES)),
            Value(events.POOL_LATCHED, events.TOKEN),
            _ADAPTERS,
        ),
        _networking_token,
    ),
    Clause(
        "PORT_UNEXPECTED",
        10,
        "Ports are mapped once networking is configured in the mode VirtioProxy.",
        (Order(events.PORT_MAPPED, (_CONFIGURED,)), _MODE),
        _port_unexpected,
    ),
    Clause(
        "PORT_REPEATED",
        10,
        "A port of the host is mapped to one port of a guest at a time, and unmapped from it.",
        (
            Once(events.PORT_MAPPED),
            Once(events.PORT_UNMAPPED),
            Order(events.PORT_UNMAPPED, (events.PORT_MAPPED,)),
            *values(
                events.PORT_MAPPED,
                events.PORT_UNMAPPED,
                keys=(
                    events.PORT_PROTOCOL,
                    events.PORT_ADDRESS,
                    events.PORT_NUMBER,
                    events.GUEST_PORT,
                ),
            ),
        ),
        _port_repeated,
    ),
    Clause(
        "LINK_REPEATED",
        10,
        "The link of an adapter goes down and up by turns.",
        (Once(events.LINK_CHANGED), Value(events.LINK_CHANGED, events.LINK)),
        _link_repeated,
    ),
)
