"""Peers of a VM owner, in process but over real gRPC: device hosts and a machine with a journal.

A test chooses the calls that fail or wait. No data is moved.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

import grpc
from porthole.devicehost.v1 import device_host_pb2, device_host_pb2_grpc
from porthole.guest.v1 import guest_init_pb2, guest_init_pb2_grpc
from porthole.handshake.v1 import device_pb2, port_pb2
from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities, SwiotlbPool
from porthole.machine.v1 import machine_pb2, machine_pb2_grpc

from services.handshake.errors import AlreadyExistsError, NotFoundError, PortholeError
from services.handshake.features import FEATURES
from services.rpc.channel import connect
from services.rpc.server import ServerHandle, Servicer, start_server
from services.rpc.version import service_version
from services.vm_owner.assembly import Surroundings, VmSpec
from services.vm_owner.clients import (
    DEVICE_HOST,
    GUEST_INIT,
    MACHINE,
    dial_device_host,
    dial_guest_init,
    dial_machine,
)
from services.vm_owner.device_hosts import DeviceHost, DeviceHosts, DeviceStatus
from services.vm_owner.init_channel import INIT_CHANNEL, open_init_channel
from services.vm_owner.machines.external import ExternalMachine
from services.vm_owner.manifest import load_manifest
from services.vm_owner.owner import VmOwner
from services.vm_owner.record import VmKind
from services.vm_owner.subnets import SubnetPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

FREE_PORT = 40000
"""What a mapping of port 0 gets."""
POOL = SwiotlbPool(base=0x3C00_0000, size_bytes=64 << 20)
TOKEN = "swiotlb=0x3c000000,67108864"
PEER_WAIT_S = 5.0
"""How long the owner waits for a machine and for a guest init: both start in the test's process."""


@dataclass
class Script:
    """The behaviour of the peers, and the journal of the calls to them.

    Attributes:
        journal: Every call, in order: (peer, call, its main argument).
        failures: The error of each call that fails, by the name of the call.
        gates: The event that each waiting call waits for, by the name of the call.
        lost: The error of each call that is carried out and whose answer is lost, by its name.
        barriers: Calls of one name that wait for each other, by that name.
        reached: Set when a gated call is waiting.
    """

    journal: list[tuple[str, str, str]] = field(default_factory=list)
    failures: dict[str, PortholeError] = field(default_factory=dict)
    lost: dict[str, PortholeError] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    barriers: dict[str, asyncio.Barrier] = field(default_factory=dict)
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, peer: str, call: str, argument: str) -> None:
        self.journal.append((peer, call, argument))
        if call in self.gates:
            self.reached.set()
            await self.gates[call].wait()
        if call in self.barriers:
            await self.barriers[call].wait()
        if call in self.failures:
            raise self.failures[call]

    def lose(self, call: str) -> None:
        """Fail a call that has been carried out."""
        if call in self.lost:
            raise self.lost[call]

    def calls(self) -> list[str]:
        return [call for _, call, _ in self.journal]


