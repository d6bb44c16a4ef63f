"""The gRPC edge of the VM owner: VmOwner for its users, InitChannel for one guest.

Owns the translation between protobuf and the owner's values, and the checks of syntax: enum values,
and the sizes of messages.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from porthole.guest.v1 import guest_init_pb2, guest_init_pb2_grpc
from porthole.handshake.v1.device_pb2 import DeviceCounters
from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities
from porthole.vmowner.v1 import vm_owner_pb2, vm_owner_pb2_grpc

from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.rpc.convert import (
    device_class_from_proto,
    device_class_to_proto,
    device_state_to_proto,
    exhaustion_to_proto,
    pool_to_proto,
)
from services.rpc.server import ServerHandle, Servicer, start_server
from services.rpc.version import service_version
from services.vm_owner.device_hosts import DeviceStatus
from services.vm_owner.device_names import check_interface
from services.vm_owner.guest_devices import DeviceSpec, GuestDevice
from services.vm_owner.owner import MachineSpec, VmOwner, VmSpec
from services.vm_owner.record import Report, VmKind
from services.vm_owner.shares import Share, ShareSpec, canonical_directory
from services.vm_owner.states import VmState
from services.vm_owner.warnings import VmWarning
from services.vm_owner.watch_items import DeviceChange, DeviceExhausted, PoolLatched, WatchItem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from services.vm_owner.manifest import Manifest
    from services.vm_owner.vm import Vm

VM_OWNER: Final = "porthole.vmowner.v1.VmOwner"
INIT_CHANNEL: Final = "porthole.guest.v1.InitChannel"

CAPABILITIES_LIMIT_BYTES: Final = 64 << 10
"""Largest capabilities that are accepted: the owner keeps them, and a guest is not trusted."""

RELEASE_LIMIT: Final = 255
"""Longest kernel release that is accepted; Linux has at most 64 characters (utsname.h)."""

_KINDS: Final[Mapping[int, VmKind]] = {
    vm_owner_pb2.VM_KIND_WSL2: VmKind.WSL2,
    vm_owner_pb2.VM_KIND_WSLC: VmKind.WSLC,
}


class VmOwnerServicer(vm_owner_pb2_grpc.VmOwnerServicer):
    """Serves porthole.vmowner.v1.VmOwner."""

    def __init__(self, owner: VmOwner, manifest: Manifest) -> None:
        self._owner = owner
        self._manifest = manifest

    async def GetVersion(  # noqa: N802, D102
        self, request: vm_owner_pb2.GetVersionRequest, context: object
    ) -> vm_owner_pb2.GetVersionResponse:
        return vm_owner_pb2.GetVersionResponse(
            version=service_version(VM_OWNER),
            first_kernel_with_pool=self._manifest.first_kernel_with_pool,
            first_device_host_with_token=self._manifest.first_device_host_with_token,
            bundled_kernel=self._manifest.bundled_kernel,
        )

    async def CreateVm(  # noqa: N802, D102
        self, request: vm_owner_pb2.CreateVmRequest, context: object
    ) -> vm_owner_pb2.CreateVmResponse:
        spec = VmSpec(
            kind=_kind(request.kind),
            ram_bytes=request.ram_bytes,
            wslconfig=request.wslconfig,
            wslconfig_name=request.wslconfig_name,
            machine=_machine_spec(request),
            shares=tuple(_share_spec(share) for share in request.shares),
        )
        vm = await self._owner.create(spec)
        return vm_owner_pb2.CreateVmResponse(vm=await self._describe(vm))

    async def GetVm(  # noqa: N802, D102
        self, request: vm_owner_pb2.GetVmRequest, context: object
    ) -> vm_owner_pb2.GetVmResponse:
        vm = self._owner.find(request.vm_id)
        return vm_owner_pb2.GetVmResponse(vm=await self._describe(vm))

    async def ListVms(  # noqa: N802, D102
        self, request: vm_owner_pb2.ListVmsRequest, context: object
    ) -> vm_owner_pb2.ListVmsResponse:
        described = await asyncio.gather(*(self._describe(vm) for vm in self._owner.all()))
        return vm_owner_pb2.ListVmsResponse(vms=described)

    async def WatchVm(  # noqa: N802, D102
        self, request: vm_owner_pb2.WatchVmRequest, context: object
    ) -> AsyncIterator[vm_owner_pb2.WatchVmResponse]:
        vm = self._owner.find(request.vm_id)
        statuses = await self._owner.statuses(vm)
        present = [
            DeviceChange(
                device.instance_id,
                device.spec.tag,
                _status_of(device, statuses).state,
                "present when the watch began",
            )
            for device in vm.devices.all()
        ]
        with vm.record.watch(present) as stream:
            async for item in stream:
                yield _watch_response(item)

    async def ApplyGuestCapabilities(  # noqa: N802, D102
        self, request: vm_owner_pb2.ApplyGuestCapabilitiesRequest, context: object
    ) -> vm_owner_pb2.ApplyGuestCapabilitiesResponse:
        already_applied, token = await self._owner.apply_capabilities(
            request.vm_id, report_from_proto(request.capabilities)
        )
        return vm_owner_pb2.ApplyGuestCapabilitiesResponse(
            already_applied=already_applied, swiotlb_option=token
        )

    async def AddShare(  # noqa: N802, D102
        self, request: vm_owner_pb2.AddShareRequest, context: object
    ) -> vm_owner_pb2.AddShareResponse:
        share, existed = await self._owner.add_share(request.vm_id, _share_spec(request.share))
        return vm_owner_pb2.AddShareResponse(share=_share(share), already_existed=existed)

    async def RemoveShare(  # noqa: N802, D102
        self, request: vm_owner_pb2.RemoveShareRequest, context: object
    ) -> vm_owner_pb2.RemoveShareResponse:
        await self._owner.remove_share(request.vm_id, request.share_id)
        return vm_owner_pb2.RemoveShareResponse()

    async def AddGuestDevice(  # noqa: N802, D102
        self, request: vm_owner_pb2.AddGuestDeviceRequest, context: object
    ) -> vm_owner_pb2.AddGuestDeviceResponse:
        self._owner.find(request.vm_id)
        spec = await _device_spec(request)
        device = await self._owner.add_device(request.vm_id, spec)
        return vm_owner_pb2.AddGuestDeviceResponse(device=_device(device, {}))

    async def RemoveGuestDevice(  # noqa: N802, D102
        self, request: vm_owner_pb2.RemoveGuestDeviceRequest, context: object
    ) -> vm_owner_pb2.RemoveGuestDeviceResponse:
        await self._owner.remove_device(request.vm_id, request.instance_id)
        return vm_owner_pb2.RemoveGuestDeviceResponse()

    async def ConfigureNetworking(  # noqa: N802, D102
        self, request: vm_owner_pb2.ConfigureNetworkingRequest, context: object
    ) -> vm_owner_pb2.ConfigureNetworkingResponse:
        network = await self._owner.configure_networking(request.vm_id)
        return vm_owner_pb2.ConfigureNetworkingResponse(
            adapters=[_device(adapter, {}) for adapter in network.adapters],
            gateway_address=network.gateway_address,
        )

    async def TerminateVm(  # noqa: N802, D102
        self, request: vm_owner_pb2.TerminateVmRequest, context: object
    ) -> vm_owner_pb2.TerminateVmResponse:
        await self._owner.terminate(request.vm_id)
        return vm_owner_pb2.TerminateVmResponse()

    async def _describe(self, vm: Vm) -> vm_owner_pb2.Vm:
        return _vm(vm, await self._owner.statuses(vm))


class InitChannelServicer(guest_init_pb2_grpc.InitChannelServicer):
    """Serves porthole.guest.v1.InitChannel to the guest of one VM.

    Args:
        on_report: Called with a report; returns whether a pool is latched afterwards.
    """

    def __init__(self, on_report: Callable[[Report], Awaitable[bool]]) -> None:
        self._on_report = on_report

    async def GetVersion(  # noqa: N802, D102
        self, request: guest_init_pb2.GetVersionRequest, context: object
    ) -> guest_init_pb2.GetVersionResponse:
        return guest_init_pb2.GetVersionResponse(version=service_version(INIT_CHANNEL))

    async def ReportGuestCapabilities(  # noqa: N802, D102
        self, request: guest_init_pb2.ReportGuestCapabilitiesRequest, context: object
    ) -> guest_init_pb2.ReportGuestCapabilitiesResponse:
        latched = await self._on_report(report_from_proto(request.capabilities))
        return guest_init_pb2.ReportGuestCapabilitiesResponse(pool_latched=latched)


class InitChannelServer:
    """The server of one VM's init channel, in the VM's directory."""

    def __init__(self, server: ServerHandle) -> None:
        self._server = server
        self.address = server.addresses[0]

    async def close(self) -> None:
        """Stop listening, and cancel a report that is being answered."""
        await self._server.stop(0)


async def open_init_channel(
    directory: Path, on_report: Callable[[Report], Awaitable[bool]]
) -> InitChannelServer:
    """Serve InitChannel, and nothing else, on `<directory>/init.sock`.

    Raises:
        FailedPreconditionError: ADDRESS_IN_USE or ADDRESS_UNUSABLE.
    """
    servicer = InitChannelServicer(on_report)
    add = guest_init_pb2_grpc.add_InitChannelServicer_to_server
    address = f"unix:{directory}/init.sock"
    return InitChannelServer(await start_server([address], [Servicer(add, servicer, INIT_CHANNEL)]))


def vm_owner_servicer(owner: VmOwner, manifest: Manifest) -> Servicer:
    """Return what the owner's server serves."""
    add = vm_owner_pb2_grpc.add_VmOwnerServicer_to_server
    return Servicer(add, VmOwnerServicer(owner, manifest), VM_OWNER)


