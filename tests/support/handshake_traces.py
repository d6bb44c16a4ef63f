"""Valid traces of whole handshakes, to be broken.

A step is (span, event). Tests change the list and let `record` number it and make the spans.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from services.handshake import events
from services.handshake.capabilities import GuestCapabilities, parse_kernel_release
from services.handshake.events import FS, NET, Event, Sizing
from services.handshake.features import FEATURES
from services.handshake.options import build_options
from services.handshake.pool import Gpa, SwiotlbPool, format_token
from services.handshake.trace.recorded import Recording, Span, TraceEvent
from services.handshake.trace.vocabulary import (
    DEVICE_HOST,
    EMITTERS,
    FROM_DEVICE_HOST,
    GUEST_INIT,
    OWNER,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VM = "11111111-2222-4333-8444-555555555555"
TRACE = "0af7651916cd43dd8448eb211c80319c"
NEW = "6.18.26.3-microsoft-standard-WSL2"
OLD = "5.15.167.4-microsoft-standard-WSL2"
POOL = SwiotlbPool(Gpa(0x3C000000), 64 << 20)
CONFLICT = "SWIOTLB_ALREADY_LATCHED"
OTHER = SwiotlbPool(Gpa(0x30000000), 64 << 20)
TOKEN = format_token(POOL)
MIB = 1 << 20
MIB64 = 64 << 20

Steps = list[tuple[str, Event]]
"""Span of each event, and the event, in the order of time."""


def device(
    name: str,
    kind: str,
    token: str | None,
    ident: str = "",
    pool: SwiotlbPool = POOL,
    features: tuple[str, ...] = FEATURES,
    part: SwiotlbPool | None = None,
) -> Steps:
    """A device's whole life, on spans of its own."""
    identity = (VM, ident or f"id-{name}", kind, name)
    options = build_options(name, "", token, VM, part)
    attached = (
        events.aperture_created(*identity, part or pool)
        if token
        else events.windows_enabled(*identity)
    )
    return [
        (f"add-{name}", events.device_added(*identity, options, " ".join(features))),
        (f"attach-{name}", attached),
        (f"first-{name}", events.first_request(*identity)),
        (f"remove-{name}", events.device_removed(*identity)),
    ]


def sizing(requested: int) -> Sizing:
    """What a VM requests by default: a pool with 2 GiB of RAM, none with 1 GiB."""
    return Sizing(
        ram_bytes=(2 if requested else 1) << 30,
        virtio=True,
        device_bounces=True,
        configured_bytes=None,
        requested_bytes=requested,
    )


def _created(kind: str, requested: int) -> Steps:
    return [
        ("create", events.vm_created(VM, kind, sizing(requested))),
        ("create", events.guest_booted(VM, 0)),
    ]


def _capabilities(pool: SwiotlbPool | None, release: str) -> GuestCapabilities:
    return GuestCapabilities(pool, release, seccomp_user_notification=True)


def pushed(pool: SwiotlbPool | None, release: str = NEW) -> tuple[str, Event]:
    """A WSL2 guest reports."""
    event = events.guest_kernel_info(
        VM, _capabilities(pool, release), parse_kernel_release(release)
    )
    return "report", event


def pulled(pool: SwiotlbPool | None, release: str = NEW, number: int = 1) -> Steps:
    """A session reads, which guest init answers, and applies."""
    base, size_bytes = (pool.base, pool.size_bytes) if pool else (0, 0)
    return [
        (f"answer-{number}", events.wslc_read(VM, _capabilities(pool, release))),
        (f"apply-{number}", events.wslc_apply(VM, base, size_bytes, release)),
    ]


def applied(pool: SwiotlbPool | None, release: str = NEW) -> tuple[str, Event]:
    """Somebody applies, and has read nothing."""
    return "again", pulled(pool, release)[1][1]


