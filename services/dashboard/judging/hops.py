"""The parties of a handshake, and the pool at each hop compared with the hop before.

Owns which party an event belongs to, and which hop is before which. Must not know rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.pool import reserved_pool_bytes
from services.handshake.trace.vocabulary import ANNOUNCEMENTS, GUEST_INIT, OF_DEVICE, OWNER, WSLC

if TYPE_CHECKING:
    from services.handshake.trace.recorded import TraceEvent
    from services.handshake.trace.vm_trace import DeviceTrace, VmTrace

OWNER_PARTY: Final = "owner"
SESSION: Final = "session"
GUEST_KERNEL: Final = "guest-kernel"
GUEST_INIT_PARTY: Final = "guest-init"
DEVICE_HOST_PARTY: Final = "device-host"
DEVICE: Final = "device"

NAMES: Final = {
    OWNER_PARTY: "VM owner",
    SESSION: "session",
    GUEST_KERNEL: "guest kernel",
    GUEST_INIT_PARTY: "guest init",
    DEVICE_HOST_PARTY: "device host",
}
"""The parties that every handshake has, in their order; the session only a WSLC VM's."""

PARTY_OF: Final = {
    events.GUEST_BOOTED: GUEST_KERNEL,
    events.GUEST_KERNEL_INFO: GUEST_INIT_PARTY,
    events.WSLC_READ: GUEST_INIT_PARTY,
    events.WSLC_APPLY: SESSION,
    events.DEVICE_ADDED: DEVICE_HOST_PARTY,
    events.APERTURE_CREATED: DEVICE,
    events.WINDOWS_ENABLED: DEVICE,
    events.FIRST_REQUEST: DEVICE,
    events.DEVICE_REMOVED: DEVICE_HOST_PARTY,
    events.GUEST_INIT_ENDED: GUEST_INIT_PARTY,
}
"""The party whose step each event is, the owner's if it is not here; DEVICE stands for the device's
own."""

_ANSWERS: Final = (events.POOL_LATCHED, events.POOL_NOT_AS_REQUESTED, events.POOL_REFUSED)


@dataclass(frozen=True, slots=True)
class Same:
    """Whether a hop has what the hop before has; None: there is nothing to compare."""

    base: bool | None = None
    size: bool | None = None
    token: bool | None = None


@dataclass(frozen=True, slots=True)
class Hop:
    """The pool at one event; None for what the event does not say.

    Attributes:
        compared_with: The index of the event of the hop before; None: there is none.
    """

    base: int | None = None
    size: int | None = None
    token: str | None = None
    own_part: str | None = None
    compared_with: int | None = None
    same: Same = field(default_factory=Same)


@dataclass(frozen=True, slots=True)
class Party:
    """A lane.

    Attributes:
        ident: Its id, unique in a life.
        name: Its name, for people.
        kind: One of the constants of this module.
        device: The device; None for other parties.
    """

    ident: str
    name: str
    kind: str
    device: DeviceTrace | None = None


def parties(life: VmTrace) -> list[Party]:
    """Return the lanes of a life, in their order."""
    shown = [
        Party(ident, name, ident)
        for ident, name in NAMES.items()
        if ident != SESSION or life.kind == WSLC or life.first(events.WSLC_APPLY)
    ]
    times: dict[str, int] = {}
    for device in life.devices:
        number = times[device.device_id] = times.get(device.device_id, 0) + 1
        ident = f"device:{device.device_id}" + (f"#{number}" if number > 1 else "")
        name = f"{device.device_class} {device.tag}".strip() or device.device_id
        shown.append(Party(ident, name, DEVICE, device))
    return shown


def kind_of(name: str) -> str:
    """Return the kind of the party whose step an event of this name is."""
    return PARTY_OF.get(name, OWNER_PARTY)


def party_of(event: TraceEvent, lanes: list[Party]) -> Party:
    """Return the lane of an event of a life that has these lanes."""
    kind = kind_of(event.name)
    if event.name == events.WSLC_READ and event.span.service != GUEST_INIT:
        kind = OWNER_PARTY if event.span.service == OWNER else SESSION
    for lane in lanes:
        if lane.kind != kind:
            continue
        if lane.device is None or any(event is other for other in lane.device.events):
            return lane
    # A session that a WSL2 VM cannot have.
    return lanes[0]