def _kind(value: int) -> VmKind:
    kind = _KINDS.get(value)
    if kind is None:
        known = ", ".join(f"{kind} ({number})" for number, kind in _KINDS.items())
        raise InvalidArgumentError(
            "VM_KIND_UNKNOWN",
            f"VM kind {value} is not known; the known ones are {known}",
            kind=value,
        )
    return kind


def _machine_spec(request: vm_owner_pb2.CreateVmRequest) -> MachineSpec:
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


def report_from_proto(message: GuestCapabilities) -> Report:
    """Read a guest's capabilities, and keep the message for the fields that are unknown here.

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
        received=message.SerializeToString(),
    )


def _share_spec(message: vm_owner_pb2.ShareSpec) -> ShareSpec:
    return ShareSpec(
        message.host_path, message.tag, message.options, message.elevated, message.aggregate
    )


async def _device_spec(request: vm_owner_pb2.AddGuestDeviceRequest) -> DeviceSpec:
    device_class = device_class_from_proto(request.device_class)
    backend = request.backend
    if device_class == events.FS:
        backend = await asyncio.to_thread(canonical_directory, backend)
    else:
        check_interface(backend)
    return DeviceSpec(device_class, request.tag, request.options, backend, request.elevated)


def _vm(vm: Vm, statuses: Mapping[str, DeviceStatus]) -> vm_owner_pb2.Vm:
    record, facts = vm.record, vm.record.facts
    received = record.report.received if record.report else None
    return vm_owner_pb2.Vm(
        vm_id=facts.vm_id,
        kind=vm_owner_pb2.VmKind.Value(f"VM_KIND_{facts.kind}"),
        state=_state(record.state),
        ram_bytes=facts.ram_bytes,
        kernel_command_line=facts.kernel_command_line,
        # Parsed from the message as received, so that it keeps the fields that are unknown here.
        capabilities=None if received is None else GuestCapabilities.FromString(received),
        latched_pool=pool_to_proto(record.pool) if record.pool else None,
        swiotlb_option=record.token or "",
        shares=[_share(share) for share in vm.shares.values()],
        devices=[_device(device, statuses) for device in vm.devices.all()],
        warnings=[_warning(warning) for warning in record.warnings],
        networking_mode=vm_owner_pb2.NetworkingMode.Value(
            f"NETWORKING_MODE_{facts.networking_mode.name}"
        ),
        guest_init_address=vm.guest_init_address,
        machine_address=vm.machine.address,
        traceparent=facts.traceparent,
    )


def _state(state: VmState) -> vm_owner_pb2.VmState.ValueType:
    return vm_owner_pb2.VmState.Value(f"VM_STATE_{state}")


def _share(share: Share) -> vm_owner_pb2.Share:
    return vm_owner_pb2.Share(
        share_id=share.share_id,
        instance_id=share.device.instance_id,
        host_path=share.key.canonical_path,
        tag=share.device.spec.tag,
        options=share.spec.options,
        elevated=share.spec.elevated,
        aggregate=share.spec.aggregate,
    )


def _status_of(device: GuestDevice, statuses: Mapping[str, DeviceStatus]) -> DeviceStatus:
    unknown = DeviceStatus("", device.instance_id, device.spec.tag)
    return statuses.get(device.instance_id, unknown)


def _device(device: GuestDevice, statuses: Mapping[str, DeviceStatus]) -> vm_owner_pb2.Device:
    status = _status_of(device, statuses)
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


def _watch_response(item: WatchItem) -> vm_owner_pb2.WatchVmResponse:
    match item:
        case VmState():
            return vm_owner_pb2.WatchVmResponse(state=_state(item))
        case VmWarning():
            return vm_owner_pb2.WatchVmResponse(warning=_warning(item))
        case PoolLatched(pool):
            return vm_owner_pb2.WatchVmResponse(pool_latched=pool_to_proto(pool))
        case DeviceChange(instance_id, tag, state, detail):
            device = vm_owner_pb2.DeviceEvent(instance_id=instance_id, tag=tag, detail=detail)
            device.state = device_state_to_proto(state)
            return vm_owner_pb2.WatchVmResponse(device=device)
        case DeviceExhausted(instance_id, tag, what):
            exhausted = vm_owner_pb2.DeviceExhausted(
                instance_id=instance_id, tag=tag, detail=str(what)
            )
            exhausted.exhaustion.CopyFrom(exhaustion_to_proto(what))
            return vm_owner_pb2.WatchVmResponse(exhausted=exhausted)
