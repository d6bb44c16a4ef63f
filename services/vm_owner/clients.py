"""Clients of the owner's peers, device host, machine and guest init, over gRPC.

Owns the translation between protobuf and the values that the rest of the owner uses.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final

from porthole.devicehost.v1 import device_host_pb2, device_host_pb2_grpc
from porthole.guest.v1 import (
    guest_control_pb2,
    guest_control_pb2_grpc,
    guest_init_pb2,
    guest_init_pb2_grpc,
)
from porthole.machine.v1 import machine_pb2, machine_pb2_grpc

from services.handshake import events
from services.handshake.errors import DeadlineExceededError, PortholeError
from services.rpc.channel import connect
from services.rpc.convert import (
    device_class_to_proto,
    device_state_from_proto,
    exhaustion_from_proto,
    link_state_from_proto,
    mapping_from_proto,
    mapping_to_proto,
    port_key_to_proto,
    rate_limits_from_proto,
    rate_limits_to_proto,
)
from services.vm_owner.convert import (
    report_from_proto,
)
from services.vm_owner.device_hosts import DeviceHostVersion, DeviceStatus, UserNetwork
from services.vm_owner.localhost_forwarding import Listener
from services.vm_owner.machines import GuestInitEnd, KernelExhaustion
from services.vm_owner.machines.qemu.control import SHARES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.handshake.ports import PortKey, PortMapping
    from services.handshake.rate_limit import RateLimits
    from services.rpc.channel import Peer
    from services.vm_owner.device_hosts import NewChild, NewDevice
    from services.vm_owner.machines import AttachSpec, BootSpec, MachineReport
    from services.vm_owner.machines.qemu.control import Adapter
    from services.vm_owner.reports import Report

DEVICE_HOST: Final = "porthole.devicehost.v1.DeviceHost"
GUEST_CONTROL: Final = "porthole.guest.v1.GuestControl"
GUEST_INIT: Final = "porthole.guest.v1.GuestInit"
MACHINE: Final = "porthole.machine.v1.Machine"

LIST_DEADLINE_S: Final = 3.0
"""Deadline of DeviceHost.ListDevices. GetVm calls it on two device hosts, one after the other, and
its own caller waits 10 s by default; so GetVm answers in time even if both hang."""

PORT_DEADLINE_S: Final = 20.0
"""Deadline of DeviceHost.MapPort and UnmapPort, which try some ports with 5 s for each."""

BOOT_DEADLINE_S: Final = 30.0
"""Deadline of Machine.Boot, in which the guest starts its init."""

CONTROL_DEADLINE_S: Final = 5.0
"""How much longer than the guest waits a call of GuestControl takes."""

_STILL_BOOTING: Final = frozenset({"GUEST_SILENT", "GUEST_UNREACHABLE"})
_BOOT_PAUSE_S: Final = 0.1

LISTENERS_KEPT: Final = 512
"""Most ports of one report of GuestInit.WatchListeners; ours tells of half as many at most."""

READ_DEADLINE_S: Final = 5.0
"""Deadline of GuestInit.GetGuestCapabilities. The owner calls it for a client, which waits 10 s by
default."""


class DeviceHostClient:
    """A connected device host."""

    def __init__(self, peer: Peer[device_host_pb2_grpc.DeviceHostAsyncStub]) -> None:
        self._peer = peer

    async def version(self) -> DeviceHostVersion:
        """Ask for the version; a device host that has restarted may have another."""
        answer = await self._peer.stub.GetVersion(device_host_pb2.GetVersionRequest())
        return DeviceHostVersion(answer.version.software_version, frozenset(answer.features))

    async def set_swiotlb(self, vm_id: str, token: str, capabilities: bytes | None) -> None:
        """Announce the token of a VM, empty without a pool, and its capabilities, if not None."""
        request = device_host_pb2.SetSwiotlbRequest(vm_id=vm_id, swiotlb_option=token)
        if capabilities is not None:
            request.capabilities.SetInParent()
            request.capabilities.MergeFromString(capabilities)
        await self._peer.stub.SetSwiotlb(request)

    async def create_device(self, device: NewDevice) -> str:
        """Create a device; returns the path of its vhost-user socket."""
        request = device_host_pb2.CreateDeviceRequest(
            vm_id=device.vm_id,
            instance_id=device.instance_id,
            tag=device.tag,
            options=device.options,
        )
        if device.backend is None:
            request.aggregate.SetInParent()
        elif isinstance(device.backend, UserNetwork):
            request.user.mtu = device.backend.mtu
            request.user.dns_forward.extend(device.backend.dns_forward)
            request.user.host_loopback.extend(device.backend.host_loopback)
        elif device.device_class == events.FS:
            request.fs.shared_dir = device.backend
        else:
            request.net.tap = device.backend
        return (await self._peer.stub.CreateDevice(request)).socket_path

    async def remove_device(self, vm_id: str, instance_id: str) -> None:
        """Tear a device down."""
        request = device_host_pb2.RemoveDeviceRequest(vm_id=vm_id, instance_id=instance_id)
        await self._peer.stub.RemoveDevice(request)

    async def add_child(self, child: NewChild) -> None:
        """Add a share to an aggregate device."""
        request = device_host_pb2.AddChildRequest(
            vm_id=child.vm_id,
            instance_id=child.instance_id,
            name=child.name,
            options=child.options,
            shared_dir=child.shared_dir,
        )
        await self._peer.stub.AddChild(request)

    async def remove_child(self, vm_id: str, instance_id: str, name: str) -> None:
        """Remove a share from an aggregate device."""
        request = device_host_pb2.RemoveChildRequest(
            vm_id=vm_id, instance_id=instance_id, name=name
        )
        await self._peer.stub.RemoveChild(request)

    async def map_port(self, vm_id: str, instance_id: str, wanted: PortMapping) -> PortMapping:
        """Map a port; the host listens when this returns."""
        request = device_host_pb2.MapPortRequest(
            vm_id=vm_id, instance_id=instance_id, mapping=mapping_to_proto(wanted)
        )
        answer = await self._peer.stub.MapPort(request, timeout=PORT_DEADLINE_S)
        return mapping_from_proto(answer.mapping)

    async def unmap_port(self, vm_id: str, instance_id: str, key: PortKey) -> None:
        """End a mapping."""
        request = device_host_pb2.UnmapPortRequest(
            vm_id=vm_id, instance_id=instance_id, key=port_key_to_proto(key)
        )
        await self._peer.stub.UnmapPort(request, timeout=PORT_DEADLINE_S)

    async def list_ports(self, vm_id: str, instance_id: str) -> list[PortMapping]:
        """List the mappings of an adapter."""
        request = device_host_pb2.ListPortsRequest(vm_id=vm_id, instance_id=instance_id)
        answer = await self._peer.stub.ListPorts(request, timeout=LIST_DEADLINE_S)
        return [mapping_from_proto(mapping) for mapping in answer.mappings]

    async def set_rate_limits(self, vm_id: str, instance_id: str, limits: RateLimits) -> RateLimits:
        """Change how fast frames of an adapter may go; return what is in force."""
        request = device_host_pb2.SetRateLimitRequest(
            vm_id=vm_id, instance_id=instance_id, **rate_limits_to_proto(limits)
        )
        return rate_limits_from_proto(await self._peer.stub.SetRateLimit(request))

    async def forget_vm(self, vm_id: str) -> None:
        """Tear down all remaining devices of a VM, and forget its pool."""
        await self._peer.stub.ForgetVm(device_host_pb2.ForgetVmRequest(vm_id=vm_id))

    async def list_devices(self, vm_id: str) -> list[DeviceStatus]:
        """List the devices of a VM."""
        request = device_host_pb2.ListDevicesRequest(vm_id=vm_id)
        answer = await self._peer.stub.ListDevices(request, timeout=LIST_DEADLINE_S)
        return [_status(device) for device in answer.devices]

    async def watch(self) -> AsyncIterator[DeviceStatus]:
        """Stream the changes of the devices of all VMs."""
        stream = self._peer.stub.WatchDevices(device_host_pb2.WatchDevicesRequest())
        async for answer in stream:
            status = _status(answer.device, answer.detail)
            if answer.HasField("exhaustion"):
                status = replace(status, exhaustion=exhaustion_from_proto(answer.exhaustion))
            yield status

    async def close(self) -> None:
        """Disconnect."""
        await self._peer.close()


class MachineClient:
    """A connected machine."""

    def __init__(self, peer: Peer[machine_pb2_grpc.MachineAsyncStub]) -> None:
        self._peer = peer

    async def boot(self, spec: BootSpec) -> str:
        """Boot the guest; returns the address at which its init serves GuestInit."""
        request = machine_pb2.BootRequest(
            vm_id=spec.vm_id,
            ram_bytes=spec.ram_bytes,
            kernel_command_line=spec.kernel_command_line,
            init_channel_address=spec.init_channel_address,
            kernel_release=spec.kernel_release,
            publishes_pool=spec.publishes_pool,
        )
        answer = await self._peer.stub.Boot(request, timeout=BOOT_DEADLINE_S)
        return answer.guest_init_address

    async def attach_device(self, spec: AttachSpec) -> None:
        """Attach a device."""
        request = machine_pb2.AttachDeviceRequest(
            instance_id=spec.instance_id,
            device_class=device_class_to_proto(spec.device_class),
            tag=spec.tag,
            socket_path=spec.socket_path,
            client_address=spec.client_address,
            gateway_address=spec.gateway_address,
            client_address_ipv6=spec.client_address_ipv6,
            name_servers=spec.name_servers,
        )
        await self._peer.stub.AttachDevice(request)

    async def detach_device(self, instance_id: str) -> None:
        """Detach a device."""
        await self._peer.stub.DetachDevice(machine_pb2.DetachDeviceRequest(instance_id=instance_id))

    async def watch(self) -> AsyncIterator[MachineReport]:
        """Stream exhaustions of the guest's kernel, and the end of guest init."""
        async for answer in self._peer.stub.WatchMachine(machine_pb2.WatchMachineRequest()):
            if answer.HasField("guest_init_end"):
                yield GuestInitEnd(answer.guest_init_end.cause)
            else:
                exhaustion = exhaustion_from_proto(answer.exhaustion)
                yield KernelExhaustion(answer.instance_id, exhaustion)

    async def power_off(self) -> None:
        """Stop the guest."""
        await self._peer.stub.PowerOff(machine_pb2.PowerOffRequest())

    async def close(self) -> None:
        """Disconnect."""
        await self._peer.close()


