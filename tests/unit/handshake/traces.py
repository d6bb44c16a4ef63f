"""Valid traces of whole handshakes, to be broken one rule at a time.

A step is (seconds, span, event). Tests change the list and let `record` number it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from services.handshake import events
from services.handshake.capabilities import GuestCapabilities, KernelVersion
from services.handshake.events import FS, NET, Event, Sizing
from services.handshake.features import FEATURES
from services.handshake.options import build_options
from services.handshake.pool import Gpa, SwiotlbPool, format_token
from services.handshake.trace_checker import TraceEvent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VM = "11111111-2222-4333-8444-555555555555"
TRACE = "0af7651916cd43dd8448eb211c80319c"
POOL = SwiotlbPool(Gpa(0x3C000000), 64 << 20)
OTHER = SwiotlbPool(Gpa(0x30000000), 64 << 20)
TOKEN = format_token(POOL)
MIB64 = 64 << 20

Steps = list[tuple[str, Event]]
"""Span of each event, and the event, in the order of time."""


def device(
    name: str,
    kind: str,
    token: str | None,
    ident: str = "",
    features: tuple[str, ...] = FEATURES,
) -> Steps:
    """A device's whole life, on spans of its own."""
    identity = (VM, ident or f"id-{name}", kind, name)
    options = build_options(name, "", token, VM)
    attached = (
        events.aperture_created(*identity, POOL) if token else events.windows_enabled(*identity)
    )
    return [
        (f"add-{name}", events.device_added(*identity, options, " ".join(features))),
        (f"attach-{name}", attached),
        (f"first-{name}", events.first_request(*identity)),
        (f"remove-{name}", events.device_removed(*identity)),
    ]


def sizing(requested: int) -> Sizing:
    """What a VM asks for with 2 GiB of RAM; it has a device that bounces if it asks for a pool."""
    return Sizing(
        ram_bytes=2 << 30,
        virtio=True,
        device_bounces=requested > 0,
        configured_bytes=None,
        requested_bytes=requested,
    )


def _created(kind: str, requested: int) -> Steps:
    return [
        ("create", events.vm_created(VM, kind, sizing(requested))),
        ("create", events.guest_booted(VM)),
    ]


def _pushed(pool: SwiotlbPool | None) -> tuple[str, Event]:
    capabilities = GuestCapabilities(pool, "6.18.26.3-microsoft", seccomp_user_notification=True)
    return "report", events.guest_kernel_info(VM, capabilities, KernelVersion(6, 18, 26))


def wsl2() -> Steps:
    """A guest reports; its pool is latched; there are three devices."""
    return [
        *_created("WSL2", MIB64),
        _pushed(POOL),
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
        ("session", events.wslc_read(VM, GuestCapabilities(POOL))),
        ("apply", events.wslc_apply(VM, POOL.base, POOL.size_bytes)),
        ("apply", events.pool_latched(VM, POOL, TOKEN)),
        *device("src", FS, TOKEN),
        ("terminate", events.vm_terminated(VM)),
    ]


def old_kernel() -> Steps:
    """A pool was requested and none was published: a warning, and windows."""
    return [
        *_created("WSL2", MIB64),
        _pushed(None),
        ("report", events.kernel_unsupported(VM, "the kernel is too old")),
        *device("src", FS, None),
        ("terminate", events.vm_terminated(VM)),
    ]


def old_kernel_wslc() -> Steps:
    """The same for WSLC: no warning."""
    return [
        *_created("WSLC", MIB64),
        ("session", events.wslc_read(VM, GuestCapabilities())),
        ("apply", events.wslc_apply(VM, 0, 0)),
        *device("src", FS, None),
        ("terminate", events.vm_terminated(VM)),
    ]


def nothing_requested() -> Steps:
    """No pool was requested and none was published: no warning."""
    return [
        *_created("WSL2", 0),
        _pushed(None),
        *device("src", FS, None),
        ("terminate", events.vm_terminated(VM)),
    ]


def refused() -> Steps:
    """A pool that no kernel could have reserved is refused; no warning, for the kernel is new."""
    bad = SwiotlbPool(Gpa(1 << 40), 4096)
    return [
        *_created("WSL2", MIB64),
        _pushed(bad),
        ("report", events.pool_refused(VM, bad.base, 4096, "SWIOTLB_ABOVE_4G", "too high")),
        *device("src", FS, None),
        ("terminate", events.vm_terminated(VM)),
    ]


def attacked() -> Steps:
    """After a pool was latched, another one and then none are applied; both are refused."""
    steps = wslc()
    steps[5:5] = [
        ("again", events.wslc_apply(VM, OTHER.base, OTHER.size_bytes)),
        ("again", events.pool_refused(VM, OTHER.base, OTHER.size_bytes, "ALREADY", "differs")),
        ("again", events.wslc_apply(VM, 0, 0)),
        ("again", events.pool_refused(VM, 0, 0, "ALREADY", "differs")),
    ]
    return steps


def repeated() -> Steps:
    """A session repeats a call whose answer was lost."""
    steps = wslc()
    steps[5:5] = [("again", events.wslc_apply(VM, POOL.base, POOL.size_bytes))]
    return steps


def pool_came_late() -> Steps:
    """Capabilities without a pool, a device, then capabilities with a pool, and a device."""
    return [
        *_created("WSLC", MIB64),
        ("s1", events.wslc_read(VM, GuestCapabilities())),
        ("a1", events.wslc_apply(VM, 0, 0)),
        *device("early", FS, None),
        ("s2", events.wslc_read(VM, GuestCapabilities(POOL))),
        ("a2", events.wslc_apply(VM, POOL.base, POOL.size_bytes)),
        ("a2", events.pool_latched(VM, POOL, TOKEN)),
        *device("late", FS, TOKEN),
    ]


def failed_add() -> Steps:
    """Adding a device fails and is undone within the same operation."""
    steps = wsl2()
    added, *_, (_, removed) = device("bad", FS, TOKEN)
    steps[4:4] = [added, (added[0], removed)]
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
        failed_add,
        old_device_host,
        idle_adapters,
    )
}


def record(steps: Sequence[tuple[str, Event]], trace: str = TRACE) -> list[TraceEvent]:
    """Number the steps, one second each."""
    return [
        TraceEvent(
            name=event.name,
            attributes=event.attributes,
            trace_id=trace,
            span_id=span,
            time_unix_nano=second * 10**9,
            where=f"trace.jsonl line {second}",
        )
        for second, (span, event) in enumerate(steps, start=1)
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
