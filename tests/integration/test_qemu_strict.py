"""Strict isolation with a real kernel: what a device host gets of its guests, and what it keeps.

The guests of an owner show the whole; those that are booted by hand have something wrong.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from porthole.devicehost.v1 import device_host_pb2
from porthole.vmowner.v1 import vm_owner_pb2

from services.handshake.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from services.handshake.options import parse_fs_options
from services.handshake.pool import Gpa, SwiotlbPool, format_token
from services.vm_owner.machines.qemu.guest_memory import MOST_POOLS
from services.vm_owner.machines.qemu.image import INITRAMFS, MODULES
from services.vm_owner.machines.qemu.ports import pci_address
from tests.integration.test_negative_controls import (
    DEADLINE_S,
    PORTS,
    VM_ID,
    device_host,
    hosted,
    use,
)
from tests.integration.test_qemu_machine import QEMUS, WSL2, child
from tests.support.linux_guest import GUEST, own_kernel, stock_kernel
from tests.support.linux_vms import LinuxHouse, control, run
from tests.support.qemu_guest import RAM_NAME, booted
from tests.support.standalone import fs, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.guest_image, pytest.mark.guest_kernel]

MIB = 1 << 20
STRICT = vm_owner_pb2.QemuMachine(isolation=vm_owner_pb2.ISOLATION_STRICT)
MEMORY = f"/memfd:{RAM_NAME}"


@pytest_asyncio.fixture
async def house(run_dir: Path, qemu: str) -> AsyncIterator[LinuxHouse]:
    async with AsyncExitStack() as stack:
        started = LinuxHouse(run_dir, {"PORTHOLE_LOG_LEVEL": "info", "PORTHOLE_QEMU": qemu})
        await started.start(stack)
        (started.shared / "busybox").write_bytes((GUEST / "bin/busybox").read_bytes())
        (started.shared / "busybox").chmod(0o755)
        yield started


def own_part(device: vm_owner_pb2.Device) -> SwiotlbPool:
    part = parse_fs_options(device.options).aperture
    assert part is not None
    return part


def memory_files(pid: int) -> dict[int, int]:
    """The files of guest memory that a process has open: the descriptor of each, by inode."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if str(entry.readlink()).startswith(MEMORY):
            found[entry.stat().st_ino] = int(entry.name)
    return found


def memory_mapped(pid: int) -> dict[int, int]:
    """How many bytes of each file of guest memory a process has mapped, by inode."""
    found: dict[int, int] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if MEMORY in line:
            span, _, _, _, inode, *_ = line.split()
            start, end = (int(text, 16) for text in span.split("-"))
            found[int(inode)] = found.get(int(inode), 0) + end - start
    return found


def holders(pid: int, what: bytes) -> set[int]:
    """The files of guest memory, open in a process, in which these bytes are."""
    found = set()
    for inode, fd in memory_files(pid).items():
        file = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY)
        try:
            with mmap.mmap(file, 0, prot=mmap.PROT_READ) as view:
                if view.find(what) >= 0:
                    found.add(inode)
        finally:
            os.close(file)
    return found


def marker(name: str) -> bytes:
    """Return 64 bytes that are nowhere but in a share of this name."""
    return (f"of the share {name} alone, " * 4).encode()[:64]


async def add_marked(house: LinuxHouse, vm_id: str, name: str) -> vm_owner_pb2.Share:
    """Share a directory whose file has its marker in every page."""
    directory = house.run_dir / name
    directory.mkdir()
    (directory / "file").write_bytes(marker(name) * 16384)
    spec = vm_owner_pb2.ShareSpec(host_path=str(directory), tag=name)
    request = vm_owner_pb2.AddShareRequest(vm_id=vm_id, share=spec)
    return (await house.stub.AddShare(request, timeout=DEADLINE_S)).share


