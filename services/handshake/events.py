"""The vocabulary of Porthole's traces: every event of the handshake, and its attributes.

An event is a value here; services.rpc.tracing puts it on the current span. The trace checker reads
the same vocabulary back. Must not know OpenTelemetry, clocks or spans.

The order of one VM's events (docs/handshake.md): VmCreated, GuestBooted,
GuestKernelInfo (WSL2) or WSLCReadGuestCapabilities and WSLCApplyGuestCapabilities (WSLC),
PoolLatched (and PoolNotAsRequested) or PoolRefused, then per device AddGuestDevice,
ApertureCreated or WindowsEnabled, FirstRequestCompleted, RemoveGuestDevice; VmTerminated.
GuestInitEnded, when a guest's process 1 ends by itself, begins the end of its VM.
SwiotlbDeviceHostUnsupported follows the first AddGuestDevice whose device host takes no token.
NetworkingConfigured follows AddGuestDevice of the adapters; NetworkingFallback comes before it,
PortMapped and PortUnmapped after it. AdapterLinkChanged, of a device host, is between
AddGuestDevice and RemoveGuestDevice of its adapter.
HandshakeVerdict, what the owner makes of its own events, comes when the VM is RUNNING, and before
VmTerminated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.handshake.capabilities import GuestCapabilities, KernelVersion
    from services.handshake.pool import SwiotlbPool

VM_ID: Final = "porthole.vm.id"
VM_KIND: Final = "porthole.vm.kind"
RAM_BYTES: Final = "porthole.vm.ram_bytes"
RAM_BASE: Final = "porthole.vm.ram_base"
VIRTIO: Final = "porthole.vm.virtio"
DEVICE_BOUNCES: Final = "porthole.vm.device_bounces"
CONFIGURED_BYTES: Final = "porthole.pool.configured_bytes"
REQUESTED_BYTES: Final = "porthole.pool.requested_bytes"
POOL_BASE: Final = "porthole.pool.base"
POOL_SIZE_BYTES: Final = "porthole.pool.size_bytes"
TOKEN: Final = "porthole.pool.token"  # noqa: S105 - WSL's word for a device option
REASON: Final = "porthole.reason"
DETAIL: Final = "porthole.detail"
KERNEL_RELEASE: Final = "porthole.kernel.release"
KERNEL_MAJOR: Final = "porthole.kernel.major"
KERNEL_MINOR: Final = "porthole.kernel.minor"
KERNEL_PATCH: Final = "porthole.kernel.patch"
SECCOMP: Final = "porthole.kernel.seccomp_user_notification"
DEVICE_ID: Final = "porthole.device.id"
DEVICE_CLASS: Final = "porthole.device.class"
DEVICE_TAG: Final = "porthole.device.tag"
DEVICE_OPTIONS: Final = "porthole.device.options"
DEVICE_HOST_FEATURES: Final = "porthole.device_host.features"
NETWORKING_ASKED: Final = "porthole.networking.asked"
NETWORKING_MODE: Final = "porthole.networking.mode"
NETWORKING_ADAPTERS: Final = "porthole.networking.adapters"
PORT_PROTOCOL: Final = "porthole.port.protocol"
PORT_ADDRESS: Final = "porthole.port.listen_address"
PORT_NUMBER: Final = "porthole.port.listen_port"
GUEST_PORT: Final = "porthole.port.guest_port"
LINK: Final = "porthole.link"
RESOURCE: Final = "porthole.resource"
STAGE: Final = "porthole.handshake.stage"
VERDICT: Final = "porthole.handshake.verdict"
BROKEN_RULES: Final = "porthole.handshake.broken_rules"

VM_CREATED: Final = "VmCreated"
GUEST_BOOTED: Final = "GuestBooted"
GUEST_KERNEL_INFO: Final = "GuestKernelInfo"
WSLC_READ: Final = "WSLCReadGuestCapabilities"
WSLC_APPLY: Final = "WSLCApplyGuestCapabilities"
POOL_LATCHED: Final = "PoolLatched"
POOL_NOT_AS_REQUESTED: Final = "PoolNotAsRequested"
POOL_REFUSED: Final = "PoolRefused"
KERNEL_UNSUPPORTED: Final = "MessageSwiotlbKernelUnsupported"
DEVICE_HOST_UNSUPPORTED: Final = "SwiotlbDeviceHostUnsupported"
DEVICE_ADDED: Final = "AddGuestDevice"
APERTURE_CREATED: Final = "ApertureCreated"
WINDOWS_ENABLED: Final = "WindowsEnabled"
FIRST_REQUEST: Final = "FirstRequestCompleted"
DEVICE_REMOVED: Final = "RemoveGuestDevice"
NETWORKING_FALLBACK: Final = "NetworkingFallback"
NETWORKING_CONFIGURED: Final = "NetworkingConfigured"
PORT_MAPPED: Final = "PortMapped"
PORT_UNMAPPED: Final = "PortUnmapped"
LINK_CHANGED: Final = "AdapterLinkChanged"
GUEST_INIT_ENDED: Final = "GuestInitEnded"
VM_TERMINATED: Final = "VmTerminated"
HANDSHAKE_VERDICT: Final = "HandshakeVerdict"

RUNNING: Final = "running"
"""The stage at which the owner judges first: the VM has become RUNNING."""
ENDED: Final = "ended"
"""The stage at which it judges again: the VM is about to end."""

VALID: Final = "valid"
BROKEN: Final = "broken"
UNKNOWN: Final = "unknown"
"""The verdict of an owner that has seen more events than it keeps."""

FS: Final = "virtio-fs"
NET: Final = "virtio-net"

ADAPTERS: Final = ("eth0", "loopback0")
"""The adapters that ConfigureNetworking adds, in that order."""

NONE: Final = "none"
NAT: Final = "nat"
VIRTIO_PROXY: Final = "virtioproxy"
MODES_WITH_ADAPTERS: Final = (NAT, VIRTIO_PROXY)
"""The networking modes that have adapters; NONE has none."""

UP: Final = "up"
DOWN: Final = "down"
"""The states of a link."""

NOT_CONFIGURED: Final = -1
"""The configured size of a pool when the configuration has none; 0 is a size: it asks for none."""

Attribute = str | int | bool
LARGEST_NUMBER: Final = (1 << 63) - 1
"""The largest number in a trace, whose integers are signed; it stands for larger ones, too."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: a name of this module and its attributes."""

    name: str
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sizing:
    """The size of the pool that a VM asks for, and what it was decided from.

    Attributes:
        ram_bytes: RAM of the VM.
        virtio: Whether virtio devices are allowed.
        device_bounces: Whether a device that bounces is in use.
        configured_bytes: Configured size of the pool; None: not configured.
        requested_bytes: Size that the kernel command line asks for; 0: no pool.
    """

    ram_bytes: int
    virtio: bool
    device_bounces: bool
    configured_bytes: int | None
    requested_bytes: int


