"""Views: the values that commands show of VMs, shares, devices and guests.

clients.py fills views from answers; tables.py prints them for people, and documents.py makes JSON
documents of them: the fields here, with their docstrings, are in docs/schemas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One virtio device.

    Attributes:
        instance_id: Its id.
        device_class: virtio-fs or virtio-net.
        tag: Mount tag, or the adapter's name.
        state: Its state in the device host, for instance attached or needs-reset.
        options: The options string that the device host got.
        socket_path: The vhost-user socket.
        elevated: Whether the elevated user's device host serves it.
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
    """One shared directory.

    Attributes:
        share_id: Its id.
        instance_id: The device that serves it.
        host_path: The directory, on the device host's side.
        tag: Mount tag of the device.
        options: The share's own options.
        elevated: Whether the elevated user's device host serves it.
        aggregate: Whether it is a directory of the VM's aggregate device, named by its id.
    """

    share_id: str
    instance_id: str
    host_path: str
    tag: str
    options: str
    elevated: bool
    aggregate: bool = False


@dataclass(frozen=True, slots=True)
class RateLimitView:
    """How fast frames may go in one direction; 0: no limit, and for a burst the default.

    Attributes:
        bps: Bytes of frames per second.
        pps: Frames per second.
        burst_bytes: How many bytes may go at once after a pause.
        burst_packets: How many frames may go at once after a pause.
    """

    bps: int
    pps: int
    burst_bytes: int
    burst_packets: int


@dataclass(frozen=True, slots=True)
class PortView:
    """One port of the host that is forwarded to a guest.

    Attributes:
        protocol: tcp or udp.
        listen_address: The address of the host.
        listen_port: The port of the host.
        guest_port: The port of the guest.
        state: listening or lost.
        reason: Why it is lost, an error reason; otherwise empty.
        detail: The same, for people.
    """

    protocol: str
    listen_address: str
    listen_port: int
    guest_port: int
    state: str
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class WarningView:
    """One warning about a VM.

    Attributes:
        id: Stable name of the warning.
        text: The warning, for people.
    """

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class VmView:
    """One VM.

    Attributes:
        vm_id: Its id.
        kind: WSL2 or WSLC.
        state: created, booted, running, shutting-down or terminated.
        ram_bytes: RAM of the guest.
        kernel_release: `uname -r` of the guest; empty until it is reported.
        kernel_command_line: The kernel's command line.
        pool_base: First guest-physical address of the latched pool; 0 without one.
        pool_size_bytes: Its size; 0 without one.
        token: The token that each device gets; empty without a pool.
        networking_mode: What networkingMode in .wslconfig chose, for instance nat.
        guest_init_address: Address of GuestInit; empty when the VM has none.
        machine_address: Address of the VM's machine.
        traceparent: W3C trace context of the VM's trace.
        isolation: What its devices are handed of the guest's memory: shared-ram or strict.
        shares: Its shares, the oldest first.
        devices: Its devices.
        warnings: The warnings about it.
    """

    SCHEMA: ClassVar[str] = "vm.v1"

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
    isolation: str
    shares: tuple[ShareView, ...] = ()
    devices: tuple[DeviceView, ...] = ()
    warnings: tuple[WarningView, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionView:
    """The version of one service.

    Attributes:
        service: Full name of the service.
        software_version: Version of the program.
        api_versions: Versions of the API that it serves.
        manifest: Further facts by name, for instance first_kernel_with_pool.
    """

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
    """The counts of a guest's copy.

    Attributes:
        directories: Number of directories.
        files: Number of regular files.
        symbolic_links: Number of symbolic links.
        bytes_copied: Bytes of all files.
    """

    directories: int
    files: int
    symbolic_links: int
    bytes_copied: int


@dataclass(frozen=True, slots=True)
class HttpResult:
    """The HTTP response that a guest got.

    Attributes:
        status: Status code.
        size_bytes: Size of the body.
        sha256: Digest of the body, in hexadecimal.
    """

    status: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PingResult:
    """The result of a guest's echo requests.

    Attributes:
        sent: Number of requests.
        received: Number of replies.
        round_trip_median_s: Median of the round trips in seconds; 0 when no reply came.
    """

    sent: int
    received: int
    round_trip_median_s: float


@dataclass(frozen=True, slots=True)
class PoolUse:
    """The use of a guest's bounce pool; zeros without a pool."""

    slots_total: int
    slots_used_high_water: int
    bytes_bounced: int
