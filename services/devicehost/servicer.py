"""The gRPC edge of the device host: protobuf in, values to the registry, protobuf out.

The registry blocks, so every call of it runs on a thread of its VM's and none on the event loop.
Threads hand each change of a device to the event loop, for the watchers. Must not know rings or
memory.
"""

from __future__ import annotations

import asyncio
import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from porthole.devicehost.v1 import device_host_pb2, device_host_pb2_grpc
from porthole.handshake.v1 import device_pb2

from services.devicehost import fastpath
from services.devicehost.devices.net.user.installation import PROGRAM as PASST
from services.devicehost.devices.net.user.settings import MAX_MTU
from services.devicehost.host import (
    AggregateBackend,
    ChildSpec,
    DeviceHost,
    DeviceInfo,
    DeviceSpec,
    FsBackend,
    NetBackend,
    Published,
    UserBackend,
    UserSettings,
)
from services.devicehost.vm_threads import VmThreads
from services.handshake.errors import ResourceExhaustedError
from services.handshake.features import FEATURES
from services.rpc import tracing
from services.rpc.convert import (
    capabilities_from_proto,
    device_class_to_proto,
    device_state_to_proto,
    exhaustion_to_proto,
    link_state_to_proto,
    mapping_from_proto,
    mapping_to_proto,
    port_key_from_proto,
    rate_limits_from_proto,
    rate_limits_to_proto,
)
from services.rpc.server import Servicer
from services.rpc.version import service_version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import grpc

    from services.handshake.events import Event
    from services.handshake.exhaustion import Exhaustion

SERVICE: Final = "porthole.devicehost.v1.DeviceHost"

WATCH_BACKLOG: Final = 1024
"""Changes that may wait for a watcher; a watcher that is further behind is cut off."""

_ALL_VMS: Final = ""
_SHUTDOWN: Final = "shutdown"

P = ParamSpec("P")
T = TypeVar("T")


class _Watcher:
    """One WatchDevices call, and the changes that wait for it."""

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id
        self.backlog: asyncio.Queue[device_host_pb2.WatchDevicesResponse] = asyncio.Queue(
            WATCH_BACKLOG
        )
        self.ended = asyncio.Event()
        self.too_slow = False


