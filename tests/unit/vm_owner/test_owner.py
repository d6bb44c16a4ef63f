"""VMs created, abandoned and ended: what is left, in which order, and who waits."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from porthole.machine.v1 import machine_pb2

from services.handshake import events
from services.handshake.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from services.vm_owner import vm_shares, warnings
from services.vm_owner.assembly import MachineSpec
from services.vm_owner.device_hosts import DeviceHosts
from services.vm_owner.networking import NetworkRequest
from services.vm_owner.owner import Applied
from services.vm_owner.record import VmKind
from services.vm_owner.registry import ENDED_KEPT
from services.vm_owner.shares import ShareSpec
from services.vm_owner.states import VmState
from services.vm_owner.vm import Vm
from services.vm_owner.watch_items import DeviceChange
from tests.support.owner_peers import POOL, TOKEN, report
from tests.support.reports import reported

if TYPE_CHECKING:
    from pathlib import Path

    from services.handshake.events import Event
    from tests.support.owner_peers import Rig

MIB = 1 << 20
GOOD = reported(POOL.base, POOL.size_bytes, "6.18.26.3-microsoft")


def names(trace: list[Event]) -> list[str]:
    return [event.name for event in trace]


async def test_a_wsl2_vm_has_reported_when_it_is_created(
    rig: Rig, trace: list[Event], tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec(shares=(ShareSpec(str(tmp_path), "data"),)))
    assert vm.record.state is VmState.RUNNING
    assert vm.record.token == TOKEN
    assert [share.device.spec.tag for share in vm.shares.by_id.values()] == ["data"]
    assert names(trace) == [
        events.VM_CREATED,
        events.GUEST_BOOTED,
        events.GUEST_KERNEL_INFO,
        events.POOL_LATCHED,
        events.DEVICE_ADDED,
    ]
    [boot] = rig.machine.boots
    assert boot.kernel_command_line.startswith("swiotlb=force hv_pci_swiotlb=67108864 ")
    assert boot.kernel_release == "6.18.26.3-microsoft-standard-WSL2"
    assert boot.publishes_pool
    assert boot.ram_bytes == 2048 * MIB


@pytest.mark.parametrize(
    ("release", "publishes"),
    [
        ("6.18.26.1-microsoft-standard-WSL2", False),
        ("6.18.26.2-microsoft-standard-WSL2", False),
        ("6.18.26.3-microsoft-standard-WSL2", True),
    ],
)
async def test_the_whole_version_of_a_kernel_decides_whether_it_publishes(
    rig: Rig, release: str, publishes: bool
) -> None:
    await rig.owner.create(rig.vm_spec(machine=MachineSpec(kernel_release=release)))
    [boot] = rig.machine.boots
    assert boot.publishes_pool is publishes


NO_BOUNCING = "[wsl2]\nvirtiofs=false\nnetworkingMode=none\n"


@pytest.mark.parametrize(
    ("wslconfig", "pool_bytes", "warned"),
    [
        ("", 64 * MIB, []),
        (NO_BOUNCING, 0, []),
        ("[wsl2]\nnetworkingMode=nat\n", 64 * MIB, []),
        ("[wsl2]\nvirtiofs=false\n", 64 * MIB, []),
        (f"{NO_BOUNCING}virtio9p=true\n", 0, [warnings.CONFIG_REFUSED]),
        (f"{NO_BOUNCING}[experimental]\nswiotlb=8M\n", 8 * MIB, []),
        ("[wsl2]\nvirtiofs=false\nnetworkingMode=mirrored\n", 0, []),
        ("[wsl2]\nvirtiofs=false\n[experimental]\nnetworkingMode=bridged\n", 0, []),
        ("[wsl2]\nvirtiofs=false\nnetworkingMode=consomme\n", 64 * MIB, []),
        ("[wsl2]\nvirtiofs=false\nnetworkingMode=nat\n", 64 * MIB, []),
        ("[wsl2]\nvirtio=false\nnetworkingMode=nat\n", 0, []),
        ("[wsl2]\nsafeMode=true\n", 0, [warnings.CONFIG_SAFE_MODE]),
        ("[wsl2]\nmemory=1024MiB\n", 0, []),
        ("[wsl2]\nmemory=0\n[experimental]\nswiotlb=0\n", 64 * MIB, []),
        ("[wsl2]\nmemory=512MB\n", 0, []),
        ("[wsl2]\nmemory=512MB\n[experimental]\nswiotlb=8M\n", 8 * MIB, []),
        ("[experimental]\nswiotlb=lots\n", 64 * MIB, [warnings.CONFIG_VALUE]),
        ("[experimental]\nswiotlb=4GB\n", 64 * MIB, [warnings.POOL_TOO_LARGE]),
        ("[wsl2]\nmemory=1K\n", 0, [warnings.MEMORY_OUT_OF_BOUNDS]),
        (
            "[wsl2]\nvirtio=false\n[experimental]\nswiotlb=8M\n",
            0,
            [warnings.CONFIG_NEEDS_VIRTIO],
        ),
    ],
)
async def test_the_configuration_decides_what_the_kernel_is_asked_for(
    rig: Rig, wslconfig: str, pool_bytes: int, warned: list[str]
) -> None:
    vm = await rig.owner.create(rig.vm_spec(VmKind.WSLC, wslconfig=wslconfig))
    words = rig.machine.boots[0].kernel_command_line.split()
    asked = ["swiotlb=force", f"hv_pci_swiotlb={pool_bytes}"] if pool_bytes else []
    assert [word for word in words if "swiotlb" in word] == asked
    assert vm.record.facts.requested_bytes == pool_bytes
    assert [warning.id for warning in vm.record.warnings] == warned


async def test_a_wslc_vm_waits_for_its_session(
    rig: Rig, trace: list[Event], tmp_path: Path
) -> None:
    spec = rig.vm_spec(VmKind.WSLC, shares=(ShareSpec(str(tmp_path), "data"),))
    vm = await rig.owner.create(spec)
    vm_id = vm.vm_id
    assert vm.record.state is VmState.BOOTED
    assert rig.machine.boots[0].init_channel_address == ""
    with pytest.raises(FailedPreconditionError) as early:
        await rig.owner.add_share(vm_id, ShareSpec(str(tmp_path)))
    assert early.value.reason == "CAPABILITIES_NOT_READ"
    assert "CreateDevice" not in rig.script.calls()
    assert await rig.owner.apply_capabilities(vm_id, GOOD) == Applied(False, TOKEN, GOOD)
    assert await rig.owner.apply_capabilities(vm_id, GOOD) == Applied(True, TOKEN, GOOD)
    [share] = vm.shares.by_id.values()
    assert share.device.options == f"data;{TOKEN};vm_id={vm_id}"
    assert names(trace) == [
        events.VM_CREATED,
        events.GUEST_BOOTED,
        events.WSLC_APPLY,
        events.POOL_LATCHED,
        events.DEVICE_ADDED,
        events.WSLC_APPLY,
    ]


async def test_a_refused_pool_lets_a_wslc_vm_run_with_its_shares_but_without_token(
    rig: Rig, tmp_path: Path
) -> None:
    vm = await rig.owner.create(
        rig.vm_spec(VmKind.WSLC, shares=(ShareSpec(str(tmp_path), "data"),))
    )
    vm_id = vm.vm_id
    with pytest.raises(InvalidArgumentError) as refused:
        await rig.owner.apply_capabilities(vm_id, reported(1, POOL.size_bytes))
    assert refused.value.reason == "SWIOTLB_BASE_UNALIGNED"
    assert vm.record.state is VmState.RUNNING
    assert [share.device.options for share in vm.shares.by_id.values()] == [f"data;vm_id={vm_id}"]


async def test_a_guest_that_reports_twice(rig: Rig) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    address = rig.machine.boots[0].init_channel_address
    assert rig.machine.capabilities is not None
    assert await report(address, rig.machine.capabilities) is True
    rig.machine.capabilities.swiotlb_pool.size_bytes = 4096
    refusal = await report(address, rig.machine.capabilities)
    assert isinstance(refusal, FailedPreconditionError)
    assert refusal.reason == "SWIOTLB_ALREADY_LATCHED"
    assert vm.record.token == TOKEN


async def test_a_guest_learns_that_its_pool_is_refused_and_its_vm_is_created(rig: Rig) -> None:
    assert rig.machine.capabilities is not None
    rig.machine.capabilities.swiotlb_pool.base = 0xFFFF_F000
    vm = await rig.owner.create(rig.vm_spec())
    assert (vm.record.state, vm.record.token) == (VmState.RUNNING, None)
    assert [warning.id for warning in vm.record.warnings] == [warnings.POOL_REFUSED]
    refusal = await rig.machine.reports[0]
    assert isinstance(refusal, InvalidArgumentError)
    assert refusal.reason == "SWIOTLB_ABOVE_4G"


async def test_a_pool_in_the_hole_between_3_and_4_gib_is_refused(rig: Rig) -> None:
    assert rig.machine.capabilities is not None
    rig.machine.capabilities.swiotlb_pool.base = 0xD000_0000
    vm = await rig.owner.create(rig.vm_spec(ram_bytes=6 << 30))
    assert (vm.record.state, vm.record.token) == (VmState.RUNNING, None)
    refusal = await rig.machine.reports[0]
    assert isinstance(refusal, InvalidArgumentError)
    assert refusal.reason == "SWIOTLB_OUTSIDE_RAM"
    assert refusal.metadata["bound"] == str(3 << 30)


async def test_a_guest_that_does_not_report_runs_without_a_pool_until_it_does(
    rig: Rig, trace: list[Event], tmp_path: Path
) -> None:
    rig.machine.capabilities = None
    rig.owner._surroundings = replace(rig.owner._surroundings, capabilities_deadline_s=0.2)
    vm = await rig.owner.create(rig.vm_spec(shares=(ShareSpec(str(tmp_path), "early"),)))
    assert (vm.record.state, vm.record.token) == (VmState.RUNNING, None)
    [warning] = vm.record.warnings
    assert warning.id == warnings.GUEST_INIT_SILENT
    assert "within 0.2 s" in warning.text
    assert names(trace) == [events.VM_CREATED, events.GUEST_BOOTED, events.DEVICE_ADDED]
    async with vm.lock:
        assert not await vm.apply_capabilities(GOOD)
        await vm.add_share(ShareSpec(str(tmp_path), "late", "ro"))
    tags = {d.spec.tag: TOKEN in d.options for d in vm.devices.all()}
    assert tags == {"early": False, "late": True}


@pytest.mark.parametrize("call", ["Boot", "AttachDevice"])
async def test_a_caller_who_goes_away_leaves_no_half_vm(
    rig: Rig, tmp_path: Path, call: str
) -> None:
    rig.script.gates[call] = asyncio.Event()
    spec = rig.vm_spec(shares=(ShareSpec(str(tmp_path), "data"),))
    creating = asyncio.create_task(rig.owner.create(spec))
    await rig.script.reached.wait()
    creating.cancel()
    rig.script.gates[call].set()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert rig.owner.all() == []
    assert rig.device_host.devices == {}
    assert rig.script.calls()[-1] == "PowerOff"


async def test_a_machine_that_is_not_there(rig: Rig) -> None:
    await rig.servers["machine"].stop(0)
    with pytest.raises(UnavailableError, match=r"machine\.sock") as away:
        await rig.owner.create(rig.vm_spec())
    assert away.value.reason == "PEER_UNAVAILABLE"
    assert rig.owner.all() == []


async def test_terminate_while_a_vm_is_being_created(rig: Rig) -> None:
    rig.machine.capabilities = None
    creating = asyncio.create_task(rig.owner.create(rig.vm_spec()))
    while not rig.machine.boots:  # noqa: ASYNC110 - the fake has no event for it
        await asyncio.sleep(0.01)
    [vm] = rig.owner.all()
    await rig.owner.terminate(vm.vm_id)
    with pytest.raises(UnavailableError, match="it was terminated") as ended:
        await creating
    assert ended.value.reason == "VM_ENDED_EARLY"
    assert vm.record.state is VmState.TERMINATED


INIT_END = machine_pb2.WatchMachineResponse(
    guest_init_end=machine_pb2.GuestInitEnd(cause="signal SIGKILL")
)


@pytest.mark.parametrize("kind", VmKind)
async def test_a_vm_ends_with_its_guest_init(rig: Rig, trace: list[Event], kind: VmKind) -> None:
    vm = await rig.owner.create(rig.vm_spec(kind))
    rig.machine.news.put_nowait(INIT_END)
    rig.machine.news.put_nowait(INIT_END)  # as after a stream that broke
    with vm.record.watch() as stream:
        seen = [item async for item in stream if isinstance(item, VmState)]
    assert seen[-2:] == [VmState.SHUTTING_DOWN, VmState.TERMINATED]
    assert [warning.id for warning in vm.record.warnings] == [warnings.GUEST_INIT_ENDED]
    ended = [event for event in trace if event.name == events.GUEST_INIT_ENDED]
    assert [event.attributes[events.DETAIL] for event in ended] == ["signal SIGKILL"]
    assert names(trace)[-1] == events.VM_TERMINATED
    assert rig.script.calls()[-1] == "PowerOff"


async def test_guest_init_that_ends_before_it_reported(rig: Rig, trace: list[Event]) -> None:
    rig.machine.capabilities = None
    rig.machine.news.put_nowait(INIT_END)
    with pytest.raises(UnavailableError, match="guest init ended with signal SIGKILL") as ended:
        await rig.owner.create(rig.vm_spec())
    assert ended.value.reason == "VM_ENDED_EARLY"
    assert rig.owner.all() == []
    assert names(trace).count(events.GUEST_INIT_ENDED) == 1


async def test_a_guest_init_that_ends_with_its_vm_is_no_news(rig: Rig) -> None:
    rig.script.gates["PowerOff"] = asyncio.Event()
    vm = await rig.owner.create(rig.vm_spec())
    ending = asyncio.create_task(rig.owner.terminate(vm.vm_id))
    await rig.script.reached.wait()
    rig.machine.news.put_nowait(INIT_END)
    rig.script.gates["PowerOff"].set()
    await ending
    assert vm.record.warnings == []


async def test_terminate_while_the_first_shares_are_being_added(rig: Rig, tmp_path: Path) -> None:
    rig.script.gates["CreateDevice"] = asyncio.Event()
    spec = rig.vm_spec(shares=(ShareSpec(str(tmp_path), "one"), ShareSpec("/", "two")))
    creating = asyncio.create_task(rig.owner.create(spec))
    await rig.script.reached.wait()
    [vm] = rig.owner.all()
    with vm.record.watch() as stream:
        ending = asyncio.create_task(rig.owner.terminate(vm.vm_id))
        async for event in stream:
            if event is VmState.SHUTTING_DOWN:
                break
    rig.script.gates["CreateDevice"].set()
    with pytest.raises(UnavailableError) as ended:
        await creating
    assert ended.value.reason == "VM_ENDED_EARLY"
    await ending
    assert (rig.owner.all(), rig.device_host.devices) == ([], {})


async def test_one_bad_share_does_not_disturb_the_others(rig: Rig, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    shares = (ShareSpec(str(gone), "gone"), ShareSpec(str(tmp_path), "data"))
    vm = await rig.owner.create(rig.vm_spec(VmKind.WSLC, shares=shares))
    gone.rmdir()
    await rig.owner.apply_capabilities(vm.vm_id, GOOD)
    assert [share.device.spec.tag for share in vm.shares.by_id.values()] == ["data"]
    [warning] = vm.record.warnings
    assert warning.id == warnings.SHARE_FAILED
    assert "SHARE_PATH_NOT_FOUND" in warning.text


async def test_bad_specs_are_refused_before_anything_is_begun(rig: Rig, tmp_path: Path) -> None:
    here = str(tmp_path)
    specs = [
        (rig.vm_spec(ram_bytes=5), "RAM_BYTES"),
        (rig.vm_spec(wslconfig="#" * 70_000), "WSLCONFIG_TOO_LARGE"),
        (rig.vm_spec(machine=MachineSpec(kernel_release="weird")), "KERNEL_RELEASE_SYNTAX"),
        (rig.vm_spec(shares=(ShareSpec("relative"),)), "SHARE_PATH_SYNTAX"),
        (rig.vm_spec(shares=(ShareSpec(here, "a"), ShareSpec(here, "a", "ro"))), "TAG_EXISTS"),
        (rig.vm_spec(shares=(ShareSpec(here),) * 65), "TOO_MANY_SHARES"),
        (rig.vm_spec(shares=(ShareSpec(here, options="ro;" * 2000),)), "OPTIONS_TOO_LONG"),
        (
            rig.vm_spec(wslconfig="[wsl2]\nvirtio=false\n", shares=(ShareSpec(here),)),
            "VIRTIO_OFF",
        ),
        (
            rig.vm_spec(wslconfig="[wsl2]\nsafeMode=true\n", shares=(ShareSpec(here),)),
            "VIRTIO_OFF",
        ),
        (rig.vm_spec(wslconfig=NO_BOUNCING, shares=(ShareSpec(here),)), "VIRTIOFS_OFF"),
    ]
    for spec, reason in specs:
        with pytest.raises(
            (InvalidArgumentError, AlreadyExistsError, FailedPreconditionError)
        ) as refused:
            await rig.owner.create(spec)
        assert refused.value.reason == reason
    assert rig.owner.all() == []
    assert rig.script.journal == []


async def test_an_equal_share_is_the_existing_one(rig: Rig, tmp_path: Path) -> None:
    vm_id = (await rig.owner.create(rig.vm_spec())).vm_id
    link = tmp_path / "link"
    target = tmp_path / "target"
    target.mkdir()
    link.symlink_to(target)
    share, existed = await rig.owner.add_share(vm_id, ShareSpec(str(target), "t", "ro;uid=5"))
    assert not existed
    again, existed = await rig.owner.add_share(vm_id, ShareSpec(f"{link}/", "", "uid=5;ro;ro"))
    assert existed
    assert again is share
    others = [
        ShareSpec(str(target), "u", "ro"),
        ShareSpec(str(target), "v", "ro;uid=5", elevated=True),
        ShareSpec(str(tmp_path), "w", "ro;uid=5"),
    ]
    for other in others:
        added, existed = await rig.owner.add_share(vm_id, other)
        assert not existed
        assert added.share_id != share.share_id


async def test_a_share_without_a_tag_gets_one_of_its_id(rig: Rig, tmp_path: Path) -> None:
    vm_id = (await rig.owner.create(rig.vm_spec())).vm_id
    share, _ = await rig.owner.add_share(vm_id, ShareSpec(str(tmp_path)))
    assert share.device.spec.tag == f"share-{share.share_id[:8]}"


async def test_shutdown_tears_all_down_before_the_machine_and_detaches_nothing(
    rig: Rig, trace: list[Event], tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    vm_id = vm.vm_id
    added = [
        await rig.owner.add_share(vm_id, ShareSpec(str(tmp_path), tag, options))
        for tag, options in (("one", ""), ("two", "ro"))
    ]
    rig.script.journal.clear()
    trace.clear()
    with vm.record.watch() as stream:
        await rig.owner.terminate(vm_id)
        seen = [getattr(item, "detail", item) async for item in stream]
    ids = [share.device.instance_id for share, _ in added]
    assert rig.script.journal == [
        ("devicehost", "RemoveDevice", ids[0]),
        ("devicehost", "RemoveDevice", ids[1]),
        ("devicehost", "ForgetVm", vm_id),
        ("machine", "PowerOff", ""),
    ]
    marked = "it is being removed"
    assert seen[-4:] == [VmState.SHUTTING_DOWN, marked, marked, VmState.TERMINATED]
    assert names(trace) == [events.DEVICE_REMOVED, events.DEVICE_REMOVED, events.VM_TERMINATED]
    assert not (rig.run_dir / "vm" / vm_id).exists()
    await rig.owner.terminate(vm_id)
    assert names(trace)[-1:] == [events.VM_TERMINATED]
    assert rig.owner.find(vm_id).record.state is VmState.TERMINATED
    with pytest.raises(FailedPreconditionError) as late:
        await rig.owner.apply_capabilities(vm_id, GOOD)
    assert late.value.reason == "VM_TERMINATED"


@pytest.mark.parametrize("call", ["RemoveDevice", "PowerOff"])
async def test_a_vm_ends_whatever_its_peers_answer(rig: Rig, tmp_path: Path, call: str) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    await rig.owner.add_share(vm.vm_id, ShareSpec(str(tmp_path)))
    rig.script.failures[call] = UnavailableError("BOOM", "the peer fell over")
    await rig.owner.terminate(vm.vm_id)
    assert vm.record.state is VmState.TERMINATED
    assert rig.script.calls()[-1] == "PowerOff"


async def test_all_devices_are_marked_before_the_first_is_torn_down(
    rig: Rig, tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    vm_id = vm.vm_id
    for tag, options in (("one", ""), ("two", "ro")):
        await rig.owner.add_share(vm_id, ShareSpec(str(tmp_path), tag, options))
    rig.script.gates["RemoveDevice"] = asyncio.Event()
    with vm.record.watch() as stream:
        ending = asyncio.create_task(rig.owner.terminate(vm_id))
        await rig.script.reached.wait()
        marked: list[str] = []
        async with asyncio.timeout(5):
            async for event in stream:
                if isinstance(event, DeviceChange):
                    marked.append(event.tag)
                if len(marked) == 2:
                    break
    assert (marked, ending.done()) == (["one", "two"], False)
    assert len(vm.devices.all()) == 2
    rig.script.gates["RemoveDevice"].set()
    await ending


async def test_one_slow_vm_does_not_hold_up_another(rig: Rig, tmp_path: Path) -> None:
    slow = await rig.owner.create(rig.vm_spec())
    quick = await rig.owner.create(rig.vm_spec())
    rig.script.gates["CreateDevice"] = asyncio.Event()
    spec = ShareSpec(str(tmp_path))
    adding = asyncio.create_task(rig.owner.add_share(slow.vm_id, spec))
    await rig.script.reached.wait()
    await rig.owner.terminate(quick.vm_id)
    assert quick.record.state is VmState.TERMINATED
    assert not adding.done()
    rig.script.gates["CreateDevice"].set()
    await adding


async def test_a_file_system_that_never_answers_holds_up_nobody(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    answers = threading.Event()
    monkeypatch.setattr(vm_shares, "share_key", lambda _: answers.wait())
    monkeypatch.setattr(rig.owner.host_paths, "_deadline_s", 0.05)
    try:
        with pytest.raises(DeadlineExceededError) as refused:
            await rig.owner.add_share(vm.vm_id, ShareSpec(str(tmp_path)))
        assert refused.value.reason == "SHARE_PATH_SILENT"
        await asyncio.wait_for(rig.owner.terminate(vm.vm_id), 10)
    finally:
        answers.set()


async def test_a_caller_of_add_share_who_goes_away_leaves_a_whole_share(
    rig: Rig, tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    vm_id = vm.vm_id
    rig.script.gates["CreateDevice"] = asyncio.Event()
    adding = asyncio.create_task(rig.owner.add_share(vm_id, ShareSpec(str(tmp_path), "data")))
    await rig.script.reached.wait()
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    rig.script.gates["CreateDevice"].set()
    _, existed = await rig.owner.add_share(vm_id, ShareSpec(str(tmp_path), "data"))
    assert existed


async def test_the_owner_ends_all_vms_and_takes_no_more(rig: Rig) -> None:
    vms = [await rig.owner.create(rig.vm_spec()) for _ in range(2)]
    await rig.owner.close()
    assert [vm.record.state for vm in vms] == [VmState.TERMINATED] * 2
    with pytest.raises(UnavailableError) as refused:
        await rig.owner.create(rig.vm_spec())
    assert refused.value.reason == "OWNER_SHUTTING_DOWN"


async def test_the_owner_ends_whole_even_if_a_vm_fails_to(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure that nobody foresaw: it must not keep the other VMs and the device hosts."""
    broken, slow = [await rig.owner.create(rig.vm_spec()) for _ in range(2)]
    order: list[str] = []
    shut_down, close = Vm.shut_down, DeviceHosts.close

    async def fail_or_take_long(vm: Vm) -> None:
        if vm is broken:
            raise OSError("nobody foresaw this")
        await asyncio.sleep(0.05)
        await shut_down(vm)
        order.append("slow VM")

    async def close_device_hosts(hosts: DeviceHosts) -> None:
        order.append("device hosts")
        await close(hosts)

    with monkeypatch.context() as patch:
        patch.setattr(Vm, "shut_down", fail_or_take_long)
        patch.setattr(DeviceHosts, "close", close_device_hosts)
        await rig.owner.close()
    assert order == ["slow VM", "device hosts"]
    assert slow.record.state is VmState.TERMINATED
    [logged] = [record for record in caplog.records if record.exc_info]
    assert broken.vm_id in logged.getMessage()
    assert isinstance(logged.exc_info[1], OSError) if logged.exc_info else False