@pytest.mark.parametrize("qemu", QEMUS)
async def test_a_device_gets_the_pools_and_keeps_its_own(house: LinuxHouse) -> None:
    vm = await house.boot(WSL2, machine=STRICT)
    pool = vm.latched_pool
    assert vm.isolation == vm_owner_pb2.ISOLATION_STRICT
    assert "swiotlb" not in vm.kernel_command_line
    qemu, host = child(house, "qemu-system"), house.pid_of("device host")
    await house.add_share(vm.vm_id, "data")
    for name in ("one", "two"):
        await add_marked(house, vm.vm_id, name)
    seen = await house.get(vm.vm_id)
    parts = [own_part(device) for device in seen.devices]
    assert all(vm.swiotlb_option in device.options for device in seen.devices)
    assert [part.base for part in parts] == [pool.base + number * 8 * MIB for number in range(3)]
    async with control(vm) as stub:
        busybox = "/mnt/data/busybox"
        _, said = await run(stub, busybox, "cat", "/sys/bus/virtio/swiotlb_base")
        assert int(said, 16) == pool.base
        script = f"for name in one two; do {busybox} md5sum /mnt/$name/file || exit 1; done"
        code, said = await run(stub, busybox, "sh", "-c", script)
        assert code == 0, said

    # QEMU has a file for each pool. All were handed to each device, and none is kept.
    files = memory_files(qemu)
    assert len(files) == MOST_POOLS
    closed = [line for line in house.log if "descriptors of guest memory" in line]
    assert len(closed) == 3
    assert all(f"{MOST_POOLS} closed, since rings are inside" in line for line in closed)
    assert memory_files(host) == {}
    assert [device.counters.translations_refused for device in seen.devices] == [0, 0, 0]

    # What is mapped is a whole pool for each device, and what a device moved is in its own.
    mapped = memory_mapped(host)
    assert sorted(mapped.values()) == [8 * MIB] * 3
    assert set(mapped) <= set(files)
    [one], [two] = (holders(qemu, marker(name)) for name in ("one", "two"))
    assert one != two
    assert {one, two} <= set(mapped)

    await house.terminate(vm.vm_id)
    assert memory_mapped(host) == {}
    assert house.broken_rules() == []


async def test_every_port_has_the_device_that_the_kernel_was_told_of(house: LinuxHouse) -> None:
    """What `pci_address` assumes of firmware and kernel."""
    vm = await house.boot(WSL2, machine=STRICT)
    await house.add_share(vm.vm_id, "data")
    shares = [await add_marked(house, vm.vm_id, f"n{number}") for number in range(1, MOST_POOLS)]
    async with control(vm) as stub:
        busybox = "/mnt/data/busybox"
        for port in range(MOST_POOLS):
            address = pci_address(port)
            device = f"/sys/bus/pci/devices/{address}/vendor"
            assert await run(stub, busybox, "cat", device) == (0, "0x1af4\n"), address
            if port:
                code, said = await run(stub, busybox, "md5sum", f"/mnt/n{port}/file")
                assert code == 0, said
    with pytest.raises(ResourceExhaustedError, match=f"all {MOST_POOLS} ports") as full:
        await add_marked(house, vm.vm_id, "too-many")
    assert full.value.reason == "GUEST_PORTS_EXHAUSTED"
    # A part that is free again is that of the next device.
    before = {device.tag: own_part(device) for device in (await house.get(vm.vm_id)).devices}
    await house.remove_share(vm.vm_id, shares[2].share_id)
    await add_marked(house, vm.vm_id, "again")
    after = {device.tag: own_part(device) for device in (await house.get(vm.vm_id)).devices}
    assert after.pop("again") == before.pop("n3")
    assert after == before
    await house.terminate(vm.vm_id)
    assert house.broken_rules() == []