def _numbers(base: int, size_bytes: int) -> dict[str, Attribute]:
    # A pool at a higher address is refused in any case.
    return {
        POOL_BASE: min(base, LARGEST_NUMBER),
        POOL_SIZE_BYTES: min(size_bytes, LARGEST_NUMBER),
    }


def _pool(pool: SwiotlbPool | None) -> dict[str, Attribute]:
    return _numbers(pool.base, pool.size_bytes) if pool else _numbers(0, 0)


def vm_created(vm_id: str, kind: str, sizing: Sizing) -> Event:
    """A VM exists, and its kernel command line is written."""
    configured_bytes = sizing.configured_bytes
    return Event(
        VM_CREATED,
        {
            VM_ID: vm_id,
            VM_KIND: kind,
            RAM_BYTES: sizing.ram_bytes,
            VIRTIO: sizing.virtio,
            DEVICE_BOUNCES: sizing.device_bounces,
            CONFIGURED_BYTES: NOT_CONFIGURED if configured_bytes is None else configured_bytes,
            REQUESTED_BYTES: sizing.requested_bytes,
        },
    )


def guest_booted(vm_id: str, ram_base: int) -> Event:
    """The machine has started the guest, whose RAM begins at that address; it has not reported."""
    return Event(GUEST_BOOTED, {VM_ID: vm_id, RAM_BASE: ram_base})