class GuestControlClient:
    """The connected init of a Linux guest."""

    def __init__(self, peer: Peer[guest_control_pb2_grpc.GuestControlAsyncStub]) -> None:
        self._peer = peer

    async def make_ready(self, wait_s: float) -> None:
        """Wait until the guest speaks, and make the place of its shares."""
        request = guest_control_pb2.MountRequest(
            fs_type="tmpfs", source=b"shares", target=SHARES.encode(), options=b"mode=755,size=1m"
        )
        while True:
            try:
                await self._peer.stub.Mount(request, timeout=wait_s)
            except PortholeError as failure:
                if failure.reason not in _STILL_BOOTING:
                    raise
            else:
                return
            await asyncio.sleep(_BOOT_PAUSE_S)

    async def mount(self, tag: str, target: str, wait_s: float) -> None:
        """Mount a share at a directory, which is made."""
        request = guest_control_pb2.MountRequest(
            fs_type="virtiofs",
            source=tag.encode(),
            target=target.encode(),
            wait_ms=int(wait_s * 1000),
        )
        await self._peer.stub.Mount(request, timeout=wait_s + CONTROL_DEADLINE_S)

    async def unmount(self, target: str, deadline_s: float) -> None:
        """Take a mount out of the guest's tree, also one that is in use."""
        request = guest_control_pb2.UnmountRequest(target=target.encode(), lazy=True)
        await self._peer.stub.Unmount(request, timeout=deadline_s)

    async def configure_adapter(self, adapter: Adapter, wait_s: float) -> None:
        """Give an adapter its name and addresses, and bring it up."""
        request = guest_control_pb2.ConfigureAdapterRequest(
            mac_address=adapter.mac_address,
            name=adapter.name,
            addresses=adapter.addresses,
            gateways=[adapter.gateway] if adapter.gateway else [],
            nameservers=adapter.name_servers,
            wait_ms=int(wait_s * 1000),
        )
        await self._peer.stub.ConfigureAdapter(request, timeout=wait_s + CONTROL_DEADLINE_S)

    async def power_off(self, deadline_s: float) -> None:
        """Begin the end of the guest."""
        await self._peer.stub.PowerOff(guest_control_pb2.PowerOffRequest(), timeout=deadline_s)

    async def close(self) -> None:
        """Disconnect."""
        await self._peer.close()