async def test_ended_vms_stay_listed_without_their_guests_reports(rig: Rig) -> None:
    for _ in range(ENDED_KEPT + 2):
        vm = await rig.owner.create(rig.vm_spec(VmKind.WSLC))
        await rig.owner.apply_capabilities(vm.vm_id, GOOD)
        assert vm.record.report == GOOD
        await rig.owner.terminate(vm.vm_id)
    assert len(rig.owner.all()) == ENDED_KEPT
    assert rig.owner.all()[-1] is vm
    assert {vm.record.report for vm in rig.owner.all()} == {None}


async def test_a_vm_that_failed_to_shut_down_is_forgotten_as_others_are(rig: Rig) -> None:
    failed = await rig.owner.create(rig.vm_spec(VmKind.WSLC))

    async def fail() -> None:
        raise OSError("nobody foresaw this")

    failed.machine.stop = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="nobody foresaw this"):
        await rig.owner.terminate(failed.vm_id)
    assert failed.record.state is VmState.TERMINATED
    assert failed in rig.owner.all()
    for _ in range(ENDED_KEPT):
        vm = await rig.owner.create(rig.vm_spec(VmKind.WSLC))
        await rig.owner.terminate(vm.vm_id)
    assert failed not in rig.owner.all()


async def test_what_is_left_of_a_machine_is_waited_for_by_the_owners_end_alone(rig: Rig) -> None:
    vm = await rig.owner.create(rig.vm_spec(VmKind.WSLC))
    order: list[str] = []
    may_end = asyncio.Event()

    async def ended() -> None:
        await may_end.wait()
        order.append("exported")

    vm.machine.ended = ended  # type: ignore[method-assign]
    await rig.owner.terminate(vm.vm_id)
    order.append("answered")
    closing = asyncio.create_task(rig.owner.close())
    closing.add_done_callback(lambda _: order.append("closed"))
    await asyncio.sleep(0)
    may_end.set()
    await closing
    assert order == ["answered", "exported", "closed"]


async def test_operations_take_the_beginning_of_an_id(rig: Rig) -> None:
    vm = await rig.owner.create(rig.vm_spec(VmKind.WSLC))
    await rig.owner.apply_capabilities(vm.vm_id[:8], GOOD)
    states = [vm.record.state]
    await rig.owner.terminate(vm.vm_id[:4])
    assert [*states, vm.record.state] == [VmState.RUNNING, VmState.TERMINATED]


async def test_unknown_vms_are_not_found(rig: Rig) -> None:
    spec = ShareSpec("/")
    for call in (
        rig.owner.terminate("nope"),
        rig.owner.add_share("nope", spec),
        rig.owner.remove_share("nope", "x"),
        rig.owner.remove_device("nope", "x"),
        rig.owner.configure_networking("nope", NetworkRequest()),
        rig.owner.apply_capabilities("nope", GOOD),
    ):
        with pytest.raises(NotFoundError, match="nope") as refused:
            await call
        assert refused.value.reason == "VM_NOT_FOUND"
