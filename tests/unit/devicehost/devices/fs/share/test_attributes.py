"""A file's status as a guest sees it: GETATTR and STATX must show the same."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.syscalls import Statx
from services.devicehost.devices.fs.share.attributes import Overrides, Presentation
from services.handshake.options import FsOptions
from services.wire.fuse import ATTR, STATX, Attr
from tests.unit.devicehost.devices.fs.conftest import VM_ID

if TYPE_CHECKING:
    from pathlib import Path

CHILD = 3 << 44
"""Bits that a share of an aggregate flips in its inode numbers."""
DEVICE = os.makedev(240, 300)


def shown(
    path: Path, overrides: Overrides | None, **options: int
) -> tuple[Attr, Statx, os.stat_result]:
    """Return what both requests show of a file, and its status on the host."""
    presentation = Presentation(FsOptions(name="share", vm_id=VM_ID, **options))  # type: ignore[arg-type]
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        real, status = os.fstat(fd), syscalls.status_of(fd)
        attr = Attr(*ATTR.unpack(presentation.attr(status, overrides, CHILD)))
        statx = Statx(*STATX.unpack(presentation.statx(status, overrides, CHILD)))
    finally:
        os.close(fd)
    return attr, statx, real


@pytest.mark.parametrize(
    "overrides",
    [
        None,
        Overrides(),
        Overrides(uid=0, gid=0, mode=stat.S_IFREG, rdev=0, size=0),
        Overrides(uid=1001, gid=1002, mode=stat.S_IFCHR | 0o6711, rdev=DEVICE, size=1 << 40),
    ],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"uid": 0, "gid": 0}, {"uid": 2001, "gid": 2002, "umask": 0o7, "fmask": 0o70, "dmask": 1}],
)
@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
def test_both_requests_show_the_same(
    tmp_path: Path, overrides: Overrides | None, options: dict[str, int], kind: str
) -> None:
    path = tmp_path / "it"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(b"x" * 5000)
    path.chmod(0o2777)
    os.utime(path, ns=(1_600_000_000_123_456_789, -1_500_000_000))
    attr, statx, real = shown(path, overrides, **options)
    assert attr.ino == statx.ino == real.st_ino ^ CHILD
    for name in ("size", "blocks", "mode", "nlink", "uid", "gid", "blksize"):
        assert getattr(attr, name) == getattr(statx, name), name
    for name in ("atime", "mtime", "ctime"):
        assert getattr(attr, name) == getattr(statx, name) & (1 << 64) - 1, name
        assert getattr(attr, f"{name}nsec") == getattr(statx, f"{name}_ns"), name
    assert attr.rdev == os.makedev(statx.rdev_major, statx.rdev_minor)

    for name in ("uid", "gid", "mode", "rdev", "size"):
        value = overrides and getattr(overrides, name)
        if value is not None:
            assert getattr(attr, name) == value, name
        elif name in options:
            assert getattr(attr, name) == options[name], name
        elif name != "mode":
            assert getattr(attr, name) == getattr(real, f"st_{name}"), name


@pytest.mark.parametrize(("major", "minor"), [(240, 0), (0, 300), (0xFFF, 0xF_FFFF), (0, 0)])
def test_a_device_number_has_two_parts(tmp_path: Path, major: int, minor: int) -> None:
    presentation = Presentation(FsOptions(name="share", vm_id=VM_ID))
    fd = os.open(tmp_path, os.O_PATH)
    status = syscalls.status_of(fd)._replace(rdev_major=major, rdev_minor=minor)
    os.close(fd)
    attr = Attr(*ATTR.unpack(presentation.attr(status, None, 0)))
    assert (attr.rdev, attr.flags) == (os.makedev(major, minor), 0)