class DeviceHostServicer(device_host_pb2_grpc.DeviceHostServicer):
    """Serves porthole.devicehost.v1.DeviceHost; made on the event loop that it serves on.

    Attributes:
        host: The registry behind it.
    """

    def __init__(self, run_dir: Path, passt: str = PASST) -> None:
        """Make the servicer and its registry.

        Args:
            run_dir: Device sockets go to its folder dev.
            passt: The program of user-mode networks: a path, or a name to be found on PATH.
        """
        self._passt = passt
        self._loop = asyncio.get_running_loop()
        self._threads = VmThreads()
        self._watchers: set[_Watcher] = set()
        self.host = DeviceHost(run_dir, self._changed, on_exhausted=self._exhausted)

    async def close(self) -> None:
        """Tear every device down, then end the watchers."""
        # Not behind calls, all of which may be waiting.
        await self._threads.run(_SHUTDOWN, self.host.close)
        for watcher in self._watchers:
            watcher.ended.set()

    async def GetVersion(  # noqa: N802 - gRPC's name
        self,
        request: device_host_pb2.GetVersionRequest,
        context: grpc.aio.ServicerContext[
            device_host_pb2.GetVersionRequest, device_host_pb2.GetVersionResponse
        ],
    ) -> device_host_pb2.GetVersionResponse:
        """Announce the API versions, the features, and whether the native fast path serves."""
        return device_host_pb2.GetVersionResponse(
            version=service_version(SERVICE), native_fast_path=fastpath.status, features=FEATURES
        )

    async def SetSwiotlb(  # noqa: N802
        self,
        request: device_host_pb2.SetSwiotlbRequest,
        context: grpc.aio.ServicerContext[
            device_host_pb2.SetSwiotlbRequest, device_host_pb2.SetSwiotlbResponse
        ],
    ) -> device_host_pb2.SetSwiotlbResponse:
        """Store the pool that a VM has latched, and its capabilities."""
        published = None
        if request.HasField("capabilities"):
            capabilities = capabilities_from_proto(request.capabilities)
            published = Published(capabilities, request.capabilities.SerializeToString())
        await self._on_thread(
            request.vm_id,
            self.host.set_swiotlb,
            *(request.vm_id, request.swiotlb_option, published),
        )
        return device_host_pb2.SetSwiotlbResponse()

    async def CreateDevice(  # noqa: N802
        self,
        request: device_host_pb2.CreateDeviceRequest,
        context: grpc.aio.ServicerContext[
            device_host_pb2.CreateDeviceRequest, device_host_pb2.CreateDeviceResponse
        ],
    ) -> device_host_pb2.CreateDeviceResponse:
        """Make one device; its later events go under the span of this call."""
        emit = partial(_emit, tracing.current_traceparent())
        info = await self._on_thread(
            request.vm_id, self.host.create_device, self._spec(request), emit
        )
        return device_host_pb2.CreateDeviceResponse(socket_path=str(info.socket_path))

    async def RemoveDevice(  # noqa: N802
        self,
        request: device_host_pb2.RemoveDeviceRequest,
        context: grpc.aio.ServicerContext[
            device_host_pb2.RemoveDeviceRequest, device_host_pb2.RemoveDeviceResponse
        ],
    ) -> device_host_pb2.RemoveDeviceResponse:
        """Tear one device down."""
        await self._on_thread(
            request.vm_id, self.host.remove_device, request.vm_id, request.instance_id
        )
        return device_host_pb2.RemoveDeviceResponse()

    async def AddChild(  # noqa: N802
        self,
        request: device_host_pb2.AddChildRequest,
        context: grpc.aio.ServicerContext[
            device_host_pb2.AddChildRequest, device_host_pb2.AddChildResponse
        ],
    ) -> device_host_pb2.AddChildResponse:
        """Add a share to an aggregate device."""
        child = ChildSpec(request.name, request.options, request.shared_dir)
        await self._on_thread(
            request.vm_id, self.host.add_child, request.vm_id, request.instance_id, child
        )
        return device_host_pb2.AddChildResponse()

    async def RemoveChild(  # noqa: N802
        self,
        request: device_host_pb2.RemoveChildRequest,
        context: grpc.aio.ServicerContext[
            device_host_pb2.RemoveChildRequest, device_host_pb2.RemoveChildResponse
        ],
    ) -> device_host_pb2.RemoveChildResponse:
        """Remove a share from an aggregate device."""
        await self._on_thread(
            request.vm_id,
            self.host.remove_child,
            *(request.vm_id, request.instance_id, request.name),
        )
        return device_host_pb2.RemoveChildResponse()

    async def MapPort(  # noqa: N802
        self,
        request: device_host_pb2.MapPortRequest,
        context: grpc.aio.ServicerContext[
            device_host_pb2.MapPortRequest, device_host_pb2.MapPortResponse
        ],
    ) -> device_host_pb2.MapPortResponse:
        """Forward a port of the host to a guest."""
        wanted = mapping_from_proto(request.mapping)
        mapping = await self._on_thread(
            request.vm_id, self.host.map_port, *(request.vm_id, request.instance_id, wanted)
        )
        return device_host_pb2.MapPortResponse(mapping=mapping_to_proto(mapping))

    async def UnmapPort(  # noqa: N802
        self,
        request: device_host_pb2.UnmapPortRequest,
        context: grpc.aio.ServicerContext[
            device_host_pb2.UnmapPortRequest, device_host_pb2.UnmapPortResponse
        ],
    ) -> device_host_pb2.UnmapPortResponse:
        """End a mapping."""
        key = port_key_from_proto(request.key)
        await self._on_thread(
            request.vm_id, self.host.unmap_port, *(request.vm_id, request.instance_id, key)
        )
        return device_host_pb2.UnmapPortResponse()

    async def ListPorts(  # noqa: N802
        self,
        request: device_host_pb2.ListPortsRequest,
        context: grpc.aio.ServicerContext[
            device_host_pb2.ListPortsRequest, device_host_pb2.ListPortsResponse
        ],
    ) -> device_host_pb2.ListPortsResponse:
        """List the mappings of an adapter."""
        mappings = await self._on_thread(
            request.vm_id, self.host.list_ports, request.vm_id, request.instance_id
        )
        return device_host_pb2.ListPortsResponse(
            mappings=[mapping_to_proto(mapping) for mapping in mappings]
        )

    async def SetRateLimit(  # noqa: N802
        self,
        request: device_host_pb2.SetRateLimitRequest,
        context: grpc.aio.ServicerContext[
            device_host_pb2.SetRateLimitRequest, device_host_pb2.SetRateLimitResponse
        ],
    ) -> device_host_pb2.SetRateLimitResponse:
        """Change how fast frames of an adapter may go."""
        limits = await self._on_thread(
            request.vm_id,
            self.host.set_rate_limits,
            *(request.vm_id, request.instance_id, rate_limits_from_proto(request)),
        )
        return device_host_pb2.SetRateLimitResponse(**rate_limits_to_proto(limits))

    async def ForgetVm(  # noqa: N802
        self,
        request: device_host_pb2.ForgetVmRequest,
        context: grpc.aio.ServicerContext[
            device_host_pb2.ForgetVmRequest, device_host_pb2.ForgetVmResponse
        ],
    ) -> device_host_pb2.ForgetVmResponse:
        """Tear down the remaining devices of a VM."""
        await self._on_thread(request.vm_id, self.host.forget_vm, request.vm_id)
        return device_host_pb2.ForgetVmResponse()

    async def GetDevice(  # noqa: N802
        self,
        request: device_host_pb2.GetDeviceRequest,
        context: grpc.aio.ServicerContext[
            device_host_pb2.GetDeviceRequest, device_host_pb2.GetDeviceResponse
        ],
    ) -> device_host_pb2.GetDeviceResponse:
        """Return state and counters of one device, and the capabilities of its VM."""
        info = await self._on_thread(
            request.vm_id, self.host.get_device, request.vm_id, request.instance_id
        )
        answer = device_host_pb2.GetDeviceResponse(device=_to_proto(info))
        published = await self._on_thread(request.vm_id, self.host.published, request.vm_id)
        if published is not None:
            answer.guest_capabilities.SetInParent()
            answer.guest_capabilities.MergeFromString(published.message)
        return answer

    async def ListDevices(  # noqa: N802
        self,
        request: device_host_pb2.ListDevicesRequest,
        context: grpc.aio.ServicerContext[
            device_host_pb2.ListDevicesRequest, device_host_pb2.ListDevicesResponse
        ],
    ) -> device_host_pb2.ListDevicesResponse:
        """List devices."""
        devices = await self._on_thread(
            request.vm_id or _ALL_VMS, self.host.list_devices, request.vm_id or None
        )
        return device_host_pb2.ListDevicesResponse(devices=[_to_proto(info) for info in devices])

    async def WatchDevices(  # noqa: N802
        self,
        request: device_host_pb2.WatchDevicesRequest,
        context: grpc.aio.ServicerContext[
            device_host_pb2.WatchDevicesRequest, device_host_pb2.WatchDevicesResponse
        ],
    ) -> AsyncIterator[device_host_pb2.WatchDevicesResponse]:
        """Stream the changes of devices from now on.

        Raises:
            ResourceExhaustedError: WATCHER_TOO_SLOW.
        """
        watcher = _Watcher(request.vm_id)
        self._watchers.add(watcher)
        ended = asyncio.create_task(watcher.ended.wait())
        try:
            # A caller that has these misses no later change.
            await context.send_initial_metadata(())
            while change := await _next(watcher, ended):
                yield change
            if watcher.too_slow:
                raise ResourceExhaustedError(
                    "WATCHER_TOO_SLOW",
                    f"more than {WATCH_BACKLOG} changes were not read; list the devices, and "
                    "watch again",
                    bound=WATCH_BACKLOG,
                )
        finally:
            ended.cancel()
            self._watchers.discard(watcher)

    def _spec(self, request: device_host_pb2.CreateDeviceRequest) -> DeviceSpec:
        backend: FsBackend | AggregateBackend | NetBackend | UserBackend | None = None
        if request.HasField("fs"):
            backend = FsBackend(request.fs.shared_dir)
        elif request.HasField("aggregate"):
            backend = AggregateBackend()
        elif request.HasField("net"):
            backend = NetBackend(request.net.tap)
        elif request.HasField("user"):
            backend = UserBackend(_user_settings(request.user), self._passt)
        return DeviceSpec(request.vm_id, request.instance_id, request.tag, request.options, backend)

    async def _on_thread(
        self, vm_id: str, call: Callable[P, T], *args: P.args, **named: P.kwargs
    ) -> T:
        """Call the registry on one of the threads of a VM."""
        return await self._threads.run(vm_id.lower(), partial(call, *args, **named))

    def _changed(self, info: DeviceInfo, detail: str) -> None:
        """Hand a change to the watchers; any thread calls this."""
        self._publish_soon(info, device_host_pb2.WatchDevicesResponse(detail=detail))

    def _exhausted(self, info: DeviceInfo, exhaustion: Exhaustion) -> None:
        """Hand an exhaustion to the watchers; any thread calls this."""
        self._publish_soon(
            info,
            device_host_pb2.WatchDevicesResponse(
                detail=str(exhaustion), exhaustion=exhaustion_to_proto(exhaustion)
            ),
        )

    def _publish_soon(self, info: DeviceInfo, change: device_host_pb2.WatchDevicesResponse) -> None:
        change.device.CopyFrom(_to_proto(info))
        self._loop.call_soon_threadsafe(self._publish, info, change)

    def _publish(self, info: DeviceInfo, change: device_host_pb2.WatchDevicesResponse) -> None:
        for watcher in self._watchers:
            if watcher.vm_id in ("", info.vm_id):
                try:
                    watcher.backlog.put_nowait(change)
                except asyncio.QueueFull:
                    watcher.too_slow = True
                    watcher.ended.set()