class FakeDeviceHost(device_host_pb2_grpc.DeviceHostServicer):
    """Keeps devices as entries; no sockets.

    Attributes:
        features: The features that it announces.
    """

    def __init__(self, name: str, script: Script) -> None:
        self.name = name
        self.script = script
        self.features: tuple[str, ...] = FEATURES
        self.devices: dict[str, device_host_pb2.Device] = {}
        self.children: dict[str, device_host_pb2.AddChildRequest] = {}
        self.backends: dict[str, device_host_pb2.CreateDeviceRequest] = {}
        self.ports: dict[str, list[port_pb2.PortMapping]] = {}
        self.rate_limits: dict[str, device_host_pb2.SetRateLimitResponse] = {}
        self.pools: dict[str, list[str]] = {}
        self.capabilities: dict[str, list[bytes]] = {}
        self.news: asyncio.Queue[device_host_pb2.WatchDevicesResponse] = asyncio.Queue()

    async def GetVersion(  # noqa: N802
        self, request: device_host_pb2.GetVersionRequest, context: object
    ) -> device_host_pb2.GetVersionResponse:
        return device_host_pb2.GetVersionResponse(
            version=service_version(DEVICE_HOST), features=self.features
        )

    async def SetSwiotlb(  # noqa: N802
        self, request: device_host_pb2.SetSwiotlbRequest, context: object
    ) -> device_host_pb2.SetSwiotlbResponse:
        await self.script.play(self.name, "SetSwiotlb", request.swiotlb_option)
        if request.swiotlb_option:
            self.pools.setdefault(request.vm_id, []).append(request.swiotlb_option)
        if request.HasField("capabilities"):
            told = self.capabilities.setdefault(request.vm_id, [])
            told.append(request.capabilities.SerializeToString())
        return device_host_pb2.SetSwiotlbResponse()

    async def CreateDevice(  # noqa: N802
        self, request: device_host_pb2.CreateDeviceRequest, context: object
    ) -> device_host_pb2.CreateDeviceResponse:
        net = request.WhichOneof("backend") in ("net", "user")
        self.backends[request.instance_id] = request
        self.devices[request.instance_id] = device_host_pb2.Device(
            vm_id=request.vm_id,
            instance_id=request.instance_id,
            device_class=device_pb2.DEVICE_CLASS_VIRTIO_NET
            if net
            else device_pb2.DEVICE_CLASS_VIRTIO_FS,
            tag=request.tag,
            state=device_pb2.DEVICE_STATE_ATTACHED,
            counters=device_pb2.DeviceCounters(requests=7, bytes_in=11),
            options=request.options,
        )
        # A failure here stands for a lost answer: the device has been created.
        await self.script.play(self.name, "CreateDevice", request.options)
        return device_host_pb2.CreateDeviceResponse(socket_path=f"/sock/{request.tag}")

    async def RemoveDevice(  # noqa: N802
        self, request: device_host_pb2.RemoveDeviceRequest, context: object
    ) -> device_host_pb2.RemoveDeviceResponse:
        await self.script.play(self.name, "RemoveDevice", request.instance_id)
        if self.devices.pop(request.instance_id, None) is None:
            raise NotFoundError("DEVICE_NOT_FOUND", "no such device")
        return device_host_pb2.RemoveDeviceResponse()

    async def AddChild(  # noqa: N802
        self, request: device_host_pb2.AddChildRequest, context: object
    ) -> device_host_pb2.AddChildResponse:
        self.devices[request.instance_id].children.append(request.name)
        self.children[request.name] = request
        # A failure here stands for a lost answer: the share has been added.
        await self.script.play(self.name, "AddChild", request.options)
        return device_host_pb2.AddChildResponse()

    async def RemoveChild(  # noqa: N802
        self, request: device_host_pb2.RemoveChildRequest, context: object
    ) -> device_host_pb2.RemoveChildResponse:
        await self.script.play(self.name, "RemoveChild", request.name)
        device = self.devices.get(request.instance_id)
        if device is None or request.name not in device.children:
            raise NotFoundError("CHILD_UNKNOWN", "no such share")
        device.children.remove(request.name)
        return device_host_pb2.RemoveChildResponse()

    async def MapPort(  # noqa: N802
        self, request: device_host_pb2.MapPortRequest, context: object
    ) -> device_host_pb2.MapPortResponse:
        await self.script.play(self.name, "MapPort", request.instance_id)
        ports = self.ports.setdefault(request.instance_id, [])
        if any(mapping.key == request.mapping.key for mapping in ports):
            raise AlreadyExistsError("PORT_EXISTS", "mapped already")
        mapping = port_pb2.PortMapping()
        mapping.CopyFrom(request.mapping)
        mapping.key.listen_port = mapping.key.listen_port or FREE_PORT
        mapping.state = port_pb2.PORT_STATE_LISTENING
        ports.append(mapping)
        self.script.lose("MapPort")
        return device_host_pb2.MapPortResponse(mapping=mapping)

    async def UnmapPort(  # noqa: N802
        self, request: device_host_pb2.UnmapPortRequest, context: object
    ) -> device_host_pb2.UnmapPortResponse:
        await self.script.play(self.name, "UnmapPort", request.instance_id)
        ports = self.ports.get(request.instance_id, [])
        kept = [mapping for mapping in ports if mapping.key != request.key]
        if len(kept) == len(ports):
            raise NotFoundError("PORT_UNKNOWN", "no such mapping")
        self.ports[request.instance_id] = kept
        self.script.lose("UnmapPort")
        return device_host_pb2.UnmapPortResponse()

    async def ListPorts(  # noqa: N802
        self, request: device_host_pb2.ListPortsRequest, context: object
    ) -> device_host_pb2.ListPortsResponse:
        await self.script.play(self.name, "ListPorts", request.instance_id)
        return device_host_pb2.ListPortsResponse(mappings=self.ports.get(request.instance_id, []))

    async def SetRateLimit(  # noqa: N802
        self, request: device_host_pb2.SetRateLimitRequest, context: object
    ) -> device_host_pb2.SetRateLimitResponse:
        await self.script.play(self.name, "SetRateLimit", request.instance_id)
        limits = self.rate_limits.setdefault(
            request.instance_id, device_host_pb2.SetRateLimitResponse()
        )
        for name in ("transmit", "receive"):
            if request.HasField(name):
                getattr(limits, name).CopyFrom(getattr(request, name))
        return limits

    async def ForgetVm(  # noqa: N802
        self, request: device_host_pb2.ForgetVmRequest, context: object
    ) -> device_host_pb2.ForgetVmResponse:
        await self.script.play(self.name, "ForgetVm", request.vm_id)
        self.pools.pop(request.vm_id, None)
        return device_host_pb2.ForgetVmResponse()

    async def GetDevice(  # noqa: N802
        self, request: device_host_pb2.GetDeviceRequest, context: object
    ) -> device_host_pb2.GetDeviceResponse:
        return device_host_pb2.GetDeviceResponse(device=self.devices.get(request.instance_id))

    async def ListDevices(  # noqa: N802
        self, request: device_host_pb2.ListDevicesRequest, context: object
    ) -> device_host_pb2.ListDevicesResponse:
        if "ListDevices" in self.script.gates:  # not in the journal: it changes nothing
            await self.script.gates["ListDevices"].wait()
        found = [device for device in self.devices.values() if device.vm_id == request.vm_id]
        return device_host_pb2.ListDevicesResponse(devices=found)

    async def WatchDevices(  # noqa: N802
        self, request: device_host_pb2.WatchDevicesRequest, context: object
    ) -> AsyncIterator[device_host_pb2.WatchDevicesResponse]:
        while True:
            yield await self.news.get()


