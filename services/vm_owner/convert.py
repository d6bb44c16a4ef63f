"""Conversion between the messages of VmOwner and InitChannel and the owner's values.

Owns the checks of syntax: enum values, and the sizes of messages. Must not know gRPC.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from porthole.handshake.v1.device_pb2 import DeviceCounters
from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities
from porthole.vmowner.v1 import vm_owner_pb2

from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.rpc.convert import (
    device_class_to_proto,
    device_state_to_proto,
    exhaustion_to_proto,
    pool_to_proto,
)
from services.vm_owner.assembly import MachineSpec, QemuSpec
from services.vm_owner.device_hosts import DeviceStatus
from services.vm_owner.device_names import check_interface
from services.vm_owner.guest_devices import DeviceSpec, GuestDevice
from services.vm_owner.machines import Isolation
from services.vm_owner.networking import NetworkRequest
from services.vm_owner.record import VmKind
from services.vm_owner.reports import UNKNOWN, Report
from services.vm_owner.shares import Share, ShareSpec, canonical_directory
from services.vm_owner.states import VmState
from services.vm_owner.warnings import VmWarning
from services.vm_owner.watch_items import DeviceChange, DeviceExhausted, PoolLatched, WatchItem
from services.vm_owner.wslconfig import NetworkingMode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from porthole.guest.v1 import guest_init_pb2

    from services.vm_owner.host_paths import HostPaths
    from services.vm_owner.networking import Network
    from services.vm_owner.vm import Vm

CAPABILITIES_LIMIT_BYTES: Final = 64 << 10
"""Largest capabilities that are accepted: the owner keeps them, and a guest is not trusted."""

RELEASE_LIMIT: Final = 255
"""Longest kernel release that is accepted; Linux has at most 64 characters (utsname.h)."""

CPUS_LIMIT: Final = 64
"""Most virtual CPUs of a machine."""

_KINDS: Final[Mapping[int, VmKind]] = {
    vm_owner_pb2.VM_KIND_WSL2: VmKind.WSL2,
    vm_owner_pb2.VM_KIND_WSLC: VmKind.WSLC,
}

_ISOLATIONS: Final[Mapping[int, Isolation]] = {
    vm_owner_pb2.ISOLATION_UNSPECIFIED: Isolation.SHARED_RAM,
    vm_owner_pb2.ISOLATION_SHARED_RAM: Isolation.SHARED_RAM,
    vm_owner_pb2.ISOLATION_STRICT: Isolation.STRICT,
}

_MODES: Final[Mapping[int, NetworkingMode | None]] = {
    vm_owner_pb2.NETWORKING_MODE_UNSPECIFIED: None,
    **{
        vm_owner_pb2.NetworkingMode.Value(f"NETWORKING_MODE_{mode.name}"): mode
        for mode in NetworkingMode
    },
}


def vm_kind_from_proto(value: int) -> VmKind:
    """Convert the kind of a VM.

    Raises:
        InvalidArgumentError: VM_KIND_UNKNOWN.
    """
    kind = _KINDS.get(value)
    if kind is None:
        known = ", ".join(f"{kind} ({number})" for number, kind in _KINDS.items())
        raise InvalidArgumentError(
            "VM_KIND_UNKNOWN",
            f"VM kind {value} is not known; the known ones are {known}",
            kind=value,
        )
    return kind


def machine_spec_from_proto(request: vm_owner_pb2.CreateVmRequest) -> MachineSpec:
    """Convert the machine that CreateVm asks for.

    Raises:
        InvalidArgumentError: MACHINE_ADDRESS, KERNEL_RELEASE_SYNTAX, MACHINE_CPUS, MACHINE_PATH
            or ISOLATION_UNKNOWN.
    """
    if request.WhichOneof("machine") == "qemu":
        return MachineSpec(qemu=_qemu_spec(request.qemu))
    if request.WhichOneof("machine") == "external":
        machine: vm_owner_pb2.ExternalMachine | vm_owner_pb2.EmbeddedMachine = request.external
        spec = MachineSpec(address=request.external.address)
        if not spec.address:
            raise InvalidArgumentError(
                "MACHINE_ADDRESS", "an external machine needs its address, for instance unix:/run/…"
            )
    else:
        machine, spec = request.embedded, MachineSpec()
    publishes = machine.publishes_pool if machine.HasField("publishes_pool") else None
    _check_release(machine.kernel_release)
    return replace(spec, kernel_release=machine.kernel_release, publishes_pool=publishes)


def _qemu_spec(machine: vm_owner_pb2.QemuMachine) -> QemuSpec:
    if machine.cpus > CPUS_LIMIT:
        raise InvalidArgumentError(
            "MACHINE_CPUS",
            f"a machine has at most {CPUS_LIMIT} virtual CPUs, not {machine.cpus}",
            cpus=machine.cpus,
            limit=CPUS_LIMIT,
        )
    for path in (machine.kernel, machine.initramfs):
        if path and (not path.startswith("/") or not path.isprintable()):
            raise InvalidArgumentError(
                "MACHINE_PATH",
                f"{path[:64]!r} is not the absolute path of a file that a guest boots",
            )
    isolation = _ISOLATIONS.get(machine.isolation)
    if isolation is None:
        raise InvalidArgumentError(
            "ISOLATION_UNKNOWN",
            f"isolation {machine.isolation} is not known; the known ones are "
            f"{', '.join(f'{each} ({number})' for number, each in _ISOLATIONS.items())}",
            isolation=machine.isolation,
        )
    return QemuSpec(machine.kernel, machine.initramfs, machine.cpus, isolation)


def _check_release(release: str) -> None:
    # The release becomes a flag of guest init, and a part of warnings.
    if len(release) > RELEASE_LIMIT or not release.isprintable():
        raise InvalidArgumentError(
            "KERNEL_RELEASE_SYNTAX",
            f"kernel release {release[:32]!r} has {len(release)} characters; it needs at most "
            f"{RELEASE_LIMIT}, all printable",
            length=len(release),
            limit=RELEASE_LIMIT,
        )


def report_in(
    request: vm_owner_pb2.ApplyGuestCapabilitiesRequest
    | guest_init_pb2.ReportGuestCapabilitiesRequest,
) -> Report:
    """Read the capabilities of a request, which must have some, be they empty.

    Raises:
        InvalidArgumentError: CAPABILITIES_MISSING, or a reason of report_from_proto.
    """
    if not request.HasField("capabilities"):
        raise InvalidArgumentError(
            "CAPABILITIES_MISSING",
            "the request has no capabilities; pass on what guest init answered, even if it is "
            "empty",
        )
    return report_from_proto(request.capabilities)


def report_from_proto(message: GuestCapabilities) -> Report:
    """Read a guest's capabilities, with the fields that are unknown here.

    The pool is not judged.

    Raises:
        InvalidArgumentError: CAPABILITIES_TOO_LARGE or KERNEL_RELEASE_SYNTAX.
    """
    size_bytes = message.ByteSize()
    if size_bytes > CAPABILITIES_LIMIT_BYTES:
        raise InvalidArgumentError(
            "CAPABILITIES_TOO_LARGE",
            f"guest capabilities of {size_bytes} bytes are more than {CAPABILITIES_LIMIT_BYTES}",
            size=size_bytes,
            limit=CAPABILITIES_LIMIT_BYTES,
        )
    _check_release(message.kernel_release)
    seccomp = (
        message.seccomp_user_notification if message.HasField("seccomp_user_notification") else None
    )
    return Report(
        base=message.swiotlb_pool.base,
        size_bytes=message.swiotlb_pool.size_bytes,
        kernel_release=message.kernel_release,
        seccomp_user_notification=seccomp,
        fields=_fields(message),
    )


def _fields(message: GuestCapabilities) -> dict[str, bytes]:
    """Take a message apart; the parts, one after the other, are the message."""
    found: dict[str, bytes] = {}
    rest = GuestCapabilities()
    rest.CopyFrom(message)
    for descriptor, value in message.ListFields():
        part = GuestCapabilities()
        if descriptor.message_type is None:
            setattr(part, descriptor.name, value)
        else:
            getattr(part, descriptor.name).CopyFrom(value)
            getattr(part, descriptor.name).SetInParent()
        found[descriptor.name] = part.SerializeToString()
        rest.ClearField(descriptor.name)  # type: ignore[arg-type]
    if unknown := rest.SerializeToString():
        found[UNKNOWN] = unknown
    return found


def share_spec_from_proto(message: vm_owner_pb2.ShareSpec) -> ShareSpec:
    """Convert a share that was asked for."""
    return ShareSpec(
        message.host_path, message.tag, message.options, message.elevated, message.aggregate
    )


async def device_spec_from_proto(
    request: vm_owner_pb2.AddGuestDeviceRequest, host_paths: HostPaths
) -> DeviceSpec:
    """Convert a device that was asked for, with the canonical path of its directory.

    Raises:
        InvalidArgumentError: BACKEND_MISSING.
        PortholeError: See canonical_directory, HostPaths.look and check_interface.
    """
    match request.WhichOneof("backend"):
        case "directory":
            path = request.directory
            device_class = events.FS
            backend = await host_paths.look(path, partial(canonical_directory, path))
        case "tap":
            device_class, backend = events.NET, request.tap
            check_interface(backend)
        case _:
            raise InvalidArgumentError(
                "BACKEND_MISSING", "a device needs a directory (virtio-fs) or a TAP (virtio-net)"
            )
    return DeviceSpec(device_class, request.tag, request.options, backend, request.elevated)


def network_request_from_proto(message: vm_owner_pb2.ConfigureNetworkingRequest) -> NetworkRequest:
    """Convert the networking that was asked for.

    Raises:
        InvalidArgumentError: NETWORKING_MODE_UNKNOWN.
    """
    if message.mode not in _MODES:
        raise InvalidArgumentError(
            "NETWORKING_MODE_UNKNOWN",
            f"networking mode {message.mode} is not known; the known ones are "
            f"{', '.join(f'{mode} ({number})' for number, mode in _MODES.items() if mode)}",
            mode=message.mode,
        )
    return NetworkRequest(_MODES[message.mode], message.options, message.host_loopback)


def network_to_proto(network: Network) -> vm_owner_pb2.ConfigureNetworkingResponse:
    """Convert the networking of a VM."""
    return vm_owner_pb2.ConfigureNetworkingResponse(
        adapters=[device_to_proto(adapter, {}) for adapter in network.adapters],
        gateway_address=network.gateway_address,
        mode=_mode(network.mode),
        warning=_warning(network.warning) if network.warning else None,
        host_loopback_address=network.host_loopback_address,
    )


def _mode(mode: NetworkingMode) -> vm_owner_pb2.NetworkingMode.ValueType:
    return vm_owner_pb2.NetworkingMode.Value(f"NETWORKING_MODE_{mode.name}")


def vm_to_proto(vm: Vm, statuses: Mapping[str, DeviceStatus]) -> vm_owner_pb2.Vm:
    """Convert a VM, with the states and counters of its devices."""
    record = vm.record
    message = vm_basics_to_proto(vm)
    if record.report is not None:
        # Parsed from the message as received, so that it keeps the fields that are unknown here.
        message.capabilities.ParseFromString(record.report.message)
    message.shares.extend(share_to_proto(share) for share in vm.shares.by_id.values())
    message.devices.extend(device_to_proto(device, statuses) for device in vm.devices.all())
    message.warnings.extend(_warning(warning) for warning in record.warnings)
    return message


def vm_basics_to_proto(vm: Vm) -> vm_owner_pb2.Vm:
    """Convert a VM without what grows with its guest and its devices."""
    record, facts = vm.record, vm.record.facts
    return vm_owner_pb2.Vm(
        vm_id=facts.vm_id,
        kind=vm_owner_pb2.VmKind.Value(f"VM_KIND_{facts.kind}"),
        state=_state(record.state),
        ram_bytes=facts.ram_bytes,
        kernel_command_line=facts.kernel_command_line,
        latched_pool=pool_to_proto(record.pool) if record.pool else None,
        swiotlb_option=record.token or "",
        networking_mode=_mode(facts.config.networking_mode),
        guest_init_address=vm.guest_init_address,
        machine_address=vm.machine.address,
        traceparent=facts.traceparent,
        isolation=(
            vm_owner_pb2.ISOLATION_STRICT
            if facts.divides_pool
            else vm_owner_pb2.ISOLATION_SHARED_RAM
        ),
    )


def _state(state: VmState) -> vm_owner_pb2.VmState.ValueType:
    return vm_owner_pb2.VmState.Value(f"VM_STATE_{state}")


def share_to_proto(share: Share) -> vm_owner_pb2.Share:
    """Convert a share."""
    return vm_owner_pb2.Share(
        share_id=share.share_id,
        instance_id=share.device.instance_id,
        host_path=share.key.canonical_path,
        tag=share.device.spec.tag,
        options=share.spec.options,
        elevated=share.spec.elevated,
        aggregate=share.spec.aggregate,
    )


def status_of(device: GuestDevice, statuses: Mapping[str, DeviceStatus]) -> DeviceStatus:
    """Return the status of a device; UNSPECIFIED, without counters, when it is missing."""
    unknown = DeviceStatus("", device.instance_id, device.spec.tag)
    return statuses.get(device.instance_id, unknown)


def device_to_proto(
    device: GuestDevice, statuses: Mapping[str, DeviceStatus]
) -> vm_owner_pb2.Device:
    """Convert a device, with its state and counters."""
    status = status_of(device, statuses)
    return vm_owner_pb2.Device(
        instance_id=device.instance_id,
        device_class=device_class_to_proto(device.spec.device_class),
        tag=device.spec.tag,
        options=device.options,
        socket_path=device.socket_path,
        counters=DeviceCounters(**status.counters),
        elevated=device.spec.elevated,
        state=device_state_to_proto(status.state),
    )


def _warning(warning: VmWarning) -> vm_owner_pb2.Warning:
    return vm_owner_pb2.Warning(id=warning.id, text=warning.text)


def watch_item_to_proto(item: WatchItem, sequence: int) -> vm_owner_pb2.WatchVmResponse:
    """Convert an item of a watcher's stream, with its number."""
    message = vm_owner_pb2.WatchVmResponse(sequence=sequence)
    match item:
        case VmState():
            message.state = _state(item)
        case VmWarning():
            message.warning.CopyFrom(_warning(item))
        case PoolLatched(pool):
            message.pool_latched.CopyFrom(pool_to_proto(pool))
        case DeviceChange(instance_id, tag, state, detail):
            device = message.device
            device.instance_id, device.tag, device.detail = instance_id, tag, detail
            device.state = device_state_to_proto(state)
        case DeviceExhausted(instance_id, tag, what):
            exhausted = message.exhausted
            exhausted.instance_id, exhausted.tag, exhausted.detail = instance_id, tag, str(what)
            exhausted.exhaustion.CopyFrom(exhaustion_to_proto(what))
    return message
