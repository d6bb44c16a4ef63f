"""Recorded events, grouped by VM and by device: the input of the trace checker.

Owns the order of events, and the names and types of their attributes. Must not know rules or files:
services.handshake.trace_rules and trace_otlp do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.features import SWIOTLB_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

WSL2: Final = "WSL2"
WSLC: Final = "WSLC"

Numbers = tuple[int, int]
"""Base and size of a pool in an event; (0, 0) for none."""

NO_POOL: Final[Numbers] = (0, 0)

_POOL: Final = {events.POOL_BASE: int, events.POOL_SIZE_BYTES: int}
_DEVICE: Final = {events.DEVICE_ID: str, events.DEVICE_CLASS: str, events.DEVICE_TAG: str}

VOCABULARY: Final[Mapping[str, Mapping[str, type]]] = {
    events.VM_CREATED: {
        events.VM_KIND: str,
        events.RAM_BYTES: int,
        events.VIRTIO: bool,
        events.DEVICE_BOUNCES: bool,
        events.CONFIGURED_BYTES: int,
        events.REQUESTED_BYTES: int,
    },
    events.GUEST_BOOTED: {},
    events.GUEST_KERNEL_INFO: {
        **_POOL,
        events.KERNEL_RELEASE: str,
        events.KERNEL_MAJOR: int,
        events.KERNEL_MINOR: int,
        events.KERNEL_PATCH: int,
        events.SECCOMP: bool,
    },
    events.WSLC_READ: _POOL,
    events.WSLC_APPLY: _POOL,
    events.POOL_LATCHED: {**_POOL, events.TOKEN: str},
    events.POOL_NOT_AS_REQUESTED: {**_POOL, events.REQUESTED_BYTES: int},
    events.POOL_REFUSED: {**_POOL, events.REASON: str, events.DETAIL: str},
    events.KERNEL_UNSUPPORTED: {events.DETAIL: str},
    events.DEVICE_HOST_UNSUPPORTED: {events.DETAIL: str},
    events.DEVICE_ADDED: {
        **_DEVICE,
        events.DEVICE_OPTIONS: str,
        events.DEVICE_HOST_FEATURES: str,
    },
    events.APERTURE_CREATED: {**_DEVICE, **_POOL},
    events.WINDOWS_ENABLED: {**_DEVICE, **_POOL},
    events.FIRST_REQUEST: _DEVICE,
    events.DEVICE_REMOVED: _DEVICE,
    events.VM_TERMINATED: {},
}
"""Every event of the handshake, and the attributes that it must have in addition to the VM's id."""


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One recorded event.

    Attributes:
        name: Name of the event, one of services.handshake.events.
        attributes: Its attributes.
        trace_id: The trace that has it.
        span_id: The span that has it.
        time_unix_nano: Its time in nanoseconds since 1970.
        where: Its place, for people, for instance "trace.jsonl line 12".
    """

    name: str
    attributes: Mapping[str, events.Attribute]
    trace_id: str
    span_id: str
    time_unix_nano: int
    where: str = ""

    @property
    def vm_id(self) -> str:
        """Id of its VM; empty when it has none."""
        return self.text(events.VM_ID)

    @property
    def numbers(self) -> Numbers:
        """Its base and size; 0 for an attribute that it does not have."""
        return self.number(events.POOL_BASE), self.number(events.POOL_SIZE_BYTES)

    def text(self, key: str) -> str:
        """Return a text attribute; empty when it has none of that name and type."""
        value = self.attributes.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int:
        """Return an integer attribute; 0 when it has none of that name and type."""
        value = self.attributes.get(key)
        return value if type(value) is int else 0


@dataclass(frozen=True)
class DeviceTrace:
    """All events of one device, in the order of time; never empty."""

    device_id: str
    events: Sequence[TraceEvent]

    def first(self, *names: str) -> TraceEvent | None:
        """Return the first event of one of these names; None: there is none."""
        return next((event for event in self.events if event.name in names), None)

    @property
    def tag(self) -> str:
        """Its mount tag or adapter name."""
        return self.events[0].text(events.DEVICE_TAG)

    @property
    def device_class(self) -> str:
        """events.FS or events.NET."""
        return self.events[0].text(events.DEVICE_CLASS)

    @property
    def add_failed(self) -> bool:
        """Whether its addition failed and was undone: one span both added and removed it."""
        added, removed = self.first(events.DEVICE_ADDED), self.first(events.DEVICE_REMOVED)
        return added is not None and removed is not None and added.span_id == removed.span_id

    def __str__(self) -> str:
        return f"device {self.device_id} ({self.device_class} {self.tag})"


@dataclass(frozen=True)
class VmTrace:
    """All events of one VM, in the order of time; never empty.

    Attributes:
        may_be_idle: Tags of devices that need not have completed a request.
    """

    vm_id: str
    events: Sequence[TraceEvent]
    may_be_idle: frozenset[str] = field(default_factory=frozenset)

    def all(self, *names: str) -> list[TraceEvent]:
        """Return every event of one of these names."""
        return [event for event in self.events if event.name in names]

    def first(self, *names: str) -> TraceEvent | None:
        """The first event of one of these names."""
        return next(iter(self.all(*names)), None)

    def position(self, event: TraceEvent) -> int:
        """Return the position of an event of this VM in the order of time."""
        return next(index for index, other in enumerate(self.events) if other is event)

    @cached_property
    def never_booted(self) -> bool:
        """Whether its creation failed before its guest booted."""
        names = {event.name for event in self.events}
        return names == {events.VM_CREATED, events.VM_TERMINATED}

    @cached_property
    def kind(self) -> str:
        """WSL2 or WSLC; empty when the trace lacks the VM's creation."""
        created = self.first(events.VM_CREATED)
        return created.text(events.VM_KIND) if created else ""

    @cached_property
    def requested_bytes(self) -> int:
        """Size of the pool that the kernel command line asked for; 0 for no pool."""
        created = self.first(events.VM_CREATED)
        return created.number(events.REQUESTED_BYTES) if created else 0

    @cached_property
    def latched(self) -> TraceEvent | None:
        """The event that latched the pool."""
        return self.first(events.POOL_LATCHED)

    @cached_property
    def announcements(self) -> list[TraceEvent]:
        """The announcements to the owner: reports of a WSL2 guest, applications of a session."""
        return self.all(events.GUEST_KERNEL_INFO, events.WSLC_APPLY)

    @cached_property
    def devices(self) -> list[DeviceTrace]:
        """Its devices, in the order of their first events."""
        found: dict[str, list[TraceEvent]] = {}
        for event in self.events:
            if events.DEVICE_ID in VOCABULARY[event.name]:
                found.setdefault(event.text(events.DEVICE_ID), []).append(event)
        return [DeviceTrace(device_id, listed) for device_id, listed in found.items()]

    def token_due(self, device: DeviceTrace) -> str | None:
        """Return the token that a device must have; None: none.

        A device has none that was added before the pool latched, or whose device host takes none.
        """
        added = self._added_with_pool(device)
        if added is None or self.latched is None or not _takes_token(added):
            return None
        return self.latched.text(events.TOKEN)

    @cached_property
    def tokens_left_out(self) -> list[DeviceTrace]:
        """The devices that would have a token if their device hosts took one."""
        return [
            device
            for device in self.devices
            if (added := self._added_with_pool(device)) is not None and not _takes_token(added)
        ]

    def _added_with_pool(self, device: DeviceTrace) -> TraceEvent | None:
        added = device.first(events.DEVICE_ADDED)
        if added is None or self.latched is None:
            return None
        return added if self.position(self.latched) < self.position(added) else None


def _takes_token(added: TraceEvent) -> bool:
    return SWIOTLB_TOKEN in added.text(events.DEVICE_HOST_FEATURES).split()


def group_by_vm(recorded: Iterable[TraceEvent], may_be_idle: frozenset[str]) -> list[VmTrace]:
    """Sort the events of the vocabulary by time, and group them by VM in order of first event."""
    known = [event for event in recorded if event.name in VOCABULARY]
    found: dict[str, list[TraceEvent]] = {}
    for event in sorted(known, key=lambda event: event.time_unix_nano):
        found.setdefault(event.vm_id, []).append(event)
    return [VmTrace(vm_id, listed, may_be_idle) for vm_id, listed in found.items()]