class FakeGuestInit(guest_init_pb2_grpc.GuestInitServicer):
    """Answers with the capabilities of a machine."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    async def GetVersion(  # noqa: N802
        self, request: guest_init_pb2.GuestInitGetVersionRequest, context: object
    ) -> guest_init_pb2.GuestInitGetVersionResponse:
        return guest_init_pb2.GuestInitGetVersionResponse(version=service_version(GUEST_INIT))

    async def GetGuestCapabilities(  # noqa: N802
        self, request: guest_init_pb2.GetGuestCapabilitiesRequest, context: object
    ) -> guest_init_pb2.GetGuestCapabilitiesResponse:
        await self._machine.script.play("guest init", "GetGuestCapabilities", "")
        return guest_init_pb2.GetGuestCapabilitiesResponse(capabilities=self._machine.capabilities)

    async def WatchListeners(  # noqa: N802
        self, request: guest_init_pb2.WatchListenersRequest, context: object
    ) -> AsyncIterator[guest_init_pb2.WatchListenersResponse]:
        yield guest_init_pb2.WatchListenersResponse()


class FakeMachine(machine_pb2_grpc.MachineServicer):
    """Boots at once; its init reports `capabilities` to the init channel, if there is one.

    Attributes:
        news: The items of its stream.
        watchable: Whether it can be watched; a machine of an older version cannot.
    """

    def __init__(self, script: Script, guest_init_address: str) -> None:
        self.script = script
        self._guest_init_address = guest_init_address
        self.capabilities: GuestCapabilities | None = GuestCapabilities(
            swiotlb_pool=POOL, kernel_release="6.18.26.3-microsoft"
        )
        self.boots: list[machine_pb2.BootRequest] = []
        self.attached: dict[str, machine_pb2.AttachDeviceRequest] = {}
        self.reports: list[asyncio.Task[object]] = []
        self.news: asyncio.Queue[machine_pb2.WatchMachineResponse] = asyncio.Queue()
        self.watchable = True

    async def GetVersion(  # noqa: N802
        self, request: machine_pb2.MachineGetVersionRequest, context: object
    ) -> machine_pb2.MachineGetVersionResponse:
        return machine_pb2.MachineGetVersionResponse(version=service_version(MACHINE))

    async def Boot(  # noqa: N802
        self, request: machine_pb2.BootRequest, context: object
    ) -> machine_pb2.BootResponse:
        await self.script.play("machine", "Boot", request.vm_id)
        self.boots.append(request)
        if request.init_channel_address and self.capabilities is not None:
            # The init of a guest reports before Boot has returned.
            work = report(request.init_channel_address, self.capabilities)
            self.reports.append(asyncio.create_task(work))
        return machine_pb2.BootResponse(guest_init_address=self._guest_init_address)

    async def AttachDevice(  # noqa: N802
        self, request: machine_pb2.AttachDeviceRequest, context: object
    ) -> machine_pb2.AttachDeviceResponse:
        self.attached[request.instance_id] = request
        await self.script.play("machine", "AttachDevice", request.tag)
        return machine_pb2.AttachDeviceResponse()

    async def DetachDevice(  # noqa: N802
        self, request: machine_pb2.DetachDeviceRequest, context: object
    ) -> machine_pb2.DetachDeviceResponse:
        await self.script.play("machine", "DetachDevice", request.instance_id)
        self.attached.pop(request.instance_id, None)
        return machine_pb2.DetachDeviceResponse()

    async def WatchMachine(  # noqa: N802
        self,
        request: machine_pb2.WatchMachineRequest,
        context: grpc.aio.ServicerContext[
            machine_pb2.WatchMachineRequest, machine_pb2.WatchMachineResponse
        ],
    ) -> AsyncIterator[machine_pb2.WatchMachineResponse]:
        if not self.watchable:
            self.script.reached.set()
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        while True:
            yield await self.news.get()

    async def PowerOff(  # noqa: N802
        self, request: machine_pb2.PowerOffRequest, context: object
    ) -> machine_pb2.PowerOffResponse:
        await self.script.play("machine", "PowerOff", "")
        return machine_pb2.PowerOffResponse()


async def report(address: str, capabilities: GuestCapabilities) -> bool | PortholeError:
    """Report as a guest's init does; returns the answer, or the refusal."""
    peer = await connect(address, guest_init_pb2_grpc.InitChannelStub, INIT_CHANNEL)
    request = guest_init_pb2.ReportGuestCapabilitiesRequest(capabilities=capabilities)
    try:
        return (await peer.stub.ReportGuestCapabilities(request)).pool_latched
    except PortholeError as refusal:
        return refusal
    finally:
        await peer.close()


