"""The user-space guest as a process: gRPC in front, guest init behind, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from porthole.handshake.v1 import device_pb2
from porthole.machine.v1 import machine_pb2, machine_pb2_grpc

from services.devicehost.devices import FsBackend, FsDevice
from services.devicehost.memory import Aperture
from services.handshake.errors import FailedPreconditionError, NotFoundError
from services.handshake.options import parse_fs_options
from services.handshake.pool import Gpa, SwiotlbPool
from services.rpc.channel import Peer, connect
from tests.unit.simguest.echo import DeviceRig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MIB = 1 << 20
POOL = SwiotlbPool(Gpa(120 * MIB), 8 * MIB)
BOOT = machine_pb2.BootRequest(
    vm_id="5f0c2d5e-0000-4000-8000-000000000001",
    ram_bytes=128 * MIB,
    kernel_command_line="swiotlb=force hv_pci_swiotlb=8M",
    kernel_release="6.18.26.3",
    publishes_pool=True,
)


async def start(run_dir: Path, *flags: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.simguest", f"--run-dir={run_dir}", *flags,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 30)
    assert line.startswith(b"porthole simguest ready on unix:")
    return process


@asynccontextmanager
async def running(run_dir: Path, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await start(run_dir, *flags)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def machine(run_dir: Path) -> Peer[machine_pb2_grpc.MachineAsyncStub]:
    address = f"unix:{run_dir}/simguest.sock"
    return await connect(address, machine_pb2_grpc.MachineStub, "porthole.machine.v1.Machine")


async def workload(run_dir: Path) -> Peer[machine_pb2_grpc.WorkloadAsyncStub]:
    address = f"unix:{run_dir}/simguest.sock"
    return await connect(address, machine_pb2_grpc.WorkloadStub, "porthole.machine.v1.Workload")


def attach_request(run_dir: Path) -> machine_pb2.AttachDeviceRequest:
    return machine_pb2.AttachDeviceRequest(
        instance_id="dev-1",
        device_class=device_pb2.DEVICE_CLASS_VIRTIO_FS,
        tag="data",
        socket_path=str(run_dir / "fs.sock"),
    )


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
    return [int(child) for child in text.split()]


async def gone(pid: int) -> None:
    """Wait until a process that is not ours has ended."""
    pidfd = os.pidfd_open(pid)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), 20)
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)


@pytest.mark.parametrize("rings", ["inside", "outside"])
async def test_a_tree_is_read_through_the_pool_and_nothing_stays(run_dir: Path, rings: str) -> None:
    shared = run_dir / "shared"
    (shared / "deep").mkdir(parents=True)
    content = {b"deep/%d" % i: os.urandom(i * 3001) for i in range(150)}
    for name, data in content.items():
        (shared / os.fsdecode(name)).write_bytes(data)
    options = parse_fs_options("data;vm_id=5f0c2d5e-0000-4000-8000-000000000001")
    backend = FsBackend(str(shared))
    device = FsDevice(options, backend, Aperture.max_request_bytes)
    rig = DeviceRig(run_dir / "fs.sock", POOL, device)
    async with running(run_dir, f"--rings={rings}") as process:
        owner, user = await machine(run_dir), await workload(run_dir)
        await owner.stub.Boot(BOOT)
        await owner.stub.AttachDevice(attach_request(run_dir))
        held = (await user.stub.Stats(machine_pb2.StatsRequest())).slots_used
        seen = {
            file.path: file.sha256
            async for answer in user.stub.HashTree(machine_pb2.HashTreeRequest(tag="data"))
            for file in answer.files
        }
        assert seen == {name: hashlib.sha256(data).digest() for name, data in content.items()}
        async for _ in user.stub.HashTree(machine_pb2.HashTreeRequest(tag="data")):
            break  # a reader that hangs up early
        with pytest.raises(NotFoundError):
            async for _ in user.stub.HashTree(machine_pb2.HashTreeRequest(tag="other")):
                pass
        await owner.stub.DetachDevice(machine_pb2.DetachDeviceRequest(instance_id="dev-1"))
        stats = await user.stub.Stats(machine_pb2.StatsRequest())
        assert (held > 0) is (rings == "inside")
        assert stats.slots_used == 0
        assert stats.pool_base == POOL.base
        assert stats.pool_size_bytes == POOL.size_bytes
        assert stats.slots_total == POOL.size_bytes // 2048
        assert 0 < stats.slots_used_high_water <= stats.slots_total
        assert stats.bytes_bounced > sum(map(len, content.values()))
        assert rig.watch.failures == []
        await owner.close()
        await user.close()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
    rig.close()


async def test_sigterm_powers_the_guest_off(run_dir: Path) -> None:
    (run_dir / "shared").mkdir()
    options = parse_fs_options("data;vm_id=5f0c2d5e-0000-4000-8000-000000000001")
    backend = FsBackend(str(run_dir / "shared"))
    device = FsDevice(options, backend, Aperture.max_request_bytes)
    rig = DeviceRig(run_dir / "fs.sock", POOL, device)
    async with running(run_dir) as process:
        owner = await machine(run_dir)
        answer = await owner.stub.Boot(BOOT)
        assert answer.guest_init_address == f"unix:{run_dir}/guest/guest-init.sock"
        await owner.stub.AttachDevice(attach_request(run_dir))
        [init] = children(process.pid)
        await owner.close()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(init, 0)
    assert rig.watch.gone.wait(10)
    assert rig.watch.failures == []
    assert list((run_dir / "guest/sys/bus/vmbus/drivers/hv_pci").iterdir()) == []
    rig.close()


async def test_guest_init_ends_with_a_guest_that_is_killed(run_dir: Path) -> None:
    async with running(run_dir) as process:
        owner = await machine(run_dir)
        await owner.stub.Boot(BOOT)
        [init] = children(process.pid)
        await owner.close()
        waiting = asyncio.create_task(gone(init))
        await asyncio.sleep(0)
        process.kill()
        await waiting


@pytest.mark.parametrize("tied", [True, False])
async def test_a_guest_outlives_its_owner_unless_it_is_tied_to_it(
    run_dir: Path, tied: bool
) -> None:
    flags = ["--exit-with-parent"] if tied else []
    program = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-m', 'services.simguest', *sys.argv[1:]], "
        "stdout=subprocess.DEVNULL); "
        "print(p.pid, flush=True); p.wait()"
    )
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, f"--run-dir={run_dir}", *flags,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert owner.stdout is not None
    guest = int(await owner.stdout.readline())
    try:
        peer = await machine(run_dir)  # it is up
        end = asyncio.create_task(gone(guest))
        await asyncio.sleep(0)
        owner.kill()
        await owner.wait()
        if tied:
            await end
        else:
            await peer.stub.GetVersion(machine_pb2.MachineGetVersionRequest())
            os.kill(guest, signal.SIGTERM)
            await end
        await peer.close()
    except BaseException:
        os.kill(guest, signal.SIGKILL)
        raise


async def test_a_second_boot_is_refused_over_the_wire(run_dir: Path) -> None:
    async with running(run_dir) as process:
        owner = await machine(run_dir)
        await owner.stub.Boot(BOOT)
        with pytest.raises(FailedPreconditionError) as caught:
            await owner.stub.Boot(BOOT)
        assert caught.value.reason == "GUEST_STATE"
        assert caught.value.metadata["state"] == "running"
        [init] = children(process.pid)
        end = asyncio.create_task(gone(init))
        await asyncio.sleep(0)
        await owner.stub.PowerOff(machine_pb2.PowerOffRequest())
        await end
        with pytest.raises(FailedPreconditionError, match="powered off"):
            await owner.stub.AttachDevice(attach_request(run_dir))
        await owner.close()