async def test_shares_of_an_aggregate_work_in_one_pool(house: LinuxHouse) -> None:
    vm = await house.boot(WSL2, machine=STRICT)
    share = await house.add_share(vm.vm_id, "", aggregate=True)
    place = f"/mnt/porthole-shares/{share.share_id}"
    async with control(vm) as stub:
        assert await run(stub, f"{place}/busybox", "ls", f"{place}/file") == (0, f"{place}/file\n")
    await house.terminate(vm.vm_id)
    assert house.broken_rules() == []


async def test_a_kernel_that_takes_no_pool_gets_no_device(house: LinuxHouse) -> None:
    initramfs = house.run_dir / "with-modules"
    initramfs.write_bytes(INITRAMFS.read_bytes() + MODULES.read_bytes())
    machine = vm_owner_pb2.QemuMachine(
        kernel=str(stock_kernel().image),
        initramfs=str(initramfs),
        isolation=vm_owner_pb2.ISOLATION_STRICT,
    )
    vm = await house.boot(WSL2, machine=machine)
    with pytest.raises(FailedPreconditionError, match="no pool") as refused:
        await house.add_share(vm.vm_id, "data")
    assert refused.value.reason == "ISOLATION_WITHOUT_POOL"
    assert memory_files(house.pid_of("device host")) == {}
    await house.terminate(vm.vm_id)
    assert house.broken_rules() == []


async def test_a_vm_without_a_pool_to_divide_is_not_booted(house: LinuxHouse) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await house.boot(WSL2, machine=STRICT, ram_bytes=512 * MIB)
    assert refused.value.reason == "ISOLATION_POOL"
    assert house.guest_processes() == {}


FIRST, SECOND, THIRD = (SwiotlbPool(Gpa(0x8000000 + n * 4 * MIB), 4 * MIB) for n in range(3))
WHOLE = SwiotlbPool(FIRST.base, 12 * MIB)


@dataclass(frozen=True)
class Wrong:
    """A device with something wrong beside one with nothing wrong.

    Attributes:
        part: The part that its options give it; that of its port is FIRST.
        iommu_platform: Of the front-end.
    """

    part: SwiotlbPool
    iommu_platform: bool = True


WRONGS = {
    "the part of another device": Wrong(SECOND),
    "iommu_platform=off": Wrong(FIRST, iommu_platform=False),
}


@pytest.mark.parametrize("name", WRONGS)
async def test_a_device_whose_guest_is_elsewhere_serves_nothing(
    run_dir: Path, shared_tree: Path, name: str
) -> None:
    """Its rings are outside its part: they are refused, with likely causes, and nothing is read."""
    wrong = WRONGS[name]
    pools = ",".join(
        f"{part.size_bytes}@{part.base:#x}/{pci_address(port)}"
        for port, part in enumerate((FIRST, SECOND, THIRD))
    )
    right = ("--rings=inside", f"--{format_token(THIRD)}")
    with (
        booted(
            run_dir, *PORTS, kernel=own_kernel(), kernel_arguments=f"hv_pci_swiotlb={pools}"
        ) as guest,
        device_host(run_dir / "host") as address,
        running(*fs(run_dir, shared_tree, f"--socket-path={run_dir}/r.sock", *right)) as served,
    ):
        async with hosted(address, shared_tree, format_token(WHOLE), wrong.part) as device:
            guest.plug(
                device.socket_path, "hosted", port="port0", iommu_platform=wrong.iommu_platform
            )
            guest.plug(served.socket_path, "right", port="port2")
            for tag in ("hosted", "right"):
                use(guest, tag)
            assert guest.run("wait $right; cat /tmp/right") == "tree\n"
            event = await device.await_change("Likely cause")
            assert "is outside the memory that is mapped" in event
            answer = await device.stub.GetDevice(
                device_host_pb2.GetDeviceRequest(vm_id=VM_ID, instance_id="hosted")
            )
            assert answer.device.counters.requests == 0
            assert answer.device.guest_descriptors == 0
            assert guest.run("cat /tmp/hosted") == ""
        guest.close()
        await asyncio.to_thread(served.end)
