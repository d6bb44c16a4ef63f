"""The option `metadata`: owners, modes and device numbers beside the host's own."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices import FsBackend, FsDevice
from services.devicehost.devices.fs.share import lx_metadata
from services.devicehost.memory.access import MAX_REQUEST_BYTES
from services.handshake.errors import FailedPreconditionError
from services.handshake.options import FsOptions
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.unit.devicehost.devices.fs.conftest import VM_ID, MakeGuest
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest, buffers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEPT = ("user.$LXUID", "user.$LXGID", "user.$LXMOD", "user.$LXDEV")


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(FuseError) as error:
        call()
    return errno.errorcode[error.value.number]


def kept(path: Path) -> tuple[int | None, ...]:
    """Owner, group and mode, as they are kept with a file of the host."""
    values = []
    for name in KEPT[:3]:
        present = name in os.listxattr(path)
        values.append(struct.unpack("<I", os.getxattr(path, name))[0] if present else None)
    return tuple(values)


def owner_and_mode(guest: FuseGuest, name: bytes) -> tuple[int, int, int]:
    attr = guest.lookup(name).attr
    assert guest.getattr(guest.lookup(name).nodeid) == attr
    statx = guest.call(Opcode.STATX, guest.lookup(name).nodeid, fuse.STATX_IN.pack(0, 0, 0, 0xFFF))
    assert fuse.STATX.unpack_from(statx, fuse.STATX_OUT.size)[4:7] == (
        *(attr.uid, attr.gid),
        attr.mode,
    )
    return attr.uid, attr.gid, attr.mode


@pytest.fixture
def guest(make_guest: MakeGuest) -> FuseGuest:
    made = make_guest(metadata=True)
    made.uid, made.gid = 1234, 5678
    return made


def test_what_the_guest_makes_is_kept_as_its_own(guest: FuseGuest, shared: Path) -> None:
    guest.create(b"file", mode=0o104711)
    guest.mkdir(b"dir", mode=0o1750)
    assert owner_and_mode(guest, b"file") == (1234, 5678, stat.S_IFREG | 0o4711)
    assert owner_and_mode(guest, b"dir") == (1234, 5678, stat.S_IFDIR | 0o1750)
    for name, mode in (("file", 0o711), ("dir", 0o750)):
        status = (shared / name).stat()
        assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
        assert stat.S_IMODE(status.st_mode) == mode, "without set-id and sticky bits"
    guest.create(b"unusable", mode=0o100000)
    guest.mkdir(b"closed", mode=0)
    assert owner_and_mode(guest, b"unusable")[2] == stat.S_IFREG
    assert stat.S_IMODE((shared / "unusable").stat().st_mode) == 0o600
    assert stat.S_IMODE((shared / "closed").stat().st_mode) == 0o700
    body = fuse.CREATE_IN.pack(2, 0o100640, 0, 0) + b"\0"
    entry = guest._entry(guest.call(Opcode.TMPFILE, 1, body))
    assert (entry.attr.uid, stat.S_IMODE(entry.attr.mode)) == (1234, 0o640)


def test_owner_and_mode_are_changed_beside_the_hosts(guest: FuseGuest, shared: Path) -> None:
    (shared / "file").write_bytes(b"x")
    (shared / "dir").mkdir()
    before = [(shared / name).stat() for name in ("file", "dir")]
    for name, kind in ((b"file", stat.S_IFREG), (b"dir", stat.S_IFDIR)):
        nodeid = guest.lookup(name).nodeid
        attr = guest.setattr(nodeid, fuse.FATTR_UID, uid=1000)
        assert (attr.uid, attr.gid) == (1000, os.getegid())
        attr = guest.setattr(nodeid, fuse.FATTR_GID | fuse.FATTR_MODE, gid=50, mode=0o2770)
        assert (attr.uid, attr.gid, attr.mode) == (1000, 50, kind | 0o2770)
        attr = guest.setattr(nodeid, fuse.FATTR_UID, uid=0xFFFF_FFFF)
        assert attr.uid == 1000
    after = [(shared / name).stat() for name in ("file", "dir")]
    for old, new in zip(before, after, strict=True):
        assert (old.st_uid, old.st_gid, old.st_mode) == (new.st_uid, new.st_gid, new.st_mode)
    assert kept(shared / "dir") == (1000, 50, stat.S_IFDIR | 0o2770)


def test_another_guest_sees_it_and_one_without_the_option_does_not(
    guest: FuseGuest, make_guest: MakeGuest
) -> None:
    guest.create(b"file", mode=0o100600)
    assert owner_and_mode(make_guest(metadata=True), b"file")[:2] == (1234, 5678)
    assert owner_and_mode(make_guest(), b"file")[:2] == (os.geteuid(), os.getegid())


def test_options_are_for_what_has_nothing_kept(make_guest: MakeGuest, shared: Path) -> None:
    (shared / "old").write_bytes(b"x")
    (shared / "old").chmod(0o666)
    guest = make_guest(metadata=True, uid=7, gid=8, umask=0o022)
    assert owner_and_mode(guest, b"old") == (7, 8, stat.S_IFREG | 0o644)
    nodeid = guest.lookup(b"old").nodeid
    guest.setattr(nodeid, fuse.FATTR_UID | fuse.FATTR_MODE, uid=1000, mode=0o666)
    assert owner_and_mode(guest, b"old") == (1000, 8, stat.S_IFREG | 0o666)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (stat.S_IFCHR, os.makedev(5, 1)),
        (stat.S_IFBLK, os.makedev(259, 70000)),
        (stat.S_IFIFO, 0),
        (stat.S_IFSOCK, 0),
        (stat.S_IFREG, 0),
        (0, 0),
    ],
)
def test_special_files_are_kept_as_regular_ones(
    guest: FuseGuest, make_guest: MakeGuest, shared: Path, kind: int, number: int
) -> None:
    attr = guest.mknod(b"node", kind | 0o640, number).attr
    assert (attr.uid, attr.gid, attr.mode) == (1234, 5678, (kind or stat.S_IFREG) | 0o640)
    assert attr.rdev == number
    assert stat.S_ISREG((shared / "node").lstat().st_mode)
    statx = guest.call(
        Opcode.STATX, guest.lookup(b"node").nodeid, fuse.STATX_IN.pack(0, 0, 0, 0xFFF)
    )
    assert fuse.STATX.unpack_from(statx, fuse.STATX_OUT.size)[-4:-2] == (
        *(os.major(number), os.minor(number)),
    )
    listed = {each.name: each.dirent.type for each in guest.readdir(guest.opendir())}
    assert listed[b"node"] == 0, "its type is not what the directory says"
    again = make_guest(metadata=True)
    changed = again.setattr(again.lookup(b"node").nodeid, fuse.FATTR_MODE, mode=0o600)
    assert (changed.mode, changed.rdev) == ((kind or stat.S_IFREG) | 0o600, number)
    assert refused(lambda: guest.mknod(b"other", stat.S_IFDIR | 0o700)) == "EPERM"


def test_a_symlinks_owner_is_the_real_one(guest: FuseGuest, shared: Path) -> None:
    attr = guest.symlink(b"link", b"target").attr
    status = (shared / "link").lstat()
    assert (attr.uid, attr.gid) == (status.st_uid, status.st_gid)
    if os.geteuid() == 0:
        assert (attr.uid, attr.gid) == (1234, 5678)
        assert guest.setattr(guest.lookup(b"link").nodeid, fuse.FATTR_UID, uid=99).uid == 99


def test_a_directorys_group_is_inherited(guest: FuseGuest) -> None:
    parent = guest.mkdir(b"team").nodeid
    guest.setattr(parent, fuse.FATTR_GID | fuse.FATTR_MODE, gid=42, mode=0o2775)
    child = guest.mkdir(b"child", parent).attr
    assert (child.gid, child.mode) == (42, stat.S_IFDIR | 0o2755)
    plain, _ = guest.create(b"plain", parent, mode=0o100664)
    assert (plain.attr.gid, plain.attr.mode) == (42, stat.S_IFREG | 0o664)
    foreign, _ = guest.create(b"foreign", parent, mode=0o102775)
    assert stat.S_IMODE(foreign.attr.mode) == 0o775, "who is not in the group gives no rights of it"
    locking, _ = guest.create(b"locking", parent, mode=0o102664)
    assert stat.S_IMODE(locking.attr.mode) == 0o2664, "it is about locks, not about rights"
    guest.gid = 42
    own, _ = guest.create(b"own", parent, mode=0o102775)
    assert stat.S_IMODE(own.attr.mode) == 0o2775
    guest.uid, guest.gid = 0, 5678
    roots, _ = guest.create(b"roots", parent, mode=0o102775)
    assert (roots.attr.gid, stat.S_IMODE(roots.attr.mode)) == (42, 0o2775), "root may"


def test_set_id_bits_fall(guest: FuseGuest) -> None:
    entry, handle = guest.create(b"file", mode=0o106755)

    def renew(mode: int = 0o6755) -> None:
        assert guest.setattr(entry.nodeid, fuse.FATTR_MODE, mode=mode).mode & 0o7777 == mode

    def now() -> int:
        return stat.S_IMODE(guest.getattr(entry.nodeid).mode)

    guest.write(handle, b"x")
    guest.setattr(entry.nodeid, fuse.FATTR_MTIME | fuse.FATTR_SIZE, size=1, mtime=1)
    guest.open(entry.nodeid, os.O_RDWR | os.O_TRUNC)
    assert now() == 0o6755, "not unless the guest says so"
    guest.write(handle, b"x", write_flags=fuse.FUSE_WRITE_KILL_SUIDGID)
    assert now() == 0o755
    renew()
    guest.setattr(entry.nodeid, fuse.FATTR_SIZE | fuse.FATTR_KILL_SUIDGID, size=0)
    assert now() == 0o755
    renew()
    guest.open(entry.nodeid, os.O_RDWR | os.O_TRUNC, fuse.FUSE_OPEN_KILL_SUIDGID)
    assert now() == 0o755
    renew()
    guest.call(Opcode.FALLOCATE, entry.nodeid, fuse.FALLOCATE_IN.pack(handle, 0, 10, 0))
    assert now() == 0o755
    renew()
    body = fuse.COPY_FILE_RANGE_IN.pack(handle, 0, entry.nodeid, handle, 10, 5, 0)
    guest.call(Opcode.COPY_FILE_RANGE, entry.nodeid, body)
    assert now() == 0o755
    renew(0o6745)
    guest.setattr(entry.nodeid, fuse.FATTR_UID, uid=1)
    assert now() == 0o2745, "without the right to execute, the bit means another thing"
    directory = guest.mkdir(b"dir", mode=0o2755).nodeid
    assert guest.setattr(directory, fuse.FATTR_UID, uid=1).mode & 0o7777 == 0o2755


def test_nothing_is_kept_where_no_set_id_bit_falls(guest: FuseGuest, shared: Path) -> None:
    """What is kept hides the mode that the host sets later."""
    (shared / "file").touch(mode=0o2664)  # the bit without the right to execute is about locks
    (shared / "file").chmod(0o2664)
    entry = guest.lookup(b"file")
    handle = guest.open(entry.nodeid, os.O_RDWR)
    guest.write(handle, b"x", write_flags=fuse.FUSE_WRITE_KILL_SUIDGID)
    assert kept(shared / "file") == (None, None, None)
    (shared / "file").chmod(0o640)
    assert stat.S_IMODE(guest.getattr(entry.nodeid).mode) == 0o640


def test_access_is_by_what_is_kept(guest: FuseGuest) -> None:
    entry, _ = guest.create(b"file", mode=0o100640)

    def may(mask: int, uid: int, gid: int) -> bool:
        guest.uid, guest.gid = uid, gid
        body = fuse.ACCESS_IN.pack(mask)
        error, _ = guest.raw(
            buffers(guest.request(Opcode.ACCESS, entry.nodeid, body), 40), buffers(bytes(16))
        )
        assert error in (0, errno.EACCES)
        return error == 0

    assert may(os.R_OK | os.W_OK, 1234, 1)
    assert may(os.R_OK, 1, 5678)
    assert not may(os.W_OK, 1, 5678)
    assert not may(os.R_OK, 1, 1)
    assert may(os.W_OK, 0, 0)
    assert not may(os.X_OK, 0, 0)
    for bit in (0o100, 0o010, 0o001):
        guest.uid, guest.gid = 1234, 5678
        entry, _ = guest.create(b"tool-%o" % bit, mode=0o100600 | bit)
        assert may(os.X_OK, 0, 0), "root needs one of the bits"
    guest.uid, guest.gid = 1234, 5678
    entry, _ = guest.create(b"odd", mode=0o100046)
    assert not may(os.R_OK, 1234, 5678), "the owner's bits count for the owner, and no others"
    assert not may(os.W_OK, 1, 5678), "the group's for the group"
    assert may(os.R_OK, 1, 5678)
    assert may(os.R_OK | os.W_OK, 1, 1)
    guest.uid, guest.gid = 1234, 5678
    entry = guest.mkdir(b"closed", mode=0)
    assert may(os.R_OK | os.W_OK | os.X_OK, 0, 0), "root may search any directory"
    assert not may(os.X_OK, 1234, 5678)


@pytest.mark.parametrize("metadata", [False, True])
def test_the_guest_does_not_see_or_set_what_is_kept(
    make_guest: MakeGuest, shared: Path, metadata: bool
) -> None:
    (shared / "file").write_bytes(b"x")
    os.setxattr(shared / "file", "user.visible", b"1")
    os.setxattr(shared / "file", KEPT[0], struct.pack("<I", 5))
    guest = make_guest(metadata=metadata)
    nodeid = guest.lookup(b"file").nodeid
    names = guest.call(Opcode.LISTXATTR, nodeid, fuse.GETXATTR_IN.pack(1000))
    assert names == b"user.visible\0"
    for name in KEPT:
        wire = name.encode() + b"\0"
        get = fuse.GETXATTR_IN.pack(100) + wire
        put = fuse.SETXATTR_IN.pack(4, 0, 0) + wire + bytes(4)
        assert refused(lambda get=get: guest.call(Opcode.GETXATTR, nodeid, get)) == "ENODATA"  # type: ignore[misc]
        assert refused(lambda put=put: guest.call(Opcode.SETXATTR, nodeid, put)) == "EPERM"  # type: ignore[misc]
        gone = refused(lambda wire=wire: guest.call(Opcode.REMOVEXATTR, nodeid, wire))  # type: ignore[misc]
        assert gone == "ENODATA"
    assert os.getxattr(shared / "file", KEPT[0]) == struct.pack("<I", 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (KEPT[0], b"123"),
        (KEPT[2], b""),
        (KEPT[3], b"\xff" * 8),
    ],
)
def test_what_others_have_written_is_not_believed(
    guest: FuseGuest, shared: Path, name: str, value: bytes
) -> None:
    (shared / "file").write_bytes(b"x")
    (shared / "file").chmod(0o644)
    os.setxattr(shared / "file", name, value)
    assert owner_and_mode(guest, b"file") == (
        *(os.geteuid(), os.getegid()),
        stat.S_IFREG | 0o644,
    )


@pytest.mark.parametrize("kind", [0, stat.S_IFDIR, stat.S_IFLNK])
def test_of_a_mode_of_another_type_the_permissions_count(
    guest: FuseGuest, shared: Path, kind: int
) -> None:
    (shared / "file").touch(mode=0o644)
    os.setxattr(shared / "file", KEPT[2], struct.pack("<I", kind | 0o4640))
    assert owner_and_mode(guest, b"file")[2] == stat.S_IFREG | 0o4640


def test_a_device_number_that_makes_no_sense(guest: FuseGuest, shared: Path) -> None:
    (shared / "file").touch()
    os.setxattr(shared / "file", KEPT[2], struct.pack("<I", stat.S_IFCHR | 0o600))
    assert guest.lookup(b"file").attr.rdev == 0
    os.setxattr(shared / "file", KEPT[3], b"\xff" * 8)
    assert guest.lookup(b"file").attr.rdev == 0
    for major, minor, fits in (
        ((1 << 12) - 1, (1 << 20) - 1, True),
        (1 << 12, 5, False),
        (5, 1 << 20, False),
    ):
        os.setxattr(shared / "file", KEPT[3], struct.pack("<II", major, minor))
        expected = os.makedev(major, minor) if fits else 0
        assert guest.lookup(b"file").attr.rdev == expected


def test_nothing_is_left_of_what_cannot_be_kept(
    guest: FuseGuest, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room for attributes")

    monkeypatch.setattr(os, "setxattr", refuse)
    for make in (
        lambda: guest.create(b"file"),
        lambda: guest.mkdir(b"dir"),
        lambda: guest.mknod(b"node", stat.S_IFIFO | 0o600),
    ):
        assert refused(make) == "ENOSPC"
    assert list(shared.iterdir()) == []


def test_a_file_system_without_attributes_is_refused(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = FsOptions(name="share", vm_id=VM_ID, metadata=True)
    FsDevice(options, FsBackend(str(shared)), MAX_REQUEST_BYTES).close()

    def refuse(*_: object) -> bytes:
        raise OSError(errno.EOPNOTSUPP, "no such attributes")

    assert lx_metadata.can_keep(os.fsencode(shared))
    os.setxattr(shared, KEPT[2], struct.pack("<I", stat.S_IFDIR | 0o755))
    assert lx_metadata.can_keep(os.fsencode(shared)), "and has been kept there"
    monkeypatch.setattr(os, "getxattr", refuse)
    with pytest.raises(FailedPreconditionError, match=f"cannot share '{shared}' with") as error:
        FsDevice(options, FsBackend(str(shared)), MAX_REQUEST_BYTES)
    assert error.value.reason == "METADATA_UNSUPPORTED"
    assert error.value.metadata == {"shared_dir": str(shared)}