def hops(life: VmTrace) -> list[Hop | None]:
    """Return the hop of each event of a life, in their order; None: the event has no pool."""
    found: list[Hop | None] = []
    owners = {id(event): device for device in life.devices for event in device.events}
    for index, event in enumerate(life.events):
        if event.name in OF_DEVICE:
            found.append(_of_device(event, owners[id(event)], life, found))
        else:
            found.append(_of_pool(index, event, life, found))
    return found


def _of_pool(index: int, event: TraceEvent, life: VmTrace, found: list[Hop | None]) -> Hop | None:
    base, size = event.numbers
    if event.name == events.VM_CREATED:
        return Hop(size=event.number(events.REQUESTED_BYTES))
    if event.name in (*ANNOUNCEMENTS, events.WSLC_READ):
        earlier = () if event.name == events.GUEST_KERNEL_INFO else (events.WSLC_READ,)
        before = _last(life, index, earlier)
        if before is not None:
            return _compared(Hop(base, size), before, found)
        created = _last(life, index, (events.VM_CREATED,))
        if created is None:
            return Hop(base, size)
        requested = reserved_pool_bytes(life.events[created].number(events.REQUESTED_BYTES))
        return Hop(base, size, compared_with=created, same=Same(size=size == requested))
    if event.name in _ANSWERS:
        token = event.text(events.TOKEN) if event.name == events.POOL_LATCHED else None
        before = _last(life, index, ANNOUNCEMENTS)
        return _compared(Hop(base, size, token), before, found)
    return None


def _of_device(
    event: TraceEvent, device: DeviceTrace, life: VmTrace, found: list[Hop | None]
) -> Hop | None:
    if event.name == events.DEVICE_ADDED:
        latched = _last(life, len(found), (events.POOL_LATCHED,))
        due = life.token_due(device)
        if not device.tokens and not device.aperture_items and due is None:
            return None
        token = ";".join(device.tokens)
        base, size = _numbers_of(token, "swiotlb=")
        part = ";".join(device.aperture_items) or None
        hop = _compared(Hop(base, size, token, part), latched, found)
        if latched is None:
            return hop
        same = Same(hop.same.base, hop.same.size, token == (due or ""))
        return Hop(base, size, token, part, latched, same)
    if event.name in (events.APERTURE_CREATED, events.WINDOWS_ENABLED):
        base, size = event.numbers
        added = device.first(events.DEVICE_ADDED)
        before = life.position(added) if added is not None else None
        if before is None or before >= len(found):
            return Hop(base, size)
        given = found[before]
        if given is None:
            return Hop(base, size)
        if given.own_part is not None:
            part_base, part_size = _numbers_of(given.own_part, "aperture=")
            same = Same(base == part_base, size == part_size)
            return Hop(base, size, compared_with=before, same=same)
        return _compared(Hop(base, size), before, found)
    return None


def _compared(hop: Hop, before: int | None, found: list[Hop | None]) -> Hop:
    earlier = found[before] if before is not None else None
    if earlier is None:
        return hop
    return Hop(
        hop.base,
        hop.size,
        hop.token,
        hop.own_part,
        before,
        Same(
            _equal(hop.base, earlier.base),
            _equal(hop.size, earlier.size),
            _equal(hop.token, earlier.token),
        ),
    )


def _equal(this: object, that: object) -> bool | None:
    return None if this is None or that is None else this == that


def _last(life: VmTrace, before: int, names: tuple[str, ...]) -> int | None:
    return next(
        (index for index in range(before - 1, -1, -1) if life.events[index].name in names), None
    )


def _numbers_of(option: str, beginning: str) -> tuple[int | None, int | None]:
    """Return base and size of a token or a part as it is written, valid or not."""
    if not option.startswith(beginning):
        return None, None
    base, _, size = option.removeprefix(beginning).partition(",")
    try:
        return int(base, 16), int(size)
    except ValueError:
        return None, None
