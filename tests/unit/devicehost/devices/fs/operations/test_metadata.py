"""Attributes, and the effect of the share's options on them."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from services.devicehost.devices.fs.host_files.syscalls import UTIME_NOW, UTIME_OMIT
from services.wire import fuse
from services.wire.fuse import Opcode, StatfsOut
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest


def number_of(error: pytest.ExceptionInfo[FuseError]) -> str:
    return errno.errorcode[error.value.number]


def test_attributes_are_the_hosts(guest: FuseGuest, shared: Path) -> None:
    path = shared / "f"
    path.write_bytes(b"x" * 5000)
    os.utime(path, ns=(1_600_000_000_123_456_789, -1_500_000_000))
    shown, real = guest.lookup(b"f").attr, path.stat()
    assert (shown.size, shown.blocks, shown.mode) == (5000, real.st_blocks, real.st_mode)
    assert (shown.atime, shown.atimensec) == (1_600_000_000, 123_456_789)
    assert (shown.mtime, shown.mtimensec) == (2**64 - 2, 500_000_000), "before 1970"
    assert (shown.ino, shown.nlink, shown.blksize) == (real.st_ino, 1, real.st_blksize)


def test_setattr_changes_what_is_valid_only(guest: FuseGuest, shared: Path) -> None:
    path = shared / "f"
    path.write_bytes(b"12345678")
    path.chmod(0o600)
    node = guest.lookup(b"f").nodeid
    before = guest.getattr(node)
    assert guest.setattr(node, 0, mode=0o777, size=3) == before
    changed = guest.setattr(node, fuse.FATTR_MODE | fuse.FATTR_SIZE, mode=0o4711, size=3)
    assert (stat.S_IMODE(changed.mode), changed.size) == (0o4711, 3)
    assert path.read_bytes() == b"123"


def test_setattr_times(guest: FuseGuest, shared: Path) -> None:
    path = shared / "f"
    path.write_bytes(b"")
    os.utime(path, ns=(5_000_000_000, 6_000_000_000))
    node = guest.lookup(b"f").nodeid
    guest.setattr(node, fuse.FATTR_MTIME, mtime=77, mtimensec=8)
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (5_000_000_000, 77_000_000_008)
    guest.setattr(node, fuse.FATTR_ATIME, atime=2**64 - 10)
    assert path.stat().st_atime_ns == -10_000_000_000
    guest.setattr(node, fuse.FATTR_MTIME | fuse.FATTR_MTIME_NOW)
    assert path.stat().st_mtime > 1_700_000_000


@pytest.mark.parametrize("nanoseconds", [1_000_000_000, UTIME_NOW, UTIME_OMIT, 2**32 - 1])
def test_nanoseconds_that_are_none_are_refused(
    guest: FuseGuest, shared: Path, nanoseconds: int
) -> None:
    path = shared / "f"
    path.touch()
    before = path.stat().st_mtime_ns
    node = guest.lookup(b"f").nodeid
    with pytest.raises(FuseError) as error:
        guest.setattr(node, fuse.FATTR_MTIME, mtimensec=nanoseconds)
    assert number_of(error) == "EINVAL"
    assert path.stat().st_mtime_ns == before


def test_truncating_by_handle(guest: FuseGuest, shared: Path) -> None:
    entry, handle = guest.create(b"f", mode=0o100400)
    guest.write(handle, b"12345")
    assert guest.setattr(entry.nodeid, fuse.FATTR_SIZE | fuse.FATTR_FH, fh=handle, size=2).size == 2
    with pytest.raises(FuseError) as error:
        guest.setattr(entry.nodeid, fuse.FATTR_SIZE | fuse.FATTR_FH, fh=999, size=2)
    assert number_of(error) == "EBADF"
    with pytest.raises(FuseError) as error:
        guest.setattr(1, fuse.FATTR_SIZE, size=2)
    assert number_of(error) == "EISDIR"
    with pytest.raises(FuseError) as error:
        guest.setattr(entry.nodeid, fuse.FATTR_SIZE, size=1 << 63)
    assert number_of(error) == "EINVAL"


def test_truncating_a_fifo_does_not_block(guest: FuseGuest) -> None:
    node = guest.mknod(b"fifo", stat.S_IFIFO | 0o600).nodeid
    with pytest.raises(FuseError) as error:
        guest.setattr(node, fuse.FATTR_SIZE, size=0)
    assert number_of(error) == "EINVAL"


def test_changing_a_symlink_leaves_its_target_alone(guest: FuseGuest, shared: Path) -> None:
    victim = shared.parent / "victim"
    victim.write_bytes(b"precious")
    victim.chmod(0o600)
    before = victim.stat()
    node = guest.symlink(b"link", str(victim).encode()).nodeid
    attempts = (
        (fuse.FATTR_MODE, {"mode": 0o777}),
        (fuse.FATTR_SIZE, {"size": 0}),
        (fuse.FATTR_ATIME | fuse.FATTR_MTIME, {"atime": 1, "mtime": 1}),
        (fuse.FATTR_UID | fuse.FATTR_GID, {"uid": before.st_uid, "gid": before.st_gid}),
    )
    for valid, fields in attempts:
        try:
            guest.setattr(node, valid, **fields)
        except FuseError:
            continue
    after = victim.stat()
    assert (after.st_mode, after.st_size, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_mode,
        before.st_size,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )


def test_statx_tells_the_birth_time(guest: FuseGuest, shared: Path) -> None:
    (shared / "f").write_bytes(b"123")
    node = guest.lookup(b"f").nodeid
    data = guest.call(Opcode.STATX, node, fuse.STATX_IN.pack(0, 0, 0, 0xFFF))
    assert len(data) == fuse.STATX_OUT.size + fuse.STATX.size
    fields = fuse.STATX.unpack_from(data, fuse.STATX_OUT.size)
    real = (shared / "f").stat()
    assert fields[6:9] == (real.st_mode, real.st_ino, 3)
    assert fields[0] & 0x800, "STATX_BTIME"
    assert 0 < fields[13] <= real.st_mtime


@pytest.mark.parametrize("mask", [0, 1, 0xFFFF_FFFF])
def test_statx_returns_what_the_mask_asks_for_and_fuse_has(
    guest: FuseGuest, shared: Path, mask: int
) -> None:
    """Bit 31 is reserved: statx(2) would refuse it, and a guest's mask may have it."""
    (shared / "f").touch()
    node = guest.lookup(b"f").nodeid
    data = guest.call(Opcode.STATX, node, fuse.STATX_IN.pack(0, 0, 0, mask))
    (shown,) = fuse.STATX.unpack_from(data, fuse.STATX_OUT.size)[:1]
    assert shown & mask & 0xFFF == mask & 0xFFF


