"""The root of several shares: it lists them, and no request changes it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.aggregate.mount import AggregateMount
from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.syscalls import Statx
from services.wire import fuse
from services.wire.fuse import Attr, Opcode
from tests.unit.devicehost.devices.fs.aggregate.conftest import ROOM_S, Rig, refused
from tests.unit.devicehost.devices.fs.fuse_guest import FuseGuest, buffers

if TYPE_CHECKING:
    from struct import Struct


def test_each_share_is_a_directory_of_the_root(rig: Rig, guest: FuseGuest) -> None:
    (rig.add("one") / "file").write_text("1")
    (rig.add("two") / "file").write_text("22")
    assert guest.walk("one/file").attr.size == 1
    assert guest.walk("two/file").attr.size == 2
    refused(errno.ENOENT, lambda: guest.lookup(b"three"))
    root = guest.getattr(1)
    assert stat.S_ISDIR(root.mode)
    assert stat.S_IMODE(root.mode) == 0o555
    assert root.nlink == 4
    for size in (4096, 32):
        assert guest.list_all(guest.opendir(), size) == [b".", b"..", b"one", b"two"], size


def test_a_name_of_a_share_is_asked_for_again_whatever_its_cache(
    rig: Rig, guest: FuseGuest
) -> None:
    rig.add("one", cache="always")
    rig.add("two", cache="none")
    agreed = guest.init(flags2=fuse.FUSE_DIRECT_IO_ALLOW_MMAP >> 32, flags=fuse.FUSE_INIT_EXT)
    assert agreed.flags2 == fuse.FUSE_DIRECT_IO_ALLOW_MMAP >> 32
    for name, name_s, attr_s in ((b"one\0", 1, 86_400), (b"two\0", 0, 0)):
        out = fuse.EntryOut(*fuse.ENTRY_OUT.unpack_from(guest.call(Opcode.LOOKUP, 1, name)))
        assert (out.entry_valid, out.attr_valid) == (name_s, attr_s)


def test_the_root_is_nobodys_to_change(rig: Rig, guest: FuseGuest) -> None:
    rig.add("one")
    rig.add("two")
    child = guest.lookup(b"one").nodeid
    for call in (
        lambda: guest.mkdir(b"three"),
        lambda: guest.create(b"three"),
        lambda: guest.mknod(b"three", 0o100644),
        lambda: guest.symlink(b"three", b"one"),
        lambda: guest.link(child, b"three"),
        lambda: guest.unlink(b"one"),
        lambda: guest.call(Opcode.RMDIR, 1, b"one\0"),
        lambda: guest.rename(b"one", b"three"),
        lambda: guest.rename(b"one", b"one", to=child),
        lambda: guest.setattr(1, fuse.FATTR_MODE, mode=0o777),
        lambda: guest.call(Opcode.SETXATTR, 1, fuse.SETXATTR_IN.pack(1, 0, 0) + b"user.x\0v"),
    ):
        refused(errno.EPERM, call)
    refused(errno.EISDIR, lambda: guest.open(1))
    refused(errno.EINVAL, lambda: guest.call(Opcode.READLINK, 1))
    refused(errno.EBADF, lambda: guest.read(1, 10))
    refused(errno.EACCES, lambda: guest.call(Opcode.ACCESS, 1, fuse.ACCESS_IN.pack(os.W_OK)))
    assert guest.call(Opcode.ACCESS, 1, fuse.ACCESS_IN.pack(os.R_OK | os.X_OK)) == b""
    refused(errno.ENODATA, lambda: guest.call(Opcode.GETXATTR, 1, bytes(8) + b"user.x\0"))
    assert guest.call(Opcode.LISTXATTR, 1, fuse.GETXATTR_IN.pack(0)) == bytes(8), "none: 0 bytes"
    assert guest.call(Opcode.LISTXATTR, 1, fuse.GETXATTR_IN.pack(100)) == b""
    none = (0, 0, 0, 0, 0)
    statfs = fuse.STATFS_OUT.unpack(guest.call(Opcode.STATFS, 1))
    assert statfs[:5] == none, "no room of its own"
    assert statfs[5:] == (4096, 255, 4096), "the longest name is one of a share"
    assert guest.call(Opcode.SYNCFS, 1, bytes(8)) == b""
    shown = guest.call(Opcode.STATX, 1, fuse.STATX_IN.pack(0, 0, 0, 0xFFF))
    statx = Statx(*fuse.STATX.unpack_from(shown, fuse.STATX_OUT.size))
    assert statx.nlink == 4, "links"
    times = {(statx.atime, statx.atime_ns), (statx.ctime, statx.ctime_ns)}
    assert times == {(statx.mtime, statx.mtime_ns)}
    assert {listed.name for listed in guest.readdir(guest.opendir())} >= {b"one", b"two"}


def test_getattr_and_statx_of_the_root_show_the_same(rig: Rig, guest: FuseGuest) -> None:
    before_ns = time.time_ns()
    rig.add("one")
    data = guest.call(Opcode.GETATTR, 1, fuse.GETATTR_IN.pack(0, 0))
    attr = Attr(*fuse.ATTR.unpack_from(data, fuse.ATTR_OUT.size))
    shown = guest.call(Opcode.STATX, 1, fuse.STATX_IN.pack(0, 0, 0, 0xFFF))
    statx = Statx(*fuse.STATX.unpack_from(shown, fuse.STATX_OUT.size))
    for name in ("ino", "size", "blocks", "mode", "nlink", "uid", "gid", "blksize"):
        assert getattr(attr, name) == getattr(statx, name), name
    for name in ("atime", "mtime", "ctime"):
        of_statx = getattr(statx, name), getattr(statx, f"{name}_ns")
        assert (getattr(attr, name), getattr(attr, f"{name}nsec")) == of_statx
        assert before_ns <= of_statx[0] * 10**9 + of_statx[1] <= time.time_ns()
    assert (attr.ino, attr.size, attr.blocks, attr.uid, attr.gid) == (1, 0, 0, 0, 0)
    assert (attr.nlink, attr.rdev, attr.flags) == (3, 0, 0)
    assert statx.mask == 0x7FF & ~0x20, "STATX_BASIC_STATS; STATX_ATIME is not kept"
    assert fuse.ATTR_OUT.unpack_from(data) == (1, 0), "valid for a second"
    assert fuse.STATX_OUT.unpack_from(shown) == (1, 0, 0)


def test_the_root_changes_when_a_share_comes_or_goes(rig: Rig, guest: FuseGuest) -> None:
    changes: list[tuple[int, int]] = []

    def note() -> None:
        attr = guest.getattr(1)
        changes.append((attr.mtime, attr.mtimensec))

    note()
    rig.add("one")
    note()
    guest.lookup(b"one")
    assert guest.getattr(1).mtimensec == changes[-1][1]
    rig.aggregate.remove("one")
    note()
    assert sorted(set(changes)) == changes, "later each time"


def test_data_for_the_root_are_refused_as_a_change_whatever_their_length(guest: FuseGuest) -> None:
    for length in (1, 2 << 20):
        body = fuse.WRITE_IN.pack(1, 0, length, 0, 0, 0) + bytes(length)
        refused(errno.EPERM, lambda body=body: guest.call(Opcode.WRITE, 1, body))  # type: ignore[misc]


@pytest.mark.parametrize("agreed", [0, fuse.FUSE_SUBMOUNTS])
def test_directories_of_shares_are_mounts_for_who_knows_of_such(
    rig: Rig, guest: FuseGuest, agreed: int
) -> None:
    (rig.add("one") / "sub").mkdir()
    assert guest.init(flags=agreed).flags & fuse.FUSE_SUBMOUNTS == agreed
    flags = fuse.FUSE_ATTR_SUBMOUNT if agreed else 0
    root = guest.lookup(b"one")
    assert root.attr.flags == flags
    assert guest.lookup(b"sub", root.nodeid).attr.flags == 0
    assert guest.getattr(root.nodeid).ino == root.attr.ino


@pytest.mark.parametrize("plus", [False, True])
def test_cookies_neither_skip_nor_repeat_what_stays(rig: Rig, guest: FuseGuest, plus: bool) -> None:
    stay = [f"stay-{n:02}" for n in range(20)]
    for name in stay:
        rig.add(f"go-{name}")
        rig.add(name)
    handle, cookie, found = guest.opendir(), 0, []
    going = iter(stay)
    size = 4 * (168 if plus else 40)
    while page := guest.readdir(handle, cookie, size, plus=plus):
        found += [listed.name for listed in page]
        cookie = page[-1].dirent.off
        gone = next(going, None)
        if gone is not None:
            rig.aggregate.remove(f"go-{gone}")
            rig.add(f"new-{gone}")
        if plus:
            assert {listed.entry.nodeid for listed in page if listed.entry} == {0}
    assert [name.decode() for name in found if name.startswith(b"stay")] == stay
    assert len(set(found)) == len(found)
    assert found[:2] == [b".", b".."]
    refused(errno.EINVAL, lambda: guest.readdir(handle, 0, 8, plus=plus))


@pytest.mark.parametrize("plus", [False, True])
def test_an_entry_of_the_root_that_just_fits_is_listed(guest: FuseGuest, plus: bool) -> None:
    size = 32 + 128 * plus
    handle = guest.opendir()
    assert [each.name for each in guest.readdir(handle, 0, size, plus=plus)] == [b"."]
    assert len(guest.readdir(handle, 0, 2 * size, plus=plus)) == 2
    refused(errno.EINVAL, lambda: guest.readdir(handle, 0, size - 1, plus=plus))


def test_every_share_is_written_back_though_one_fails(
    rig: Rig, guest: FuseGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (b"one", b"two"):
        rig.add(name.decode())
        guest.lookup(name)
    written: list[str] = []

    def fail(fd: int) -> None:
        written.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2])  # noqa: PTH115
        if written[-1] == "one":
            raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(syscalls, "syncfs", fail)
    refused(errno.ENOSPC, lambda: guest.call(Opcode.SYNCFS, 1, bytes(8)))
    assert written == ["one", "two"]


@pytest.mark.parametrize(
    ("opcode", "layout"),
    [(Opcode.RELEASEDIR, fuse.RELEASE_IN), (Opcode.FSYNCDIR, fuse.FSYNC_IN)],
)
def test_an_open_root_is_released_and_written_back_without_effect(
    guest: FuseGuest, opcode: int, layout: Struct
) -> None:
    opened = guest.call(Opcode.OPENDIR, 1, fuse.OPEN_IN.pack(0, 0))
    assert fuse.OPEN_OUT.unpack(opened) == (0, 0), "no state, and nothing to cache"
    assert guest.call(opcode, 1, bytes(layout.size)) == b""
    assert guest.list_all(0) == [b".", b".."]


def test_the_root_is_checked_like_a_share(guest: FuseGuest) -> None:
    mkdir = fuse.MKDIR_IN.pack(0o755, 0) + b"new\0"
    refused(errno.EIO, lambda: guest.call(Opcode.MKDIR, 1, mkdir, room=8))
    refused(errno.EINVAL, lambda: guest.call(Opcode.MKDIR, 1, mkdir[:4]))


def test_listing_the_root_touches_no_share(rig: Rig, guest: FuseGuest) -> None:
    rig.add("one")
    handle = guest.opendir()
    assert len(guest.readdir(handle)) == len(guest.readdir(handle, plus=True)) == 3
    guest.getattr(1)
    guest.call(Opcode.STATX, 1, fuse.STATX_IN.pack(0, 0, 0, 0xFFF))
    guest.call(Opcode.STATFS, 1)
    guest.call(Opcode.ACCESS, 1, fuse.ACCESS_IN.pack(os.R_OK))
    mount = rig.session.mount
    assert isinstance(mount, AggregateMount)
    assert mount.mounts() == []
    guest.lookup(b"one")
    assert len(mount.mounts()) == 1


def test_lookups_are_taken_back_of_any_share_at_once(rig: Rig, guest: FuseGuest) -> None:
    nodes = []
    for name in ("one", "two"):
        (rig.add(name) / "file").touch()
        nodes.append(guest.walk(f"{name}/file").nodeid)
    body = fuse.BATCH_FORGET_IN.pack(3)
    for nodeid in (*nodes, 9 << 44 | 3):
        body += fuse.FORGET_ONE.pack(nodeid, 1)
    guest.one_way(Opcode.BATCH_FORGET, 0, body)
    for nodeid in nodes:
        refused(errno.ESTALE, lambda nodeid=nodeid: guest.getattr(nodeid))  # type: ignore[misc]
    guest.forget(1, 9)
    assert guest.getattr(1).nlink == 4, "the root is never forgotten"
    assert guest.lookup(b"one").nodeid == 1 << 44 | 1, "a share's directory is never forgotten"


def test_lookups_are_not_taken_back_by_a_list_that_is_cut_off(rig: Rig, guest: FuseGuest) -> None:
    (rig.add("one") / "file").touch()
    node = guest.walk("one/file").nodeid
    whole = fuse.BATCH_FORGET_IN.pack(2) + fuse.FORGET_ONE.pack(node, 1)
    guest.one_way(Opcode.BATCH_FORGET, 0, whole)
    guest.one_way(Opcode.BATCH_FORGET, 0, whole[:-1])
    assert guest.getattr(node).nlink == 1


def test_a_wait_for_a_lock_of_any_share_can_be_interrupted(rig: Rig, guest: FuseGuest) -> None:
    for name in ("one", "two"):
        (rig.add(name) / "file").touch()
    guest.lookup(b"one")
    node = guest.walk("two/file").nodeid
    handle = guest.open(node, os.O_RDWR)
    args = [fuse.LK_IN.pack(handle, owner, 0, 9, fcntl.F_WRLCK, 1, 0) for owner in (1, 2)]
    guest.call(Opcode.SETLK, node, args[0])
    room = buffers(bytes(100))
    waiting = guest.serve(buffers(guest.request(Opcode.SETLKW, node, args[1])), room)
    assert not isinstance(waiting, int)
    interrupt = fuse.INTERRUPT_IN.pack(guest.unique)
    refused(errno.EAGAIN, lambda: guest.call(Opcode.INTERRUPT, 0, fuse.INTERRUPT_IN.pack(999)))
    answer = buffers(bytes(100))
    assert guest.serve(buffers(guest.request(Opcode.INTERRUPT, 0, interrupt)), answer) == 0
    assert waiting.wait(ROOM_S)
    waiting.write()
    assert fuse.OUT_HEADER.unpack_from(room[0])[1] == -errno.EINTR