class GuestInitClient:
    """A connected guest init."""

    def __init__(self, peer: Peer[guest_init_pb2_grpc.GuestInitAsyncStub]) -> None:
        self._peer = peer

    async def capabilities(self) -> Report:
        """Ask for what the guest's kernel publishes now.

        Raises:
            DeadlineExceededError: GUEST_INIT_SILENT after READ_DEADLINE_S.
            InvalidArgumentError: See report_from_proto.
        """
        request = guest_init_pb2.GetGuestCapabilitiesRequest()
        try:
            answer = await self._peer.stub.GetGuestCapabilities(request, timeout=READ_DEADLINE_S)
        except DeadlineExceededError:
            raise DeadlineExceededError(
                "GUEST_INIT_SILENT",
                f"guest init at {self._peer.address} did not answer within {READ_DEADLINE_S:g} s",
                address=self._peer.address,
            ) from None
        return report_from_proto(answer.capabilities)

    async def listeners(self) -> AsyncIterator[list[Listener]]:
        """Stream all ports on which the guest listens, whenever they change.

        A report of a guest may be of any length; what follows LISTENERS_KEPT ports is dropped.
        """
        async for answer in self._peer.stub.WatchListeners(guest_init_pb2.WatchListenersRequest()):
            told = islice(answer.listeners, LISTENERS_KEPT)
            yield [Listener(each.port, each.ipv4, each.ipv6) for each in told]

    async def close(self) -> None:
        """Disconnect."""
        await self._peer.close()


