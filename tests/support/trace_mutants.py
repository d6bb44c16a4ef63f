"""Mutations of valid traces, made from what the clauses of the checker read.

Every mutation is wrong by construction: it is made from the kind of read and the wrong values of an
attribute, which are written here, and not from the rules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from services.handshake import events
from services.handshake.capabilities import GuestCapabilities, KernelVersion
from services.handshake.events import FS, NET
from services.handshake.pool import Gpa, SwiotlbPool
from services.handshake.trace import clause
from services.handshake.trace.recorded import NO_POOL, Recording, Span, TraceEvent
from services.handshake.trace.vocabulary import (
    ANNOUNCEMENTS,
    FROM_DEVICE_HOST,
    OF_DEVICE,
    UNRECORDED_CALLERS,
    VOCABULARY,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from services.handshake.events import Attribute, Event
    from services.handshake.trace.clause import Read

MIB = 1 << 20
UNKNOWN_SPAN = "00000000deadbeef"
UNKNOWN_TRACE = "0000000000000000000000000000beef"
UNKNOWN_ID = "99999999-2222-4333-8444-555555555555"
MUTANT = tuple[str, Recording]

Values = list[str] | list[int] | list[bool]


def _pool_base(value: int) -> list[int]:
    return [value + 2 * MIB, value + 1, 1 << 40, -4096, *([0] if value else [])]


def _pool_size(value: int) -> list[int]:
    return [value + 4096, value + 1, value + (5 << 30), -4096, *([0] if value else [])]


def _options(value: str) -> list[str]:
    name, *items, owner = value.split(";")
    rest = [item for item in items if not item.startswith("swiotlb")]
    token = next((item for item in items if item.startswith("swiotlb")), "")
    changed = [
        [name, *items],
        [name, *items, f"vm_id={UNKNOWN_ID}"],
        [name, owner, *items, "ro"],
        [name, *items, "", owner],
        [name, *items, "colour=red", owner],
        [name, *items, "ro=1", owner],
        ["other", *items, owner],
        [name, *rest, "swiotlb=0x1000,4096", owner],
        [name, *rest, "swiotlb", owner],
        [name, *items, "aperture=0x1000,4096", owner],
        [name, *items, "aperture", owner],
    ]
    part = next((item for item in items if item.startswith("aperture")), "")
    if part:
        alone = [item for item in items if item != part]
        changed += [
            [name, *alone, owner],
            [name, *items, part, owner],
            [name, *alone, f"{part}0", owner],
            [name, *alone, part.replace(",8", ",4"), owner],
            [name, *alone, part.replace("0x", "0x0"), owner],
        ]
    if token:
        changed += [
            [name, *rest, owner],
            [name, *items, token, owner],
            [name, *rest, token.upper().replace("SWIOTLB", "swiotlb"), owner],
            [name, *rest, f"{token}0", owner],
        ]
    return [";".join(each) for each in changed]


WRONG: Mapping[str, Callable[..., Values]] = {
    events.VM_ID: lambda _: [UNKNOWN_ID, ""],
    events.VM_KIND: lambda kind: ["WSLC" if kind == "WSL2" else "WSL2", "WSL1", ""],
    events.RAM_BYTES: lambda size: [0, -1, size + 1, 63 * MIB, 1 << 41],
    events.RAM_BASE: lambda base: [-1, base + 4096, 1 << 32],
    events.VIRTIO: lambda truth: [not truth],
    events.DEVICE_BOUNCES: lambda truth: [not truth],
    events.CONFIGURED_BYTES: lambda size: [size + 20 * MIB + 1, -2],
    events.REQUESTED_BYTES: lambda size: [size + 1, size + 32 * MIB, -1],
    events.POOL_BASE: _pool_base,
    events.POOL_SIZE_BYTES: _pool_size,
    events.TOKEN: lambda token: [
        "",
        f"{token} ",
        token.upper(),
        "swiotlb=0x1000,4096",
        token.replace("0x", "0x0"),
    ],
    events.REASON: lambda reason: ["", "NO_SUCH_REASON", reason.lower()],
    events.KERNEL_RELEASE: lambda release: [
        "5.15.1",
        "6.18.26.1-microsoft-standard-WSL2",
        f"1{release}",
        "weird",
        "",
    ],
    events.KERNEL_MAJOR: lambda number: [number + 1, -1],
    events.KERNEL_MINOR: lambda number: [number + 1, -1],
    events.KERNEL_PATCH: lambda number: [number + 1, -1],
    events.DEVICE_ID: lambda _: [UNKNOWN_ID, ""],
    events.DEVICE_CLASS: lambda kind: [NET if kind == FS else FS, "virtio-gpu", ""],
    events.DEVICE_TAG: lambda tag: [f"{tag}x", ""],
    events.DEVICE_OPTIONS: _options,
    events.DEVICE_HOST_FEATURES: lambda features: (
        ["", "aggregate"] if "swiotlb-token" in features else ["swiotlb-token"]
    ),
    events.NETWORKING_ASKED: lambda mode: [
        *({"none", "nat", "virtioproxy", "bridged", ""} - {mode}),
        mode.upper(),
    ],
    events.NETWORKING_MODE: lambda mode: [
        *({"none", "nat", "virtioproxy", "bridged", ""} - {mode}),
        mode.upper(),
    ],
    events.NETWORKING_ADAPTERS: lambda ids: [
        f"{ids} {UNKNOWN_ID}".strip(),
        UNKNOWN_ID,
        *([" ".join(reversed(ids.split())), ids.split()[0], f"{ids} ", ""] if ids else []),
    ],
    events.PORT_PROTOCOL: lambda protocol: ["udp" if protocol == "tcp" else "tcp", ""],
    events.PORT_ADDRESS: lambda address: [f"{address}1", ""],
    events.PORT_NUMBER: lambda number: [number + 1, -number],
    events.LINK: lambda _: [events.UP, events.DOWN, "", "sideways"],
    events.GUEST_PORT: lambda number: [number + 1, -number],
    events.STAGE: lambda stage: ["running" if stage == "ended" else "ended", "RUNNING", ""],
    events.VERDICT: lambda verdict: [
        *({"valid", "broken", "unknown"} - {verdict}),
        verdict.upper(),
        "",
    ],
    events.BROKEN_RULES: lambda rules: [
        f"{rules} DEVICE_LEFT".strip(),
        "NO_SUCH_RULE",
        f"{rules} ",
        *([""] if rules else []),
    ],
}
"""Wrong values of each attribute that a rule compares with another, by the right value."""

WRONG_HOPS: Mapping[str, Callable[[SwiotlbPool], SwiotlbPool]] = {
    "unaligned base": lambda pool: SwiotlbPool(Gpa(pool.base + 1), pool.size_bytes),
    "unaligned size": lambda pool: SwiotlbPool(pool.base, pool.size_bytes + 1),
    "above 4 GiB": lambda pool: SwiotlbPool(Gpa(4 << 30), pool.size_bytes),
    "behind 4 GiB": lambda pool: SwiotlbPool(Gpa((4 << 30) - MIB), pool.size_bytes),
    "outside RAM": lambda pool: SwiotlbPool(Gpa(3 << 30), pool.size_bytes),
    "double size": lambda pool: SwiotlbPool(pool.base, 2 * pool.size_bytes),
    "half size": lambda pool: SwiotlbPool(pool.base, pool.size_bytes // 2),
    "1 MiB at 1 MiB": lambda _: SwiotlbPool(Gpa(MIB), MIB),
}
"""Pools that are wrong although all hops agree on them."""


def mutants(read: Read, valid: Recording) -> Iterator[MUTANT]:
    """Make every mutation of one read; a label for people, and the mutant."""
    match read:
        case clause.Value(name, key):
            yield from _forms(valid, name, key)
            for event in _named(valid, name):
                for value in _wrong(valid, event, key):
                    changed = {**event.attributes, key: value}
                    yield f"{name} {key} = {value!r}", _with(valid, event, changed)
        case clause.Form(name, key):
            yield from _forms(valid, name, key)
        case clause.Presence(name, device_class, given):
            if not given or _named(valid, given):
                yield from _dropped(valid, name, device_class)
        case clause.Absence(name):
            yield from _inserted(valid, name)
        case clause.Once(name):
            for event in _named(valid, name):
                twin = replace(event, time_unix_nano=event.time_unix_nano + 1)
                yield f"{name} twice", replace(valid, events=(*valid.events, twin))
                crowd = tuple(replace(event) for _ in range(50))
                yield f"{name} 51 times", replace(valid, events=(*valid.events, *crowd))
        case clause.Order(name, after):
            yield from _moved(valid, name, after)
        case clause.Last(name):
            yield from _moved_before_the_last(valid, name)
        case clause.Hops():
            yield from _hops(valid)
        case clause.OneTrace():
            for span in _carriers(valid):
                moved = replace(span, trace_id=UNKNOWN_TRACE)
                if len(_carriers(valid)) > 1:
                    yield f"{span.name} in another trace", _respan(valid, span, moved)
        case clause.Emitter(name):
            for event in _named(valid, name):
                for service in ("simguest", ""):
                    moved = replace(event.span, service=service)
                    yield f"{name} by {service!r}", _respan(valid, event.span, moved)
        case clause.Participation(service):
            yield f"no spans of {service}", _without_spans(valid, service)
            yield f"no service {service}", _renamed_service(valid, service)
        case clause.Parents():
            for span in valid.spans:
                if span.parent_id and span.called not in UNRECORDED_CALLERS:
                    moved = replace(span, parent_id=UNKNOWN_SPAN)
                    yield f"{span.name} without its parent", _respan(valid, span, moved)
        case clause.Ancestry(name):
            yield from _strays(valid, name)
        case clause.Tags():
            yield from _twins(valid)
        case clause.EachStage():
            verdicts = _named(valid, events.HANDSHAKE_VERDICT)
            for event in verdicts if len(verdicts) > 1 else ():
                stage = event.attributes[events.STAGE]
                yield f"no verdict at the stage {stage}", _without(valid, [event])


def _wrong(valid: Recording, event: TraceEvent, key: str) -> list[Attribute]:
    """Return the wrong values of an attribute, but for those that this trace cannot contradict."""
    right = event.attributes[key]
    found: list[Attribute] = [value for value in WRONG[key](right) if value != right]
    if key == events.DEVICE_HOST_FEATURES:
        # What a device host takes shows only once there is a token.
        return found if _is_after_latching(valid, event) else []
    if key == events.KERNEL_RELEASE:
        if event.name == events.WSLC_APPLY and _is_after_latching(valid, event):
            return []  # it changes nothing, whatever it says of a kernel
        if event.numbers == NO_POOL and event.name == events.GUEST_KERNEL_INFO:
            # Of a kernel that publishes nothing only the version triple can be compared.
            return [value for value in found if not str(value).startswith("6.18.26")]
    return found


def _is_after_latching(valid: Recording, event: TraceEvent) -> bool:
    latched = _named(valid, events.POOL_LATCHED)
    return bool(latched) and latched[0].time_unix_nano < event.time_unix_nano


def _named(valid: Recording, *names: str) -> list[TraceEvent]:
    found = [event for event in valid.events if event.name in names]
    return sorted(found, key=lambda event: event.time_unix_nano)


def _with(valid: Recording, event: TraceEvent, attributes: Mapping[str, Attribute]) -> Recording:
    changed = replace(event, attributes=attributes)
    return _swap(valid, {id(event): changed})


def _swap(valid: Recording, changed: Mapping[int, TraceEvent]) -> Recording:
    return replace(valid, events=tuple(changed.get(id(e), e) for e in valid.events))


def _without(valid: Recording, dropped: Iterable[TraceEvent]) -> Recording:
    ids = {id(event) for event in dropped}
    return replace(valid, events=tuple(e for e in valid.events if id(e) not in ids))


def _respan(valid: Recording, span: Span, moved: Span) -> Recording:
    return Recording(
        tuple(moved if each == span else each for each in valid.spans),
        tuple(replace(e, span=moved) if e.span == span else e for e in valid.events),
    )


def _carriers(valid: Recording) -> list[Span]:
    return list(dict.fromkeys(event.span for event in valid.events))


def _forms(valid: Recording, name: str, key: str) -> Iterator[MUTANT]:
    for event in _named(valid, name):
        value = event.attributes[key]
        rest = {other: item for other, item in event.attributes.items() if other != key}
        yield f"{name} without {key}", _with(valid, event, rest)
        other: Attribute = str(value) if not isinstance(value, str) else 7
        yield f"{name} {key} as {type(other)}", _with(valid, event, {**rest, key: other})
        if isinstance(value, bool):
            yield f"{name} {key} as a number", _with(valid, event, {**rest, key: int(value)})


def _devices(valid: Recording, *names: str) -> dict[Attribute, list[TraceEvent]]:
    found: dict[Attribute, list[TraceEvent]] = {}
    for event in _named(valid, *names):
        found.setdefault(event.attributes[events.DEVICE_ID], []).append(event)
    return found


def _dropped(valid: Recording, name: str, device_class: str) -> Iterator[MUTANT]:
    groups = _devices(valid, name).values() if name in OF_DEVICE else [_named(valid, name)]
    for group in groups:
        classes = {event.attributes.get(events.DEVICE_CLASS, "") for event in group}
        if group and device_class in ("", *classes):
            yield f"no {name} ({group[0].span.name})", _without(valid, group)


_MADE: Mapping[str, Callable[[str], Event]] = {
    events.WSLC_READ: lambda vm_id: events.wslc_read(vm_id, GuestCapabilities()),
    events.WSLC_APPLY: lambda vm_id: events.wslc_apply(vm_id, 0, 0, ""),
    events.GUEST_KERNEL_INFO: lambda vm_id: events.guest_kernel_info(
        vm_id, GuestCapabilities(kernel_release="6.18.26"), KernelVersion(6, 18, 26)
    ),
    events.KERNEL_UNSUPPORTED: lambda vm_id: events.kernel_unsupported(vm_id, "too old"),
    events.DEVICE_HOST_UNSUPPORTED: lambda vm_id: events.device_host_unsupported(vm_id, "old"),
    events.NETWORKING_FALLBACK: lambda vm_id: events.networking_fallback(
        vm_id, "nat", "TAP_UNAVAILABLE", "no rights"
    ),
    events.POOL_NOT_AS_REQUESTED: lambda vm_id: events.pool_not_as_requested(
        vm_id, SwiotlbPool(Gpa(MIB), MIB), 64 * MIB
    ),
}
_OTHER_ATTACHED = {
    events.APERTURE_CREATED: events.WINDOWS_ENABLED,
    events.WINDOWS_ENABLED: events.APERTURE_CREATED,
}


def _inserted(valid: Recording, name: str) -> Iterator[MUTANT]:
    if name in _OTHER_ATTACHED:
        for event in _named(valid, _OTHER_ATTACHED[name]):
            other = replace(event, name=name, time_unix_nano=event.time_unix_nano + 1)
            yield f"{name} as well", replace(valid, events=(*valid.events, other))
        return
    if _named(valid, name):
        return
    for event in _named(valid, *ANNOUNCEMENTS):
        made = _MADE[name](event.vm_id)
        extra = TraceEvent(name, made.attributes, event.span, event.time_unix_nano + 1)
        yield f"{name} as well", replace(valid, events=(*valid.events, extra))


def _moved(valid: Recording, name: str, after: tuple[str, ...]) -> Iterator[MUTANT]:
    names = (name, *after)
    whole = not all(each in OF_DEVICE for each in names)
    groups = [_named(valid, *names)] if whole else _devices(valid, *names).values()
    for group in groups:
        late = next((event for event in group if event.name == name), None)
        first = next((event for event in group if event.name in after), None)
        if late is not None and first is not None:
            moved = replace(late, time_unix_nano=first.time_unix_nano - 1)
            yield f"{name} before {first.name}", _swap(valid, {id(late): moved})


def _moved_before_the_last(valid: Recording, name: str) -> Iterator[MUTANT]:
    of_device = name in OF_DEVICE
    groups = _devices(valid, *OF_DEVICE).values() if of_device else [_named(valid, *VOCABULARY)]
    for group in groups:
        if group[-1].name == name and len(group) > 1:
            before = group[-2]
            moved = replace(group[-1], time_unix_nano=before.time_unix_nano - 1)
            yield f"{name} before {before.name}", _swap(valid, {id(group[-1]): moved})


def _hops(valid: Recording) -> Iterator[MUTANT]:
    for latched in _named(valid, events.POOL_LATCHED):
        shown = [latched.attributes[key] for key in (events.POOL_BASE, events.POOL_SIZE_BYTES)]
        base, size_bytes = (int(number) for number in shown)
        for what, wrong in WRONG_HOPS.items():
            made = wrong(SwiotlbPool(Gpa(base), size_bytes))
            yield f"{what} at every hop", everywhere(valid, latched, made)


def everywhere(valid: Recording, latched: TraceEvent, pool: SwiotlbPool) -> Recording:
    """Replace the latched pool at every hop, so that all hops agree on the new one."""
    old = {key: latched.attributes[key] for key in (events.POOL_BASE, events.POOL_SIZE_BYTES)}
    token = str(latched.attributes[events.TOKEN])
    new_token = f"swiotlb={pool.base:#x},{pool.size_bytes}"
    changed = {}
    for event in valid.events:
        attributes = dict(event.attributes)
        if all(attributes.get(key) == value for key, value in old.items()):
            attributes[events.POOL_BASE] = pool.base
            attributes[events.POOL_SIZE_BYTES] = pool.size_bytes
        for key in (events.TOKEN, events.DEVICE_OPTIONS):
            if key in attributes:
                attributes[key] = str(attributes[key]).replace(token, new_token)
        changed[id(event)] = replace(event, attributes=attributes)
    return _swap(valid, changed)


def _without_spans(valid: Recording, service: str) -> Recording:
    return Recording(
        tuple(span for span in valid.spans if span.service != service),
        tuple(event for event in valid.events if event.span.service != service),
    )


def _renamed_service(valid: Recording, service: str) -> Recording:
    for span in valid.spans:
        if span.service == service:
            valid = _respan(valid, span, replace(span, service="simguest"))
    return valid


def _strays(valid: Recording, name: str) -> Iterator[MUTANT]:
    [created] = _named(valid, events.VM_CREATED)
    for event in _named(valid, name):
        alone = replace(event.span, span_id=UNKNOWN_SPAN, parent_id="")
        moved = _swap(valid, {id(event): replace(event, span=alone)})
        yield f"{name} on a span of its own", replace(moved, spans=(*valid.spans, alone))
        if event.span == created.span:
            continue
        for parent_id in (created.span.parent_id, event.span.span_id):
            stray = replace(event.span, parent_id=parent_id)
            yield f"{name} below {parent_id}", _respan(valid, event.span, stray)
        if name in FROM_DEVICE_HOST:
            added = _devices(valid, events.DEVICE_ADDED)[event.attributes[events.DEVICE_ID]]
            if added[0].span != created.span:
                stray = replace(event.span, parent_id=created.span.span_id)
                yield f"{name} not below its device", _respan(valid, event.span, stray)


def _twins(valid: Recording) -> Iterator[MUTANT]:
    for listed in _devices(valid, *OF_DEVICE).values():
        twins = tuple(
            replace(event, attributes={**event.attributes, events.DEVICE_ID: UNKNOWN_ID})
            for event in listed
        )
        yield "two devices of a tag", replace(valid, events=(*valid.events, *twins))
