"""Devices added, removed and undone step by step, with a fault at each step."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from porthole.devicehost.v1 import device_host_pb2
from porthole.handshake.v1 import device_pb2
from porthole.machine.v1 import machine_pb2

from services.handshake import events
from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PortholeError,
    UnavailableError,
)
from services.handshake.exhaustion import Exhaustion
from services.rpc.version import SOFTWARE_VERSION
from services.vm_owner import warnings
from services.vm_owner.guest_devices import DeviceSpec
from services.vm_owner.machines.external import ExternalMachine
from services.vm_owner.record import VmKind
from services.vm_owner.shares import ShareSpec
from services.vm_owner.states import VmState
from services.vm_owner.watch_items import DeviceExhausted
from tests.support.owner_peers import POOL, TOKEN
from tests.support.reports import UNKNOWN_FIELD, reported

if TYPE_CHECKING:
    from pathlib import Path

    from services.handshake.events import Event
    from services.vm_owner.device_hosts import DeviceHost
    from services.vm_owner.machines import AttachSpec
    from tests.support.owner_peers import Rig

BOOM = UnavailableError("BOOM", "the peer fell over")


def fs(tmp_path: Path, tag: str = "data", extra: str = "", *, elevated: bool = False) -> DeviceSpec:
    return DeviceSpec(events.FS, tag, extra, str(tmp_path), elevated)


async def test_add_and_remove_in_the_documented_order(
    rig: Rig, trace: list[Event], tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    vm_id = vm.vm_id
    rig.script.journal.clear()
    device = await rig.owner.add_device(vm_id, fs(tmp_path, extra="ro"))
    options = f"data;ro;{TOKEN};vm_id={vm_id}"
    assert rig.script.journal == [
        ("devicehost", "SetSwiotlb", TOKEN),
        ("devicehost", "CreateDevice", options),
        ("machine", "AttachDevice", "data"),
    ]
    assert rig.machine.attached[device.instance_id].socket_path == "/sock/data"
    rig.script.journal.clear()
    await rig.owner.remove_device(vm_id, device.instance_id)
    assert rig.script.journal == [
        ("devicehost", "RemoveDevice", device.instance_id),
        ("machine", "DetachDevice", device.instance_id),
    ]
    assert [event.name for event in trace][-2:] == [events.DEVICE_ADDED, events.DEVICE_REMOVED]
    assert trace[-2].attributes[events.DEVICE_OPTIONS] == options
    assert vm.devices.all() == []


async def test_every_device_gets_the_same_string_object(rig: Rig, tmp_path: Path) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    seen: list[str] = []
    host = await vm._device_hosts.get(elevated=False)
    original = host.set_swiotlb

    async def spy(vm_id: str, token: str, capabilities: bytes | None) -> None:
        seen.append(token)
        await original(vm_id, token, capabilities)

    host.set_swiotlb = spy  # type: ignore[method-assign]
    for tag in ("one", "two"):
        await rig.owner.add_device(vm.vm_id, fs(tmp_path, tag))
    assert seen == [TOKEN, TOKEN]
    assert all(token is vm.record.token for token in seen)


async def test_without_a_pool_there_is_no_token_and_no_stray_semicolon(
    rig: Rig, tmp_path: Path
) -> None:
    assert rig.machine.capabilities is not None
    rig.machine.capabilities.ClearField("swiotlb_pool")
    vm = await rig.owner.create(rig.vm_spec())
    rig.script.journal.clear()
    await rig.owner.add_device(vm.vm_id, fs(tmp_path))
    assert rig.script.journal[:2] == [
        ("devicehost", "SetSwiotlb", ""),
        ("devicehost", "CreateDevice", f"data;vm_id={vm.vm_id}"),
    ]


async def test_a_device_host_without_the_feature_gets_no_token_and_one_warning(
    rig: Rig, trace: list[Event], tmp_path: Path
) -> None:
    rig.device_host.features = ("aggregate",)
    vm = await rig.owner.create(rig.vm_spec())
    rig.script.journal.clear()
    trace.clear()
    for tag in ("one", "two"):
        await rig.owner.add_device(vm.vm_id, fs(tmp_path, tag))
    await rig.owner.add_device(vm.vm_id, DeviceSpec(events.NET, "eth0", "", "tap0"))
    assert rig.script.calls() == ["CreateDevice", "AttachDevice"] * 3
    created = [text for _, call, text in rig.script.journal if call == "CreateDevice"]
    assert created == [f"{tag};vm_id={vm.vm_id}" for tag in ("one", "two", "eth0")]
    assert rig.device_host.pools == {}
    [warning] = vm.record.warnings
    assert warning.id == warnings.DEVICE_HOST_UNSUPPORTED
    assert SOFTWARE_VERSION in warning.text
    assert "swiotlb-token" in warning.text
    assert [event.name for event in trace] == [
        events.DEVICE_ADDED,
        events.DEVICE_HOST_UNSUPPORTED,
        events.DEVICE_ADDED,
        events.DEVICE_ADDED,
    ]
    assert trace[0].attributes[events.DEVICE_HOST_FEATURES] == "aggregate"


@pytest.mark.parametrize("lacks", [False, True])
async def test_only_the_device_host_that_lacks_the_feature_gets_no_token(
    rig: Rig, tmp_path: Path, lacks: bool
) -> None:
    (rig.elevated if lacks else rig.device_host).features = ()
    vm = await rig.owner.create(rig.vm_spec())
    for elevated in (False, True, False, True):
        tag = f"data{len(vm.devices.all())}"
        device = await rig.owner.add_device(vm.vm_id, fs(tmp_path, tag, elevated=elevated))
        assert (TOKEN in device.options) is (elevated is not lacks)
    [warning] = vm.record.warnings
    assert ("elevated" in warning.text.split("(")[0]) is lacks


async def test_one_warning_is_enough_for_two_device_hosts(rig: Rig, tmp_path: Path) -> None:
    rig.elevated.features = rig.device_host.features = ()
    vm = await rig.owner.create(rig.vm_spec())
    for elevated in (False, True):
        await rig.owner.add_device(vm.vm_id, fs(tmp_path, f"d{elevated}", elevated=elevated))
    assert [w.id for w in vm.record.warnings] == [warnings.DEVICE_HOST_UNSUPPORTED]


async def test_without_a_pool_the_features_of_a_device_host_do_not_matter(
    rig: Rig, tmp_path: Path
) -> None:
    assert rig.machine.capabilities is not None
    rig.machine.capabilities.ClearField("swiotlb_pool")
    rig.device_host.features = ()
    vm = await rig.owner.create(rig.vm_spec())
    await rig.owner.add_device(vm.vm_id, fs(tmp_path))
    assert [w.id for w in vm.record.warnings] == [warnings.KERNEL_UNSUPPORTED]


async def test_a_device_host_that_restarts_with_the_feature_gets_the_token(
    rig: Rig, tmp_path: Path
) -> None:
    rig.device_host.features = ()
    vm = await rig.owner.create(rig.vm_spec())
    assert TOKEN not in (await rig.owner.add_device(vm.vm_id, fs(tmp_path, "one"))).options
    rig.device_host.features = ("of-the-future", "swiotlb-token")
    assert TOKEN in (await rig.owner.add_device(vm.vm_id, fs(tmp_path, "two"))).options
    assert rig.device_host.pools == {vm.vm_id: [TOKEN]}


async def test_a_pool_is_announced_only_to_device_hosts_with_the_feature(
    rig: Rig, tmp_path: Path
) -> None:
    rig.elevated.features = ()
    for elevated in (False, True):
        await rig.owner._device_hosts.get(elevated=elevated)
    vm = await rig.owner.create(rig.vm_spec())
    assert (rig.device_host.pools, rig.elevated.pools) == ({vm.vm_id: [TOKEN]}, {})


async def test_an_aggregate_needs_its_feature(rig: Rig, tmp_path: Path) -> None:
    rig.device_host.features = ("swiotlb-token",)
    vm = await rig.owner.create(rig.vm_spec())
    rig.script.journal.clear()
    with pytest.raises(FailedPreconditionError, match="'aggregate'") as refused:
        await rig.owner.add_share(vm.vm_id, ShareSpec(str(tmp_path), aggregate=True))
    assert refused.value.reason == "DEVICE_HOST_FEATURE"
    assert rig.script.journal == []
    assert vm.devices.all() == []


FAULTS = [
    ("SetSwiotlb", ["SetSwiotlb", "RemoveDevice"]),
    ("CreateDevice", ["SetSwiotlb", "CreateDevice", "RemoveDevice"]),
    (
        "AttachDevice",
        ["SetSwiotlb", "CreateDevice", "AttachDevice", "RemoveDevice", "DetachDevice"],
    ),
]


@pytest.mark.parametrize(("call", "journal"), FAULTS)
async def test_a_fault_at_each_step_leaves_nothing_behind(
    rig: Rig, trace: list[Event], tmp_path: Path, call: str, journal: list[str]
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    vm_id = vm.vm_id
    rig.script.journal.clear()
    trace.clear()
    rig.script.failures[call] = BOOM
    with pytest.raises(UnavailableError) as failed:
        await rig.owner.add_share(vm_id, ShareSpec(str(tmp_path), "data"))
    assert failed.value.reason == "BOOM"
    assert rig.script.calls() == journal
    assert [event.name for event in trace] == [events.DEVICE_ADDED, events.DEVICE_REMOVED]
    assert vm.devices.all() == []
    assert not vm.devices.has_tag("data")
    assert vm.shares.by_id == {}
    assert rig.device_host.devices == {}
    assert rig.machine.attached == {}
    assert vm.record.state is VmState.RUNNING
    rig.script.failures.clear()
    share, existed = await rig.owner.add_share(vm_id, ShareSpec(str(tmp_path), "data"))
    assert (share.device.spec.tag, existed) == ("data", False)


@pytest.mark.parametrize(
    ("spec", "kind", "reason"),
    [
        (DeviceSpec(events.FS, "data", "colour=red", "/"), InvalidArgumentError, "OPTION_UNKNOWN"),
        (DeviceSpec(events.FS, "data", "ro=1", "/"), InvalidArgumentError, "OPTION_SYNTAX"),
        (
            DeviceSpec(events.FS, "data", "swiotlb=0x1000,4096", "/"),
            InvalidArgumentError,
            "OPTION_RESERVED",
        ),
        (
            DeviceSpec(events.FS, "data", "ro;" * 2000, "/"),
            InvalidArgumentError,
            "OPTIONS_TOO_LONG",
        ),
        (DeviceSpec(events.FS, "da/ta", "", "/"), InvalidArgumentError, "DEVICE_NAME"),
        (DeviceSpec(events.FS, "", "", "/"), InvalidArgumentError, "DEVICE_NAME"),
        (DeviceSpec(events.FS, "t" * 37, "", "/"), InvalidArgumentError, "DEVICE_NAME"),
        (DeviceSpec(events.NET, "n" * 16, "", "tap0"), InvalidArgumentError, "DEVICE_NAME"),
    ],
)
async def test_a_device_that_cannot_be_registered_reaches_no_peer(
    rig: Rig, spec: DeviceSpec, kind: type[PortholeError], reason: str
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    rig.script.journal.clear()
    with pytest.raises(kind) as refused:
        await rig.owner.add_device(vm.vm_id, spec)
    assert refused.value.reason == reason
    assert rig.script.journal == []
    assert vm.devices.all() == []


@pytest.mark.parametrize("device_class", [events.FS, events.NET])
async def test_a_tag_that_exists_is_refused(rig: Rig, device_class: str) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    first = await rig.owner.add_device(vm.vm_id, DeviceSpec(device_class, "data", "", "first"))
    rig.script.journal.clear()
    with pytest.raises(AlreadyExistsError, match="'data'") as refused:
        await rig.owner.add_device(vm.vm_id, DeviceSpec(device_class, "data", "", "second"))
    assert refused.value.reason == "TAG_EXISTS"
    assert rig.script.journal == []
    assert vm.devices.all() == [first]


@pytest.mark.parametrize("call", ["RemoveDevice", "DetachDevice"])
async def test_a_removal_ends_whatever_the_peers_answer(
    rig: Rig, tmp_path: Path, call: str
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    device = await rig.owner.add_device(vm.vm_id, fs(tmp_path))
    rig.script.failures[call] = BOOM
    rig.script.journal.clear()
    await rig.owner.remove_device(vm.vm_id, device.instance_id)
    assert rig.script.calls() == ["RemoveDevice", "DetachDevice"]
    assert vm.devices.all() == []


async def test_the_devices_of_a_vm_that_ends_are_torn_down_at_once(
    rig: Rig, tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    for tag in ("one", "two", "three"):
        await rig.owner.add_device(vm.vm_id, fs(tmp_path, tag))
    rig.script.barriers["RemoveDevice"] = asyncio.Barrier(3)
    await asyncio.wait_for(rig.owner.terminate(vm.vm_id), 10)
    assert rig.script.calls().count("RemoveDevice") == 3


async def test_removing_an_unknown_device_or_share(rig: Rig) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    with pytest.raises(NotFoundError, match="nope") as device:
        await rig.owner.remove_device(vm.vm_id, "nope")
    with pytest.raises(NotFoundError, match="nope") as share:
        await rig.owner.remove_share(vm.vm_id, "nope")
    assert (device.value.reason, share.value.reason) == ("DEVICE_NOT_FOUND", "SHARE_NOT_FOUND")


async def test_ordinary_and_elevated_are_separate_and_both_know_the_pool(
    rig: Rig, tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    vm_id = vm.vm_id
    await rig.owner.add_device(vm_id, fs(tmp_path, "plain"))
    assert rig.elevated.pools == {}
    await rig.owner.add_device(vm_id, fs(tmp_path, "root", elevated=True))
    assert rig.elevated.pools == {vm_id: [TOKEN]}
    assert rig.device_host.pools == {vm_id: [TOKEN]}
    assert [device.tag for device in rig.device_host.devices.values()] == ["plain"]
    assert [device.tag for device in rig.elevated.devices.values()] == ["root"]


async def test_both_device_hosts_get_the_capabilities_whole_also_one_that_connects_late(
    rig: Rig, tmp_path: Path
) -> None:
    first = reported(POOL.base, POOL.size_bytes, "6.18.26.3", True, UNKNOWN_FIELD)
    later = reported(POOL.base, POOL.size_bytes, "6.18.26.3", False, UNKNOWN_FIELD)
    vm_id = (await rig.owner.create(rig.vm_spec(VmKind.WSLC))).vm_id
    await rig.owner.apply_capabilities(vm_id, first)
    await rig.owner.add_device(vm_id, fs(tmp_path, "plain"))
    assert (rig.device_host.capabilities, rig.elevated.capabilities) == (
        {vm_id: [first.message]},
        {},
    )
    await rig.owner.add_device(vm_id, fs(tmp_path, "root", elevated=True))
    assert rig.elevated.capabilities == {vm_id: [first.message]}
    await rig.owner.apply_capabilities(vm_id, first)  # changes nothing, so nobody is told
    await rig.owner.apply_capabilities(vm_id, later)
    for host in (rig.device_host, rig.elevated):
        assert host.capabilities == {vm_id: [first.message, later.message]}
        assert host.pools == {vm_id: [TOKEN, TOKEN]}


async def test_a_device_host_learns_what_a_guest_without_a_pool_published(
    rig: Rig, tmp_path: Path
) -> None:
    report = reported(kernel_release="5.15.167.4", unknown=UNKNOWN_FIELD)
    vm_id = (await rig.owner.create(rig.vm_spec(VmKind.WSLC))).vm_id
    await rig.owner.apply_capabilities(vm_id, report)
    await rig.owner.add_device(vm_id, fs(tmp_path))
    assert rig.device_host.capabilities == {vm_id: [report.message]}
    assert rig.device_host.pools == {}


async def test_a_refused_pool_reaches_no_device_host(rig: Rig, tmp_path: Path) -> None:
    vm_id = (await rig.owner.create(rig.vm_spec(VmKind.WSLC))).vm_id
    with pytest.raises(InvalidArgumentError):
        await rig.owner.apply_capabilities(vm_id, reported(1, 4096, "6.18.26.3"))
    await rig.owner.add_device(vm_id, fs(tmp_path))
    due = reported(kernel_release="6.18.26.3").message
    assert rig.device_host.capabilities == {vm_id: [due]}


@pytest.mark.parametrize(
    ("features", "pools", "whole"),
    [
        (("swiotlb-token",), [TOKEN], False),
        (("guest-capabilities",), [], True),
        ((), [], False),
    ],
)
async def test_a_device_host_is_told_what_its_features_take(
    rig: Rig, tmp_path: Path, features: tuple[str, ...], pools: list[str], whole: bool
) -> None:
    rig.device_host.features = features
    vm_id = (await rig.owner.create(rig.vm_spec())).vm_id
    await rig.owner.add_device(vm_id, fs(tmp_path))
    assert rig.device_host.pools.get(vm_id, []) == pools
    assert (vm_id in rig.device_host.capabilities) is whole


async def test_a_latched_pool_is_announced_to_connected_device_hosts(
    rig: Rig, tmp_path: Path
) -> None:
    first = await rig.owner.create(rig.vm_spec())
    await rig.owner.add_device(first.vm_id, fs(tmp_path))
    second = await rig.owner.create(rig.vm_spec())
    assert rig.device_host.pools[second.vm_id] == [TOKEN]


async def test_a_device_host_that_crashed_gives_unavailable_and_a_clean_state(
    rig: Rig, tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    vm_id = vm.vm_id
    kept, _ = await rig.owner.add_share(vm_id, ShareSpec(str(tmp_path), "kept"))
    with vm.record.watch() as stream:
        await rig.servers["devicehost"].stop(0)
        async for event in stream:
            if getattr(event, "detail", "") == "its device host cannot be reached":
                break
    with pytest.raises(UnavailableError):
        await rig.owner.add_share(vm_id, ShareSpec(str(tmp_path), "new", "ro"))
    assert [share.share_id for share in vm.shares.by_id.values()] == [kept.share_id]
    assert not vm.devices.has_tag("new")
    assert await rig.owner.statuses(vm) == {}
    await rig.owner.remove_share(vm_id, kept.share_id)
    assert vm.shares.by_id == {}

    rig.device_host.devices.clear()
    rig.device_host.pools.clear()
    await rig.start_device_host(rig.device_host)
    async with asyncio.timeout(10):
        while True:
            try:
                await rig.owner.add_share(vm_id, ShareSpec(str(tmp_path), "new", "ro"))
            except UnavailableError:
                await asyncio.sleep(0.05)
            else:
                break
    assert rig.device_host.pools[vm_id][-1] == TOKEN


async def test_an_equal_share_whose_device_host_forgot_it_is_replaced(
    rig: Rig, tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    vm_id = vm.vm_id
    spec = ShareSpec(str(tmp_path), "data")
    lost, _ = await rig.owner.add_share(vm_id, spec)
    rig.device_host.devices.clear()
    fresh, existed = await rig.owner.add_share(vm_id, spec)
    assert not existed
    assert list(vm.shares.by_id) == [fresh.share_id]
    assert lost.device.instance_id not in rig.machine.attached
    assert fresh.device.instance_id in rig.machine.attached


async def test_changes_that_a_device_host_reports_reach_the_watchers(
    rig: Rig, tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    device = await rig.owner.add_device(vm.vm_id, fs(tmp_path))
    broken = device_host_pb2.Device(
        vm_id=vm.vm_id,
        instance_id=device.instance_id,
        tag="data",
        state=device_pb2.DEVICE_STATE_NEEDS_RESET,
    )
    news = device_host_pb2.WatchDevicesResponse(device=broken, detail="address 0x1000 refused")
    with vm.record.watch() as stream:
        rig.device_host.news.put_nowait(news)
        async with asyncio.timeout(5):
            async for event in stream:
                if getattr(event, "state", "") == "needs_reset":
                    assert getattr(event, "detail", "") == "address 0x1000 refused"
                    break


async def test_the_link_of_an_adapter_reaches_the_machine_and_nothing_after_its_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()

    async def set_link(_: ExternalMachine, instance_id: str, is_up: bool) -> None:
        told.put_nowait((instance_id, is_up))

    monkeypatch.setattr(ExternalMachine, "set_link", set_link)
    vm = await rig.owner.create(rig.vm_spec())
    device = await rig.owner.add_device(vm.vm_id, DeviceSpec(events.NET, "eth0", "", "tap0"))

    def report(link: device_pb2.LinkState.ValueType) -> None:
        seen = device_host_pb2.Device(vm_id=vm.vm_id, instance_id=device.instance_id, link=link)
        rig.device_host.news.put_nowait(device_host_pb2.WatchDevicesResponse(device=seen))

    async with asyncio.timeout(10):
        report(device_pb2.LINK_STATE_UNSPECIFIED)  # of a device host without links
        report(device_pb2.LINK_STATE_DOWN)
        assert await told.get() == (device.instance_id, False)
        report(device_pb2.LINK_STATE_UP)
        assert await told.get() == (device.instance_id, True)
        await rig.owner.terminate(vm.vm_id)
    assert told.empty()
    assert not [task for task in asyncio.all_tasks() if "_tell_machine" in str(task)]


async def test_exhaustions_of_a_device_reach_the_watchers(rig: Rig, tmp_path: Path) -> None:
    """Its device host reports it, or the machine that it is attached to."""
    vm = await rig.owner.create(rig.vm_spec())
    device = await rig.owner.add_device(vm.vm_id, fs(tmp_path))
    full = device_pb2.Exhaustion(resource="handles", used=10, total=10)
    seen = device_host_pb2.Device(
        vm_id=vm.vm_id,
        instance_id=device.instance_id,
        tag="data",
        state=device_pb2.DEVICE_STATE_ATTACHED,
    )
    with vm.record.watch() as stream:
        rig.device_host.news.put_nowait(
            device_host_pb2.WatchDevicesResponse(device=seen, detail="full", exhaustion=full)
        )
        found = []
        async with asyncio.timeout(5):
            async for event in stream:
                if isinstance(event, DeviceExhausted):
                    found.append(event)
                    break
            pool = device_pb2.Exhaustion(resource="bounce_pool", used=1000, total=1024)
            rig.machine.news.put_nowait(
                machine_pb2.WatchMachineResponse(instance_id=device.instance_id, exhaustion=pool)
            )
            async for event in stream:
                assert isinstance(event, DeviceExhausted)
                found.append(event)
                break
    tag = device.spec.tag
    assert found == [
        DeviceExhausted(device.instance_id, tag, Exhaustion("handles", 10, 10)),
        DeviceExhausted(device.instance_id, tag, Exhaustion("bounce_pool", 1000, 1024)),
    ]


async def test_a_machine_that_cannot_be_watched_runs_all_the_same(rig: Rig, tmp_path: Path) -> None:
    rig.machine.watchable = False
    vm = await rig.owner.create(rig.vm_spec())
    await asyncio.wait_for(rig.script.reached.wait(), 5)
    await rig.owner.add_device(vm.vm_id, fs(tmp_path))
    await rig.owner.terminate(vm.vm_id)


async def test_a_device_host_that_was_never_reached_is_not_called_to_undo_a_device(
    rig: Rig, tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    await rig.servers["elevated"].stop(0)
    calls = []
    dial = rig.owner._device_hosts._dial[True]

    async def count() -> DeviceHost:
        calls.append("dial")
        return await dial()

    rig.owner._device_hosts._dial = {**rig.owner._device_hosts._dial, True: count}
    with pytest.raises(UnavailableError):
        await rig.owner.add_device(vm.vm_id, fs(tmp_path, elevated=True))
    assert calls == ["dial"]


async def test_a_device_is_not_added_to_a_vm_that_begins_to_end_meanwhile(
    rig: Rig, tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    vm_id = vm.vm_id
    rig.script.gates["CreateDevice"] = asyncio.Event()
    rig.script.journal.clear()
    adding = asyncio.create_task(rig.owner.add_device(vm_id, fs(tmp_path)))
    waiting = asyncio.create_task(rig.owner.add_device(vm_id, fs(tmp_path, "second")))
    await rig.script.reached.wait()
    with vm.record.watch() as stream:
        ending = asyncio.create_task(rig.owner.terminate(vm_id))
        async for event in stream:
            if event is VmState.SHUTTING_DOWN:
                break
    rig.script.gates["CreateDevice"].set()
    for task in (adding, waiting):
        with pytest.raises(FailedPreconditionError) as refused:
            await task
        assert refused.value.reason in ("VM_SHUTTING_DOWN", "VM_TERMINATED")
    await ending
    assert rig.script.calls() == [
        "SetSwiotlb",
        "CreateDevice",
        "RemoveDevice",
        "ForgetVm",
        "PowerOff",
    ]
    assert vm.record.state is VmState.TERMINATED
    assert rig.device_host.devices == {}


async def test_a_device_that_was_attached_while_its_vm_began_to_end_is_no_success(
    rig: Rig, tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    vm_id = vm.vm_id
    rig.script.gates["AttachDevice"] = asyncio.Event()
    adding = asyncio.create_task(rig.owner.add_device(vm_id, fs(tmp_path)))
    await rig.script.reached.wait()
    vm.begin_shutdown()
    rig.script.gates["AttachDevice"].set()
    with pytest.raises(FailedPreconditionError) as refused:
        await adding
    assert refused.value.reason == "VM_SHUTTING_DOWN"
    assert (rig.device_host.devices, rig.machine.attached) == ({}, {})


async def test_the_guest_lets_go_before_the_device_is_torn_down(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def release(_: ExternalMachine, instance_id: str) -> None:
        await rig.script.play("machine", "release", instance_id)

    monkeypatch.setattr(ExternalMachine, "release_device", release)
    vm = await rig.owner.create(rig.vm_spec())
    device = await rig.owner.add_device(vm.vm_id, fs(tmp_path))
    rig.script.journal.clear()
    await rig.owner.remove_device(vm.vm_id, device.instance_id)
    assert rig.script.calls() == ["release", "RemoveDevice", "DetachDevice"]


async def test_a_machine_learns_what_a_real_device_is_made_with(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached: list[AttachSpec] = []

    async def attach(_: ExternalMachine, spec: AttachSpec) -> None:
        attached.append(spec)

    monkeypatch.setattr(ExternalMachine, "attach_device", attach)
    vm = await rig.owner.create(rig.vm_spec())
    await rig.owner.add_device(vm.vm_id, fs(tmp_path, extra="queues=3"))
    adapter = DeviceSpec(events.NET, "eth0", "client_mac=52:54:00:0a:0b:0c", "tap0")
    await rig.owner.add_device(vm.vm_id, adapter)
    assert [(spec.queues, spec.mac_address) for spec in attached] == [
        (3, ""),
        (1, "52:54:00:0a:0b:0c"),
    ]
