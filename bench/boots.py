"""Boots of a Linux guest: how soon it is of use, against a bare busybox on the same machine.

Owns the two guests that are compared. Ours is one of a VM owner, from CreateVm on: QEMU, kernel,
mini_init, capabilities, a share and a command. The bare one is the same QEMU command, kernel, pool
and ports with an init of busybox that prints one line. Must not know how figures are reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import stat
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

from porthole.guest.v1 import guest_control_pb2, guest_control_pb2_grpc
from porthole.vmowner.v1 import vm_owner_pb2, vm_owner_pb2_grpc

from bench.results import BootRow
from deploy.guest_image.initramfs import Entry, archive, init_entries
from services.cli.launcher import Services
from services.rpc.channel import connect
from services.vm_owner.clients import GUEST_CONTROL
from services.vm_owner.machines.qemu import command_line
from services.vm_owner.machines.qemu.architecture import host_architecture
from services.vm_owner.machines.qemu.guest_memory import GuestMemory
from services.vm_owner.machines.qemu.image import INITRAMFS, KERNEL
from services.vm_owner.machines.qemu.installation import Accelerator, choose_accelerator, find_qemu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

BUSYBOX: Final = Path(".guest/bin/busybox")
RAM_BYTES: Final = 1280 << 20
POOL_BYTES: Final = 64 << 20
"""What the owner asks a kernel for in a guest of this size."""
BARE: Final = "a busybox init prints"
LATCHED: Final = "capabilities latched"
MOUNTED: Final = "first share mounted"
COMMAND: Final = "first command ended"
DEADLINE_S: Final = 120.0
KVM_DEADLINE_S: Final = 20.0
"""Time after which a KVM is taken for one that runs no guest: most boot one within a second."""

_OWNER: Final = "porthole.vmowner.v1.VmOwner"
_SAYS: Final = b"the init of busybox runs"
_INIT: Final = f"""#!/bin/busybox sh
echo {_SAYS.decode()}
exec /bin/busybox sleep 86400
"""


def missing() -> str:
    """Return what a Linux guest needs and this machine lacks; empty: nothing."""
    for program in ("qemu-system-x86_64", "fio"):
        if shutil.which(program) is None:
            return program
    for path, target in ((KERNEL, "kernel"), (INITRAMFS, "guest-image"), (BUSYBOX, "guest")):
        if not path.exists():
            return f"{path} (make {target})"
    return ""


def find_accelerator() -> Accelerator:
    """Return how guests are executed here: by KVM where it boots one, otherwise by emulation.

    Raises:
        OSError: A guest boots in neither way.
    """
    accelerator = choose_accelerator(None, host_architecture())
    if accelerator is Accelerator.KVM:
        with tempfile.TemporaryDirectory(prefix="ph-bench-") as name:
            run_dir = Path(name)
            try:
                _bare(_bare_initramfs(run_dir), run_dir, accelerator, KVM_DEADLINE_S)
            except OSError:
                return Accelerator.TCG
    return accelerator


def measure(rounds: int, accelerator: Accelerator) -> Iterator[BootRow]:
    """Boot both guests by turns, and yield a row for each milestone.

    Raises:
        OSError: The bare guest did not boot.
        grpc.RpcError: The VM owner refused, or its guest failed.
    """
    found = asyncio.run(_measure(rounds, accelerator))
    for name in (BARE, LATCHED, MOUNTED, COMMAND):
        yield BootRow(name=name, seconds=[round(each[name], 3) for each in found])


async def _measure(rounds: int, accelerator: Accelerator) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="ph-bench-") as name:
        run_dir = Path(name)
        share = run_dir / "share"
        share.mkdir()
        shutil.copy(BUSYBOX, share / "busybox")
        initramfs = _bare_initramfs(run_dir)
        async with _owner(run_dir, accelerator) as owner:
            for number in range(rounds):
                times: dict[str, float] = {}
                for turn in (number % 2, (number + 1) % 2):
                    if turn:
                        times |= await _ours(owner, share)
                    else:
                        times[BARE] = await asyncio.to_thread(
                            _bare, initramfs, run_dir, accelerator
                        )
                found.append(times)
    return found


@contextlib.asynccontextmanager
async def _owner(
    run_dir: Path, accelerator: Accelerator
) -> AsyncIterator[vm_owner_pb2_grpc.VmOwnerAsyncStub]:
    settings = {
        "PORTHOLE_QEMU_ACCEL": accelerator,
        "PORTHOLE_QEMU_KERNEL": str(KERNEL),
        "PORTHOLE_QEMU_INITRAMFS": str(INITRAMFS),
        "PORTHOLE_BOOT_DEADLINE_S": str(DEADLINE_S),
        "PORTHOLE_LOG_LEVEL": "warning",
    }
    async with Services(run_dir / "services", settings, lambda *_: None) as house:
        peer = await connect(house.owner_address, vm_owner_pb2_grpc.VmOwnerStub, _OWNER)
        try:
            yield peer.stub
        finally:
            await peer.close()


async def _ours(owner: vm_owner_pb2_grpc.VmOwnerAsyncStub, share: Path) -> dict[str, float]:
    times = {}
    begin = time.monotonic()
    create = vm_owner_pb2.CreateVmRequest(kind=vm_owner_pb2.VM_KIND_WSL2, ram_bytes=RAM_BYTES)
    create.qemu.SetInParent()
    vm = (await owner.CreateVm(create, timeout=DEADLINE_S)).vm
    times[LATCHED] = time.monotonic() - begin
    try:
        if vm.latched_pool.size_bytes != POOL_BYTES:
            raise OSError(f"the guest has a pool of {vm.latched_pool.size_bytes} bytes")
        spec = vm_owner_pb2.ShareSpec(host_path=str(share), tag="share")
        add = vm_owner_pb2.AddShareRequest(vm_id=vm.vm_id, share=spec)
        await owner.AddShare(add, timeout=DEADLINE_S)
        times[MOUNTED] = time.monotonic() - begin
        await _run(vm.guest_init_address, "/mnt/share/busybox", "true")
        times[COMMAND] = time.monotonic() - begin
    finally:
        end = vm_owner_pb2.TerminateVmRequest(vm_id=vm.vm_id)
        await owner.TerminateVm(end, timeout=DEADLINE_S)
    return times


async def _run(address: str, *arguments: str) -> None:
    peer = await connect(
        address,
        guest_control_pb2_grpc.GuestControlStub,
        GUEST_CONTROL,
        default_deadline_s=DEADLINE_S,
    )
    command = guest_control_pb2.Command(arguments=[argument.encode() for argument in arguments])
    try:
        async for answer in peer.stub.Run(iter([guest_control_pb2.RunRequest(command=command)])):
            if answer.HasField("ended") and answer.ended != guest_control_pb2.Ended(exit_code=0):
                raise OSError(f"{' '.join(arguments)} ended with {answer.ended}")
    finally:
        await peer.close()


def _bare(
    initramfs: Path, run_dir: Path, accelerator: Accelerator, deadline_s: float = DEADLINE_S
) -> float:
    """Boot a guest whose init prints a line; return the time from the start of QEMU until it has.

    Raises:
        OSError: QEMU ended before, or the time is over.
    """
    architecture = host_architecture()
    installation = asyncio.run(find_qemu(architecture))
    hardware = command_line.Hardware(architecture, GuestMemory(RAM_BYTES), 1, accelerator)
    console, guests_console = socket.socketpair()
    monitor, guests_monitor = socket.socketpair()
    log = run_dir / "bare.log"
    with console, monitor, log.open("w") as errors:
        with guests_console, guests_monitor:
            wiring = command_line.Wiring(
                guests_console.fileno(), guests_monitor.fileno(), run_dir / "bare.sock"
            )
            command = command_line.command_line(
                *(installation, str(uuid.uuid4()), hardware, KERNEL, initramfs),
                f"hv_pci_swiotlb={POOL_BYTES}",
                wiring,
            )
            begin = time.monotonic()
            process = subprocess.Popen(
                command,
                pass_fds=(wiring.console_fd, wiring.monitor_fd),
                stdin=subprocess.DEVNULL,
                stderr=errors,
            )
        try:
            said, end = _until_said(console, deadline_s)
            if _SAYS not in said:
                raise OSError(f"the bare guest did not boot: {said[-800:]!r} {log.read_text()}")
            return end - begin
        finally:
            process.kill()
            process.wait()


def _until_said(console: socket.socket, deadline_s: float) -> tuple[bytes, float]:
    console.settimeout(deadline_s)
    said = b""
    while _SAYS not in said and (data := console.recv(1 << 16)):
        said += data
    return said, time.monotonic()


def _bare_initramfs(run_dir: Path) -> Path:
    image = run_dir / "bare.cpio"
    busybox = Entry("bin/busybox", stat.S_IFREG | 0o755, BUSYBOX.read_bytes())
    image.write_bytes(
        archive([*init_entries(_INIT.encode()), Entry("bin", stat.S_IFDIR | 0o755), busybox])
    )
    return image
