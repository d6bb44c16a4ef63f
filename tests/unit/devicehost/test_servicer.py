"""The gRPC edge, in the process that serves it and as the whole process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from porthole.devicehost.v1 import device_host_pb2 as pb
from porthole.devicehost.v1 import device_host_pb2_grpc
from porthole.handshake.v1 import device_pb2, port_pb2, rate_limit_pb2
from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities
from porthole.handshake.v1.guest_capabilities_pb2 import SwiotlbPool as SwiotlbPoolMessage

from services.devicehost import servicer as servicer_module
from services.devicehost import telemetry
from services.devicehost.accounting import COUNTERS
from services.devicehost.servicer import SERVICE, DeviceHostServicer
from services.devicehost.vm_threads import CALLS_OF_A_VM
from services.handshake.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    PortholeError,
    ResourceExhaustedError,
)
from services.handshake.exhaustion import Exhaustion
from services.rpc import tracing
from services.rpc.channel import connect
from services.rpc.server import Servicer, start_server
from tests.support.front_end import RawFrontEnd, RingEvents
from tests.support.guest_ring import GuestRam, GuestRing
from tests.support.passt import PASST
from tests.support.reports import UNKNOWN_FIELD
from tests.unit.devicehost.host.conftest import MIB, OTHER_VM, POOL, TOKEN, VM
from tests.unit.devicehost.host.conftest import spec as device_spec
from tests.unit.devicehost.memory.test_aperture import mapped_bytes
from tests.unit.devicehost.vhost_user.conftest import guest_fds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator

    from porthole.devicehost.v1.device_host_pb2_grpc import DeviceHostAsyncStub

    from services.devicehost.host import DeviceHost


def request(shared: Path, instance_id: str = "d1", vm_id: str = VM) -> pb.CreateDeviceRequest:
    return pb.CreateDeviceRequest(
        vm_id=vm_id,
        instance_id=instance_id,
        tag="share",
        options=f"share;{TOKEN};vm_id={vm_id}",
        fs=pb.FsBackend(shared_dir=str(shared)),
    )


def spans_of(trace: Path) -> list[dict[str, Any]]:
    return [
        span
        for line in trace.read_text().splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def sockets_in(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_socket()]


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    ram = GuestRam(32 * MIB)
    yield ram
    ram.close()


@pytest.fixture
async def servicer(run_dir: Path) -> AsyncIterator[DeviceHostServicer]:
    servicer = DeviceHostServicer(run_dir)
    yield servicer
    await servicer.close()


@pytest.fixture
async def stub(run_dir: Path, servicer: DeviceHostServicer) -> AsyncIterator[DeviceHostAsyncStub]:
    address = f"unix:{run_dir}/devicehost.sock"
    entry = Servicer(
        device_host_pb2_grpc.add_DeviceHostServicer_to_server,
        servicer,
        SERVICE,
    )
    handle = await start_server([address], [entry])
    peer = await connect(address, device_host_pb2_grpc.DeviceHostStub, SERVICE)
    yield peer.stub
    await peer.close()
    await handle.stop(0)


async def test_create_get_list_remove(
    servicer: DeviceHostServicer, stub: DeviceHostAsyncStub, tmp_path: Path
) -> None:
    created = await stub.CreateDevice(request(tmp_path))
    servicer.host._vms[VM].devices["d1"].meter.guest_descriptors = 3
    device = (await stub.GetDevice(pb.GetDeviceRequest(vm_id=VM, instance_id="d1"))).device
    assert device.socket_path == created.socket_path
    assert device.device_class == device_pb2.DEVICE_CLASS_VIRTIO_FS
    assert device.state == device_pb2.DEVICE_STATE_LISTENING
    assert (device.aperture.base, device.aperture.size_bytes) == (POOL.base, POOL.size_bytes)
    assert device.guest_descriptors == 3
    listed = await stub.ListDevices(pb.ListDevicesRequest(vm_id=VM))
    assert [d.instance_id for d in listed.devices] == ["d1"]
    await stub.RemoveDevice(pb.RemoveDeviceRequest(vm_id=VM, instance_id="d1"))
    assert (await stub.ListDevices(pb.ListDevicesRequest())).devices == []


async def test_refusals_keep_their_reason_over_the_wire(
    stub: DeviceHostAsyncStub, tmp_path: Path
) -> None:
    await stub.SetSwiotlb(pb.SetSwiotlbRequest(vm_id=VM, swiotlb_option=TOKEN))
    wrong = request(tmp_path)
    wrong.options = f"share;vm_id={VM}"
    with pytest.raises(FailedPreconditionError) as caught:
        await stub.CreateDevice(wrong)
    assert caught.value.reason == "SWIOTLB_TOKEN_MISMATCH"


async def test_the_capabilities_of_a_vm_are_shown_whole(
    stub: DeviceHostAsyncStub, tmp_path: Path
) -> None:
    raw = (
        GuestCapabilities(
            swiotlb_pool=SwiotlbPoolMessage(base=POOL.base, size_bytes=POOL.size_bytes)
        ).SerializeToString()
        + UNKNOWN_FIELD
    )
    wanted = pb.GetDeviceRequest(vm_id=VM, instance_id="d1")
    await stub.CreateDevice(request(tmp_path))
    assert not (await stub.GetDevice(wanted)).HasField("guest_capabilities")
    announced = pb.SetSwiotlbRequest(vm_id=VM, swiotlb_option=TOKEN)
    announced.capabilities.MergeFromString(raw)
    await stub.SetSwiotlb(announced)
    shown = (await stub.GetDevice(wanted)).guest_capabilities
    assert shown.SerializeToString() == raw
    announced.capabilities.swiotlb_pool.base += 4096
    with pytest.raises(InvalidArgumentError) as caught:
        await stub.SetSwiotlb(announced)
    assert caught.value.reason == "SWIOTLB_TOKEN_CONTRADICTION"


async def test_empty_capabilities_are_some(stub: DeviceHostAsyncStub, tmp_path: Path) -> None:
    empty = pb.SetSwiotlbRequest(vm_id=VM, capabilities=GuestCapabilities())
    await stub.SetSwiotlb(empty)
    plain = request(tmp_path)
    plain.options = f"share;vm_id={VM}"
    await stub.CreateDevice(plain)
    answer = await stub.GetDevice(pb.GetDeviceRequest(vm_id=VM, instance_id="d1"))
    assert answer.HasField("guest_capabilities")
    assert answer.guest_capabilities == GuestCapabilities()


async def test_watchers_see_the_changes_of_their_vm(
    stub: DeviceHostAsyncStub, tmp_path: Path
) -> None:
    watch = stub.WatchDevices(pb.WatchDevicesRequest(vm_id=VM))
    await watch.initial_metadata()
    path = (await stub.CreateDevice(request(tmp_path))).socket_path
    other = (await stub.CreateDevice(request(tmp_path, "d2", OTHER_VM))).socket_path
    seen = []

    def visit(socket_path: str) -> None:
        with RawFrontEnd(Path(socket_path)) as front:
            front.negotiate()

    await asyncio.to_thread(visit, other)
    await asyncio.to_thread(visit, path)
    for _ in range(2):
        change = await asyncio.wait_for(anext(aiter(watch)), 10)
        seen.append((change.device.instance_id, change.device.state))
    watch.cancel()
    assert seen == [
        ("d1", device_pb2.DEVICE_STATE_CONNECTED),
        ("d1", device_pb2.DEVICE_STATE_LISTENING),
    ]


class Call:
    """The context of a call that nobody reads from yet."""

    async def send_initial_metadata(self, metadata: object) -> None:
        pass


async def test_a_watcher_that_reads_too_slowly_is_cut_off_and_holds_up_nobody(
    servicer: DeviceHostServicer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer_module, "WATCH_BACKLOG", 2)
    watch = servicer.WatchDevices(pb.WatchDevicesRequest(vm_id=VM), cast("Any", Call()))
    first = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)  # it watches
    await asyncio.to_thread(servicer.host.create_device, device_spec("d1"), lambda event: None)
    bounds = servicer.host._vms[VM].devices["d1"].meter.bounds
    assert bounds.on_exhausted is not None
    for _ in range(4):
        bounds.on_exhausted(Exhaustion("queued_requests", 64, 64))
    seen = [await first, await anext(watch)]
    assert [change.device.instance_id for change in seen] == ["d1", "d1"]
    with pytest.raises(ResourceExhaustedError) as cut:
        await asyncio.wait_for(anext(watch), 10)
    assert cut.value.reason == "WATCHER_TOO_SLOW"


async def test_an_exhaustion_is_reported_to_watchers(
    servicer: DeviceHostServicer, stub: DeviceHostAsyncStub, tmp_path: Path
) -> None:
    watch = stub.WatchDevices(pb.WatchDevicesRequest(vm_id=VM))
    await watch.initial_metadata()
    await stub.CreateDevice(request(tmp_path))
    bounds = servicer.host._vms[VM].devices["d1"].meter.bounds
    await asyncio.to_thread(bounds.hit, "queued_requests")
    change = await asyncio.wait_for(anext(aiter(watch)), 10)
    watch.cancel()
    assert change.device.instance_id == "d1"
    assert change.device.state == device_pb2.DEVICE_STATE_LISTENING
    assert change.device.counters.exhaustions == 1
    assert change.exhaustion == device_pb2.Exhaustion(resource="queued_requests", total=64)
    assert "queued_requests exhausted: 0 of 64" in change.detail


@pytest.fixture
def reader(
    servicer: DeviceHostServicer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[InMemoryMetricReader]:
    """Reads the metrics of the host."""
    found = InMemoryMetricReader()
    provider = MeterProvider([found], shutdown_on_exit=False)
    monkeypatch.setattr(tracing, "meter", lambda: provider.get_meter("test"))
    telemetry.observe(servicer.host)
    yield found
    provider.shutdown()


async def test_every_counter_of_every_device_is_a_metric(
    servicer: DeviceHostServicer,
    stub: DeviceHostAsyncStub,
    reader: InMemoryMetricReader,
    tmp_path: Path,
) -> None:
    await stub.CreateDevice(request(tmp_path))
    for _ in range(2):
        servicer.host._vms[VM].devices["d1"].meter.bounds.hit("queued_requests")
    servicer.host._vms[VM].devices["d1"].meter.guest_descriptors = 7
    data = reader.get_metrics_data()
    assert data is not None
    metrics: dict[str, Any] = {
        metric.name: next(iter(metric.data.data_points))
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    assert {f"porthole.device.{name}" for name in COUNTERS} <= metrics.keys()
    slots = metrics["porthole.device.pool_slots"]
    assert slots.value == POOL.size_bytes // 2048
    assert slots.attributes["porthole.device.id"] == "d1"
    held = metrics["porthole.device.guest_descriptors"]
    assert (held.value, held.attributes) == (7, slots.attributes)
    assert metrics["porthole.vm.windows_limit"].value == 512
    bound = metrics["porthole.device.bound_total"]
    assert (bound.value, bound.attributes["porthole.resource"]) == (64, "queued_requests")
    assert metrics["porthole.device.bound_used"].value == 0
    exhaustions = metrics["porthole.device.exhaustions"]
    assert (exhaustions.value, exhaustions.attributes) == (1, bound.attributes)


async def test_the_last_counters_of_a_device_that_lived_between_two_exports_are_exported(
    servicer: DeviceHostServicer,
    stub: DeviceHostAsyncStub,
    reader: InMemoryMetricReader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await stub.CreateDevice(request(tmp_path))
    await stub.RemoveDevice(pb.RemoveDeviceRequest(vm_id=VM, instance_id="d1"))
    data = reader.get_metrics_data()
    assert data is not None
    devices: dict[str, list[Any]] = {
        metric.name: [
            dict(point.attributes or {})["porthole.device.id"] for point in metric.data.data_points
        ]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    assert devices["porthole.device.requests"] == ["d1"]
    assert devices["porthole.device.highest_slot"] == ["d1"]
    monkeypatch.setattr(telemetry, "REMOVED_FOR_EXPORTS", 0)
    assert reader.get_metrics_data() is None


async def test_the_process_maps_the_pool_only_and_leaves_nothing_after_sigterm(
    run_dir: Path, tmp_path: Path, ram: GuestRam
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.devicehost", "--run-dir", str(run_dir)),
        *("--trace-file", str(run_dir / "trace.jsonl")),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert process.stdout is not None
    ready = await asyncio.wait_for(process.stdout.readline(), 30)
    assert b"porthole devicehost ready" in ready
    peer = await connect(
        f"unix:{run_dir}/devicehost.sock", device_host_pb2_grpc.DeviceHostStub, SERVICE
    )
    path = (await peer.stub.CreateDevice(request(tmp_path))).socket_path
    with RawFrontEnd(Path(path)) as front, RingEvents() as events:
        front.negotiate()
        assert front.attach(ram) == 0
        for index in range(2):
            front.start(index, GuestRing(ram, POOL.base + index * MIB, 64), events)
        assert mapped_bytes(process.pid) == [(POOL.base, POOL.size_bytes)]
        assert guest_fds(process.pid) == 0
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
        assert front.is_closed()
    await peer.close()
    assert sockets_in(run_dir) == []
    spans = {span["name"]: span for span in spans_of(run_dir / "trace.jsonl")}
    created, aperture = spans[f"{SERVICE}/CreateDevice"], spans["DeviceHost ApertureCreated"]
    assert aperture["traceId"] == created["traceId"]
    assert aperture["parentSpanId"] == created["spanId"]
    assert [event["name"] for event in aperture["events"]] == ["ApertureCreated"]


class WatchedRegistry:
    """A registry that records each call of it, and the thread of the call."""

    def __init__(self, registry: DeviceHost) -> None:
        self.registry = registry
        self.calls: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.registry, name)

        def call(*args: Any, **named: Any) -> Any:
            self.calls.append((name, threading.get_ident()))
            return found(*args, **named)

        return call if callable(found) else found


WITHOUT_REGISTRY = {"GetVersion", "WatchDevices"}


def adapter(instance_id: str = "eth0", **settings: Any) -> pb.CreateDeviceRequest:
    return pb.CreateDeviceRequest(
        vm_id=VM,
        instance_id=instance_id,
        tag="eth0",
        options=f"eth0;client_ip=10.9.0.2/24;gateway_ip=10.9.0.1;vm_id={VM}",
        user=pb.UserBackend(**settings),
    )


@pytest.mark.passt
async def test_ports_of_a_user_mode_network(
    servicer: DeviceHostServicer, stub: DeviceHostAsyncStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "_passt", str(PASST))
    await stub.CreateDevice(adapter(dns_forward=["10.9.0.53"], mtu=9000))
    wanted = port_pb2.PortMapping(
        key=port_pb2.PortKey(protocol=port_pb2.PORT_PROTOCOL_UDP, listen_address="127.0.0.1"),
        guest_port=53,
    )
    names = {"vm_id": VM, "instance_id": "eth0"}
    made = (await stub.MapPort(pb.MapPortRequest(**names, mapping=wanted))).mapping
    assert made.key.listen_port > 0
    wanted.key.listen_port = made.key.listen_port
    wanted.state = port_pb2.PORT_STATE_LISTENING
    assert made == wanted
    assert list((await stub.ListPorts(pb.ListPortsRequest(**names))).mappings) == [wanted]
    await stub.UnmapPort(pb.UnmapPortRequest(**names, key=made.key))
    assert list((await stub.ListPorts(pb.ListPortsRequest(**names))).mappings) == []
    with pytest.raises(PortholeError) as raised:
        await stub.MapPort(pb.MapPortRequest(**names, mapping=port_pb2.PortMapping(guest_port=80)))
    assert raised.value.reason == "PORT_PROTOCOL"


@pytest.mark.passt
async def test_the_settings_of_a_user_mode_network_are_checked(
    servicer: DeviceHostServicer, stub: DeviceHostAsyncStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "_passt", str(PASST))
    with pytest.raises(InvalidArgumentError) as raised:
        await stub.CreateDevice(adapter(mtu=1))
    assert raised.value.reason == "USER_NETWORK_VALUE"
    assert (await stub.ListDevices(pb.ListDevicesRequest())).devices == []


async def test_only_an_adapter_has_rate_limits(stub: DeviceHostAsyncStub, tmp_path: Path) -> None:
    await stub.CreateDevice(request(tmp_path))
    limit = rate_limit_pb2.RateLimit(packets_per_second=5)
    change = partial(pb.SetRateLimitRequest, vm_id=VM, instance_id="d1")
    with pytest.raises(FailedPreconditionError) as refused:
        await stub.SetRateLimit(change(transmit=limit))
    assert refused.value.reason == "NOT_AN_ADAPTER"
    limit.burst_bytes = 9
    with pytest.raises(InvalidArgumentError) as wrong:
        await stub.SetRateLimit(change(receive=limit))
    assert wrong.value.reason == "RATE_LIMIT_VALUE"


@pytest.mark.passt
async def test_rate_limits_change_one_by_one(
    servicer: DeviceHostServicer, stub: DeviceHostAsyncStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "_passt", str(PASST))
    await stub.CreateDevice(adapter())
    change = partial(pb.SetRateLimitRequest, vm_id=VM, instance_id="eth0")
    slow = rate_limit_pb2.RateLimit(bytes_per_second=5000, burst_bytes=9)
    fast = rate_limit_pb2.RateLimit(packets_per_second=10**6)
    await stub.SetRateLimit(change(transmit=slow))
    answer = await stub.SetRateLimit(change(receive=fast))
    assert (answer.transmit, answer.receive) == (slow, fast)
    none = rate_limit_pb2.RateLimit()
    answer = await stub.SetRateLimit(change(transmit=none))
    assert (answer.transmit, answer.receive) == (none, fast)


async def test_only_a_user_mode_network_maps_ports(
    stub: DeviceHostAsyncStub, tmp_path: Path
) -> None:
    await stub.CreateDevice(request(tmp_path))
    mapping = port_pb2.PortMapping(
        key=port_pb2.PortKey(protocol=port_pb2.PORT_PROTOCOL_TCP), guest_port=80
    )
    with pytest.raises(FailedPreconditionError) as raised:
        await stub.MapPort(pb.MapPortRequest(vm_id=VM, instance_id="d1", mapping=mapping))
    assert raised.value.reason == "NO_USER_NETWORK"


async def test_no_call_of_the_registry_runs_on_the_event_loop(
    servicer: DeviceHostServicer, stub: DeviceHostAsyncStub
) -> None:
    registry = WatchedRegistry(servicer.host)
    servicer.host = cast("DeviceHost", registry)
    for method in pb.DESCRIPTOR.services_by_name["DeviceHost"].methods:
        registry.calls.clear()
        request = getattr(pb, method.input_type.name)()
        call = getattr(stub, method.name)(request)
        if method.server_streaming:
            await call.initial_metadata()
            call.cancel()
        else:
            with contextlib.suppress(PortholeError):  # an empty request is refused by many
                await call
        assert bool(registry.calls) == (method.name not in WITHOUT_REGISTRY), method.name
        assert threading.get_ident() not in [thread for _, thread in registry.calls], method.name
    registry.calls.clear()
    await servicer.close()
    assert [name for name, _ in registry.calls] == ["close"]
    assert registry.calls[0][1] != threading.get_ident()


async def test_a_device_is_shown_while_others_take_long_to_be_removed(
    servicer: DeviceHostServicer, stub: DeviceHostAsyncStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving, may_leave = threading.Barrier(9), threading.Event()

    def remove(*_: str) -> None:
        leaving.wait(10)
        may_leave.wait(10)

    monkeypatch.setattr(servicer.host, "remove_device", remove)
    removals = [
        asyncio.create_task(_awaited(stub.RemoveDevice(pb.RemoveDeviceRequest()))) for _ in range(8)
    ]
    await asyncio.to_thread(leaving.wait, 10)
    assert (await stub.ListDevices(pb.ListDevicesRequest(), timeout=10)).devices == []
    may_leave.set()
    await asyncio.gather(*removals)


async def test_the_process_ends_while_all_threads_of_calls_wait(
    servicer: DeviceHostServicer,
) -> None:
    may_end = threading.Event()
    waiting = [
        asyncio.create_task(servicer._on_thread(vm_id, may_end.wait, 30))
        for vm_id in (VM, OTHER_VM, "")
        for _ in range(CALLS_OF_A_VM)
    ]
    try:
        await asyncio.wait_for(servicer.close(), 10)
    finally:
        may_end.set()
    await asyncio.gather(*waiting)


async def _awaited(call: Awaitable[object]) -> None:
    await call


def test_every_method_of_the_proto_is_served() -> None:
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["DeviceHost"].methods}
    assert methods <= vars(DeviceHostServicer).keys()
