"""File systems of the host below the shares of an aggregate."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.mount.volumes import foreign_mask
from services.devicehost.fastpath import SLOT_SHIFT
from services.wire import fuse
from tests.unit.devicehost.devices.fs.fuse_guest import OFFERED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.aggregate.conftest import Rig
    from tests.unit.devicehost.devices.fs.fuse_guest import FuseGuest


@pytest.fixture
def shares(rig: Rig) -> Iterator[list[Path]]:
    """Two shares, and in each a file system; they are alike to the inode number."""
    folders = []
    try:
        for name in ("one", "two"):
            folder = rig.add(name) / "data"
            folder.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True, timeout=30)
            folders.append(folder)
            (folder / "file").touch()
        yield folders
    finally:
        for folder in folders:
            subprocess.run(["umount", "-l", folder], check=True, timeout=30)


@pytest.mark.root
@pytest.mark.parametrize("announced", [True, False])
def test_what_is_mounted_below_a_share_is_told_from_the_share(
    guest: FuseGuest, shares: list[Path], announced: bool
) -> None:
    guest.init(flags=OFFERED if announced else OFFERED & ~fuse.FUSE_SUBMOUNTS)
    numbers = set()
    for slot, folder in enumerate(shares, 1):
        entry = guest.walk(f"{folder.parent.name}/data")
        assert bool(entry.attr.flags & fuse.FUSE_ATTR_SUBMOUNT) is announced
        mask = slot << SLOT_SHIFT
        if not announced:
            mask ^= foreign_mask(folder.stat().st_dev, folder.parent.stat().st_dev)
        file = guest.lookup(b"file", entry.nodeid)
        assert file.attr.ino == (folder / "file").stat().st_ino ^ mask
        assert file.attr.flags == 0
        numbers |= {entry.attr.ino, file.attr.ino}
    assert len(numbers) == 4
