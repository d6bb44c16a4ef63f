"""A guest of another architecture: the order of the seed, on a real kernel for arm64.

The kernel is that of `make kernel ARCH=arm64`, the initramfs that of `make guest-image`. Nobody
says what they are for: the owner reads it in the kernel's file.
"""

from __future__ import annotations

import re
import subprocess
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from porthole.vmowner.v1 import vm_owner_pb2

from services.handshake.errors import FailedPreconditionError
from services.handshake.sizing import ARM64_RAM_BASE
from services.vm_owner.machines.qemu.architecture import ARM64
from services.vm_owner.machines.qemu.image import BUILT, IMAGES
from tests.integration.test_qemu_machine import WSL2
from tests.support.linux_vms import RAM_BYTES, LinuxHouse, control, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.guest_arm64

MACHINE = vm_owner_pb2.QemuMachine(
    kernel=str(BUILT / ARM64.kernel), initramfs=str(IMAGES / ARM64.image / "initramfs")
)
COPY = """
#include <stdio.h>
int main(int count, char **names) {
  FILE *from = count == 3 ? fopen(names[1], "r") : NULL;
  FILE *to = from != NULL ? fopen(names[2], "w") : NULL;
  int byte;
  if (to == NULL) return 1;
  while ((byte = getc(from)) != EOF) putc(byte, to);
  return ferror(from) || fclose(to);
}
"""
"""A program for the guest, which has none but its init."""
OUTPUT = "/proc/self/fd/1"


@pytest_asyncio.fixture
async def house(run_dir: Path) -> AsyncIterator[LinuxHouse]:
    async with AsyncExitStack() as stack:
        started = LinuxHouse(run_dir)
        await started.start(stack)
        compiler = ["aarch64-linux-gnu-gcc", "-static", "-xc", "-", "-o", f"{started.shared}/cp"]
        subprocess.run(compiler, input=COPY.encode(), check=True)  # noqa: ASYNC221
        yield started


async def test_the_order_of_the_seed(house: LinuxHouse) -> None:
    vm = await house.boot(WSL2, machine=MACHINE)
    assert not vm.devices
    pool = vm.latched_pool
    assert pool.size_bytes == 64 << 20
    assert ARM64_RAM_BASE <= pool.base <= ARM64_RAM_BASE + RAM_BYTES - pool.size_bytes
    console = (house.run_dir / "vm" / vm.vm_id / "console.log").read_text()
    logged = re.search(r"virtio_swiotlb: pool \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\]", console)
    assert logged
    base, last = (int(text, 16) for text in logged.groups())
    assert (base, last - base + 1) == (pool.base, pool.size_bytes)
    first = await house.add_share(vm.vm_id, "data")
    async with control(vm) as stub:
        copy = "/mnt/data/cp"
        assert await run(stub, copy, "/mnt/data/file", "/mnt/data/copy") == (0, "")
        assert (house.shared / "copy").read_bytes() == house.content
        code, said = await run(stub, copy, "/sys/bus/virtio/swiotlb_base", OUTPUT)
        assert (code, int(said, 16)) == (0, pool.base)
        second = await house.add_share(vm.vm_id, "more", "ro")
        assert await run(stub, copy, "/mnt/more/file", "/mnt/data/copy") == (0, "")
        await house.remove_share(vm.vm_id, second.share_id)
        assert await run(stub, copy, "/mnt/more/file", "/mnt/data/copy") == (1, "")
    seen = await house.get(vm.vm_id)
    [device] = seen.devices
    assert device.instance_id == first.instance_id
    assert vm.swiotlb_option in device.options
    assert device.counters.requests > 0
    assert device.counters.translations_refused == 0
    assert not seen.warnings
    await house.terminate(vm.vm_id)
    assert house.broken_rules() == []


async def test_strict_isolation_is_refused(house: LinuxHouse) -> None:
    machine = vm_owner_pb2.QemuMachine(isolation=vm_owner_pb2.ISOLATION_STRICT)
    machine.MergeFrom(MACHINE)
    with pytest.raises(FailedPreconditionError) as refused:
        await house.boot(WSL2, machine=machine)
    assert refused.value.reason == "ISOLATION_ARCHITECTURE"
