"""Real programs at work in Linux guests of an owner, of each kind and with each isolation.

The guest's root is this machine's, read-only, as `porthole run` has it, so that its compiler and
its fio run there. What they do is judged on the host, by the devices' counters, and by the trace.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities
from porthole.vmowner.v1 import vm_owner_pb2

from services.cli.guest_control import guest_control
from services.cli.guest_root import enter_root
from services.cli.run.plan import RunShare, share_mounts, share_requests
from services.handshake import events
from services.handshake.options import parse_fs_options
from services.handshake.trace.otlp import parse_otlp_lines
from services.session.session import apply_guest_capabilities
from tests.support.linux_guest import GUEST
from tests.support.linux_vms import DEADLINE_S, LinuxHouse, control, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from porthole.guest.v1 import guest_control_pb2_grpc

    from services.handshake.trace.recorded import Numbers

pytestmark = [
    pytest.mark.root,
    pytest.mark.fio,
    pytest.mark.guest_image,
    pytest.mark.guest_kernel,
]

WSL2, WSLC = vm_owner_pb2.VM_KIND_WSL2, vm_owner_pb2.VM_KIND_WSLC
SHARED_RAM, STRICT = vm_owner_pb2.ISOLATION_SHARED_RAM, vm_owner_pb2.ISOLATION_STRICT

SLOT_BYTES = 2048
"""Of swiotlb: IO_TLB_SIZE in include/linux/swiotlb.h."""

FIO_BYTES = 24 << 20
BLOCK_BYTES = 4096
PATH = ("PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL=C")


@pytest_asyncio.fixture
async def house(run_dir: Path) -> AsyncIterator[LinuxHouse]:
    async with AsyncExitStack() as stack:
        started = LinuxHouse(run_dir)
        await started.start(stack)
        yield started


class Worker:
    """A guest whose root is this machine's, with the house's shared directory at /work."""

    def __init__(
        self,
        house: LinuxHouse,
        vm: vm_owner_pb2.Vm,
        stub: guest_control_pb2_grpc.GuestControlAsyncStub,
    ) -> None:
        self.vm = vm
        self._house = house
        self._stub = stub

    async def run(self, script: str) -> str:
        """Run a shell script, which must succeed; return its output."""
        code, said = await run(
            self._stub, "/bin/sh", "-c", f"set -e; cd /work; {script}", environment=PATH
        )
        assert code == 0, said
        return said

    async def devices(self) -> dict[str, vm_owner_pb2.Device]:
        """Return its devices, by their tags."""
        return {each.tag: each for each in (await self._house.get(self.vm.vm_id)).devices}


@asynccontextmanager
async def worker(
    house: LinuxHouse,
    kind: vm_owner_pb2.VmKind.ValueType,
    isolation: vm_owner_pb2.Isolation.ValueType,
    *,
    wslconfig: str = "",
    also: Sequence[RunShare] = (),
) -> AsyncIterator[Worker]:
    machine = vm_owner_pb2.QemuMachine(isolation=isolation, cpus=2)
    vm = await house.boot(kind, machine=machine, wslconfig=wslconfig)
    if kind == WSLC:
        await apply_guest_capabilities(house.services.owner_address, vm.vm_id)
        vm = await house.get(vm.vm_id)
    requests = share_requests([RunShare(str(house.shared), "/work"), *also])
    for share in requests:
        spec = vm_owner_pb2.ShareSpec(
            host_path=share.host_path, tag=share.tag, options=share.options
        )
        request = vm_owner_pb2.AddShareRequest(vm_id=vm.vm_id, share=spec)
        await house.stub.AddShare(request, timeout=DEADLINE_S)
    async with guest_control(vm.guest_init_address, DEADLINE_S) as guest:
        await enter_root(guest)
        for mount in share_mounts(requests):
            await guest.mount(mount)
    async with control(vm) as stub:
        yield Worker(house, vm, stub)


def hashes(root: Path) -> dict[str, str]:
    """Return the hash of every file below a directory, by its path there."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def make_tree(root: Path) -> None:
    """Make files of many sizes in directories, with names that are not of every alphabet."""
    chance = random.Random(10)
    for number in range(120):
        place = root / f"d{number % 7}" / f"e{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        size = chance.choice((0, 1, 4095, 4096, 4097, 70_000, 300_000))
        (place / f"file {number} \u00fc").write_bytes(chance.randbytes(size))


