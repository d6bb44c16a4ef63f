"""The clients of the services, over gRPC: requests in, views out.

Owns the translation between protobuf and the values of cli. Must not know tables.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from porthole.devicehost.v1 import device_host_pb2, device_host_pb2_grpc
from porthole.handshake.v1 import device_pb2
from porthole.machine.v1 import machine_pb2, machine_pb2_grpc
from porthole.vmowner.v1 import vm_owner_pb2, vm_owner_pb2_grpc

from services.cli.documents import (
    AdapterLimits,
    AddedPort,
    DeviceEvent,
    ExhaustedEvent,
    PoolLatchedEvent,
    StateEvent,
    UnknownEvent,
    VmEvent,
    WarningEvent,
)
from services.cli.requests import ShareRequest, VmRequest
from services.cli.views import (
    CopyResult,
    DeviceView,
    FileDigest,
    HttpResult,
    PingResult,
    PoolUse,
    PortView,
    RateLimitView,
    ShareView,
    VersionView,
    VmView,
    WarningView,
)
from services.handshake.errors import FailedPreconditionError, NotFoundError
from services.rpc.address import numeric, parse_address
from services.rpc.channel import OPTIONS, connect, ready
from services.rpc.convert import (
    duration_to_proto,
    mapping_from_proto,
    mapping_to_proto,
    port_key_to_proto,
    rate_limits_to_proto,
    timeout_from_proto,
)
from services.rpc.status import error_from_rpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from porthole.handshake.v1 import port_pb2, rate_limit_pb2

    from services.handshake.ports import PortKey, PortMapping
    from services.handshake.rate_limit import RateLimits

VM_OWNER: Final = "porthole.vmowner.v1.VmOwner"
DEVICE_HOST: Final = "porthole.devicehost.v1.DeviceHost"
MACHINE: Final = "porthole.machine.v1.Machine"

BOOT_DEADLINE_S: Final = 60.0
"""Longest that CreateVm and other calls that change a VM take."""

WORKLOAD_DEADLINE_S: Final = 300.0
"""Longest that one call of Workload takes."""


class OwnerClient:
    """A connected VM owner. A method raises the PortholeError that the owner answered."""

    def __init__(self, stub: vm_owner_pb2_grpc.VmOwnerAsyncStub) -> None:
        self._stub = stub

    async def create_vm(self, request: VmRequest) -> VmView:
        """Create and boot a VM."""
        message = vm_owner_pb2.CreateVmRequest(
            kind=vm_owner_pb2.VmKind.Value(f"VM_KIND_{request.kind.upper()}"),
            ram_bytes=request.ram_bytes,
            wslconfig=request.wslconfig,
            wslconfig_name=request.wslconfig_name,
            shares=[_share_spec(share) for share in request.shares],
        )
        _ask_for_machine(message, request)
        answer = await self._stub.CreateVm(message, timeout=BOOT_DEADLINE_S)
        return _vm(answer.vm)

    async def get_vm(self, vm_id: str) -> VmView:
        """Return the VM with this id, or the only one whose id begins with it."""
        return _vm((await self._stub.GetVm(vm_owner_pb2.GetVmRequest(vm_id=vm_id))).vm)

    async def list_vms(self) -> list[VmView]:
        """Return all VMs, including terminated ones."""
        request = vm_owner_pb2.ListVmsRequest(view=vm_owner_pb2.VM_VIEW_FULL)
        vms: list[VmView] = []
        while True:
            page = await self._stub.ListVms(request)
            vms += (_vm(vm) for vm in page.vms)
            if not page.next_page_token:
                return vms
            request.page_token = page.next_page_token

    async def watch_vm(self, vm_id: str) -> AsyncIterator[VmEvent]:
        """Stream the events of a VM, its present state first, until the owner ends the stream."""
        async for event in self._stub.WatchVm(vm_owner_pb2.WatchVmRequest(vm_id=vm_id)):
            if not event.HasField("snapshot_end"):
                yield _watched(event)

    async def terminate_vm(self, vm_id: str) -> None:
        """Shut a VM down, in the documented order."""
        request = vm_owner_pb2.TerminateVmRequest(vm_id=vm_id)
        await self._stub.TerminateVm(request, timeout=BOOT_DEADLINE_S)

    async def add_share(self, vm_id: str, share: ShareRequest) -> tuple[ShareView, bool]:
        """Share a directory; returns the share, and whether an equal one existed already."""
        request = vm_owner_pb2.AddShareRequest(vm_id=vm_id, share=_share_spec(share))
        answer = await self._stub.AddShare(request, timeout=BOOT_DEADLINE_S)
        return _share(answer.share), answer.already_existed

    async def remove_share(self, vm_id: str, share_id: str) -> None:
        """Remove a share."""
        request = vm_owner_pb2.RemoveShareRequest(vm_id=vm_id, share_id=share_id)
        await self._stub.RemoveShare(request, timeout=BOOT_DEADLINE_S)

    async def configure_networking(self, vm_id: str, mode: str) -> str:
        """Add the VM's adapters; return the gateway of eth0.

        Args:
            vm_id: Id of the VM.
            mode: A mode that has adapters, for instance "nat".

        Raises:
            FailedPreconditionError: NETWORKING_FALLBACK; the VM has no adapters.
        """
        number = vm_owner_pb2.NetworkingMode.Value(
            f"NETWORKING_MODE_{mode.upper().replace('-', '_')}"
        )
        request = vm_owner_pb2.ConfigureNetworkingRequest(vm_id=vm_id, mode=number)
        answer = await self._stub.ConfigureNetworking(request, timeout=BOOT_DEADLINE_S)
        if answer.HasField("warning"):
            raise FailedPreconditionError("NETWORKING_FALLBACK", answer.warning.text, mode=mode)
        return answer.gateway_address

    async def map_port(self, vm_id: str, mapping: PortMapping) -> AddedPort:
        """Forward a port of the host to the guest."""
        message = vm_owner_pb2.MapPortRequest(vm_id=vm_id, mapping=mapping_to_proto(mapping))
        answer = await self._stub.MapPort(message, timeout=BOOT_DEADLINE_S)
        return AddedPort(**asdict(_port(answer.mapping)))

    async def unmap_port(self, vm_id: str, key: PortKey) -> None:
        """End a mapping."""
        message = vm_owner_pb2.UnmapPortRequest(vm_id=vm_id, key=port_key_to_proto(key))
        await self._stub.UnmapPort(message, timeout=BOOT_DEADLINE_S)

    async def list_ports(self, vm_id: str) -> tuple[PortView, ...]:
        """Return the mappings of a VM."""
        answer = await self._stub.ListPorts(vm_owner_pb2.ListPortsRequest(vm_id=vm_id))
        return tuple(_port(mapping) for mapping in answer.mappings)

    async def set_rate_limits(self, vm_id: str, adapter: str, limits: RateLimits) -> AdapterLimits:
        """Change how fast the frames of an adapter may go.

        Args:
            vm_id: Id of the VM.
            adapter: Its name or its id.
            limits: What is to change.

        Raises:
            NotFoundError: DEVICE_NOT_FOUND.
        """
        vm = await self.get_vm(vm_id)
        adapters = [each for each in vm.devices if each.device_class == "virtio-net"]
        device = next((each for each in adapters if adapter in (each.tag, each.instance_id)), None)
        if device is None:
            names = ", ".join(each.tag for each in adapters)
            raise NotFoundError(
                "DEVICE_NOT_FOUND",
                f"VM {vm.vm_id} has no adapter {adapter!r}; it has "
                f"{names or 'none: ConfigureNetworking makes them'}",
                vm_id=vm.vm_id,
            )
        request = vm_owner_pb2.SetRateLimitRequest(
            vm_id=vm.vm_id, instance_id=device.instance_id, **rate_limits_to_proto(limits)
        )
        answer = await self._stub.SetRateLimit(request, timeout=BOOT_DEADLINE_S)
        transmit, receive = _rate_limit(answer.transmit), _rate_limit(answer.receive)
        return AdapterLimits(device.instance_id, device.tag, transmit, receive)

    async def version(self) -> VersionView:
        """Return the owner's version and its manifest of component versions."""
        answer = await self._stub.GetVersion(vm_owner_pb2.GetVersionRequest())
        manifest = {
            "first_kernel_with_pool": answer.first_kernel_with_pool,
            "first_device_host_with_token": answer.first_device_host_with_token,
            "bundled_kernel": answer.bundled_kernel,
        }
        version = answer.version
        return VersionView(
            version.service, version.software_version, tuple(version.api_versions), manifest
        )