def wsl2() -> Steps:
    """A guest reports; its pool is latched; there are three devices."""
    return [
        *_created("WSL2", MIB64),
        pushed(POOL),
        ("report", events.pool_latched(VM, POOL, TOKEN)),
        *device("src", FS, TOKEN),
        *device("eth0", NET, TOKEN),
        *device("loopback0", NET, TOKEN),
        ("terminate", events.vm_terminated(VM)),
    ]


def wslc() -> Steps:
    """A session pulls and applies."""
    return [
        *_created("WSLC", MIB64),
        *pulled(POOL),
        ("apply-1", events.pool_latched(VM, POOL, TOKEN)),
        *device("src", FS, TOKEN),
        ("terminate", events.vm_terminated(VM)),
    ]


def old_kernel() -> Steps:
    """A pool was requested and none was published: a warning, and windows."""
    return [
        *_created("WSL2", MIB64),
        pushed(None, OLD),
        ("report", events.kernel_unsupported(VM, "the kernel is too old")),
        *device("src", FS, None),
        ("terminate", events.vm_terminated(VM)),
    ]


def old_kernel_wslc() -> Steps:
    """The same for WSLC: no warning."""
    return [
        *_created("WSLC", MIB64),
        *pulled(None, OLD),
        *device("src", FS, None),
        ("terminate", events.vm_terminated(VM)),
    ]


def nothing_requested() -> Steps:
    """No pool was requested and none was published: no warning."""
    return [
        *_created("WSL2", 0),
        pushed(None),
        *device("src", FS, None),
        ("terminate", events.vm_terminated(VM)),
    ]


def refused() -> Steps:
    """A pool that no kernel could have reserved is refused; no warning, for the kernel is new."""
    bad = SwiotlbPool(Gpa(1 << 40), 4096)
    return [
        *_created("WSL2", MIB64),
        pushed(bad),
        ("report", events.pool_refused(VM, bad.base, 4096, "SWIOTLB_ABOVE_4G", "too high")),
        *device("src", FS, None),
        ("terminate", events.vm_terminated(VM)),
    ]


def attacked() -> Steps:
    """After a pool was latched, another one and then none are applied; both are refused."""
    steps = wslc()
    steps[5:5] = [
        applied(OTHER),
        ("again", events.pool_refused(VM, OTHER.base, OTHER.size_bytes, CONFLICT, "differs")),
        applied(None),
        ("again", events.pool_refused(VM, 0, 0, CONFLICT, "differs")),
    ]
    return steps


def repeated() -> Steps:
    """A session repeats a call whose answer was lost."""
    steps = wslc()
    steps[5:5] = [applied(POOL)]
    return steps


def pool_came_late() -> Steps:
    """Capabilities without a pool, a device, then capabilities with a pool, and a device."""
    return [
        *_created("WSLC", MIB64),
        *pulled(None),
        *device("early", FS, None),
        *pulled(POOL, number=2),
        ("apply-2", events.pool_latched(VM, POOL, TOKEN)),
        *device("late", FS, TOKEN),
        ("terminate", events.vm_terminated(VM)),
    ]


def read_by_several() -> Steps:
    """Guest init, the owner and a session report the same read."""
    steps = wslc()
    read = steps[2][1]
    steps[3:3] = [("owner forwards", read), ("a client", read)]
    return steps


def configured() -> Steps:
    """A size is configured that no default has, and the kernel rounds it up to 2 MiB."""
    size = 7 << 20
    created = Sizing(512 << 20, True, True, size, size)
    pool = SwiotlbPool(Gpa(0x10000000), 8 << 20)
    return [
        ("create", events.vm_created(VM, "WSL2", created)),
        ("create", events.guest_booted(VM, 0)),
        pushed(pool),
        ("report", events.pool_latched(VM, pool, format_token(pool))),
        *device("src", FS, format_token(pool), pool=pool),
        ("terminate", events.vm_terminated(VM)),
    ]


def not_as_requested() -> Steps:
    """A guest that was asked for 64 MiB announces 1 MiB: latched and reported, and a breach."""
    pool = SwiotlbPool(Gpa(0x100000), 1 << 20)
    return [
        *_created("WSL2", MIB64),
        pushed(pool),
        ("report", events.pool_latched(VM, pool, format_token(pool))),
        ("report", events.pool_not_as_requested(VM, pool, MIB64)),
        *device("src", FS, format_token(pool), pool=pool),
        ("terminate", events.vm_terminated(VM)),
    ]