def test_each_number_of_statfs_is_in_its_place(
    guest: FuseGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = os.statvfs_result(range(10, 20))
    monkeypatch.setattr(os, "statvfs", lambda _: numbers)
    shown = StatfsOut(*fuse.STATFS_OUT.unpack(guest.call(Opcode.STATFS)))
    for name in ("blocks", "bfree", "bavail", "files", "ffree", "bsize", "frsize"):
        assert getattr(shown, name) == getattr(numbers, f"f_{name}"), name
    assert shown.namelen == numbers.f_namemax


def test_statfs(guest: FuseGuest, shared: Path) -> None:
    shown = StatfsOut(*fuse.STATFS_OUT.unpack(guest.call(Opcode.STATFS)))
    real = os.statvfs(shared)
    assert (shown.blocks, shown.bsize, shown.frsize) == (
        real.f_blocks,
        real.f_bsize,
        real.f_frsize,
    )
    assert shown.namelen == real.f_namemax


def test_syncfs(guest: FuseGuest) -> None:
    assert guest.call(Opcode.SYNCFS, 1, fuse.SYNCFS_IN.pack()) == b""
    file = guest.create(b"file")[0].nodeid
    assert guest.call(Opcode.SYNCFS, file, fuse.SYNCFS_IN.pack()) == b""
    fifo = guest.mknod(b"fifo", stat.S_IFIFO | 0o600).nodeid
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.SYNCFS, fifo, fuse.SYNCFS_IN.pack())
    assert number_of(error) == "EINVAL", "it is not opened, which would have an effect"


def test_access(guest: FuseGuest, shared: Path) -> None:
    (shared / "f").write_bytes(b"")
    (shared / "f").chmod(0o600)
    node = guest.lookup(b"f").nodeid
    guest.call(Opcode.ACCESS, node, fuse.ACCESS_IN.pack(os.R_OK | os.W_OK))
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.ACCESS, node, fuse.ACCESS_IN.pack(os.X_OK))
    assert number_of(error) == "EACCES"
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.ACCESS, node, fuse.ACCESS_IN.pack(64))
    assert number_of(error) == "EINVAL"


def test_owner_options(make_guest: MakeGuest, shared: Path) -> None:
    guest = make_guest(uid=1234, gid=5678)
    (shared / "f").write_bytes(b"")
    node, attr = guest.lookup(b"f")
    assert (attr.uid, attr.gid) == (1234, 5678)
    before = (shared / "f").stat()
    guest.setattr(node, fuse.FATTR_UID | fuse.FATTR_GID, uid=1234, gid=5678)
    assert ((shared / "f").stat().st_uid, (shared / "f").stat().st_gid) == (
        before.st_uid,
        before.st_gid,
    )
    with pytest.raises(FuseError) as error:
        guest.setattr(node, fuse.FATTR_UID, uid=1)
    assert number_of(error) == "EPERM"
    data = guest.call(Opcode.STATX, node, fuse.STATX_IN.pack(0, 0, 0, 0xFFF))
    assert fuse.STATX.unpack_from(data, fuse.STATX_OUT.size)[4:6] == (1234, 5678)