class WorkloadClient:
    """A connected guest, which works through its drivers. A failed call raises PortholeError."""

    def __init__(self, stub: machine_pb2_grpc.WorkloadAsyncStub) -> None:
        self._stub = stub

    async def hash_tree(
        self, tag: str, path: str = "", exclude: tuple[str, ...] = ()
    ) -> AsyncIterator[tuple[bytes, FileDigest]]:
        """Have the guest read every regular file of a share."""
        request = machine_pb2.HashTreeRequest(tag=tag, path=path, exclude=exclude)
        async for answer in self._stub.HashTree(request, timeout=WORKLOAD_DEADLINE_S):
            for file in answer.files:
                yield file.path, FileDigest(file.size_bytes, file.sha256.hex())

    async def copy_tree(
        self, source_tag: str, target_tag: str, exclude: tuple[str, ...] = ()
    ) -> CopyResult:
        """Have the guest copy the whole of one share into another."""
        request = machine_pb2.CopyTreeRequest(
            source_tag=source_tag, target_tag=target_tag, exclude=exclude
        )
        answer = await self._stub.CopyTree(request, timeout=WORKLOAD_DEADLINE_S)
        return CopyResult(
            answer.directories, answer.files, answer.symbolic_links, answer.bytes_copied
        )

    async def mount(self, tag: str, mount_point: str) -> None:
        """Mount a share on this host, through the guest."""
        await self._stub.Mount(machine_pb2.MountRequest(tag=tag, mount_point=mount_point))

    async def unmount(self, tag: str) -> None:
        """Undo `mount`."""
        await self._stub.Unmount(machine_pb2.UnmountRequest(tag=tag))

    async def http_get(self, url: str, timeout_s: float) -> HttpResult:
        """Fetch a URL from inside the guest's network."""
        request = machine_pb2.HttpGetRequest(url=url, timeout=duration_to_proto(timeout_s))
        answer = await self._stub.HttpGet(request, timeout=timeout_s + 10)
        return HttpResult(answer.status, answer.size_bytes, answer.sha256.hex())

    async def ping(self, address: str, count: int, timeout_s: float) -> PingResult:
        """Send ICMP echo requests from inside the guest's network."""
        timeout = duration_to_proto(timeout_s)
        request = machine_pb2.PingRequest(address=address, count=count, timeout=timeout)
        answer = await self._stub.Ping(request, timeout=timeout_s * count + 10)
        median = answer.round_trip_median
        return PingResult(answer.sent, answer.received, timeout_from_proto(median))

    async def resolve(self, name: str, timeout_s: float) -> tuple[str, ...]:
        """Ask the name servers of the guest's network for the addresses of a name."""
        request = machine_pb2.ResolveRequest(name=name, timeout=duration_to_proto(timeout_s))
        return tuple((await self._stub.Resolve(request, timeout=2 * timeout_s + 10)).addresses)

    @asynccontextmanager
    async def serving(self, body: bytes) -> AsyncIterator[int]:
        """Have the guest answer HTTP requests with a body; yields its port."""
        call = self._stub.Serve(machine_pb2.ServeRequest(body=body))
        try:
            async for answer in call:
                yield answer.port
                break
        finally:
            call.cancel()

    async def pool_use(self) -> PoolUse:
        """Return how much the guest's bounce pool was used."""
        answer = await self._stub.Stats(machine_pb2.StatsRequest())
        return PoolUse(answer.slots_total, answer.slots_used_high_water, answer.bytes_bounced)