class Rig:
    """An owner with fake peers.

    Attributes:
        servers: The running servers by peer; a test may stop one.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.script = Script()
        self.device_host = FakeDeviceHost("devicehost", self.script)
        self.elevated = FakeDeviceHost("elevated", self.script)
        self.machine = FakeMachine(self.script, self._address("guest-init"))
        self.servers: dict[str, ServerHandle] = {}
        self.owner = VmOwner(self._surroundings(), self._hosts)

    async def start(self) -> None:
        for host in (self.device_host, self.elevated):
            await self.start_device_host(host)
        add = machine_pb2_grpc.add_MachineServicer_to_server
        self.servers["machine"] = await start_server(
            [self._address("machine")], [Servicer(add, self.machine, MACHINE)]
        )

        await self.start_guest_init()

    async def start_guest_init(self) -> None:
        add = guest_init_pb2_grpc.add_GuestInitServicer_to_server
        self.servers["guest init"] = await start_server(
            [self._address("guest-init")],
            [Servicer(add, FakeGuestInit(self.machine), GUEST_INIT)],
        )

    async def start_device_host(self, host: FakeDeviceHost) -> None:
        add = device_host_pb2_grpc.add_DeviceHostServicer_to_server
        self.servers[host.name] = await start_server(
            [self._address(host.name)], [Servicer(add, host, DEVICE_HOST)]
        )

    async def stop(self) -> None:
        for gate in self.script.gates.values():
            gate.set()
        await self.owner.close()
        for task in self.machine.reports:
            await task
        for server in self.servers.values():
            await server.stop(0)

    def vm_spec(self, kind: VmKind = VmKind.WSL2, **changes: object) -> VmSpec:
        return replace(VmSpec(kind), **changes)  # type: ignore[arg-type]

    def _address(self, name: str) -> str:
        return f"unix:{self.run_dir}/{name}.sock"

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            run_dir=self.run_dir,
            manifest=load_manifest(),
            subnets=SubnetPool(IPv4Network("10.231.0.0/28")),
            capabilities_deadline_s=5.0,
            machine_for=lambda _, __: ExternalMachine(
                self._address("machine"), partial(dial_machine, wait_s=PEER_WAIT_S)
            ),
            open_init_channel=open_init_channel,
            dial_guest_init=partial(dial_guest_init, wait_s=PEER_WAIT_S),
        )

    def _hosts(
        self, on_status: Callable[[DeviceStatus], None], on_stream_end: Callable[[bool], None]
    ) -> DeviceHosts:
        dial: dict[bool, Callable[[], Awaitable[DeviceHost]]] = {
            False: partial(dial_device_host, self._address("devicehost"), 0.3),
            True: partial(dial_device_host, self._address("elevated"), 0.3),
        }
        return DeviceHosts(dial, on_status, on_stream_end)


@asynccontextmanager
async def running_rig(run_dir: Path) -> AsyncIterator[Rig]:
    """Run an owner with fake peers, and stop everything in the end."""
    rig = Rig(run_dir)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(rig.stop)
        await rig.start()
        yield rig