async def dial_device_host(address: str, wait_s: float) -> DeviceHostClient:
    """Connect to a device host.

    Raises:
        UnavailableError: PEER_UNAVAILABLE after `wait_s`.
        FailedPreconditionError: API_VERSION_MISMATCH.
    """
    stub = device_host_pb2_grpc.DeviceHostStub
    return DeviceHostClient(await connect(address, stub, DEVICE_HOST, wait_s=wait_s))


async def dial_guest_init(address: str, wait_s: float) -> GuestInitClient:
    """Connect to the init of a guest, once it answers.

    Raises:
        UnavailableError: PEER_UNAVAILABLE after `wait_s`.
        FailedPreconditionError: API_VERSION_MISMATCH.
    """
    stub = guest_init_pb2_grpc.GuestInitStub
    return GuestInitClient(await connect(address, stub, GUEST_INIT, wait_s=wait_s))


async def dial_guest_control(address: str, wait_s: float) -> GuestControlClient:
    """Connect to the init of a Linux guest, once it answers.

    Raises:
        UnavailableError: PEER_UNAVAILABLE after `wait_s`.
        FailedPreconditionError: API_VERSION_MISMATCH.
    """
    stub = guest_control_pb2_grpc.GuestControlStub
    return GuestControlClient(await connect(address, stub, GUEST_CONTROL, wait_s=wait_s))


async def dial_machine(address: str, wait_s: float) -> MachineClient:
    """Connect to a machine.

    Raises:
        UnavailableError: PEER_UNAVAILABLE after `wait_s`.
        FailedPreconditionError: API_VERSION_MISMATCH.
    """
    stub = machine_pb2_grpc.MachineStub
    return MachineClient(await connect(address, stub, MACHINE, wait_s=wait_s))


def _status(device: device_host_pb2.Device, detail: str = "") -> DeviceStatus:
    counters = {field.name: int(value) for field, value in device.counters.ListFields()}
    return DeviceStatus(
        vm_id=device.vm_id,
        instance_id=device.instance_id,
        tag=device.tag,
        state=device_state_from_proto(device.state),
        counters=counters,
        detail=detail,
        children=tuple(device.children),
        link_up=link_state_from_proto(device.link),
    )
