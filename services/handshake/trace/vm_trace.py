"""The trace of one VM: its events in the order of time, its devices, its spans.

Owns the grouping of a recording by VM and by device, and the facts that several rules derive. Must
not know the rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.handshake.features import SWIOTLB_TOKEN
from services.handshake.pool import parse_aperture
from services.handshake.trace.vocabulary import ANNOUNCEMENTS, OF_DEVICE, VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from services.handshake.pool import SwiotlbPool
    from services.handshake.trace.recorded import Recording, Span, TraceEvent


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

    @cached_property
    def options(self) -> list[str]:
        """The items of its options; none when its addition was not recorded."""
        added = self.first(events.DEVICE_ADDED)
        return added.text(events.DEVICE_OPTIONS).split(";") if added else []

    @property
    def tokens(self) -> list[str]:
        """The tokens among its options."""
        return [item for item in self.options if item.startswith("swiotlb")]

    @property
    def aperture_items(self) -> list[str]:
        """The apertures of its own among its options."""
        return [item for item in self.options if item.startswith("aperture")]

    @cached_property
    def own_part(self) -> SwiotlbPool | None:
        """The part of the pool that its options give it alone; None: none, or it is malformed."""
        try:
            [part] = map(parse_aperture, self.aperture_items)
        except (ValueError, InvalidArgumentError):
            return None
        return part

    @property
    def add_failed(self) -> bool:
        """Whether its addition failed and was undone: one span both added and removed it."""
        added, removed = self.first(events.DEVICE_ADDED), self.first(events.DEVICE_REMOVED)
        return added is not None and removed is not None and added.span == removed.span

    def __str__(self) -> str:
        return f"device {self.device_id} ({self.device_class} {self.tag})"


@dataclass(frozen=True)
class SpanTree:
    """The spans of the traces that a VM is in.

    Attributes:
        spans: The spans of these traces, also those of other VMs.
    """

    spans: Sequence[Span]

    @cached_property
    def _by_id(self) -> dict[tuple[str, str], Span]:
        return {(span.trace_id, span.span_id): span for span in self.spans}

    def parent(self, span: Span) -> Span | None:
        """Return the parent of a span; None for a root, and when it was not recorded."""
        return self._by_id.get((span.trace_id, span.parent_id))

    def is_below(self, span: Span, ancestor: Span) -> bool:
        """Return whether a span is another one, or below it."""
        seen: set[str] = set()
        at: Span | None = span
        while at is not None and at.span_id not in seen:
            if at == ancestor:
                return True
            seen.add(at.span_id)
            at = self.parent(at)
        return False


@dataclass(frozen=True)
class VmTrace:
    """All events of one VM, in the order of time; never empty.

    Attributes:
        tree: The spans of its traces.
        may_be_idle: Tags of devices that need not have completed a request.
    """

    vm_id: str
    events: Sequence[TraceEvent]
    tree: SpanTree
    may_be_idle: frozenset[str] = field(default_factory=frozenset)

    def all(self, *names: str) -> list[TraceEvent]:
        """Return every event of one of these names."""
        return [event for event in self.events if event.name in names]

    def first(self, *names: str) -> TraceEvent | None:
        """Return the first event of one of these names; None: there is none."""
        return next(iter(self.all(*names)), None)

    def position(self, event: TraceEvent) -> int:
        """Return the position of an event of this VM in the order of time."""
        return self._positions[id(event)]

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {id(event): index for index, event in enumerate(self.events)}

    @cached_property
    def created(self) -> TraceEvent | None:
        """The event of its creation."""
        return self.first(events.VM_CREATED)

    @cached_property
    def never_booted(self) -> bool:
        """Whether its creation failed before its guest booted."""
        names = {event.name for event in self.events if event.name != events.HANDSHAKE_VERDICT}
        return names == {events.VM_CREATED, events.VM_TERMINATED}

    @cached_property
    def kind(self) -> str:
        """WSL2 or WSLC; empty when the trace lacks the VM's creation."""
        return self.created.text(events.VM_KIND) if self.created else ""

    @cached_property
    def ram_bytes(self) -> int:
        """Its RAM; 0 when the trace lacks the VM's creation."""
        return self.created.number(events.RAM_BYTES) if self.created else 0

    @cached_property
    def ram_base(self) -> int:
        """The address at which its RAM begins; 0 when the trace lacks the guest's boot."""
        booted = self.first(events.GUEST_BOOTED)
        return booted.number(events.RAM_BASE) if booted else 0

    @cached_property
    def requested_bytes(self) -> int:
        """Size of the pool that the kernel command line asks for; 0 for no pool."""
        return self.created.number(events.REQUESTED_BYTES) if self.created else 0

    @cached_property
    def latched(self) -> TraceEvent | None:
        """The event that latched the pool."""
        return self.first(events.POOL_LATCHED)

    @cached_property
    def announcements(self) -> list[TraceEvent]:
        """The announcements to the owner: reports of a WSL2 guest, applications of a session."""
        return self.all(*ANNOUNCEMENTS)

    @cached_property
    def devices(self) -> list[DeviceTrace]:
        """Its devices, in the order of their first events.

        A client may choose the id of a device, and add one again by the id of one that was removed.
        """
        found: dict[str, list[TraceEvent]] = {}
        for event in self.all(*OF_DEVICE):
            found.setdefault(event.text(events.DEVICE_ID), []).append(event)
        return [
            DeviceTrace(device_id, life)
            for device_id, listed in found.items()
            for life in _lives(listed, events.DEVICE_ADDED, events.DEVICE_REMOVED)
        ]

    @cached_property
    def added_devices(self) -> list[DeviceTrace]:
        """Its devices whose addition was recorded."""
        return [device for device in self.devices if device.first(events.DEVICE_ADDED)]

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


def group_by_vm(recording: Recording, may_be_idle: frozenset[str]) -> list[VmTrace]:
    """Sort the events of the vocabulary by time, and group them by VM in order of first event."""
    known = [event for event in recording.events if event.name in VOCABULARY]
    found: dict[str, list[TraceEvent]] = {}
    for event in sorted(known, key=lambda event: event.time_unix_nano):
        found.setdefault(event.vm_id, []).append(event)
    traces: dict[str, list[Span]] = {}
    for span in recording.spans:
        traces.setdefault(span.trace_id, []).append(span)
    # A client may choose the id of a VM, and repeat a creation that failed.
    return [
        VmTrace(vm_id, life, _tree(life, traces), may_be_idle)
        for vm_id, listed in found.items()
        for life in _lives(listed, events.VM_CREATED, events.VM_TERMINATED)
    ]


def _lives(
    listed: Sequence[TraceEvent], beginning: str, end: str
) -> Iterator[Sequence[TraceEvent]]:
    """Split the events of an id where one begins after the one before it has ended."""
    life: list[TraceEvent] = []
    for event in listed:
        if event.name == beginning and any(other.name == end for other in life):
            yield life
            life = []
        life.append(event)
    yield life


def _tree(listed: Sequence[TraceEvent], traces: dict[str, list[Span]]) -> SpanTree:
    ids = dict.fromkeys(event.span.trace_id for event in listed)
    return SpanTree([span for trace_id in ids for span in traces.get(trace_id, ())])
