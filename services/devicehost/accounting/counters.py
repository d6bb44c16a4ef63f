"""The counters of a device: the declaration of each, and those that a queue's thread writes.

A new counter is a field of Counters, a line that counts, and a field of the same name in
DeviceCounters (device.proto), because GetDevice returns all of them. Must not know metrics or
protobuf.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Final

from services.devicehost import fastpath

_MEANING: Final = "meaning"


@dataclass(frozen=True, slots=True)
class Meaning:
    """The declaration of one counter.

    Attributes:
        unit: Of the metric, in UCUM: By for bytes, or the thing counted in braces.
        description: Of the metric.
        is_highest: Whether it is the highest value seen, not a sum.
    """

    unit: str
    description: str
    is_highest: bool = False


def _counter(unit: str, description: str, *, is_highest: bool = False) -> Any:
    return field(default=0, metadata={_MEANING: Meaning(unit, description, is_highest)})


@dataclass(slots=True)
class Counters:
    """Every counter of a device; each only ever grows."""

    requests: int = _counter("{request}", "requests that the device completed")
    bytes_in: int = _counter("By", "bytes that the device read from guest memory")
    bytes_out: int = _counter("By", "bytes that the device wrote to guest memory")
    translations_refused: int = _counter("{address}", "guest addresses that were refused")
    windows_mapped: int = _counter("{window}", "on-demand windows that were mapped")
    windows_evicted: int = _counter("{window}", "on-demand windows that were unmapped to make room")
    windows_waited: int = _counter("{wait}", "times that a request waited for the quota on windows")
    highest_slot: int = _counter(
        "{slot}",
        "highest 2 KiB slot of the pool that a request touched, counted from 1",
        is_highest=True,
    )
    frames_dropped: int = _counter("{frame}", "frames that a virtio-net device dropped")
    held_back: int = _counter("{hold}", "times that a queue was held back, for want of room")
    exhaustions: int = _counter(
        "{episode}",
        "episodes in which something bounded was used up; docs/limits.md lists what is",
    )
    link_losses: int = _counter("{loss}", "times that a virtio-net device lost its link")
    throttled: int = _counter(
        "{wait}", "times that a queue of a virtio-net device waited for its rate limit"
    )
    frames_spoofed: int = _counter(
        "{frame}", "frames that were dropped, sent under an address of another station"
    )


COUNTERS: Final[dict[str, Meaning]] = {
    each.name: each.metadata[_MEANING] for each in dataclasses.fields(Counters)
}
"""The declaration of every counter, by name."""


@dataclass(slots=True)
class QueueCounters:
    """The counters of the data path, for one queue: only that queue's thread writes them.

    Attributes:
        requests: Chains that were completed.
        bytes_in: Bytes that the guest offered for reading.
        bytes_out: Bytes that were written to the guest.
        native: The same, and the highest slot, of the requests that the native loop served.
    """

    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    native: fastpath.PhCounters = field(default_factory=fastpath.PhCounters)
