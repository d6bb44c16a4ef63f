"""What announces the end of a share, and that nothing reaches the shared directory after it.

A program of the host works in a share's mount point meanwhile, by the path and by a directory that
it has open, as one does that removes a tree.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from porthole.devicehost.v1 import device_host_pb2, device_host_pb2_grpc
from porthole.machine.v1 import machine_pb2
from porthole.vmowner.v1 import vm_owner_pb2

from services.cli.exit_codes import INTERRUPTED, OK
from services.rpc.channel import connect
from tests.support.command import CALL_S, PORTHOLE, Porthole
from tests.support.directories import mounts_below
from tests.support.house import MACHINE, GuestStub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.house import House

DEADLINE_S = 60.0
WSL2 = vm_owner_pb2.VM_KIND_WSL2

SCRIBBLER = """
import itertools, os, sys
place = sys.argv[1]
opened = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
for number in itertools.count():
    for name, directory in ((f"opened-{number}", opened), (f"{place}/by-path-{number}", None)):
        try:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=directory))
        except OSError:
            pass
"""
"""Makes files in a directory, whatever becomes of it."""


@contextlib.contextmanager
def scribbling(place: Path, shared: Path) -> Iterator[None]:
    """Work in a mount point from before the body until after it."""
    with subprocess.Popen([sys.executable, "-c", SCRIBBLER, place]) as process:
        try:
            deadline = time.monotonic() + DEADLINE_S
            while not any(shared.glob("opened-9*")):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield
        finally:
            process.kill()


async def end(house: House, what: str, vm: vm_owner_pb2.Vm, share: vm_owner_pb2.Share) -> None:
    """End a share in one of the ways that there are; returns when that is announced."""
    vm_id = vm.vm_id
    if what == "RemoveShare":
        request = vm_owner_pb2.RemoveShareRequest(vm_id=vm_id, share_id=share.share_id)
        await house.stub.RemoveShare(request, timeout=DEADLINE_S)
    elif what == "TerminateVm":
        await house.terminate(vm_id)
    elif what == "RemoveDevice":
        peer = await connect(
            f"unix:{house.run_dir}/devicehost.sock",
            device_host_pb2_grpc.DeviceHostStub,
            "porthole.devicehost.v1.DeviceHost",
        )
        gone = device_host_pb2.RemoveDeviceRequest(vm_id=vm_id, instance_id=share.instance_id)
        await peer.stub.RemoveDevice(gone)
        await peer.close()
    elif what == "the end of the device host":
        (running,) = (s for s in house.services.running if s.program.name == "device host")
        running.process.send_signal(signal.SIGTERM)
        await running.process.wait()
    elif what == "the end of all services":
        await house.services.stop()
    else:
        guest = await connect(vm.machine_address, GuestStub, MACHINE)
        await guest.stub.workload.Unmount(machine_pb2.UnmountRequest(tag="data"))
        await guest.close()


UNMOUNTS = {
    "RemoveShare": True,
    "TerminateVm": True,
    "RemoveDevice": False,  # which its VM owner does not learn
    "the end of the device host": False,  # the same
    "the end of all services": True,
    "Unmount": True,
}
"""Whether the mount point is free as well."""


@pytest.mark.fuse
@pytest.mark.parametrize("what", UNMOUNTS)
async def test_nothing_reaches_the_directory_after_the_end(house: House, what: str) -> None:
    vm = await house.create(WSL2)
    share = await house.add_share(vm.vm_id, "data", aggregate=False)
    place = house.run_dir / "mnt"
    place.mkdir()
    peer = await connect(vm.machine_address, GuestStub, MACHINE)
    await peer.stub.workload.Mount(machine_pb2.MountRequest(tag="data", mount_point=str(place)))
    await peer.close()
    assert mounts_below(house.run_dir) == [place]
    with scribbling(place, house.shared):
        await end(house, what, vm, share)
        then = sorted(house.shared.iterdir())
        if UNMOUNTS[what]:
            assert mounts_below(house.run_dir) == []
        await asyncio.sleep(0.3)
        assert sorted(house.shared.iterdir()) == then


def processes_of(run_dir: Path) -> list[str]:
    """Return the processes that have a run directory in their environment, but this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes().split(b"\0")
            if f"PORTHOLE_RUN_DIR={run_dir}".encode() in environment:
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def await_none(run_dir: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while left := processes_of(run_dir):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
def test_no_service_outlives_porthole_up(run_dir: Path, number: signal.Signals) -> None:
    command = Porthole(run_dir)
    process = command.up()
    command.run("vm", "create")
    assert len(processes_of(run_dir)) >= 4, "the command, device host, VM owner, guest"
    process.send_signal(number)
    _, errors = process.communicate(timeout=CALL_S)
    if number is signal.SIGKILL:
        await_none(run_dir)
    else:
        assert process.returncode == OK, errors
        assert "all services have ended" in errors
        assert processes_of(run_dir) == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_no_service_outlives_a_demonstration(tmp_path: Path, number: signal.Signals) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("text")
    process = subprocess.Popen(
        [*PORTHOLE, "demo", "--tree", str(tree), "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("WSL2: booting"):
        assert line, "the demonstration ended before it booted a VM"
    environment = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (run_dir,) = {
        text.removeprefix(b"PORTHOLE_RUN_DIR=").decode()
        for child in environment
        for text in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if text.startswith(b"PORTHOLE_RUN_DIR=")
    }
    process.send_signal(number)
    _, errors = process.communicate(timeout=CALL_S)
    assert process.returncode == INTERRUPTED, errors
    assert "Traceback" not in errors
    assert processes_of(Path(run_dir)) == []
    assert not Path(run_dir).exists()
