"""`porthole device fs` where virtiofsd stands: under QEMU, with a Linux kernel as the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.handshake.pool import format_token
from tests.support.linux_user import exercise
from tests.support.qemu_guest import PORT, RAM_MIB, RAM_NAME, booted
from tests.support.standalone import fs, running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize("memory", ["whole", "windows"])
def test_a_guest_mounts_a_share(run_dir: Path, shared_tree: Path, memory: str) -> None:
    flags = [] if memory == "whole" else ["--memory=windows"]
    with running(*fs(run_dir, shared_tree, *flags)) as device:
        chardev = ("-chardev", f"socket,id=c0,path={device.socket_path}")
        qemu_device = ("-device", "vhost-user-fs-pci,chardev=c0,tag=data,queue-size=1024")
        with booted(run_dir, *chardev, *qemu_device) as guest:
            guest.run("mount -t virtiofs data /mnt")
            exercise(guest, shared_tree)
            mapped = device.mapped_bytes(RAM_NAME)
            guest.run("umount /mnt")
            guest.power_off()
        code, log = device.end()
    assert code == 0, log
    if memory == "whole":
        assert mapped == RAM_MIB << 20
    else:
        assert 0 < mapped < 16 << 20


def test_a_guest_that_bounces_everything_is_confined_to_its_pool(
    run_dir: Path, shared_tree: Path
) -> None:
    with booted(run_dir, *PORT, kernel_arguments="swiotlb=force") as guest:
        pool = guest.pool()
        with running(*fs(run_dir, shared_tree, "--" + format_token(pool))) as device:
            guest.plug(device.socket_path, "data")
            guest.run("mount -t virtiofs data /mnt")
            exercise(guest, shared_tree)
            mapped = device.mapped_bytes(RAM_NAME)
            guest.run("umount /mnt")
            guest.power_off()
            code, log = device.end()
    assert code == 0, log
    rings = mapped - pool.size_bytes
    assert 0 <= rings < 1 << 20