@pytest.mark.root
def test_an_owner_option_fixes_one_id_and_leaves_the_other(
    make_guest: MakeGuest, shared: Path
) -> None:
    path = shared / "f"
    path.touch()
    options: list[tuple[str, str, dict[str, Any]]] = [
        ("gid", "uid", {"gid": 5678}),
        ("uid", "gid", {"uid": 1234}),
    ]
    for fixed, free, option in options:
        guest = make_guest(**option)
        node = guest.lookup(b"f").nodeid
        valid = {"uid": fuse.FATTR_UID, "gid": fuse.FATTR_GID}
        before = getattr(path.stat(), f"st_{fixed}")
        guest.setattr(node, valid[free], **{free: 77})
        assert getattr(path.stat(), f"st_{free}") == 77
        with pytest.raises(FuseError) as error:
            guest.setattr(node, valid[fixed], **{fixed: 78})
        assert number_of(error) == "EPERM"
        guest.setattr(node, valid[fixed], **option)
        assert getattr(path.stat(), f"st_{fixed}") == before


@pytest.mark.parametrize(
    ("options", "file_mode", "dir_mode"),
    [
        ({}, 0o666, 0o777),
        ({"umask": 0o022}, 0o644, 0o755),
        ({"umask": 0o002, "fmask": 0o111, "dmask": 0o070}, 0o664, 0o705),
        ({"fmask": 0o077}, 0o600, 0o777),
        ({"dmask": 0o077}, 0o666, 0o700),
    ],
)
def test_mask_options(
    make_guest: MakeGuest,
    shared: Path,
    options: dict[str, Any],
    file_mode: int,
    dir_mode: int,
) -> None:
    guest = make_guest(**options)
    guest.mkdir(b"d", mode=0o777)
    guest.create(b"f", mode=0o100666)
    assert stat.S_IMODE(guest.lookup(b"f").attr.mode) == file_mode
    assert stat.S_IMODE(guest.lookup(b"d").attr.mode) == dir_mode
    assert stat.S_IMODE((shared / "f").stat().st_mode) == 0o666, "the host keeps its own"


def test_read_only_refuses_every_change(make_guest: MakeGuest, shared: Path) -> None:
    (shared / "f").write_bytes(b"text")
    (shared / "d").mkdir()
    guest = make_guest(ro=True)
    node = guest.lookup(b"f").nodeid
    handle = guest.open(node)
    name = b"x\0"
    refused: list[tuple[Opcode, bytes]] = [
        (Opcode.CREATE, fuse.CREATE_IN.pack(2, 0o100644, 0, 0) + name),
        (Opcode.TMPFILE, fuse.CREATE_IN.pack(2, 0o100644, 0, 0) + name),
        (Opcode.MKDIR, fuse.MKDIR_IN.pack(0o755, 0) + name),
        (Opcode.MKNOD, fuse.MKNOD_IN.pack(0o100644, 0, 0) + name),
        (Opcode.SYMLINK, name + b"target\0"),
        (Opcode.LINK, fuse.LINK_IN.pack(node) + name),
        (Opcode.UNLINK, b"f\0"),
        (Opcode.RMDIR, b"d\0"),
        (Opcode.RENAME, fuse.RENAME_IN.pack(1) + b"f\0" + name),
        (Opcode.RENAME2, fuse.RENAME2_IN.pack(1, 0) + b"f\0" + name),
        (Opcode.SETATTR, fuse.SETATTR_IN.pack(fuse.FATTR_MODE, *([0] * 12))),
        (Opcode.SETXATTR, fuse.SETXATTR_IN.pack(1, 0, 0) + b"user.a\0v"),
        (Opcode.REMOVEXATTR, b"user.a\0"),
        (Opcode.WRITE, fuse.WRITE_IN.pack(handle, 0, 1, 0, 0, 0) + b"x"),
        (Opcode.FALLOCATE, fuse.FALLOCATE_IN.pack(handle, 0, 10, 0)),
        (Opcode.COPY_FILE_RANGE, fuse.COPY_FILE_RANGE_IN.pack(handle, 0, node, handle, 9, 1, 0)),
        (Opcode.OPEN, fuse.OPEN_IN.pack(os.O_WRONLY, 0)),
        (Opcode.OPEN, fuse.OPEN_IN.pack(os.O_RDWR, 0)),
        (Opcode.OPEN, fuse.OPEN_IN.pack(os.O_RDONLY | os.O_TRUNC, 0)),
        (Opcode.ACCESS, fuse.ACCESS_IN.pack(os.W_OK)),
    ]
    for opcode, body in refused:
        with pytest.raises(FuseError) as error:
            guest.call(opcode, node if opcode in (Opcode.OPEN, Opcode.ACCESS) else 1, body)
        assert (opcode, number_of(error)) == (opcode, "EROFS")
    guest.call(Opcode.ACCESS, node, fuse.ACCESS_IN.pack(os.R_OK))
    assert guest.read(handle, 9) == b"text"
    assert sorted(path.name for path in shared.iterdir()) == ["d", "f"]