def guest_kernel_info(
    vm_id: str, capabilities: GuestCapabilities, version: KernelVersion | None
) -> Event:
    """A WSL2 guest has reported. `version` is None when the release does not parse."""
    attributes = {
        VM_ID: vm_id,
        **_pool(capabilities.pool),
        KERNEL_RELEASE: capabilities.kernel_release,
        KERNEL_MAJOR: version.major if version else 0,
        KERNEL_MINOR: version.minor if version else 0,
        KERNEL_PATCH: version.patch if version else 0,
        SECCOMP: bool(capabilities.seccomp_user_notification),
    }
    return Event(GUEST_KERNEL_INFO, attributes)


def wslc_read(vm_id: str, capabilities: GuestCapabilities) -> Event:
    """A WSLC guest's capabilities were read; every service that answered the read says so."""
    attributes = {**_pool(capabilities.pool), KERNEL_RELEASE: capabilities.kernel_release}
    return Event(WSLC_READ, {VM_ID: vm_id, **attributes})


def wslc_apply(vm_id: str, base: int, size_bytes: int, kernel_release: str) -> Event:
    """ApplyGuestCapabilities was called with this pool, valid or not; zeros for no pool."""
    attributes = {**_numbers(base, size_bytes), KERNEL_RELEASE: kernel_release}
    return Event(WSLC_APPLY, {VM_ID: vm_id, **attributes})


def pool_latched(vm_id: str, pool: SwiotlbPool, token: str) -> Event:
    """The VM owner has latched a pool; every device that is added later gets the token."""
    return Event(POOL_LATCHED, {VM_ID: vm_id, **_pool(pool), TOKEN: token})


def pool_not_as_requested(vm_id: str, pool: SwiotlbPool, requested_bytes: int) -> Event:
    """The latched pool is valid, but not of the size that the command line asked for."""
    attributes = {VM_ID: vm_id, **_pool(pool), REQUESTED_BYTES: requested_bytes}
    return Event(POOL_NOT_AS_REQUESTED, attributes)


def pool_refused(vm_id: str, base: int, size_bytes: int, reason: str, detail: str) -> Event:
    """The VM owner has refused the pool that a guest announced; nothing changed."""
    attributes = {VM_ID: vm_id, **_numbers(base, size_bytes), REASON: reason, DETAIL: detail}
    return Event(POOL_REFUSED, attributes)


def kernel_unsupported(vm_id: str, text: str) -> Event:
    """The user was warned that a WSL2 kernel publishes no pool."""
    return Event(KERNEL_UNSUPPORTED, {VM_ID: vm_id, DETAIL: text})


def device_host_unsupported(vm_id: str, text: str) -> Event:
    """The user was warned that a device host takes no token."""
    return Event(DEVICE_HOST_UNSUPPORTED, {VM_ID: vm_id, DETAIL: text})


def device_added(
    vm_id: str, device_id: str, device_class: str, tag: str, options: str, features: str
) -> Event:
    """The VM owner is about to create a device.

    Args:
        vm_id: Id of its VM.
        device_id: Its id.
        device_class: FS or NET.
        tag: Its mount tag or adapter name.
        options: The whole options string.
        features: The features that its device host announced, as of features.feature_list.
    """
    attributes = {DEVICE_OPTIONS: options, DEVICE_HOST_FEATURES: features}
    return Event(DEVICE_ADDED, {**_device(vm_id, device_id, device_class, tag), **attributes})


def aperture_created(
    vm_id: str, device_id: str, device_class: str, tag: str, pool: SwiotlbPool
) -> Event:
    """A device has mapped exactly [base, base + size) of its VM's memory."""
    return Event(APERTURE_CREATED, {**_device(vm_id, device_id, device_class, tag), **_pool(pool)})


