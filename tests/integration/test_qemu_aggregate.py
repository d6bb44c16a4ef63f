"""The aggregate device under QEMU: Linux mounts it while shares come and go."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from services.devicehost.host import AggregateBackend, ChildSpec, DeviceHost, DeviceSpec
from services.handshake.options import build_options
from services.handshake.pool import format_token
from tests.support.qemu_guest import PORT, QemuGuest, booted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.qemu, pytest.mark.root]

VM_ID = "0e6f1f0b-3f0e-4a53-9d0c-6d2f5a4b7c21"
TAG = "shares"
QUEUES = 4
ROUNDS = 5


class Aggregate:
    """The device in a guest, whose bounce pool is all that it reaches, mounted at /mnt.

    Attributes:
        guest: The guest.
        folder: Of the directories that are shared.
    """

    def __init__(self, host: DeviceHost, guest: QemuGuest, folder: Path) -> None:
        self.guest = guest
        self.folder = folder
        self._host = host
        options = build_options(TAG, f"queues={QUEUES}", format_token(guest.pool()), VM_ID)
        spec = DeviceSpec(VM_ID, TAG, TAG, options, AggregateBackend())
        device = host.create_device(spec, lambda event: None)
        guest.plug(device.socket_path, TAG, queues=QUEUES)
        guest.run(f"mount -t virtiofs {TAG} /mnt")

    def directory(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def add(self, name: str, shared: Path | None = None, options: str = "") -> Path:
        path = shared or self.directory(name)
        child = ChildSpec(name, f"{name};{options}vm_id={VM_ID}", str(path))
        self._host.add_child(VM_ID, TAG, child)
        return path

    def remove(self, name: str) -> None:
        self._host.remove_child(VM_ID, TAG, name)

    def refused(self, command: str, why: str) -> None:
        code, said = self.guest.attempt(command)
        assert code != 0, command
        assert why in said

    @property
    def refused_addresses(self) -> int:
        return self._host.get_device(VM_ID, TAG).counters.translations_refused


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[list[Path]]:
    """Two file systems that are alike to the inode number, with a file that has two names."""
    made = [tmp_path / name for name in ("one", "two")]
    for path in made:
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True, timeout=30)
    try:
        for path in made:
            (path / "file").write_text(f"{path.name}\n")
            os.link(path / "file", path / "link")
        yield made
    finally:
        for path in made:
            subprocess.run(["umount", path], check=True, timeout=30)


@pytest.fixture
def device(run_dir: Path, twins: list[Path], tmp_path: Path) -> Iterator[Aggregate]:
    (run_dir / "dev").mkdir()
    host = DeviceHost(run_dir, lambda info, detail: None)
    try:
        with booted(run_dir, *PORT, kernel_arguments="swiotlb=force") as guest:
            made = Aggregate(host, guest, tmp_path)
            for path in twins:
                made.add(path.name, path)
            yield made
            guest.run("umount /mnt")
            assert guest.run("grep -c ' /mnt' /proc/mounts || true") == "0\n"
            assert made.refused_addresses == 0
            guest.power_off()
    finally:
        host.close()


@contextmanager
def traffic(guest: QemuGuest, directory: str) -> Iterator[None]:
    """The guest writes and reads there meanwhile; nothing that it does may fail."""
    guest.run(
        "( turns=0; while [ ! -e /tmp/over ]; do"
        f" head -c 300000 /dev/urandom > /tmp/written && cp /tmp/written {directory}/traffic"
        f" && cmp /tmp/written {directory}/traffic && rm {directory}/traffic || exit 1;"
        " turns=$((turns + 1)); done; echo $turns ) > /tmp/said 2>&1 & worker=$!"
    )
    yield
    code, _ = guest.attempt("touch /tmp/over; wait $worker")
    said = guest.run("cat /tmp/said")
    assert code == 0, said
    assert int(said) > 0


def numbers(guest: QemuGuest, path: str) -> tuple[str, str]:
    """A file's device and inode number, as the guest has them."""
    device, inode = guest.run(f"stat -c '%d %i' {path}").split()
    return device, inode


def test_a_guest_uses_shares_while_others_come_and_go(device: Aggregate, twins: list[Path]) -> None:
    guest = device.guest
    assert guest.run("ls -1 /mnt") == "one\ntwo\n"

    # Files with the same inode number on the host, each with two names.
    assert len({(path / "file").stat().st_ino for path in twins}) == 1
    assert guest.run("cat /mnt/one/file /mnt/two/file") == "one\ntwo\n"
    assert numbers(guest, "/mnt/one/file") == numbers(guest, "/mnt/one/link")
    assert len({numbers(guest, f"/mnt/{path.name}/file")[1] for path in twins}) == 2
    guest.run("cp -a /mnt/one /mnt/two /tmp && rm /tmp/one/link")
    assert guest.run("stat -c %h /tmp/one/file /tmp/two/file") == "1\n2\n"
    assert guest.run("cat /tmp/one/file /tmp/two/file") == "one\ntwo\n"

    # A share is a file system, as it would be with a device of its own.
    assert len({numbers(guest, f"/mnt/{name}")[0] for name in (".", "one", "two")}) == 3
    assert guest.run("find /mnt -xdev").split() == ["/mnt", "/mnt/one", "/mnt/two"]
    room = os.statvfs(twins[0])
    total = guest.run("df -k /mnt/one | awk 'END {print $2}'")
    assert int(total) * 1024 == room.f_blocks * room.f_frsize
    device.refused("ln /mnt/one/file /mnt/two/other", "cross-device")
    guest.run("echo moved > /mnt/one/new && mv /mnt/one/new /mnt/two/new")
    assert (twins[1] / "new").read_text() == "moved\n"
    device.refused("mkdir /mnt/made", "not permitted")

    with traffic(guest, "/mnt/two"):
        for turn in range(ROUNDS):
            (device.directory("comes") / "file").write_text(f"{turn}\n")
            device.add("comes", options="ro;" if turn % 2 else "")
            assert guest.run("cat /mnt/comes/file") == f"{turn}\n"
            assert guest.attempt("touch /mnt/comes/file")[0] == turn % 2
            assert guest.run("ls -1 /mnt") == "comes\none\ntwo\n"
            guest.run("exec 9< /mnt/comes/file && cd /mnt/comes")
            device.remove("comes")
            device.refused("cat <&9", "Stale file handle")
            device.refused("ls .", "Stale file handle")
            device.refused("ls /mnt/comes/file", "No such file")
            assert guest.run("ls -1 /mnt") == "one\ntwo\n"
            if turn % 2:  # otherwise the share comes again while this one is still in use
                guest.run("exec 9<&- && cd /")
        guest.run("exec 9<&- && cd /")

    # What two shares lead to is one file; each has its own rules for it, and the host both.
    device.add("closed", twins[0], "ro;uid=4000;")
    assert guest.run("stat -c %u /mnt/one/file /mnt/closed/file") == "0\n4000\n"
    guest.run("echo changed > /mnt/one/file")
    device.refused("echo again > /mnt/closed/file", "Read-only")
    assert guest.run("sleep 1; cat /mnt/closed/file") == "changed\n"
