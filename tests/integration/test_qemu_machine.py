"""Linux guests that the owner boots with QEMU: the order of the seed, on a real kernel.

The kernel is that of `make kernel`, the initramfs that of `make guest-image`.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import stat
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
import pytest_asyncio
from porthole.guest.v1 import guest_control_pb2
from porthole.vmowner.v1 import vm_owner_pb2

from deploy.guest_image.initramfs import Entry, archive, init_entries
from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    UnavailableError,
)
from services.session.session import apply_guest_capabilities
from services.vm_owner.machines.qemu.image import INITRAMFS, MODULES
from services.vm_owner.taps import tap_names
from tests.support.linux_guest import GUEST, QEMU_10, stock_kernel
from tests.support.linux_vms import DEADLINE_S, LinuxHouse, control, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WSL2, WSLC = vm_owner_pb2.VM_KIND_WSL2, vm_owner_pb2.VM_KIND_WSLC

pytestmark = [pytest.mark.guest_image, pytest.mark.guest_kernel]


QEMUS = ["qemu-system-x86_64", pytest.param(str(QEMU_10), id="QEMU 10", marks=pytest.mark.qemu10)]


@pytest_asyncio.fixture
async def house(run_dir: Path, qemu: str) -> AsyncIterator[LinuxHouse]:
    async with AsyncExitStack() as stack:
        started = LinuxHouse(run_dir, {"PORTHOLE_QEMU": qemu})
        await started.start(stack)
        shutil.copy(GUEST / "bin/busybox", started.shared / "busybox")
        yield started


def child(house: LinuxHouse, words: str) -> int:
    [pid] = [p for p, line in house.guest_processes().items() if words in line]
    return pid


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


async def warnings_at_the_end(house: LinuxHouse, vm_id: str) -> dict[str, str]:
    """Wait until a VM has ended; return its warnings."""
    async with asyncio.timeout(DEADLINE_S):
        vm = await house.get(vm_id)
        while vm.state != vm_owner_pb2.VM_STATE_TERMINATED:
            vm = await house.get(vm_id)
            await asyncio.sleep(0.1)
    return {warning.id: warning.text for warning in vm.warnings}


@pytest.mark.parametrize("kind", [WSL2, WSLC])
@pytest.mark.parametrize("qemu", QEMUS)
async def test_the_order_of_the_seed(
    house: LinuxHouse, kind: vm_owner_pb2.VmKind.ValueType, qemu: str
) -> None:
    vm = await house.boot(kind)
    command = house.guest_processes()[child(house, "qemu-system")]
    assert command.partition(" ")[0].endswith(qemu)
    assert not vm.devices
    if kind == WSLC:
        await apply_guest_capabilities(house.services.owner_address, vm.vm_id)
        vm = await house.get(vm.vm_id)
    assert vm.state == vm_owner_pb2.VM_STATE_RUNNING
    pool = vm.latched_pool
    assert pool.size_bytes == 64 << 20
    assert vm.swiotlb_option == f"swiotlb={pool.base:#x},{pool.size_bytes}"
    assert "-porthole" in vm.capabilities.kernel_release
    first = await house.add_share(vm.vm_id, "data")
    async with control(vm) as stub:
        busybox = "/mnt/data/busybox"
        code, said = await run(stub, busybox, "cmp", "/mnt/data/file", "/mnt/data/file")
        assert (code, said) == (0, "")
        code, said = await run(stub, busybox, "cat", "/sys/bus/virtio/swiotlb_base")
        assert int(said, 16) == pool.base
        # What the guest writes arrives at the host.
        script = f"{busybox} cp /mnt/data/file /mnt/data/copy"
        assert await run(stub, busybox, "sh", "-c", script) == (0, "")
        assert (house.shared / "copy").read_bytes() == house.content
        second = await house.add_share(vm.vm_id, "more", "ro")
        code, said = await run(stub, busybox, "touch", "/mnt/more/new")
        assert "Read-only" in said
        assert code == 1
        await house.remove_share(vm.vm_id, second.share_id)
        code, said = await run(stub, busybox, "ls", "/mnt/more")
        assert (code, said) == (0, "")
        # Its port is free again, and its tag.
        await house.add_share(vm.vm_id, "more", "ro")
        code, said = await run(stub, busybox, "ls", "/mnt/more/file")
        assert (code, said) == (0, "/mnt/more/file\n")
    seen = await house.get(vm.vm_id)
    assert all(vm.swiotlb_option in device.options for device in seen.devices)
    assert next(d for d in seen.devices if d.instance_id == first.instance_id).counters.requests
    await house.terminate(vm.vm_id)
    await house.until_no_guests()
    assert house.broken_rules() == []


async def test_shares_of_an_aggregate_come_and_go(house: LinuxHouse) -> None:
    vm = await house.boot(WSL2)
    share = await house.add_share(vm.vm_id, "", aggregate=True)
    place = f"/mnt/porthole-shares/{share.share_id}"
    async with control(vm) as stub:
        assert await run(stub, f"{place}/busybox", "ls", f"{place}/file") == (0, f"{place}/file\n")
        await house.remove_share(vm.vm_id, share.share_id)
        with pytest.raises(grpc.aio.AioRpcError, match="ENOENT"):
            await run(stub, f"{place}/busybox", "true")
    await house.terminate(vm.vm_id)
    assert house.broken_rules() == []


@pytest.mark.tap
async def test_adapters_reach_the_host(house: LinuxHouse) -> None:
    vm = await house.boot(WSL2, wslconfig="[wsl2]\nnetworkingMode=nat\n")
    await house.add_share(vm.vm_id, "data")
    request = vm_owner_pb2.ConfigureNetworkingRequest(vm_id=vm.vm_id)
    network = await house.stub.ConfigureNetworking(request, timeout=DEADLINE_S)
    async with control(vm) as stub:
        ping = ("/mnt/data/busybox", "ping", "-c", "3", network.gateway_address)
        code, said = await run(stub, *ping)
        assert code == 0, said
        _, said = await run(stub, "/mnt/data/busybox", "ip", "address", "show", "loopback0")
        assert "UP" in said
    seen = await house.get(vm.vm_id)
    options = [device.options for device in seen.devices]
    assert len(options) == 3
    assert all(vm.swiotlb_option in text for text in options)
    await house.terminate(vm.vm_id)
    assert house.broken_rules() == []


async def test_a_killed_qemu_ends_its_vm_with_the_cause(house: LinuxHouse) -> None:
    vm = await house.boot(WSL2)
    await house.add_share(vm.vm_id, "data")
    os.kill(child(house, "qemu-system"), signal.SIGKILL)
    warnings = await warnings_at_the_end(house, vm.vm_id)
    assert "QEMU ended with signal SIGKILL" in warnings["GuestEnded"]
    await house.until_no_guests()
    assert not (house.run_dir / "vm" / vm.vm_id).exists()


async def test_a_killed_guest_init_ends_its_vm_with_the_cause(house: LinuxHouse) -> None:
    vm = await house.boot(WSL2)
    os.kill(child(house, "services.guest_init"), signal.SIGKILL)
    warnings = await warnings_at_the_end(house, vm.vm_id)
    assert any("signal SIGKILL" in text for text in warnings.values()), warnings
    await house.until_no_guests()


@pytest.mark.tap
async def test_nothing_outlives_a_killed_owner(house: LinuxHouse) -> None:
    vm = await house.boot(WSL2, wslconfig="[wsl2]\nnetworkingMode=nat\n")
    await house.add_share(vm.vm_id, "data")
    request = vm_owner_pb2.ConfigureNetworkingRequest(vm_id=vm.vm_id)
    await house.stub.ConfigureNetworking(request, timeout=DEADLINE_S)
    directory, taps = house.run_dir / "vm" / vm.vm_id, set(tap_names(vm.vm_id))
    sockets = [Path(device.socket_path) for device in (await house.get(vm.vm_id)).devices]
    assert sockets
    assert all(path.exists() for path in (directory, *sockets))
    assert taps <= interfaces()
    owner = house.pid_of("VM owner")
    pids = [*house.guest_processes()]
    assert len(pids) == 2
    os.kill(owner, signal.SIGKILL)
    paths = [directory, *sockets, *(Path(f"/proc/{pid}") for pid in pids)]
    async with asyncio.timeout(20):
        while taps & interfaces() or any(path.exists() for path in paths):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_guest_that_powers_off_ends_its_vm(house: LinuxHouse) -> None:
    vm = await house.boot(WSL2)
    async with control(vm) as stub:
        await stub.PowerOff(guest_control_pb2.PowerOffRequest(), timeout=DEADLINE_S)
    warnings = await warnings_at_the_end(house, vm.vm_id)
    assert "the guest powered off" in warnings["GuestEnded"]


async def test_a_guest_that_panics_ends_its_vm_with_the_cause(house: LinuxHouse) -> None:
    vm = await house.boot(WSL2, ram_bytes=512 << 20)
    await house.add_share(vm.vm_id, "data")
    async with control(vm) as stub:
        busybox = "/mnt/data/busybox"
        script = (
            f"echo 1 > /proc/sys/vm/panic_on_oom; {busybox} mount -t tmpfs -o size=4G none /tmp; "
            f"{busybox} cat /dev/zero > /tmp/full"
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await run(stub, busybox, "sh", "-c", script)
    warnings = await warnings_at_the_end(house, vm.vm_id)
    assert "the guest's kernel panicked" in warnings["GuestEnded"]
    assert "Out of memory" in warnings["GuestEnded"]


async def test_an_initramfs_without_init_is_a_panic_that_is_quoted(house: LinuxHouse) -> None:
    empty = house.run_dir / "empty"
    empty.write_bytes(b"")
    machine = vm_owner_pb2.QemuMachine(initramfs=str(empty))
    with pytest.raises(UnavailableError, match=re.compile("panic", re.IGNORECASE)) as failed:
        await house.boot(WSL2, machine=machine)
    assert "Kernel panic" in failed.value.message
    assert house.guest_processes() == {}


OWN_INIT = """#!/bin/busybox sh
/bin/busybox echo this is another init
until /bin/busybox mount -t virtiofs data /mnt; do /bin/busybox sleep 1; done
/bin/busybox cp /mnt/file /mnt/copy
/bin/busybox sleep 86400
"""


async def test_a_guest_without_our_init_runs_without_a_pool_and_mounts_its_share_itself(
    run_dir: Path,
) -> None:
    initramfs = run_dir / "own"
    busybox = Entry("bin/busybox", stat.S_IFREG | 0o755, (GUEST / "bin/busybox").read_bytes())
    folders = [Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "mnt")]
    initramfs.write_bytes(archive([*init_entries(OWN_INIT.encode()), *folders, busybox]))
    settings = {"PORTHOLE_BOOT_DEADLINE_S": "10", "PORTHOLE_CAPABILITIES_DEADLINE_S": "0.1"}
    async with AsyncExitStack() as stack:
        house = LinuxHouse(run_dir, settings)
        await house.start(stack)
        vm = await house.boot(WSL2, machine=vm_owner_pb2.QemuMachine(initramfs=str(initramfs)))
        assert (vm.state, vm.swiotlb_option) == (vm_owner_pb2.VM_STATE_RUNNING, "")
        assert [warning.id for warning in vm.warnings] == ["GuestInitSilent"]
        await house.add_share(vm.vm_id, "data")
        copy = house.shared / "copy"
        async with asyncio.timeout(DEADLINE_S):
            while not copy.exists() or copy.read_bytes() != house.content:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        [device] = (await house.get(vm.vm_id)).devices
        assert "swiotlb=" not in device.options
        assert device.counters.windows_mapped
        with pytest.raises(DeadlineExceededError) as failed:
            await house.boot(WSLC, machine=vm_owner_pb2.QemuMachine(initramfs=str(initramfs)))
        assert failed.value.reason == "GUEST_BOOT_DEADLINE"
        await house.terminate(vm.vm_id)
        await house.until_no_guests()
        rules = {rule.partition(":")[0] for rule in house.broken_rules()}
        assert "CAPABILITIES_MISSING" in rules
        assert rules.isdisjoint({"VERDICT_MISMATCH", "VERDICT_MISCOUNTED"})


async def test_a_file_that_is_no_kernel_does_not_boot(house: LinuxHouse) -> None:
    machine = vm_owner_pb2.QemuMachine(kernel=str(house.shared / "file"))
    with pytest.raises((UnavailableError, DeadlineExceededError), match="kernel"):
        await house.boot(WSL2, machine=machine)


async def test_a_missing_kernel_is_explained(house: LinuxHouse) -> None:
    machine = vm_owner_pb2.QemuMachine(kernel="/nowhere/vmlinux")
    with pytest.raises(FailedPreconditionError, match="make kernel") as refused:
        await house.boot(WSL2, machine=machine)
    assert refused.value.reason == "GUEST_KERNEL_MISSING"


async def test_a_stock_kernel_has_no_pool_one_warning_and_devices_that_work(
    house: LinuxHouse,
) -> None:
    initramfs = house.run_dir / "with-modules"
    initramfs.write_bytes(INITRAMFS.read_bytes() + MODULES.read_bytes())
    machine = vm_owner_pb2.QemuMachine(kernel=str(stock_kernel().image), initramfs=str(initramfs))
    vm = await house.boot(WSL2, machine=machine)
    assert vm.swiotlb_option == ""
    assert [w.id for w in vm.warnings] == ["MessageSwiotlbKernelUnsupported"]
    await house.add_share(vm.vm_id, "data")
    async with control(vm) as stub:
        found = await run(stub, "/mnt/data/busybox", "ls", "/mnt/data/file")
        assert found == (0, "/mnt/data/file\n")
    await house.terminate(vm.vm_id)
    assert house.broken_rules() == []


async def test_a_share_that_is_in_use_is_removed_all_the_same(house: LinuxHouse) -> None:
    vm = await house.boot(WSL2)
    await house.add_share(vm.vm_id, "data")
    used = await house.add_share(vm.vm_id, "used", "ro")
    async with control(vm) as stub:
        script = (
            "exec 3</mnt/used/file; echo opened; "
            "until ! /mnt/data/busybox head -c 1 /mnt/used/file >/dev/null; do :; done; "
            "/mnt/data/busybox cat <&3 >/dev/null || echo gone"
        )
        busy = asyncio.create_task(run(stub, "/mnt/data/busybox", "sh", "-c", script))
        await asyncio.sleep(1)
        async with asyncio.timeout(15):
            await house.remove_share(vm.vm_id, used.share_id)
            code, said = await busy
        assert code == 0
        assert said.endswith("gone\n"), said
    await house.terminate(vm.vm_id)
    assert house.broken_rules() == []


async def test_a_guest_whose_device_host_is_killed_is_taken_down_in_time(
    house: LinuxHouse,
) -> None:
    vm = await house.boot(WSL2)
    await house.add_share(vm.vm_id, "data")
    os.kill(house.pid_of("device host"), signal.SIGKILL)
    async with asyncio.timeout(30):
        await house.terminate(vm.vm_id)
    await house.until_no_guests()