def windows_enabled(vm_id: str, device_id: str, device_class: str, tag: str) -> Event:
    """A device without a token maps windows of guest memory on demand."""
    return Event(WINDOWS_ENABLED, {**_device(vm_id, device_id, device_class, tag), **_pool(None)})


def first_request(vm_id: str, device_id: str, device_class: str, tag: str) -> Event:
    """A device has completed its guest's first request."""
    return Event(FIRST_REQUEST, _device(vm_id, device_id, device_class, tag))


def link_changed(
    vm_id: str, device_id: str, device_class: str, tag: str, *, up: bool, why: str
) -> Event:
    """An adapter has lost its link, or has it again: passt has ended, a TAP was set down."""
    attributes = {LINK: UP if up else DOWN, DETAIL: why}
    return Event(LINK_CHANGED, {**_device(vm_id, device_id, device_class, tag), **attributes})


def device_removed(vm_id: str, device_id: str, device_class: str, tag: str) -> Event:
    """The VM owner has removed a device."""
    return Event(DEVICE_REMOVED, _device(vm_id, device_id, device_class, tag))


def networking_fallback(vm_id: str, asked: str, reason: str, detail: str) -> Event:
    """The user was warned that a networking mode cannot be set up, and that there is none."""
    attributes = {NETWORKING_ASKED: asked, REASON: reason, DETAIL: detail}
    return Event(NETWORKING_FALLBACK, {VM_ID: vm_id, **attributes})


def networking_configured(vm_id: str, asked: str, mode: str, adapter_ids: Sequence[str]) -> Event:
    """The networking of a VM is set up.

    Args:
        vm_id: Id of the VM.
        asked: The mode that was asked for: NONE, NAT or VIRTIO_PROXY.
        mode: The mode in force: the same, or NONE.
        adapter_ids: Ids of its adapters, in the order of ADAPTERS.
    """
    attributes = {
        NETWORKING_ASKED: asked,
        NETWORKING_MODE: mode,
        NETWORKING_ADAPTERS: " ".join(adapter_ids),
    }
    return Event(NETWORKING_CONFIGURED, {VM_ID: vm_id, **attributes})


def port(name: str, vm_id: str, protocol: str, address: str, number: int, guest_port: int) -> Event:
    """A port of the host is forwarded to one of the guest, or is so no more.

    Args:
        name: PORT_MAPPED or PORT_UNMAPPED.
        vm_id: Id of the VM.
        protocol: "tcp" or "udp".
        address: Address of the host.
        number: Port of the host.
        guest_port: Port of the guest.
    """
    attributes: dict[str, Attribute] = {
        VM_ID: vm_id,
        PORT_PROTOCOL: protocol,
        PORT_ADDRESS: address,
        PORT_NUMBER: number,
        GUEST_PORT: guest_port,
    }
    return Event(name, attributes)


def guest_init_ended(vm_id: str, cause: str) -> Event:
    """Guest init has ended by itself, and the owner shuts its VM down."""
    return Event(GUEST_INIT_ENDED, {VM_ID: vm_id, DETAIL: cause})


def vm_terminated(vm_id: str) -> Event:
    """The VM was taken down in the documented order."""
    return Event(VM_TERMINATED, {VM_ID: vm_id})


def handshake_verdict(vm_id: str, stage: str, broken: Sequence[str] | None) -> Event:
    """The owner has judged what it knows of a handshake.

    Args:
        vm_id: Id of the VM.
        stage: RUNNING or ENDED.
        broken: The rules that are broken; None: the owner has seen more events than it keeps.
    """
    verdict = UNKNOWN if broken is None else BROKEN if broken else VALID
    attributes = {STAGE: stage, VERDICT: verdict, BROKEN_RULES: " ".join(broken or ())}
    return Event(HANDSHAKE_VERDICT, {VM_ID: vm_id, **attributes})


def _device(vm_id: str, device_id: str, device_class: str, tag: str) -> dict[str, Attribute]:
    return {VM_ID: vm_id, DEVICE_ID: device_id, DEVICE_CLASS: device_class, DEVICE_TAG: tag}