class _GuestStub:
    """The stubs of both services of a machine: Machine for the version, Workload for work."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.GetVersion = machine_pb2_grpc.MachineStub(channel).GetVersion
        self.workload = machine_pb2_grpc.WorkloadStub(channel)


@asynccontextmanager
async def owner(address: str, wait_s: float) -> AsyncIterator[OwnerClient]:
    """Connect to the VM owner.

    Raises:
        UnavailableError: PEER_UNAVAILABLE after `wait_s` seconds.
        FailedPreconditionError: API_VERSION_MISMATCH.
    """
    peer = await connect(address, vm_owner_pb2_grpc.VmOwnerStub, VM_OWNER, wait_s=wait_s)
    try:
        yield OwnerClient(peer.stub)
    finally:
        await peer.close()


@asynccontextmanager
async def workload(machine_address: str, wait_s: float) -> AsyncIterator[WorkloadClient]:
    """Connect to the guest of a machine; raises what `owner` raises."""
    if not machine_address:
        raise FailedPreconditionError(
            "WORKLOAD_UNSUPPORTED",
            "the VM is a Linux guest, which takes no work for tests; use a user-space guest",
        )
    peer = await connect(machine_address, _GuestStub, MACHINE, wait_s=wait_s)
    try:
        yield WorkloadClient(peer.stub.workload)
    finally:
        await peer.close()


async def device_host_version(address: str, wait_s: float) -> VersionView:
    """Return the version of a device host; raises what `owner` raises."""
    peer = await connect(address, device_host_pb2_grpc.DeviceHostStub, DEVICE_HOST, wait_s=wait_s)
    try:
        answer = await peer.stub.GetVersion(device_host_pb2.GetVersionRequest())
    finally:
        await peer.close()
    version, fast_path = answer.version, answer.native_fast_path or "unknown: not reported"
    return VersionView(
        version.service,
        version.software_version,
        tuple(version.api_versions),
        {"native_fast_path": fast_path, "features": " ".join(answer.features) or "none"},
    )


async def health(address: str, wait_s: float, timeout_s: float) -> str:
    """Return the health of a service: "SERVING" or "NOT_SERVING".

    Raises:
        UnavailableError: PEER_UNAVAILABLE after `wait_s` seconds.
        PortholeError: It does not answer within `timeout_s` seconds, or has no health service.
    """
    target = str(numeric(parse_address(address)))
    async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
        await ready(channel, "a service", address, wait_s)
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, address) from None
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _ask_for_machine(message: vm_owner_pb2.CreateVmRequest, request: VmRequest) -> None:
    qemu = request.qemu
    if qemu is not None:
        message.qemu.SetInParent()
        message.qemu.kernel, message.qemu.initramfs = qemu.kernel, qemu.initramfs
        message.qemu.cpus = qemu.cpus
        if qemu.isolation:
            name = f"ISOLATION_{qemu.isolation.upper().replace('-', '_')}"
            message.qemu.isolation = vm_owner_pb2.Isolation.Value(name)
        return
    machine: vm_owner_pb2.EmbeddedMachine | vm_owner_pb2.ExternalMachine = message.embedded
    if request.machine_address:
        message.external.address = request.machine_address
        machine = message.external
    machine.SetInParent()
    machine.kernel_release = request.kernel_release
    if request.publishes_pool is not None:
        machine.publishes_pool = request.publishes_pool


def _share_spec(share: ShareRequest) -> vm_owner_pb2.ShareSpec:
    return vm_owner_pb2.ShareSpec(
        host_path=share.host_path,
        tag=share.tag,
        options=share.options,
        elevated=share.elevated,
        aggregate=share.aggregate,
    )


def _vm(vm: vm_owner_pb2.Vm) -> VmView:
    return VmView(
        vm_id=vm.vm_id,
        kind=_word(vm_owner_pb2.VmKind.Name(vm.kind), "VM_KIND_").upper(),
        state=_word(vm_owner_pb2.VmState.Name(vm.state), "VM_STATE_"),
        ram_bytes=vm.ram_bytes,
        kernel_release=vm.capabilities.kernel_release,
        kernel_command_line=vm.kernel_command_line,
        pool_base=vm.latched_pool.base,
        pool_size_bytes=vm.latched_pool.size_bytes,
        token=vm.swiotlb_option,
        networking_mode=_word(
            vm_owner_pb2.NetworkingMode.Name(vm.networking_mode), "NETWORKING_MODE_"
        ),
        guest_init_address=vm.guest_init_address,
        machine_address=vm.machine_address,
        traceparent=vm.traceparent,
        isolation=_word(vm_owner_pb2.Isolation.Name(vm.isolation), "ISOLATION_"),
        shares=tuple(_share(share) for share in vm.shares),
        devices=tuple(_device(device) for device in vm.devices),
        warnings=tuple(WarningView(warning.id, warning.text) for warning in vm.warnings),
    )


def _share(share: vm_owner_pb2.Share) -> ShareView:
    return ShareView(
        share_id=share.share_id,
        instance_id=share.instance_id,
        host_path=share.host_path,
        tag=share.tag,
        options=share.options,
        elevated=share.elevated,
        aggregate=share.aggregate,
    )


def _port(message: port_pb2.PortMapping) -> PortView:
    mapping = mapping_from_proto(message)
    return PortView(
        protocol=mapping.key.protocol.value,
        listen_address=mapping.key.address,
        listen_port=mapping.key.port,
        guest_port=mapping.guest_port,
        state=mapping.state.value,
        reason=mapping.reason,
        detail=mapping.detail,
    )


def _device(device: vm_owner_pb2.Device) -> DeviceView:
    return DeviceView(
        instance_id=device.instance_id,
        device_class=_word(device_pb2.DeviceClass.Name(device.device_class), "DEVICE_CLASS_"),
        tag=device.tag,
        state=_word(device_pb2.DeviceState.Name(device.state), "DEVICE_STATE_"),
        options=device.options,
        socket_path=device.socket_path,
        elevated=device.elevated,
        counters={
            each.name: getattr(device.counters, each.name)
            for each in device.counters.DESCRIPTOR.fields
        },
    )


def _watched(event: vm_owner_pb2.WatchVmResponse) -> VmEvent:
    match event.WhichOneof("event"):
        case "state":
            return StateEvent(_word(vm_owner_pb2.VmState.Name(event.state), "VM_STATE_"))
        case "warning":
            return WarningEvent(event.warning.id, event.warning.text)
        case "device":
            return DeviceEvent(
                instance_id=event.device.instance_id,
                tag=event.device.tag,
                state=_word(device_pb2.DeviceState.Name(event.device.state), "DEVICE_STATE_"),
                detail=event.device.detail,
            )
        case "pool_latched":
            return PoolLatchedEvent(event.pool_latched.base, event.pool_latched.size_bytes)
        case "exhausted":
            what = event.exhausted.exhaustion
            return ExhaustedEvent(
                instance_id=event.exhausted.instance_id,
                tag=event.exhausted.tag,
                resource=what.resource,
                used=what.used,
                total=what.total,
                detail=event.exhausted.detail,
            )
        case _:  # a newer owner
            return UnknownEvent()


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", "-")


def _rate_limit(limit: rate_limit_pb2.RateLimit) -> RateLimitView:
    return RateLimitView(
        bps=limit.bytes_per_second,
        pps=limit.packets_per_second,
        burst_bytes=limit.burst_bytes,
        burst_packets=limit.burst_packets,
    )