def failed_add() -> Steps:
    """Adding a device fails and is undone within the same operation."""
    steps = wsl2()
    added, *_, (_, removed) = device("bad", FS, TOKEN)
    steps[4:4] = [added, (added[0], removed)]
    return steps


def added_again() -> Steps:
    """Adding a device fails; the client repeats it with the id that it has chosen."""
    steps = wsl2()
    added, *_, (_, removed) = device("src", FS, TOKEN)
    steps[4:4] = [("first-try", added[1]), ("first-try", removed)]
    return steps


def old_device_host() -> Steps:
    """One of two device hosts takes no token: its devices lack it, and the user is warned once."""
    steps = wsl2()
    added, *rest = device("old", FS, None, features=())
    warned = (added[0], events.device_host_unsupported(VM, "the device host is too old"))
    again = device("old2", FS, None, features=("aggregate",))
    steps[4:4] = [added, warned, *rest, *again]
    return steps


def idle_adapters() -> Steps:
    """An adapter is removed before its guest has sent anything."""
    return [step for step in wsl2() if step[0] not in ("first-eth0", "first-loopback0")]


def networked() -> Steps:
    """Networking is configured with both adapters."""
    steps = wsl2()
    ids = ["id-eth0", "id-loopback0"]
    done = ("add-loopback0", events.networking_configured(VM, "nat", "nat", ids))
    place = index(steps, events.DEVICE_ADDED, "loopback0") + 1
    return _adapters_until_the_end([*steps[:place], done, *steps[place:]])


def networked_without_a_pool() -> Steps:
    """The same on windows: no pool was asked for.

    A port is mapped, and unmapped again. The link of an adapter goes down, and comes back.
    """
    steps = nothing_requested()
    ids = ["id-eth0", "id-loopback0"]
    adapters = [step for name in events.ADAPTERS for step in device(name, NET, None)]
    added = [step for step in adapters if step[1].name == events.DEVICE_ADDED]
    rest = [step for step in adapters if step not in added]
    done = ("add-loopback0", events.networking_configured(VM, "virtioproxy", "virtioproxy", ids))
    port = (VM, "tcp", "127.0.0.1", 8080, 80)
    ports = [
        (name, events.port(name, *port)) for name in (events.PORT_MAPPED, events.PORT_UNMAPPED)
    ]
    links = [
        ("link-eth0", events.link_changed(VM, "id-eth0", NET, "eth0", up=up, why="passt has ended"))
        for up in (False, True)
    ]
    return [*steps[:-1], *added, done, *ports, *links, *rest, steps[-1]]


def not_networked() -> Steps:
    """Networking is configured without adapters, as was asked for."""
    steps = wslc()
    return [*steps[:-1], ("net", events.networking_configured(VM, "none", "none", [])), steps[-1]]


def fallen_back() -> Steps:
    """The mode cannot be set up: an adapter that was made is removed, and the user is warned."""
    steps = wslc()
    added, *_, (_, removed) = device("eth0", NET, TOKEN)
    return [
        *steps[:-1],
        ("net", added[1]),
        ("net", removed),
        ("net", events.networking_fallback(VM, "virtioproxy", "TAP_UNAVAILABLE", "no rights")),
        ("net", events.networking_configured(VM, "virtioproxy", "none", [])),
        steps[-1],
    ]


def _adapters_until_the_end(steps: Steps) -> Steps:
    """The steps with the removals of adapters right before the end of the VM."""
    removed = [
        step
        for step in steps
        if step[1].name == events.DEVICE_REMOVED
        and step[1].attributes[events.DEVICE_TAG] in events.ADAPTERS
    ]
    rest = [step for step in steps if step not in removed]
    return [*rest[:-1], *removed, rest[-1]]


