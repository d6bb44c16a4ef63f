"""File systems of the host below a share, for programs that tell files apart by number."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, NamedTuple, Protocol

import pytest

from tests.support.mounted_shares import MountedShares
from tests.support.qemu_guest import PORT, booted
from tests.support.standalone import fs, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.rsync]

COPIES = (
    "tar -C {share} -cf - . | tar -C {copy} -xf -",
    "rsync -aH {share}/ {copy}/",
    "cp -a {share}/. {copy}/",
)
"""Programs that restore hard links."""


class Run(Protocol):
    def __call__(self, command: str) -> str:
        """Run a shell command where the share is mounted; it must succeed. Return its output."""


class Twins(NamedTuple):
    """A share with two file systems that are alike to the inode number."""

    share: Path
    folders: tuple[Path, Path]


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[Twins]:
    share = tmp_path / "share"
    share.mkdir()
    folders = share / "data1", share / "data2"
    mounted: list[Path] = []
    try:
        for folder in folders:
            folder.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True, timeout=30)
            mounted.append(folder)
            (folder / "file").write_text(f"{folder.name}\n")
            os.link(folder / "file", folder / "link")
            (folder / "deep").mkdir()
            (folder / "deep" / "file").write_text(f"deep in {folder.name}\n")
        assert len({(folder / "file").stat().st_ino for folder in folders}) == 1
        yield Twins(share, folders)
    finally:
        for folder in mounted:
            subprocess.run(["umount", folder], check=True, timeout=30)


def check(run: Run, share: str, copies: str) -> None:
    """Have programs tell the files of `twins` apart."""
    names = sorted(run(f"(cd {share} && find .)").split())
    entries = ("", "/deep", "/deep/file", "/file", "/link")
    assert names == [".", *(f"./data{n}{entry}" for n in (1, 2) for entry in entries)]
    one, other = f"{share}/data1", f"{share}/data2"
    run(f"[ {one}/file -ef {one}/link ] && [ ! {one}/file -ef {other}/file ]")
    for number, command in enumerate(COPIES):
        copy = f"{copies}/{number}"
        run(f"mkdir -p {copy} && {command.format(share=share, copy=copy)}")
        for name in ("data1", "data2"):
            said = run(f"cat {copy}/{name}/file {copy}/{name}/link {copy}/{name}/deep/file")
            assert said == f"{name}\n{name}\ndeep in {name}\n", command
            run(f"[ {copy}/{name}/file -ef {copy}/{name}/link ]")
        run(f"[ ! {copy}/data1/file -ef {copy}/data2/file ]")


@pytest.mark.qemu
@pytest.mark.parametrize("native", ["1", "0"])
def test_a_real_guest_mounts_them_as_file_systems(
    run_dir: Path, twins: Twins, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTHOLE_NATIVE", native)
    with (
        running(*fs(run_dir, twins.share)) as device,
        booted(run_dir, *PORT, programs=["rsync"]) as guest,
    ):
        guest.plug(device.socket_path, "data")
        guest.run("mount -t virtiofs data /mnt")
        check(guest.run, "/mnt", "/tmp/copies")
        devices = guest.run("stat -c %d /mnt /mnt/data1/file /mnt/data2/file").split()
        assert len(set(devices)) == 3
        assert guest.run("find /mnt -xdev").split() == ["/mnt", "/mnt/data1", "/mnt/data2"]
        room = os.statvfs(twins.folders[0])
        total = guest.run("df -k /mnt/data1 | awk 'END {print $2}'")
        assert int(total) * 1024 == room.f_blocks * room.f_frsize
        guest.run("umount /mnt")
        guest.power_off()


@pytest.mark.fuse
def test_a_guest_without_submounts_sees_other_numbers(run_dir: Path, twins: Twins) -> None:
    """Linux takes none of the bridge of the user-space guest."""

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    copies = run_dir / "copies"
    with MountedShares(run_dir) as shares:
        mounted = shares.mount("data", twins.share)
        check(run, str(mounted), str(copies))
