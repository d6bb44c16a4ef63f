"""The gRPC edge: translations, refusals, and the services that a guest can reach."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from porthole.guest.v1 import guest_init_pb2, guest_init_pb2_grpc
from porthole.handshake.v1 import device_pb2
from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities
from porthole.vmowner.v1 import vm_owner_pb2, vm_owner_pb2_grpc

from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PortholeError,
    ResourceExhaustedError,
)
from services.rpc.channel import connect
from services.rpc.server import start_server
from services.vm_owner import clients
from services.vm_owner.event_stream import HISTORY_LIMIT, QUEUE_LIMIT
from services.vm_owner.init_channel import INIT_CHANNEL
from services.vm_owner.manifest import load_manifest
from services.vm_owner.registry import ENDED_KEPT
from services.vm_owner.servicer import VM_OWNER, vm_owner_servicer
from services.vm_owner.watch_items import DeviceChange
from tests.support.owner_peers import POOL, TOKEN, report
from tests.support.reports import UNKNOWN_FIELD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.owner_peers import Rig

    Stub = vm_owner_pb2_grpc.VmOwnerAsyncStub


@pytest_asyncio.fixture
async def stub(rig: Rig) -> AsyncIterator[Stub]:
    address = f"unix:{rig.run_dir}/owner.sock"
    async with AsyncExitStack() as stack:
        server = await start_server([address], [vm_owner_servicer(rig.owner, load_manifest())])
        stack.push_async_callback(server.stop, 0)
        peer = await connect(address, vm_owner_pb2_grpc.VmOwnerStub, VM_OWNER)
        stack.push_async_callback(peer.close)
        yield peer.stub


async def create(stub: Stub, kind: vm_owner_pb2.VmKind.ValueType) -> vm_owner_pb2.Vm:
    return (await stub.CreateVm(vm_owner_pb2.CreateVmRequest(kind=kind))).vm


async def get(stub: Stub, vm_id: str) -> vm_owner_pb2.Vm:
    return (await stub.GetVm(vm_owner_pb2.GetVmRequest(vm_id=vm_id))).vm


async def test_get_version_returns_the_manifest(stub: Stub) -> None:
    answer = await stub.GetVersion(vm_owner_pb2.GetVersionRequest())
    assert answer.version.service == VM_OWNER
    assert list(answer.version.api_versions) == ["v1"]
    assert answer.first_kernel_with_pool == "6.18.26.3-1"
    assert answer.first_device_host_with_token == "1.2.29-0"
    assert answer.bundled_kernel == "6.18.26.3-1"


async def test_a_long_name_of_a_configuration_is_cut(stub: Stub, rig: Rig) -> None:
    request = vm_owner_pb2.CreateVmRequest(
        kind=vm_owner_pb2.VM_KIND_WSLC, wslconfig="x", wslconfig_name="n" * 300
    )
    vm = rig.owner.find((await stub.CreateVm(request)).vm.vm_id)
    assert rig.owner._vms.spec_of(vm).wslconfig_name == "n" * 255


async def test_a_whole_life_over_the_wire(stub: Stub, rig: Rig, tmp_path: Path) -> None:
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSL2)
    assert vm.state == vm_owner_pb2.VM_STATE_RUNNING
    assert vm.latched_pool == POOL
    assert vm.swiotlb_option == TOKEN
    assert vm.networking_mode == vm_owner_pb2.NETWORKING_MODE_VIRTIO_PROXY
    assert vm.guest_init_address == f"unix:{rig.run_dir}/guest-init.sock"
    assert vm.machine_address == f"unix:{rig.run_dir}/machine.sock"
    assert vm.isolation == vm_owner_pb2.ISOLATION_SHARED_RAM
    spec = vm_owner_pb2.ShareSpec(host_path=str(tmp_path), tag="data", options="ro")
    added = await stub.AddShare(vm_owner_pb2.AddShareRequest(vm_id=vm.vm_id, share=spec))
    again = await stub.AddShare(vm_owner_pb2.AddShareRequest(vm_id=vm.vm_id, share=spec))
    assert (added.already_existed, again.already_existed) == (False, True)
    assert added.share == again.share
    device = await stub.AddGuestDevice(
        vm_owner_pb2.AddGuestDeviceRequest(
            vm_id=vm.vm_id,
            tag="more",
            directory=str(tmp_path),
        )
    )
    seen = await get(stub, vm.vm_id)
    assert [share.tag for share in seen.shares] == ["data"]
    assert [(d.tag, d.state, d.counters.requests) for d in seen.devices] == [
        ("data", device_pb2.DEVICE_STATE_ATTACHED, 7),
        ("more", device_pb2.DEVICE_STATE_ATTACHED, 7),
    ]
    await stub.RemoveGuestDevice(
        vm_owner_pb2.RemoveGuestDeviceRequest(vm_id=vm.vm_id, instance_id=device.device.instance_id)
    )
    await stub.RemoveShare(
        vm_owner_pb2.RemoveShareRequest(vm_id=vm.vm_id, share_id=added.share.share_id)
    )
    assert list((await get(stub, vm.vm_id)).devices) == []
    await stub.TerminateVm(vm_owner_pb2.TerminateVmRequest(vm_id=vm.vm_id))
    [listed] = (await stub.ListVms(vm_owner_pb2.ListVmsRequest())).vms
    assert (listed.vm_id, listed.state) == (vm.vm_id, vm_owner_pb2.VM_STATE_TERMINATED)


async def test_states_are_unspecified_when_the_device_host_is_away(
    stub: Stub, rig: Rig, tmp_path: Path
) -> None:
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSL2)
    spec = vm_owner_pb2.ShareSpec(host_path=str(tmp_path), tag="data")
    await stub.AddShare(vm_owner_pb2.AddShareRequest(vm_id=vm.vm_id, share=spec))
    await rig.servers["devicehost"].stop(0)
    [device] = (await get(stub, vm.vm_id)).devices
    assert device.state == device_pb2.DEVICE_STATE_UNSPECIFIED
    assert device.counters.requests == 0


async def test_a_vm_is_shown_while_its_device_host_hangs(
    stub: Stub, rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert clients.LIST_DEADLINE_S * 2 < 10  # a caller's own deadline
    monkeypatch.setattr(clients, "LIST_DEADLINE_S", 0.2)
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSL2)
    for elevated in (False, True):
        spec = vm_owner_pb2.ShareSpec(host_path=str(tmp_path), elevated=elevated)
        await stub.AddShare(vm_owner_pb2.AddShareRequest(vm_id=vm.vm_id, share=spec))
    rig.script.gates["ListDevices"] = asyncio.Event()
    devices = (await get(stub, vm.vm_id)).devices
    assert [device.state for device in devices] == [device_pb2.DEVICE_STATE_UNSPECIFIED] * 2


async def test_fields_that_this_version_does_not_know_are_kept(stub: Stub, rig: Rig) -> None:
    raw = GuestCapabilities(swiotlb_pool=POOL).SerializeToString() + UNKNOWN_FIELD
    capabilities = GuestCapabilities.FromString(raw)
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSLC)
    answer = await stub.ApplyGuestCapabilities(
        vm_owner_pb2.ApplyGuestCapabilitiesRequest(vm_id=vm.vm_id, capabilities=capabilities)
    )
    assert (answer.already_applied, answer.swiotlb_option) == (False, TOKEN)
    kept = (await get(stub, vm.vm_id)).capabilities
    assert kept.SerializeToString() == raw
    rig.machine.capabilities = capabilities
    pushed = await create(stub, vm_owner_pb2.VM_KIND_WSL2)
    assert pushed.capabilities.SerializeToString() == raw


async def test_a_repeat_with_the_pool_alone_erases_nothing(stub: Stub) -> None:
    raw = GuestCapabilities(swiotlb_pool=POOL).SerializeToString() + UNKNOWN_FIELD
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSLC)
    for already_applied in (False, True):
        answer = await stub.ApplyGuestCapabilities(
            vm_owner_pb2.ApplyGuestCapabilitiesRequest(
                vm_id=vm.vm_id, capabilities=GuestCapabilities.FromString(raw)
            )
        )
        assert answer.already_applied is already_applied
        assert answer.capabilities.SerializeToString() == raw
    with pytest.raises(FailedPreconditionError) as refused:
        await stub.ApplyGuestCapabilities(
            vm_owner_pb2.ApplyGuestCapabilitiesRequest(
                vm_id=vm.vm_id, capabilities=GuestCapabilities(swiotlb_pool=POOL)
            )
        )
    assert refused.value.reason == "CAPABILITIES_ALREADY_LATCHED"
    assert (await get(stub, vm.vm_id)).capabilities.SerializeToString() == raw


async def test_the_answer_has_what_is_in_force(stub: Stub) -> None:
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSLC)
    for said, in_force in ((True, True), (False, False), (None, False)):
        capabilities = GuestCapabilities(swiotlb_pool=POOL, seccomp_user_notification=said)
        answer = await stub.ApplyGuestCapabilities(
            vm_owner_pb2.ApplyGuestCapabilitiesRequest(vm_id=vm.vm_id, capabilities=capabilities)
        )
        assert answer.capabilities == GuestCapabilities(
            swiotlb_pool=POOL, seccomp_user_notification=in_force
        )


async def test_a_request_without_capabilities_changes_nothing(stub: Stub, rig: Rig) -> None:
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSLC)
    with pytest.raises(InvalidArgumentError) as refused:
        await stub.ApplyGuestCapabilities(
            vm_owner_pb2.ApplyGuestCapabilitiesRequest(vm_id=vm.vm_id)
        )
    assert refused.value.reason == "CAPABILITIES_MISSING"
    assert (await get(stub, vm.vm_id)).state == vm_owner_pb2.VM_STATE_BOOTED
    await create(stub, vm_owner_pb2.VM_KIND_WSL2)
    channel = rig.machine.boots[-1].init_channel_address
    peer = await connect(channel, guest_init_pb2_grpc.InitChannelStub, INIT_CHANNEL)
    with pytest.raises(InvalidArgumentError) as pushed:
        await peer.stub.ReportGuestCapabilities(guest_init_pb2.ReportGuestCapabilitiesRequest())
    await peer.close()
    assert pushed.value.reason == "CAPABILITIES_MISSING"


async def test_nobody_applies_the_capabilities_of_a_wsl2_vm(stub: Stub) -> None:
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSL2)
    with pytest.raises(FailedPreconditionError) as refused:
        await stub.ApplyGuestCapabilities(
            vm_owner_pb2.ApplyGuestCapabilitiesRequest(vm_id=vm.vm_id, capabilities=vm.capabilities)
        )
    assert refused.value.reason == "WRONG_VM_KIND"


async def test_empty_capabilities_are_valid(stub: Stub) -> None:
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSLC)
    answer = await stub.ApplyGuestCapabilities(
        vm_owner_pb2.ApplyGuestCapabilitiesRequest(vm_id=vm.vm_id, capabilities=GuestCapabilities())
    )
    assert answer.HasField("capabilities")
    assert (answer.already_applied, answer.swiotlb_option) == (False, "")
    seen = await get(stub, vm.vm_id)
    assert seen.state == vm_owner_pb2.VM_STATE_RUNNING
    assert not seen.HasField("latched_pool")


async def test_a_watcher_gets_the_present_first_and_the_end_last(
    stub: Stub, rig: Rig, tmp_path: Path
) -> None:
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSL2)
    spec = vm_owner_pb2.ShareSpec(host_path=str(tmp_path), tag="data")
    await stub.AddShare(vm_owner_pb2.AddShareRequest(vm_id=vm.vm_id, share=spec))
    seen = []
    async for item in stub.WatchVm(vm_owner_pb2.WatchVmRequest(vm_id=vm.vm_id)):
        seen.append(item)
        if item.HasField("snapshot_end"):
            await rig.owner.terminate(vm.vm_id)
    assert not seen.pop(3).snapshot_end.resumed
    assert seen[0].state == vm_owner_pb2.VM_STATE_RUNNING
    assert seen[1].pool_latched == POOL
    assert (seen[2].device.tag, seen[2].device.state) == (
        "data",
        device_pb2.DEVICE_STATE_ATTACHED,
    )
    assert seen[3].state == vm_owner_pb2.VM_STATE_SHUTTING_DOWN
    assert seen[4].device.state == device_pb2.DEVICE_STATE_SHUTTING_DOWN
    assert seen[-1].state == vm_owner_pb2.VM_STATE_TERMINATED


def _bad_requests() -> list[tuple[Callable[[Stub], object], type[PortholeError], str]]:
    big = GuestCapabilities(kernel_release="6" * 300)
    return [
        (
            lambda s: s.CreateVm(vm_owner_pb2.CreateVmRequest()),
            InvalidArgumentError,
            "VM_KIND_UNKNOWN",
        ),
        (
            lambda s: s.CreateVm(vm_owner_pb2.CreateVmRequest(kind=99)),  # type: ignore[arg-type]
            InvalidArgumentError,
            "VM_KIND_UNKNOWN",
        ),
        (
            lambda s: s.CreateVm(
                vm_owner_pb2.CreateVmRequest(
                    kind=vm_owner_pb2.VM_KIND_WSL2, external=vm_owner_pb2.ExternalMachine()
                )
            ),
            InvalidArgumentError,
            "MACHINE_ADDRESS",
        ),
        (
            lambda s: s.ApplyGuestCapabilities(
                vm_owner_pb2.ApplyGuestCapabilitiesRequest(vm_id="nope", capabilities=big)
            ),
            InvalidArgumentError,
            "KERNEL_RELEASE_SYNTAX",
        ),
        (
            lambda s: s.GetVm(vm_owner_pb2.GetVmRequest(vm_id="nope")),
            NotFoundError,
            "VM_NOT_FOUND",
        ),
    ]


@pytest.mark.parametrize(("call", "kind", "reason"), _bad_requests())
async def test_bad_requests(
    stub: Stub, call: Callable[[Stub], object], kind: type[PortholeError], reason: str
) -> None:
    with pytest.raises(kind) as refused:
        await call(stub)  # type: ignore[misc]
    assert refused.value.reason == reason


async def test_a_backend_that_makes_no_sense(stub: Stub) -> None:
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSL2)
    cases = [
        (vm_owner_pb2.AddGuestDeviceRequest(), "BACKEND_MISSING"),
        (vm_owner_pb2.AddGuestDeviceRequest(directory=""), "SHARE_PATH_SYNTAX"),
        (vm_owner_pb2.AddGuestDeviceRequest(directory="relative"), "SHARE_PATH_SYNTAX"),
        (vm_owner_pb2.AddGuestDeviceRequest(tap="../etc"), "DEVICE_NAME"),
    ]
    for request, reason in cases:
        request.vm_id, request.tag = vm.vm_id, "x"
        with pytest.raises(InvalidArgumentError) as refused:
            await stub.AddGuestDevice(request)
        assert refused.value.reason == reason


async def test_a_watcher_of_an_unknown_vm(stub: Stub) -> None:
    watching = aiter(stub.WatchVm(vm_owner_pb2.WatchVmRequest(vm_id="nope")))
    with pytest.raises(NotFoundError):
        await anext(watching)


async def test_a_guest_reaches_nothing_but_its_own_init_channel(stub: Stub, rig: Rig) -> None:
    await create(stub, vm_owner_pb2.VM_KIND_WSL2)
    address = rig.machine.boots[0].init_channel_address
    with pytest.raises(FailedPreconditionError, match="does not serve") as refused:
        await connect(address, vm_owner_pb2_grpc.VmOwnerStub, VM_OWNER)
    assert refused.value.reason == "API_VERSION_MISMATCH"
    fields = guest_init_pb2.ReportGuestCapabilitiesRequest.DESCRIPTOR.fields
    assert [field.name for field in fields] == ["capabilities"]


async def test_a_guest_cannot_fill_the_owner(stub: Stub, rig: Rig) -> None:
    await create(stub, vm_owner_pb2.VM_KIND_WSL2)
    huge = GuestCapabilities.FromString(b"\x82\x7d\x80\x80\x08" + b"x" * (128 << 10))
    refusal = await report(rig.machine.boots[0].init_channel_address, huge)
    assert isinstance(refusal, InvalidArgumentError)
    assert refusal.reason == "CAPABILITIES_TOO_LARGE"


async def list_vms(stub: Stub, **request: Any) -> vm_owner_pb2.ListVmsResponse:
    return await stub.ListVms(vm_owner_pb2.ListVmsRequest(**request))


async def test_a_list_stays_within_what_grpc_takes_whatever_guests_report(stub: Stub) -> None:
    capabilities = GuestCapabilities(swiotlb_pool=POOL)
    capabilities.MergeFromString(b"\x82\x7d\xc0\xff\x03" + bytes(65472))  # 64 KiB in all
    ids = []
    for number in range(ENDED_KEPT + 6):
        vm = await create(stub, vm_owner_pb2.VM_KIND_WSLC)
        ids.append(vm.vm_id)
        await stub.ApplyGuestCapabilities(
            vm_owner_pb2.ApplyGuestCapabilitiesRequest(vm_id=vm.vm_id, capabilities=capabilities)
        )
        if number < ENDED_KEPT:
            await stub.TerminateVm(vm_owner_pb2.TerminateVmRequest(vm_id=vm.vm_id))
    for view in (vm_owner_pb2.VM_VIEW_BASIC, vm_owner_pb2.VM_VIEW_FULL):
        listed: list[vm_owner_pb2.Vm] = []
        token = ""
        while True:
            page = await list_vms(stub, view=view, page_token=token)
            listed += page.vms
            token = page.next_page_token
            if not token:
                break
        assert [vm.vm_id for vm in listed] == ids
        reports = [vm.HasField("capabilities") for vm in listed]
        full = view == vm_owner_pb2.VM_VIEW_FULL
        assert reports == [False] * ENDED_KEPT + [full] * 6


async def test_a_page_has_at_most_a_mebibyte_of_several_vms(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.vm_owner.servicer.PAGE_LIMIT_BYTES", 1)
    ids = [(await create(stub, vm_owner_pb2.VM_KIND_WSLC)).vm_id for _ in range(2)]
    first = await list_vms(stub)
    second = await list_vms(stub, page_token=first.next_page_token)
    assert [[vm.vm_id for vm in page.vms] for page in (first, second)] == [ids[:1], ids[1:]]
    assert second.next_page_token == ""


@pytest.mark.parametrize("aggregate", [False, True])
async def test_a_vm_stays_within_what_grpc_takes_whatever_is_shared(
    stub: Stub, tmp_path: Path, aggregate: bool
) -> None:
    vm_id = (await create(stub, vm_owner_pb2.VM_KIND_WSL2)).vm_id

    async def add(number: int) -> None:
        options = f"symlinkroot=/{number:03}".ljust(3500, "x")
        share = vm_owner_pb2.ShareSpec(
            host_path=str(tmp_path), options=options, aggregate=aggregate
        )
        await stub.AddShare(vm_owner_pb2.AddShareRequest(vm_id=vm_id, share=share))

    async def fill() -> None:
        for number in range(1000):
            await add(number)

    with pytest.raises(ResourceExhaustedError) as refused:
        await fill()
    assert refused.value.reason == "VM_TEXTS_LIMIT"
    seen = await get(stub, vm_id)
    assert 200 < len(seen.shares) < 300
    assert len(seen.devices) == (1 if aggregate else len(seen.shares))
    [listed] = (await list_vms(stub, view=vm_owner_pb2.VM_VIEW_FULL)).vms
    assert listed == seen
    await stub.RemoveShare(
        vm_owner_pb2.RemoveShareRequest(vm_id=vm_id, share_id=seen.shares[0].share_id)
    )
    await add(1000)


async def test_pages_go_on_where_the_one_before_ended(stub: Stub) -> None:
    ids = [(await create(stub, vm_owner_pb2.VM_KIND_WSLC)).vm_id for _ in range(3)]
    first = await list_vms(stub, page_size=2)
    assert [vm.vm_id for vm in first.vms] == ids[:2]
    late = (await create(stub, vm_owner_pb2.VM_KIND_WSLC)).vm_id
    rest = await list_vms(stub, page_size=2, page_token=first.next_page_token)
    assert [vm.vm_id for vm in rest.vms] == [ids[2], late]
    assert rest.next_page_token == ""
    assert [vm.vm_id for vm in (await list_vms(stub, page_size=10_000)).vms] == [*ids, late]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"page_size": -1}, "PAGE_SIZE"),
        ({"page_token": "after-"}, "PAGE_TOKEN"),
        ({"page_token": "7"}, "PAGE_TOKEN"),
        ({"page_token": "after-" + "9" * 5000}, "PAGE_TOKEN"),
        ({"view": 9}, "VM_VIEW_UNKNOWN"),
    ],
)
async def test_a_list_that_makes_no_sense(
    stub: Stub, request_: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await list_vms(stub, **request_)
    assert refused.value.reason == reason


async def test_calls_with_an_id_can_be_repeated(stub: Stub, tmp_path: Path) -> None:
    vm_id = str(uuid.uuid4())
    creation = vm_owner_pb2.CreateVmRequest(vm_id=vm_id, kind=vm_owner_pb2.VM_KIND_WSL2)
    addition = vm_owner_pb2.AddGuestDeviceRequest(
        vm_id=vm_id, instance_id="mine", tag="data", directory=str(tmp_path)
    )
    for _ in range(2):
        assert (await stub.CreateVm(creation)).vm.vm_id == vm_id
        assert (await stub.AddGuestDevice(addition)).device.instance_id == "mine"
    assert [device.tag for device in (await get(stub, vm_id)).devices] == ["data"]
    creation.ram_bytes = 1 << 30
    with pytest.raises(AlreadyExistsError, match="ram_bytes"):
        await stub.CreateVm(creation)


async def watched(
    stub: Stub, vm_id: str, count: int, after: int = 0
) -> list[vm_owner_pb2.WatchVmResponse]:
    """The first messages of a watch that begins now."""
    watching = stub.WatchVm(vm_owner_pb2.WatchVmRequest(vm_id=vm_id, after_sequence=after))
    stream = aiter(watching)
    return [await asyncio.wait_for(anext(stream), 10) for _ in range(count)]


def sequences(messages: list[vm_owner_pb2.WatchVmResponse]) -> list[tuple[str | None, int]]:
    return [(message.WhichOneof("event"), message.sequence) for message in messages]


async def test_a_watcher_that_comes_back_gets_what_it_missed(stub: Stub, rig: Rig) -> None:
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSLC)
    booted = rig.owner.find(vm.vm_id).record._stream.sequence
    seen = await watched(stub, vm.vm_id, 2)
    assert sequences(seen) == [("state", booted), ("snapshot_end", booted)]
    await stub.ApplyGuestCapabilities(
        vm_owner_pb2.ApplyGuestCapabilitiesRequest(
            vm_id=vm.vm_id, capabilities=GuestCapabilities(swiotlb_pool=POOL)
        )
    )
    missed = await watched(stub, vm.vm_id, 3, after=seen[-1].sequence)
    assert missed[0].snapshot_end.resumed
    assert sequences(missed) == [
        ("snapshot_end", booted),
        ("pool_latched", booted + 1),
        ("state", booted + 2),
    ]
    await rig.owner.terminate(vm.vm_id)
    rest = await watched(stub, vm.vm_id, 3, after=missed[-1].sequence)
    assert sequences(rest)[1:] == [("state", booted + 3), ("state", booted + 4)]


async def test_a_watcher_that_missed_too_much_gets_a_snapshot(stub: Stub, rig: Rig) -> None:
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSLC)
    record = rig.owner.find(vm.vm_id).record
    known = (await watched(stub, vm.vm_id, 1))[0].sequence
    for _ in range(HISTORY_LIMIT + 1):
        record.publish(DeviceChange("d", "t", "attached", ""))
    for after in (known, known + 10_000):
        first = await watched(stub, vm.vm_id, 2, after=after)
        last = known + HISTORY_LIMIT + 1
        assert sequences(first) == [("state", last), ("snapshot_end", last)]
        assert not first[1].snapshot_end.resumed
    seen = await watched(stub, vm.vm_id, HISTORY_LIMIT + 1, after=known + 1)
    assert [message.sequence for message in seen] == list(range(known + 1, last + 1))


async def test_a_change_while_the_snapshot_is_taken_is_not_lost(
    stub: Stub, rig: Rig, tmp_path: Path
) -> None:
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSL2)
    spec = vm_owner_pb2.ShareSpec(host_path=str(tmp_path), tag="data")
    await stub.AddShare(vm_owner_pb2.AddShareRequest(vm_id=vm.vm_id, share=spec))
    rig.script.gates["ListDevices"] = asyncio.Event()
    stream = aiter(stub.WatchVm(vm_owner_pb2.WatchVmRequest(vm_id=vm.vm_id)))
    seen = [await anext(stream) for _ in range(2)]  # the device host has not answered yet
    rig.owner.find(vm.vm_id).record.publish(DeviceChange("d", "late", "attached", ""))
    rig.script.gates["ListDevices"].set()
    seen += [await anext(stream) for _ in range(3)]
    assert [message.WhichOneof("event") for message in seen[2:4]] == ["device", "snapshot_end"]
    assert seen[4].device.tag == "late"
    assert seen[4].sequence == seen[3].sequence + 1


async def test_a_slow_reader_gets_the_reason_and_where_to_go_on(stub: Stub, rig: Rig) -> None:
    vm = await create(stub, vm_owner_pb2.VM_KIND_WSL2)
    record = rig.owner.find(vm.vm_id).record
    stream = aiter(stub.WatchVm(vm_owner_pb2.WatchVmRequest(vm_id=vm.vm_id)))
    last = (await anext(stream)).sequence
    for _ in range(10):  # more than gRPC and the owner have room for
        for _ in range(QUEUE_LIMIT):
            record.publish(DeviceChange("d", "t", "attached", "x" * 1000))
        await asyncio.sleep(0)

    async def read_on() -> None:
        nonlocal last
        async for message in stream:
            last = message.sequence

    with pytest.raises(ResourceExhaustedError) as cut:
        await asyncio.wait_for(read_on(), 30)
    assert cut.value.reason == "WATCHER_TOO_SLOW"
    assert cut.value.metadata["sequence"] == str(last)
