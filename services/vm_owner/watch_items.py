"""The items of a watcher's stream: what WatchVm reports of a VM.

Must not know who publishes an item, or protobuf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.vm_owner.states import VmState
from services.vm_owner.warnings import VmWarning

if TYPE_CHECKING:
    from services.handshake.exhaustion import Exhaustion
    from services.handshake.pool import SwiotlbPool


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """A change of a device.

    Attributes:
        state: The device host's name of the state, lower case; "unspecified" when unknown.
        detail: The cause, for people.
    """

    instance_id: str
    tag: str
    state: str
    detail: str


@dataclass(frozen=True, slots=True)
class DeviceExhausted:
    """A device has used up a bounded resource."""

    instance_id: str
    tag: str
    exhaustion: Exhaustion


@dataclass(frozen=True, slots=True)
class PoolLatched:
    """A pool was latched."""

    pool: SwiotlbPool


WatchItem = VmState | VmWarning | PoolLatched | DeviceChange | DeviceExhausted
"""An item of a watcher's stream."""
