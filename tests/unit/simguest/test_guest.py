"""The guest as a machine: states, what a boot leaves behind, devices, the order of power-off."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from porthole.guest.v1 import guest_init_pb2, guest_init_pb2_grpc

from services.devicehost.devices import FsBackend, FsDevice
from services.devicehost.memory import Aperture
from services.handshake import events
from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PortholeError,
    UnavailableError,
)
from services.handshake.options import parse_fs_options
from services.handshake.pool import Gpa, SwiotlbPool
from services.rpc.channel import connect
from services.simguest.guest import AttachSpec, BootSpec, Guest, GuestPlace
from services.simguest.kernel import PUBLISH_DIR, Kernel
from services.simguest.states import GuestState
from tests.unit.simguest.echo import DeviceRig, EchoHost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

MIB = 1 << 20
NEW = Kernel("6.18.26.3-microsoft-standard-WSL2", publishes_pool=True)
OLD = Kernel("6.6.87.2-microsoft-standard-WSL2", publishes_pool=False)
COMMAND_LINE = (
    "swiotlb=force hv_pci_swiotlb=8388608 porthole.vm_id=5f0c2d5e-0000-4000-8000-000000000001"
)
POOL = SwiotlbPool(Gpa(120 * MIB), 8 * MIB)


def boot_spec(kernel: Kernel = NEW, command_line: str = COMMAND_LINE, ram: int = 128) -> BootSpec:
    return BootSpec(ram * MIB, command_line, kernel, init_channel_address="")


def share(path: Path, instance_id: str = "dev-1", tag: str = "data") -> AttachSpec:
    return AttachSpec(instance_id, events.FS, tag, path)


@pytest.fixture(params=[False, True], ids=["rings-outside", "rings-inside"])
async def guest(run_dir: Path, request: pytest.FixtureRequest) -> AsyncIterator[Guest]:
    (run_dir / "vm").mkdir()
    guest = Guest(GuestPlace(run_dir / "vm", rings_in_pool=request.param))
    yield guest
    await guest.power_off()
    await guest.init_ended()


def share_rig(run_dir: Path, name: str) -> DeviceRig:
    """Share the folder shared by a device at <name>.sock."""
    options = parse_fs_options(f"{name};vm_id=5f0c2d5e-0000-4000-8000-000000000001")
    device = FsDevice(options, FsBackend(str(run_dir / "shared")), Aperture.max_request_bytes)
    return DeviceRig(run_dir / f"{name}.sock", POOL, device)


def ram_descriptors() -> int:
    """Return how many guests' memory this process holds."""
    links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    return sum("memfd:guest-ram" in link for link in links)


def state(guest: Guest) -> GuestState:
    return guest.state


def init_pid(guest: Guest) -> int:
    assert guest._init is not None
    return guest._init._process.pid


def published(run_dir: Path) -> dict[str, str]:
    directory = run_dir / "vm" / PUBLISH_DIR
    return {file.name: file.read_text() for file in directory.iterdir()}


async def test_a_boot_publishes_the_pool_and_starts_guest_init(guest: Guest, run_dir: Path) -> None:
    address = await guest.boot(boot_spec())
    assert state(guest) is GuestState.RUNNING
    assert published(run_dir) == {"swiotlb_base": "0x7800000\n", "swiotlb_size": "8388608\n"}
    assert (run_dir / "vm" / "cmdline").read_text() == f"{COMMAND_LINE}\n"
    assert guest.pool_usage() is not None
    peer = await connect(
        address, guest_init_pb2_grpc.GuestInitStub, "porthole.guest.v1.GuestInit", wait_s=20
    )
    answer = await peer.stub.GetGuestCapabilities(guest_init_pb2.GetGuestCapabilitiesRequest())
    await peer.close()
    assert answer.capabilities.swiotlb_pool.base == POOL.base
    assert answer.capabilities.swiotlb_pool.size_bytes == POOL.size_bytes
    assert answer.capabilities.kernel_release == NEW.release
    pid = init_pid(guest)
    await guest.power_off()
    assert state(guest) is GuestState.POWERED_OFF
    assert published(run_dir) == {}
    await guest.init_ended()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await guest.init_ended()  # does nothing the second time


@pytest.mark.parametrize(
    "boot",
    [
        boot_spec(OLD),
        boot_spec(NEW, "quiet"),
        boot_spec(NEW, "hv_pci_swiotlb=512M"),  # more than the RAM
        boot_spec(NEW, "hv_pci_swiotlb=lots"),
    ],
    ids=["old-kernel", "none-asked-for", "too-little-ram", "garbage"],
)
async def test_a_boot_without_a_pool_publishes_nothing(
    guest: Guest, run_dir: Path, boot: BootSpec
) -> None:
    await guest.boot(boot)
    assert published(run_dir) == {}
    assert guest.pool_usage() is None


async def test_a_guest_whose_boot_fails_stays_off(guest: Guest, run_dir: Path) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await guest.boot(boot_spec(ram=1))
    assert caught.value.reason == "RAM_SIZE"
    assert guest.state is GuestState.OFF
    await guest.boot(boot_spec())


