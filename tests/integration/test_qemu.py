"""`porthole device fs` where virtiofsd stands: under QEMU, with a Linux kernel as the driver."""

from __future__ import annotations

import fcntl
import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from services.handshake.pool import Gpa, SwiotlbPool, format_token
from tests.support.qemu_guest import RAM_MIB, RAM_NAME, QemuGuest, booted
from tests.support.standalone import fs, running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.qemu

PORT = ("-device", "pcie-root-port,id=port0,chassis=1")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A share with a tree in it: small files, a large one, and names that need care."""
    tree = tmp_path / "shared" / "tree"
    for place in range(60):
        file = tree / f"directory {place % 6}" / f"file-{place}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(place * 311))
    (tree / "large").write_bytes(os.urandom(5 << 20))
    (tree / "ünïcode").write_text("a name that is not ASCII")
    return tmp_path / "shared"


def on_the_host(tree: Path) -> dict[str, str]:
    return {
        str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tree.rglob("*")
        if path.is_file()
    }


def in_the_guest(guest: QemuGuest, tree: str) -> dict[str, str]:
    lines = guest.run(f"(cd {tree} && find . -type f -exec sha256sum {{}} +)").splitlines()
    return {
        name.removeprefix("./"): digest for digest, name in (line.split("  ", 1) for line in lines)
    }


def exercise(guest: QemuGuest, shared: Path) -> None:
    """What a user does with a share, looked at from both sides."""
    assert in_the_guest(guest, "/mnt/tree") == on_the_host(shared / "tree")

    guest.run("mkdir -p /tmp/made/deep/er")
    guest.run("for i in $(seq 30); do head -c $((i * 999)) /dev/urandom > /tmp/made/deep/$i; done")
    guest.run("head -c 3000000 /dev/urandom > /tmp/made/deep/er/large")
    guest.run("cp -a /tmp/made /mnt/")
    assert on_the_host(shared / "made") == in_the_guest(guest, "/tmp/made")

    guest.run("mv /mnt/made/deep/7 /mnt/renamed && ln /mnt/renamed /mnt/linked")
    assert not (shared / "made/deep/7").exists()
    assert (shared / "renamed").samefile(shared / "linked")
    guest.run("ln -s renamed /mnt/pointer && cmp /mnt/pointer /tmp/made/deep/7")
    assert (shared / "pointer").readlink().name == "renamed"
    guest.run("rm /mnt/linked && [ $(stat -c %h /mnt/renamed) = 1 ]")

    # Appended lines go where the file ends now, though the guest has cached another size.
    guest.run("echo guest > /mnt/log")
    with (shared / "log").open("a") as log:
        log.write("host\n")
    guest.run("echo guest >> /mnt/log")
    assert (shared / "log").read_text() == "guest\nhost\nguest\n"

    guest.run("exec 9> /mnt/lock && flock -n 9")
    with (shared / "lock").open() as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        guest.run("exec 9>&-")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert guest.attempt("flock -n /mnt/lock true")[0] != 0
    guest.run("flock -n /mnt/lock true")


@pytest.mark.parametrize("memory", ["whole", "windows"])
def test_a_guest_mounts_a_share(run_dir: Path, shared: Path, memory: str) -> None:
    flags = [] if memory == "whole" else ["--memory=windows"]
    with running(*fs(run_dir, shared, *flags)) as device:
        chardev = ("-chardev", f"socket,id=c0,path={device.socket_path}")
        qemu_device = ("-device", "vhost-user-fs-pci,chardev=c0,tag=data,queue-size=1024")
        with booted(run_dir, *chardev, *qemu_device) as guest:
            guest.run("mount -t virtiofs data /mnt")
            exercise(guest, shared)
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
    run_dir: Path, shared: Path
) -> None:
    with booted(run_dir, *PORT, kernel_arguments="swiotlb=force") as guest:
        pool = guest.pool()
        with running(*fs(run_dir, shared, "--" + format_token(pool))) as device:
            guest.plug(device.socket_path, "data")
            guest.run("mount -t virtiofs data /mnt")
            exercise(guest, shared)
            mapped = device.mapped_bytes(RAM_NAME)
            guest.run("umount /mnt")
            guest.power_off()
            code, log = device.end()
    assert code == 0, log
    rings = mapped - pool.size_bytes
    assert 0 <= rings < 1 << 20


def test_a_token_that_is_not_the_guests_fails_the_mount(run_dir: Path, shared: Path) -> None:
    with booted(run_dir, *PORT, kernel_arguments="swiotlb=force") as guest:
        pool = guest.pool()
        other = SwiotlbPool(Gpa(pool.base - pool.size_bytes), pool.size_bytes)
        with running(*fs(run_dir, shared, "--" + format_token(other))) as device:
            guest.plug(device.socket_path, "data")
            code, said = guest.attempt("mount -t virtiofs data /mnt && ls /mnt")
            assert code != 0
            assert "Connection refused" in said
            guest.power_off()
            code, log = device.end()
    assert code == 0, log
    assert "ADDRESS_OUT_OF_BOUNDS" in log