def make_project(root: Path) -> None:
    """Write a small C project, whose program prints the sum of what its modules return."""
    root.mkdir()
    names = [f"part{number}" for number in range(4)]
    for number, name in enumerate(names):
        (root / f"{name}.c").write_text(f"int {name}(void) {{ return {number + 1}; }}\n")
    declared = "".join(f"int {name}(void);\n" for name in names)
    total = " + ".join(f"{name}()" for name in names)
    (root / "main.c").write_text(
        f'#include <stdio.h>\n{declared}int main(void) {{ return !printf("%d\\n", {total}); }}\n'
    )
    objects = " ".join(f"{name}.o" for name in ["main", *names])
    (root / "Makefile").write_text(f"program: {objects}\n\t$(CC) -o $@ $^\n")


def parse_sums(said: str) -> dict[str, str]:
    """Parse what sha256sum(1) prints."""
    lines = (line.split("  ", 1) for line in said.splitlines())
    return {name.removeprefix("./"): digest for digest, name in lines}


@pytest.mark.parametrize(
    ("kind", "isolation"),
    [(WSL2, SHARED_RAM), (WSLC, STRICT)],
    ids=["wsl2 with shared RAM", "wslc with strict isolation"],
)
async def test_programs_work_and_reach_the_host_by_the_pool_alone(
    house: LinuxHouse,
    kind: vm_owner_pb2.VmKind.ValueType,
    isolation: vm_owner_pb2.Isolation.ValueType,
) -> None:
    make_tree(house.shared / "tree")
    make_project(house.shared / "project")
    async with worker(house, kind, isolation) as guest:
        pool = guest.vm.latched_pool
        announced = (pool.base, pool.size_bytes)
        # One pool: what is announced is what the kernel logged and publishes.
        base, size = (
            await guest.run("cat /sys/bus/virtio/swiotlb_base /sys/bus/virtio/swiotlb_size")
        ).split()
        assert (int(base, 16), int(size)) == announced
        assert pool_logged(await guest.run("dmesg")) == announced
        # Trees in both directions.
        said = await guest.run("cd tree; find . -type f -exec sha256sum {} +")
        assert parse_sums(said) == hashes(house.shared / "tree")
        await guest.run("cp -a tree copy; sync")
        assert hashes(house.shared / "copy") == hashes(house.shared / "tree")
        # A compiler, and fio, which reads back what it has written.
        await guest.run("make --silent -j2 -C project")
        program = house.shared / "project/program"
        assert await asyncio.to_thread(subprocess.check_output, [program]) == b"10\n"
        assert (await guest.run("project/program")) == "10\n"
        await guest.run(
            f"fio --name=verified --filename=/work/verified --rw=randwrite --bs={BLOCK_BYTES} "
            f"--size={FIO_BYTES} --verify=crc32c --verify_fatal=1 --direct=1 --ioengine=psync "
            "--thread --output=/dev/null"
        )
        assert (house.shared / "verified").stat().st_size == FIO_BYTES
        # Everything went through the pool, and each request has three descriptors or more.
        used = await guest.run(
            "mount -t debugfs none /sys/kernel/debug; "
            "cat /sys/kernel/debug/swiotlb/virtio*/io_tlb_used_hiwater"
        )
        assert max(map(int, used.split())) > 0
        devices = await guest.devices()
        for device in devices.values():
            part = parse_fs_options(device.options).aperture
            counters = device.counters
            assert counters.translations_refused == 0
            slots = (part.size_bytes if part else pool.size_bytes) // SLOT_BYTES
            assert 0 < counters.highest_slot <= slots
        assert devices["share0"].counters.requests > 2 * FIO_BYTES // BLOCK_BYTES
        parts = [parse_fs_options(device.options).aperture for device in devices.values()]
    await house.terminate(guest.vm.vm_id)
    due = {(part.base, part.size_bytes) if part else announced for part in parts}
    assert apertures_traced(house) == due
    assert len(due) == (2 if isolation == STRICT else 1)
    assert house.broken_rules() == []