async def test_a_boot_that_fails_keeps_no_memory(guest: Guest, run_dir: Path) -> None:
    held = ram_descriptors()
    (run_dir / "vm" / "cmdline").mkdir()  # where a file is to be written
    with pytest.raises(IsADirectoryError):
        await guest.boot(boot_spec())
    assert guest.state is GuestState.OFF
    assert ram_descriptors() == held


async def test_a_workload_that_hangs_does_not_stop_the_power_off(guest: Guest) -> None:
    await guest.boot(boot_spec())
    ends = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asyncio.get_running_loop().set_default_executor(pool)  # which runs the workloads
        hanging = asyncio.create_task(asyncio.to_thread(ends.wait, 60))
        try:
            await asyncio.wait_for(guest.power_off(), 30)
        finally:
            ends.set()
        await hanging


async def test_a_driver_that_fails_at_the_end_leaves_no_device_behind(
    guest: Guest, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise UnavailableError("DEVICE_GONE", "on purpose")

    (run_dir / "shared").mkdir()
    rigs = [share_rig(run_dir, name) for name in ("one", "two")]
    await guest.boot(boot_spec())
    for name in ("one", "two"):
        await guest.attach(share(run_dir / f"{name}.sock", name, name))
    monkeypatch.setattr(guest.workload, "detach", failing)
    with pytest.raises(UnavailableError):
        await guest.detach("one")
    assert rigs[0].watch.gone.wait(10)
    close = guest.workload.close
    monkeypatch.setattr(guest.workload, "close", failing)
    with pytest.raises(UnavailableError):
        await guest.power_off()
    assert rigs[1].watch.gone.wait(10)
    monkeypatch.undo()
    close()
    for rig in rigs:
        rig.close()


async def test_guest_init_needs_a_path_that_a_socket_can_have(run_dir: Path) -> None:
    guest = Guest(GuestPlace(run_dir / ("d" * 100), rings_in_pool=False))
    with pytest.raises(InvalidArgumentError) as caught:
        await guest.boot(boot_spec())
    assert caught.value.reason == "SOCKET_PATH_TOO_LONG"


async def test_what_a_state_forbids_changes_nothing(guest: Guest, run_dir: Path) -> None:
    async def refused(step: str) -> str:
        steps: dict[str, Callable[[], Coroutine[None, None, object]]] = {
            "boot": lambda: guest.boot(boot_spec()),
            "attach": lambda: guest.attach(share(run_dir / "x.sock")),
            "detach": lambda: guest.detach("dev-1"),
        }
        with pytest.raises(FailedPreconditionError) as caught:
            await steps[step]()
        return caught.value.message

    assert await refused("attach") == "cannot attach a device: the guest is not booted"
    assert await refused("detach") == "cannot detach a device: the guest is not booted"
    await guest.boot(boot_spec())
    assert await refused("boot") == "cannot boot: the guest is running"
    await guest.power_off()
    await guest.power_off()
    for step in ("boot", "attach", "detach"):
        assert (await refused(step)).endswith("the guest is powered off")


async def test_a_share_comes_and_goes_and_leaves_no_slot(guest: Guest, run_dir: Path) -> None:
    shared = run_dir / "shared"
    shared.mkdir()
    (shared / "file").write_bytes(b"content")
    rig = share_rig(run_dir, "fs")
    await guest.boot(boot_spec())
    await guest.attach(share(run_dir / "fs.sock"))
    for again in (share(run_dir / "fs.sock", tag="other"), share(run_dir / "fs.sock", "dev-2")):
        with pytest.raises(AlreadyExistsError) as caught:
            await guest.attach(again)
        assert caught.value.reason == "DEVICE_ATTACHED"
    digests = await asyncio.to_thread(lambda: list(guest.workload.hash_tree("data", "")))
    assert [(digest.path, digest.size_bytes) for digest in digests] == [(b"file", 7)]
    with pytest.raises(NotFoundError):
        await guest.detach("dev-2")
    await guest.detach("dev-1")
    assert rig.watch.gone.wait(10)
    assert rig.watch.failures == []
    usage = guest.pool_usage()
    assert usage is not None
    assert usage[1].slots_used == 0
    assert usage[1].bytes_bounced > 0
    await guest.attach(share(run_dir / "fs.sock"))  # the device is as new
    await guest.power_off()
    assert rig.watch.failures == []
    rig.close()


async def test_a_device_that_is_none_leaves_nothing_behind(guest: Guest, run_dir: Path) -> None:
    echo = EchoHost(run_dir / "echo.sock", POOL)
    await guest.boot(boot_spec())
    with pytest.raises(PortholeError):
        await guest.attach(share(run_dir / "echo.sock"))  # answers FUSE_INIT with nonsense
    with pytest.raises(PortholeError) as caught:
        await guest.attach(share(run_dir / "nobody.sock"))
    assert caught.value.reason == "DEVICE_UNREACHABLE"
    with pytest.raises(InvalidArgumentError) as refused:
        await guest.attach(AttachSpec("dev-1", "virtio-gpu", "x", run_dir / "echo.sock"))
    assert refused.value.reason == "DEVICE_CLASS_UNKNOWN"
    usage = guest.pool_usage()
    assert usage is not None
    assert usage[1].slots_used == 0
    assert echo.watch.gone.wait(10)
    echo.close()
