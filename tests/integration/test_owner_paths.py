"""Both owner paths with real processes: device host, owner, guest, guest init, session.

Each kind of VM behaves as docs/handshake.md describes it, and its trace is valid in the end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from porthole.devicehost.v1 import device_host_pb2, device_host_pb2_grpc
from porthole.handshake.v1 import device_pb2, port_pb2
from porthole.vmowner.v1 import vm_owner_pb2

from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from services.handshake.trace.otlp import parse_otlp_lines
from services.rpc.channel import connect
from services.session import apply_guest_capabilities
from services.vm_owner.clients import DEVICE_HOST
from tests.support.house import MACHINE, GuestStub, House, children
from tests.support.outer_network import HOST, OwnNetwork, make_a_host
from tests.support.passt import PASST

MIB = 1 << 20
OLD = vm_owner_pb2.EmbeddedMachine(kernel_release="6.18.26.1-microsoft-standard-WSL2")
"""Just older than the first kernel that publishes its pool; its version triple is the same."""
WSL2 = vm_owner_pb2.VM_KIND_WSL2
WSLC = vm_owner_pb2.VM_KIND_WSLC
RUNNING = vm_owner_pb2.VM_STATE_RUNNING
TERMINATED = vm_owner_pb2.VM_STATE_TERMINATED


def warned(vm: vm_owner_pb2.Vm) -> list[str]:
    return [warning.id for warning in vm.warnings]


async def test_wsl2_pushes_and_every_device_gets_the_token(house: House) -> None:
    vm = await house.create(WSL2, fixed=True)
    assert vm.state == RUNNING
    assert "swiotlb=force hv_pci_swiotlb=67108864" in vm.kernel_command_line
    assert vm.latched_pool.size_bytes == 64 * MIB
    token = f"swiotlb=0x{vm.latched_pool.base:x},{64 * MIB}"
    assert vm.swiotlb_option == token
    assert warned(vm) == []
    share = await house.add_share(vm.vm_id, "added")
    seen = await house.get(vm.vm_id)
    assert [device.options for device in seen.devices] == [
        f"fixed;ro;{token};vm_id={vm.vm_id}",
        f"added;{token};vm_id={vm.vm_id}",
    ]
    assert {device.state for device in seen.devices} == {device_pb2.DEVICE_STATE_ATTACHED}
    assert await house.guest_reads(vm, "fixed")
    assert await house.guest_reads(vm, "added")
    counters = (await house.get(vm.vm_id)).devices[0].counters
    assert counters.bytes_out > len(house.content)
    assert counters.translations_refused == 0
    await house.stub.RemoveShare(
        vm_owner_pb2.RemoveShareRequest(vm_id=vm.vm_id, share_id=share.share_id)
    )
    assert [device.tag for device in (await house.get(vm.vm_id)).devices] == ["fixed"]
    await house.terminate(vm.vm_id)
    ended = await house.get(vm.vm_id)
    assert (ended.state, list(ended.devices)) == (TERMINATED, [])
    assert not (house.run_dir / "vm" / vm.vm_id).exists()
    assert house.broken_rules() == []


async def test_shares_of_one_device_come_and_go(house: House) -> None:
    vm = await house.create(WSL2)
    shares = [
        await house.add_share(vm.vm_id, "", options, aggregate=True)
        for options in ("ro", "uid=1000", "uid=1001")
    ]
    seen = await house.get(vm.vm_id)
    [device] = seen.devices
    assert device.options == f"porthole-shares;queues=4;{vm.swiotlb_option};vm_id={vm.vm_id}"
    assert {(share.tag, share.instance_id, share.aggregate) for share in seen.shares} == {
        ("porthole-shares", device.instance_id, True)
    }
    again = await house.add_share(vm.vm_id, "", "uid=1000", aggregate=True)
    assert again.share_id == shares[1].share_id
    for share in shares:
        assert await house.guest_reads(vm, share.tag, share.share_id)
    gone, *kept = shares
    await house.stub.RemoveShare(
        vm_owner_pb2.RemoveShareRequest(vm_id=vm.vm_id, share_id=gone.share_id)
    )
    with pytest.raises(NotFoundError):
        await house.guest_reads(vm, gone.tag, gone.share_id)
    for share in kept:
        assert await house.guest_reads(vm, share.tag, share.share_id)
    back = await house.add_share(vm.vm_id, "", "ro", aggregate=True)
    assert await house.guest_reads(vm, back.tag, back.share_id)
    await house.terminate(vm.vm_id)
    assert house.broken_rules() == []


async def test_wslc_pulls_and_applies_and_may_do_so_again(house: House) -> None:
    vm = await house.create(WSLC, fixed=True)
    assert vm.state == vm_owner_pb2.VM_STATE_BOOTED
    with pytest.raises(FailedPreconditionError) as early:
        await house.add_share(vm.vm_id, "early")
    assert early.value.reason == "CAPABILITIES_NOT_READ"
    first = await apply_guest_capabilities(house.services.owner_address, vm.vm_id)
    again = await apply_guest_capabilities(house.services.owner_address, vm.vm_id)
    assert (first.already_applied, again.already_applied) == (False, True)
    assert first.swiotlb_option == again.swiotlb_option
    assert first.swiotlb_option.endswith(f",{64 * MIB}")
    seen = await house.get(vm.vm_id)
    assert [d.options for d in seen.devices] == [
        f"fixed;ro;{first.swiotlb_option};vm_id={vm.vm_id}"
    ]
    assert await house.guest_reads(vm, "fixed")
    assert house.broken_rules() == []


@pytest.mark.parametrize(
    ("kind", "expected"), [(WSL2, ["MessageSwiotlbKernelUnsupported"]), (WSLC, [])]
)
async def test_an_old_kernel_works_without_the_token(
    house: House, kind: vm_owner_pb2.VmKind.ValueType, expected: list[str]
) -> None:
    vm = await house.create(kind, machine=OLD)
    if kind == WSLC:
        await apply_guest_capabilities(house.services.owner_address, vm.vm_id)
    assert "hv_pci_swiotlb=67108864" in vm.kernel_command_line
    await house.add_share(vm.vm_id, "data")
    seen = await house.get(vm.vm_id)
    assert (seen.state, seen.swiotlb_option, warned(seen)) == (RUNNING, "", expected)
    assert all("6.18.26.3-1" in warning.text for warning in seen.warnings)
    assert seen.devices[0].options == f"data;vm_id={vm.vm_id}"
    assert await house.guest_reads(vm, "data")
    assert (await house.get(vm.vm_id)).devices[0].counters.windows_mapped > 0
    await house.terminate(vm.vm_id)
    assert house.broken_rules() == []


async def test_vms_that_ask_for_no_pool_or_for_another(house: House) -> None:
    little = await house.create(WSL2, ram_bytes=512 * MIB)
    idle = await house.create(WSL2, "[wsl2]\nvirtiofs=false\nnetworkingMode=none\n")
    for vm in (little, idle):
        assert "swiotlb" not in vm.kernel_command_line
        assert (vm.state, vm.swiotlb_option, warned(vm)) == (RUNNING, "", [])
    await house.add_share(little.vm_id, "data")
    assert await house.guest_reads(little, "data")
    with pytest.raises(FailedPreconditionError) as refused:
        await house.add_share(idle.vm_id, "data")
    assert refused.value.reason == "VIRTIOFS_OFF"
    explicit = await house.create(
        WSL2, "[experimental]\nswiotlb=8M\n", ram_bytes=512 * MIB, fixed=True
    )
    assert "hv_pci_swiotlb=8388608" in explicit.kernel_command_line
    assert explicit.latched_pool.size_bytes == 8 * MIB
    assert await house.guest_reads(explicit, "fixed")
    off = await house.create(WSL2, "[wsl2]\nvirtio=false\n[experimental]\nswiotlb=8M\n")
    assert "swiotlb" not in off.kernel_command_line
    assert off.networking_mode == vm_owner_pb2.NETWORKING_MODE_NONE
    assert warned(off) == ["WslConfigNeedsVirtio"]
    with pytest.raises(FailedPreconditionError) as refused:
        await house.add_share(off.vm_id, "data")
    assert refused.value.reason == "VIRTIO_OFF"
    assert house.broken_rules() == []


async def test_a_guest_that_dies_shuts_its_vm_down(house: House) -> None:
    vm = await house.create(WSL2, fixed=True)
    watching = house.stub.WatchVm(vm_owner_pb2.WatchVmRequest(vm_id=vm.vm_id))
    states, ids = [], []
    killed = False
    async with asyncio.timeout(30):
        async for item in watching:
            if item.HasField("state"):
                states.append(item.state)
            if item.HasField("warning"):
                ids.append(item.warning.id)
            if not killed:
                killed = True
                [pid] = house.guest_processes()
                os.kill(pid, signal.SIGKILL)
    assert states == [RUNNING, vm_owner_pb2.VM_STATE_SHUTTING_DOWN, TERMINATED]
    assert ids == ["GuestEnded"]
    other = await house.create(WSL2)
    assert other.state == RUNNING


@pytest.mark.parametrize("kind", [WSL2, WSLC], ids=["WSL2", "WSLC"])
async def test_a_guest_init_that_dies_shuts_its_vm_down(
    house: House, kind: vm_owner_pb2.VmKind.ValueType
) -> None:
    vm = await house.create(kind, fixed=True)
    if kind == WSLC:
        await apply_guest_capabilities(house.services.owner_address, vm.vm_id)
    watching = house.stub.WatchVm(vm_owner_pb2.WatchVmRequest(vm_id=vm.vm_id))
    states, warnings = [], []
    killed = False
    async with asyncio.timeout(30):
        async for item in watching:
            if item.HasField("state"):
                states.append(item.state)
            if item.HasField("warning"):
                warnings.append(item.warning)
            if not killed:
                killed = True
                [guest] = house.guest_processes()
                [init] = children(guest)
                os.kill(init, signal.SIGKILL)
    assert states == [RUNNING, vm_owner_pb2.VM_STATE_SHUTTING_DOWN, TERMINATED]
    [warning] = warnings
    assert warning.id == "GuestInitEnded"
    assert "SIGKILL" in warning.text
    seen = await house.get(vm.vm_id)
    assert seen.state == TERMINATED
    assert [each.id for each in seen.warnings] == ["GuestInitEnded"]
    await house.until_no_guests()
    assert _gone(guest)
    recorded = house.trace_file.read_text()
    assert recorded.count("GuestInitEnded") == 1
    assert house.broken_rules() == []
    other = await house.create(WSL2)
    assert other.state == RUNNING


def _gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def test_a_device_host_that_crashes_does_not_wedge_the_owner(house: House) -> None:
    vm = await house.create(WSL2, fixed=True)
    os.kill(house.pid_of("device host"), signal.SIGKILL)
    await house.services.first_to_end()
    with pytest.raises(UnavailableError):
        await house.add_share(vm.vm_id, "data")
    seen = await house.get(vm.vm_id)
    assert [share.tag for share in seen.shares] == ["fixed"]
    assert seen.devices[0].state == device_pb2.DEVICE_STATE_UNSPECIFIED
    await house.terminate(vm.vm_id)
    assert (await house.get(vm.vm_id)).state == TERMINATED


async def test_a_killed_owner_leaves_no_guest_directory_or_device(house: House) -> None:
    vm = await house.create(WSL2, fixed=True)
    [guest] = house.guest_processes()
    sockets = [Path(device.socket_path) for device in (await house.get(vm.vm_id)).devices]
    assert sockets
    assert all(path.is_socket() for path in sockets)
    os.kill(house.pid_of("VM owner"), signal.SIGKILL)
    left = [house.run_dir / "vm" / vm.vm_id, *sockets]
    async with asyncio.timeout(20):
        while not _gone(guest) or any(path.exists() for path in left):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    address = f"unix:{house.run_dir}/devicehost.sock"
    peer = await connect(address, device_host_pb2_grpc.DeviceHostStub, DEVICE_HOST)
    try:
        request = device_host_pb2.ListDevicesRequest(vm_id=vm.vm_id)
        async with asyncio.timeout(20):
            while (await peer.stub.ListDevices(request)).devices:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        await peer.close()


async def test_the_owner_ends_its_vms_in_order_on_sigterm(run_dir: Path) -> None:
    async with AsyncExitStack() as stack:
        house = House(run_dir)
        await house.start(stack)
        vm = await house.create(WSL2, fixed=True)
        assert await house.guest_reads(vm, "fixed")
        [guest] = house.guest_processes()
        statuses = await house.services.stop()
    assert statuses == {"VM owner": 0, "device host": 0}
    assert _gone(guest)
    assert house.broken_rules() == []
    names = [event.name for event in parse_otlp_lines(house.trace_file.read_text(), "trace").events]
    assert names.count("VmTerminated") == 1


@pytest.mark.parametrize("kind", [WSL2, WSLC])
async def test_a_machine_that_somebody_else_started(
    house: House, kind: vm_owner_pb2.VmKind.ValueType
) -> None:
    vm_dir = house.run_dir / "external"
    address = f"unix:{vm_dir}/machine.sock"
    guest = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.simguest", f"--vm-dir={vm_dir}", f"--listen={address}",
        f"--trace-file={house.trace_file}", stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        request = vm_owner_pb2.CreateVmRequest(kind=kind)
        request.external.address = address
        await (await connect(address, GuestStub, MACHINE)).close()
        vm = (await house.stub.CreateVm(request, timeout=60)).vm
        if kind == WSLC:
            await apply_guest_capabilities(house.services.owner_address, vm.vm_id)
        vm = await house.get(vm.vm_id)
        assert (vm.state, vm.machine_address) == (RUNNING, address)
        await house.add_share(vm.vm_id, "data")
        assert await house.guest_reads(vm, "data")
        await house.terminate(vm.vm_id)
        assert house.broken_rules() == []
    finally:
        guest.terminate()
        await guest.wait()


async def test_errors_reach_the_client_with_their_reasons(house: House) -> None:
    vm = await house.create(WSL2, fixed=True)
    with pytest.raises(AlreadyExistsError) as taken:
        await house.add_share(vm.vm_id, "fixed", "uid=7")
    with pytest.raises(NotFoundError) as unknown:
        await house.terminate("nope")
    odd = vm_owner_pb2.EmbeddedMachine(kernel_release="6.18.26.3\0odd")
    with pytest.raises(InvalidArgumentError, match="printable"):
        await house.create(WSL2, machine=odd)
    assert (taken.value.reason, unknown.value.reason) == ("TAG_EXISTS", "VM_NOT_FOUND")


def _taps() -> list[str]:
    return [name for _, name in socket.if_nameindex() if name != "lo"]


@pytest.mark.root
@pytest.mark.tap
@pytest.mark.passt
async def test_a_user_mode_network_and_its_ports(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTHOLE_PASST", str(PASST))
    async with AsyncExitStack() as stack:
        stack.enter_context(OwnNetwork())
        make_a_host()
        house = House(run_dir)
        await house.start(stack)
        vm = await house.create(WSL2)
        request = vm_owner_pb2.ConfigureNetworkingRequest(vm_id=vm.vm_id)
        network = await house.stub.ConfigureNetworking(request, timeout=30)
        assert network.mode == vm_owner_pb2.NETWORKING_MODE_VIRTIO_PROXY
        assert not network.HasField("warning")
        assert [adapter.tag for adapter in network.adapters] == ["eth0", "loopback0"]
        assert all(vm.swiotlb_option in adapter.options for adapter in network.adapters)
        assert _taps() == ["host0"]
        with pytest.raises(AlreadyExistsError):
            await house.stub.ConfigureNetworking(request)
        assert await house.guest_pings(vm, HOST) == 3
        key = port_pb2.PortKey(protocol=port_pb2.PORT_PROTOCOL_TCP)
        wanted = port_pb2.PortMapping(key=key, guest_port=80)
        mapped = await house.stub.MapPort(
            vm_owner_pb2.MapPortRequest(vm_id=vm.vm_id, mapping=wanted)
        )
        assert mapped.mapping.state == port_pb2.PORT_STATE_LISTENING
        where = (mapped.mapping.key.listen_address, mapped.mapping.key.listen_port)
        socket.create_connection(where, timeout=10).close()
        listed = await house.stub.ListPorts(vm_owner_pb2.ListPortsRequest(vm_id=vm.vm_id))
        assert list(listed.mappings) == [mapped.mapping]
        await house.stub.UnmapPort(
            vm_owner_pb2.UnmapPortRequest(vm_id=vm.vm_id, key=mapped.mapping.key)
        )
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where, timeout=10)
        await house.terminate(vm.vm_id)
        assert house.broken_rules() == []


async def test_without_passt_a_vm_has_no_network_and_a_warning(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTHOLE_PASST", "no-such-passt")
    async with AsyncExitStack() as stack:
        house = House(run_dir)
        await house.start(stack)
        vm = await house.create(WSL2)
        request = vm_owner_pb2.ConfigureNetworkingRequest(vm_id=vm.vm_id)
        network = await house.stub.ConfigureNetworking(request, timeout=30)
        assert network.mode == vm_owner_pb2.NETWORKING_MODE_NONE
        assert network.warning.id == "NetworkingFallback"
        assert "PASST_MISSING" in network.warning.text
        seen = await house.get(vm.vm_id)
        assert (warned(seen), list(seen.devices)) == (["NetworkingFallback"], [])
        await house.terminate(vm.vm_id)
        assert house.broken_rules() == []


@pytest.mark.root
@pytest.mark.tap
async def test_networking_with_real_adapters(run_dir: Path) -> None:
    async with AsyncExitStack() as stack:
        stack.enter_context(OwnNetwork())
        house = House(run_dir)
        await house.start(stack)
        vm = await house.create(WSL2)
        request = vm_owner_pb2.ConfigureNetworkingRequest(
            vm_id=vm.vm_id, mode=vm_owner_pb2.NETWORKING_MODE_NAT
        )
        network = await house.stub.ConfigureNetworking(request, timeout=30)
        assert [adapter.tag for adapter in network.adapters] == ["eth0", "loopback0"]
        assert all(vm.swiotlb_option in adapter.options for adapter in network.adapters)
        assert len(_taps()) == 2
        with pytest.raises(AlreadyExistsError):
            await house.stub.ConfigureNetworking(request)
        assert await house.guest_pings(vm, network.gateway_address) == 3
        await house.terminate(vm.vm_id)
        assert _taps() == []
        assert house.broken_rules() == []