def device_host_servicer(servicer: DeviceHostServicer) -> Servicer:
    """Return the entry of this service for the process's server."""
    add = device_host_pb2_grpc.add_DeviceHostServicer_to_server
    return Servicer(add, servicer, SERVICE)


async def _next(
    watcher: _Watcher, ended: asyncio.Task[bool]
) -> device_host_pb2.WatchDevicesResponse | None:
    """Wait for a watcher's next change; None when there is none left and it has ended."""
    if watcher.backlog.empty() and not watcher.ended.is_set():
        change = asyncio.create_task(watcher.backlog.get())
        try:
            await asyncio.wait({change, ended}, return_when=asyncio.FIRST_COMPLETED)
            if change.done():
                return change.result()
        finally:
            change.cancel()
    return None if watcher.backlog.empty() else watcher.backlog.get_nowait()


def _user_settings(user: device_host_pb2.UserBackend) -> UserSettings:
    return UserSettings(
        dns=tuple(user.dns),
        search_domains=tuple(user.search_domains),
        dns_forward=tuple(user.dns_forward),
        dns_host=tuple(user.dns_host),
        host_loopback=tuple(user.host_loopback),
        gateway_ip_ipv6=user.gateway_ip_ipv6,
        mtu=user.mtu or MAX_MTU,
    )


def _to_proto(info: DeviceInfo) -> device_host_pb2.Device:
    return device_host_pb2.Device(
        vm_id=info.vm_id,
        instance_id=info.instance_id,
        device_class=device_class_to_proto(info.device_class),
        tag=info.tag,
        state=device_state_to_proto(info.state),
        socket_path=str(info.socket_path),
        aperture=device_host_pb2.ApertureInfo(base=info.pool.base, size_bytes=info.pool.size_bytes)
        if info.pool
        else device_host_pb2.ApertureInfo(),
        counters=device_pb2.DeviceCounters(**dataclasses.asdict(info.counters)),
        options=info.options,
        children=info.children,
        guest_descriptors=info.guest_descriptors,
        link=link_state_to_proto(info.link_up),
    )


def _emit(traceparent: str, event: Event) -> None:
    tracing.emit_under(traceparent, f"DeviceHost {event.name}", event)