def strict() -> Steps:
    """Each device has a part of the pool for itself; a later one has that of one that is gone."""
    parts = [SwiotlbPool(Gpa(POOL.base + number * 8 * MIB), 8 * MIB) for number in range(2)]
    lives = [device(name, FS, TOKEN, part=part) for name, part in zip("ab", parts, strict=True)]
    return [
        *_created("WSL2", MIB64),
        pushed(POOL),
        ("report", events.pool_latched(VM, POOL, TOKEN)),
        *(step for life in lives for step in life[:-1]),
        lives[0][-1],
        *device("c", FS, TOKEN, part=parts[0]),
        lives[1][-1],
        ("terminate", events.vm_terminated(VM)),
    ]


def init_ended() -> Steps:
    """Guest init ends by itself while a device is in use, and the owner shuts the VM down."""
    steps = wslc()
    steps[index(steps, events.DEVICE_REMOVED) : index(steps, events.DEVICE_REMOVED)] = [
        ("terminate", events.guest_init_ended(VM, "signal SIGKILL"))
    ]
    return steps


def init_ended_wsl2() -> Steps:
    """The same in a VM whose guest reports by itself."""
    steps = without(old_kernel(), events.VM_TERMINATED)
    return [
        *without(steps, events.DEVICE_REMOVED),
        ("guest ended", events.guest_init_ended(VM, "status 1")),
        *(step for step in steps if step[1].name == events.DEVICE_REMOVED),
        ("guest ended", events.vm_terminated(VM)),
    ]


def _judged(steps: Steps, stage: str, *broken: str) -> Steps:
    """The steps with a verdict of the owner: after the last answer of a report, or at the end."""
    verdict = ("judge", events.handshake_verdict(VM, stage, broken))
    if stage == events.ENDED:
        return [*steps[:-1], verdict, steps[-1]]
    added = next(place for place, step in enumerate(steps) if step[1].name == events.DEVICE_ADDED)
    return [*steps[:added], verdict, *steps[added:]]


def judged() -> Steps:
    """The owner judges when the VM is RUNNING, and when it ends."""
    return _judged(_judged(wsl2(), events.RUNNING), events.ENDED)


def judged_wslc() -> Steps:
    """The same, of a pool that was refused, and of capabilities that are applied again."""
    return _judged(_judged(attacked(), events.RUNNING), events.ENDED)


def judged_alive() -> Steps:
    """The VM has not ended, so its owner has judged once."""
    return without(_judged(strict(), events.RUNNING), events.VM_TERMINATED)


def judged_broken() -> Steps:
    """The guest breaks a rule, and its owner says so at both times."""
    steps = _judged(not_as_requested(), events.RUNNING, "POOL_NOT_AS_REQUESTED")
    return _judged(steps, events.ENDED, "POOL_NOT_AS_REQUESTED")


VALID = {
    case.__name__: case
    for case in (
        wsl2,
        wslc,
        old_kernel,
        old_kernel_wslc,
        nothing_requested,
        refused,
        attacked,
        repeated,
        pool_came_late,
        read_by_several,
        configured,
        failed_add,
        added_again,
        old_device_host,
        idle_adapters,
        networked,
        networked_without_a_pool,
        not_networked,
        fallen_back,
        strict,
        init_ended,
        init_ended_wsl2,
        judged,
        judged_wslc,
    )
}


def record(steps: Sequence[tuple[str, Event]], trace: str = TRACE) -> Recording:
    """Number the steps, one second each, and make the spans of the services that took them.

    A client calls the owner, whose span `create` is above all others of the VM. Each device host
    has a span of the call that makes a device, below the span that added it.
    """
    spans: dict[str, Span] = {
        "call": Span(trace, "call", "client", "CreateVm", OWNER, VM_OWNER, _WHERE),
        "create": Span(trace, "create", "call", "CreateVm", OWNER, "", _WHERE),
        "guest": Span(trace, "guest", "create", "Read", GUEST_INIT, "", _WHERE),
    }
    found: list[TraceEvent] = []
    for second, (name, event) in enumerate(steps, start=1):
        if name not in spans:
            parent = _host_span(event, name, spans) if event.name in FROM_DEVICE_HOST else "create"
            spans[name] = Span(trace, name, parent, name, _service(name, event), "", _WHERE)
        if event.name == events.DEVICE_ADDED:
            host = f"host-{event.attributes[events.DEVICE_ID]}"
            spans[host] = Span(trace, host, name, "CreateDevice", DEVICE_HOST, "", _WHERE)
        found.append(TraceEvent(event.name, event.attributes, spans[name], second * 10**9))
    return Recording(tuple(spans.values()), tuple(found))