def pool_logged(dmesg: str) -> Numbers:
    """Return base and size of the pool that our kernel logged, of all its parts together."""
    found = re.findall(r"virtio_swiotlb: .*\[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\]", dmesg)
    spans = sorted((int(first, 16), int(last, 16) + 1) for first, last in found)
    assert all(end == base for (_, end), (base, _) in pairwise(spans)), spans
    return spans[0][0], spans[-1][1] - spans[0][0]


def apertures_traced(house: LinuxHouse) -> set[Numbers]:
    """Return base and size of each aperture in the trace."""
    recorded = parse_otlp_lines(house.trace_file.read_text(), house.trace_file.name)
    return {event.numbers for event in recorded.events if event.name == events.APERTURE_CREATED}


@contextmanager
def serving(directory: Path, address: str) -> Iterator[int]:
    """Serve a directory by HTTP at an address of this machine; yields the port."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(directory))
    with http.server.ThreadingHTTPServer((address, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


NETWORKED = "[wsl2]\nnetworkingMode=nat\n"


@pytest.mark.tap
async def test_a_file_is_fetched_over_the_network(house: LinuxHouse) -> None:
    content = os.urandom(2 << 20)
    (house.run_dir / "web").mkdir()
    (house.run_dir / "web/data").write_bytes(content)
    shutil.copy(GUEST / "bin/busybox", house.shared / "busybox")
    async with worker(house, WSL2, SHARED_RAM, wslconfig=NETWORKED) as guest:
        request = vm_owner_pb2.ConfigureNetworkingRequest(vm_id=guest.vm.vm_id)
        network = await house.stub.ConfigureNetworking(request, timeout=DEADLINE_S)
        with serving(house.run_dir / "web", network.gateway_address) as port:
            url = f"http://{network.gateway_address}:{port}/data"
            await guest.run(f"./busybox wget -q -O fetched {url}")
        assert (house.shared / "fetched").read_bytes() == content
        adapter = (await guest.devices())["eth0"]
        assert adapter.counters.translations_refused == 0
        assert adapter.counters.bytes_out > len(content)
    await house.terminate(guest.vm.vm_id)
    assert house.broken_rules() == []


SECOND_STAGE = """
import subprocess, sys
import grpc
from porthole.guest.v1 import guest_init_pb2, guest_init_pb2_grpc
address = "unix:/tmp/guest-init.sock"
program = [sys.executable, "-B", "-m", "services.guest_init", f"--listen={address}"]
with subprocess.Popen([*program, "--run-dir=/tmp/run"], stdout=subprocess.DEVNULL) as served:
    stub = guest_init_pb2_grpc.GuestInitStub(grpc.insecure_channel(address))
    asked = guest_init_pb2.GetGuestCapabilitiesRequest()
    answer = stub.GetGuestCapabilities(asked, wait_for_ready=True, timeout=100)
    served.terminate()
open("answer", "wb").write(answer.capabilities.SerializeToString())
"""
"""Starts guest init in the guest, and asks it there."""


async def test_guest_init_itself_serves_in_the_guest_as_its_second_stage(
    house: LinuxHouse,
) -> None:
    checkout = Path(__file__).parents[2]
    (house.shared / "second_stage.py").write_text(SECOND_STAGE)
    here = RunShare(str(checkout), str(checkout), read_only=True)
    async with worker(house, WSL2, SHARED_RAM, also=[here]) as guest:
        await guest.run(f"{sys.executable} -B second_stage.py; sync answer")
        answer = GuestCapabilities.FromString((house.shared / "answer").read_bytes())
        assert answer.swiotlb_pool == guest.vm.latched_pool
        assert answer.kernel_release == guest.vm.capabilities.kernel_release
    await house.terminate(guest.vm.vm_id)
