"""Views: the values that commands show of VMs, shares, devices and guests.

The JSON form of a view is its fields. clients.py fills views from answers; tables.py and `--json`
print them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One virtio device.

    Attributes:
        counters: Values since it was created, by the names of DeviceCounters (device.proto);
            bytes_in and bytes_out are counted from the device's side.
    """

    instance_id: str
    device_class: str
    tag: str
    state: str
    options: str
    socket_path: str
    elevated: bool
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ShareView:
    """One shared directory."""

    share_id: str
    instance_id: str
    host_path: str
    tag: str
    options: str
    elevated: bool
    aggregate: bool = False


@dataclass(frozen=True, slots=True)
class WarningView:
    """One warning about a VM."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class VmView:
    """One VM. Without a latched pool its numbers are 0 and `token` is empty."""

    vm_id: str
    kind: str
    state: str
    ram_bytes: int
    kernel_release: str
    kernel_command_line: str
    pool_base: int
    pool_size_bytes: int
    token: str
    networking_mode: str
    guest_init_address: str
    machine_address: str
    traceparent: str
    shares: tuple[ShareView, ...] = ()
    devices: tuple[DeviceView, ...] = ()
    warnings: tuple[WarningView, ...] = ()


@dataclass(frozen=True, slots=True)
class WatchView:
    """One event of a VM.

    Attributes:
        event: state, warning, device, pool_latched or exhausted.
    """

    event: str
    facts: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VersionView:
    """The version of one service; `manifest` has further facts by name."""

    service: str
    software_version: str
    api_versions: tuple[str, ...]
    manifest: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileDigest:
    """The size and digest of one file."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CopyResult:
    """The counts of a guest's copy."""

    directories: int
    files: int
    symbolic_links: int
    bytes_copied: int


@dataclass(frozen=True, slots=True)
class HttpResult:
    """The HTTP response that a guest got."""

    status: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PingResult:
    """The result of a guest's echo requests; the median is 0 when no reply came."""

    sent: int
    received: int
    round_trip_median_s: float


@dataclass(frozen=True, slots=True)
class PoolUse:
    """The use of a guest's bounce pool; zeros without a pool."""

    slots_total: int
    slots_used_high_water: int
    bytes_bounced: int


View = DeviceView | ShareView | WarningView | VmView | WatchView | VersionView


def as_json(view: View) -> dict[str, object]:
    """Return the JSON form of a view: its fields by name, also of nested views."""
    return dataclasses.asdict(view)