VM_OWNER = "porthole.vmowner.v1.VmOwner"
_WHERE = "trace.jsonl line 1"


def _host_span(event: Event, name: str, spans: dict[str, Span]) -> str:
    host = f"host-{event.attributes.get(events.DEVICE_ID)}"
    return host if host in spans else f"add-{name.partition('-')[2]}"


def _service(name: str, event: Event) -> str:
    if event.name == events.WSLC_READ:
        return {"answer": GUEST_INIT, "owner": OWNER}.get(re.split("[- ]", name)[0], "client")
    [service] = EMITTERS[event.name]
    return service


def to_otlp(recording: Recording) -> str:
    """Write a recording as a service writes its trace file, one span a line."""
    ids: dict[str, str] = {"": ""}

    def span_id(name: str) -> str:
        return ids.setdefault(name, f"{len(ids):016x}")

    lines = []
    for span in recording.spans:
        listed = [
            {
                "name": event.name,
                "timeUnixNano": str(event.time_unix_nano),
                "attributes": _pairs(event.attributes),
            }
            for event in recording.events
            if event.span == span
        ]
        written = {
            "traceId": span.trace_id,
            "spanId": span_id(span.span_id),
            "parentSpanId": span_id(span.parent_id),
            "name": span.name,
            "attributes": _pairs({"rpc.service": span.called} if span.called else {}),
            "events": listed,
        }
        resource = {"attributes": _pairs({"service.name": span.service})}
        scope = {"scope": {"name": "porthole"}, "spans": [written]}
        request = {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}
        lines.append(json.dumps(request) + "\n")
    return "".join(lines)


def _pairs(attributes: Mapping[str, events.Attribute]) -> list[dict[str, object]]:
    kinds: dict[type, str] = {str: "stringValue", int: "intValue", bool: "boolValue"}
    return [
        {"key": key, "value": {kinds[type(value)]: str(value) if type(value) is int else value}}
        for key, value in attributes.items()
    ]


def index(steps: Steps, name: str, tag: str = "") -> int:
    """Place of the first event of that name (and tag)."""
    return next(
        place
        for place, (_, event) in enumerate(steps)
        if event.name == name and tag in ("", event.attributes.get(events.DEVICE_TAG))
    )


def without(steps: Steps, *names: str, tag: str = "") -> Steps:
    """The steps without events of these names (and that tag)."""
    return [
        (span, event)
        for span, event in steps
        if event.name not in names or tag not in ("", event.attributes.get(events.DEVICE_TAG))
    ]


def move(steps: Steps, name: str, before: str) -> Steps:
    """The steps with the first event of one name moved before the first of another."""
    moved = steps[index(steps, name)]
    rest = [step for step in steps if step is not moved]
    rest.insert(index(rest, before), moved)
    return rest


def repeat(steps: Steps, name: str) -> Steps:
    """The steps with one event twice."""
    place = index(steps, name)
    return [*steps[:place], steps[place], *steps[place:]]


def change(
    steps: Steps, name: str, changes: Mapping[str, events.Attribute | None], tag: str = ""
) -> Steps:
    """The steps with attributes of one event changed; None drops one."""
    place = index(steps, name, tag)
    span, event = steps[place]
    merged = {**event.attributes, **changes}
    kept = {key: value for key, value in merged.items() if value is not None}
    return [*steps[:place], (span, replace(event, attributes=kept)), *steps[place + 1 :]]
