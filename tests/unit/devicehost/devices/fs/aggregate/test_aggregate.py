"""Several shares on one device: found by name, with rules of their own, added and removed."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.aggregate.mount import AggregateMount
from services.devicehost.devices.fs.aggregate.shares import MAX_CHILDREN, Aggregate
from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits
from services.devicehost.devices.fs.host_files.syscalls import Statx
from services.devicehost.devices.fs.protocol import FuseSession
from services.devicehost.devices.fs.share.share import Share
from services.devicehost.memory.access import MAX_REQUEST_BYTES
from services.handshake.errors import PortholeError
from services.handshake.exhaustion import Resource
from services.handshake.options import FsOptions
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.unit.devicehost.devices.fs.conftest import VM_ID, open_descriptors
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest, buffers
from tests.unit.devicehost.devices.fs.native_guest import NativeGuest

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable
    from pathlib import Path

LIMITS = Limits(nodes=100, descriptors=100, handles=20)
ROOM_S = 10.0
"""How long something may take that no event reports."""


@dataclass
class Rig:
    """An aggregate, a guest that has mounted it, and directories to share."""

    aggregate: Aggregate
    session: FuseSession
    library: ctypes.CDLL | None
    folder: Path

    def directory(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def add(self, name: str, directory: Path | None = None, **options: object) -> Path:
        path = directory or self.directory(name)
        root = Descriptor(os.open(path, os.O_PATH | os.O_DIRECTORY))
        parsed = FsOptions(name=name, vm_id=VM_ID, **options)  # type: ignore[arg-type]
        self.aggregate.add(name, Share(root, parsed, LIMITS, self.library, self.aggregate.bounds))
        return path

    def guest(self) -> FuseGuest:
        return NativeGuest(self.session) if self.library else FuseGuest(self.session)


@pytest.fixture
def rig(tmp_path: Path, library: ctypes.CDLL | None) -> Rig:
    aggregate = Aggregate(FsOptions(name="shares", vm_id=VM_ID, queues=4), LIMITS, library)
    rig = Rig(aggregate, FuseSession(aggregate, MAX_REQUEST_BYTES), library, tmp_path)
    rig.guest().init()
    return rig


@pytest.fixture
def guest(rig: Rig) -> FuseGuest:
    return rig.guest()


def refused(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(FuseError) as failure:
        call()
    assert failure.value.number == number, failure.value


def awaited(condition: Callable[[], bool]) -> bool:
    """Wait for a condition that comes true when threads have let go of something."""
    deadline = time.monotonic() + ROOM_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


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
    assert guest.list_all(guest.opendir()) == [b".", b"..", b"one", b"two"]


def test_the_hot_requests_of_a_share_are_served_natively(rig: Rig, guest: FuseGuest) -> None:
    (rig.add("one") / "file").write_text("1")
    node = guest.walk("one/file").nodeid
    if not isinstance(guest, NativeGuest):
        return
    served = guest.served
    guest.getattr(node)
    assert guest.served == served + 1


def test_shares_have_options_of_their_own(rig: Rig, guest: FuseGuest) -> None:
    shared = rig.directory("shared")
    (shared / "file").touch(mode=0o666)
    rig.add("open", shared)
    rig.add("closed", shared, ro=True, uid=4000, umask=0o022, cache="always")
    one, other = guest.walk("open/file"), guest.walk("closed/file")
    assert one.nodeid != other.nodeid, "one file by two shares is two nodes, each with its rules"
    assert one.attr.ino != other.attr.ino
    assert (other.attr.uid, stat.S_IMODE(other.attr.mode)) == (4000, 0o644)
    assert one.attr.uid == os.getuid()
    guest.setattr(one.nodeid, fuse.FATTR_MODE, mode=0o600)
    refused(errno.EROFS, lambda: guest.setattr(other.nodeid, fuse.FATTR_MODE, mode=0o600))
    refused(errno.EROFS, lambda: guest.open(other.nodeid, os.O_RDWR))
    refused(errno.EROFS, lambda: guest.create(b"new", guest.lookup(b"closed").nodeid))
    guest.create(b"new", guest.lookup(b"open").nodeid)


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


def test_inodes_differ_in_attributes_and_listings(rig: Rig, guest: FuseGuest) -> None:
    shared = rig.directory("shared")
    (shared / "file").touch()
    rig.add("one", shared)
    rig.add("two", shared)
    seen = set()
    for name in (b"one", b"two"):
        parent = guest.lookup(name)
        file = guest.lookup(b"file", parent.nodeid)
        listed = guest.readdir(guest.opendir(parent.nodeid), nodeid=parent.nodeid)
        by_name = {entry.name: entry.dirent.ino for entry in listed}
        assert by_name[b"file"] == file.attr.ino
        assert by_name[b"."] == by_name[b".."] == parent.attr.ino
        of_root = {entry.name: entry.dirent.ino for entry in guest.readdir(guest.opendir())}
        assert of_root[name] == parent.attr.ino
        seen |= {file.attr.ino, parent.attr.ino}
    assert len(seen) == 4


def test_nothing_is_moved_or_linked_between_shares(rig: Rig, guest: FuseGuest) -> None:
    (rig.add("one") / "file").write_text("text")
    (rig.add("two") / "other").touch()
    one, two = guest.lookup(b"one").nodeid, guest.lookup(b"two").nodeid
    file, other = guest.walk("one/file").nodeid, guest.walk("two/other").nodeid
    refused(errno.EXDEV, lambda: guest.rename(b"file", b"file", parent=one, to=two))
    refused(errno.EXDEV, lambda: guest.rename(b"file", b"other", parent=one, to=two, flags=2))
    refused(errno.EXDEV, lambda: guest.rename(b"file", b"file", parent=one, to=1))
    refused(errno.EXDEV, lambda: guest.link(file, b"link", two))
    body = fuse.COPY_FILE_RANGE_IN.pack(guest.open(file), 0, other, guest.open(other, 2), 0, 4, 0)
    refused(errno.EXDEV, lambda: guest.call(Opcode.COPY_FILE_RANGE, file, body))
    guest.rename(b"file", b"renamed", parent=one, to=one)
    assert [path.name for path in rig.directory("one").iterdir()] == ["renamed"]


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
        lambda: guest.call(Opcode.SETXATTR, 1, fuse.SETXATTR_COMPAT_IN.pack(1, 0) + b"user.x\0v"),
    ):
        refused(errno.EPERM, call)
    refused(errno.EISDIR, lambda: guest.open(1))
    refused(errno.EINVAL, lambda: guest.call(Opcode.READLINK, 1))
    refused(errno.EBADF, lambda: guest.read(1, 10))
    refused(errno.EACCES, lambda: guest.call(Opcode.ACCESS, 1, fuse.ACCESS_IN.pack(os.W_OK)))
    guest.call(Opcode.ACCESS, 1, fuse.ACCESS_IN.pack(os.R_OK | os.X_OK))
    refused(errno.ENODATA, lambda: guest.call(Opcode.GETXATTR, 1, bytes(8) + b"user.x\0"))
    assert guest.call(Opcode.LISTXATTR, 1, bytes(8)) == bytes(8)
    none = (0, 0, 0, 0, 0)
    assert fuse.STATFS_OUT.unpack(guest.call(Opcode.STATFS, 1))[:5] == none, "no room of its own"
    guest.call(Opcode.SYNCFS, 1, bytes(8))
    shown = guest.call(Opcode.STATX, 1, fuse.STATX_IN.pack(0, 0, 0, 0xFFF))
    statx = Statx(*fuse.STATX.unpack_from(shown, fuse.STATX_OUT.size))
    assert statx.nlink == 4, "links"
    times = {(statx.atime, statx.atime_ns), (statx.ctime, statx.ctime_ns)}
    assert times == {(statx.mtime, statx.mtime_ns)}
    assert {listed.name for listed in guest.readdir(guest.opendir())} >= {b"one", b"two"}


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


def test_ids_that_are_of_no_share_are_stale(rig: Rig, guest: FuseGuest) -> None:
    rig.add("one")
    for nodeid in (0, 2, 1 << 44 | 1, 1 << 44 | 7, 9 << 44 | 1, (1 << 64) - 1):
        refused(errno.ESTALE, lambda nodeid=nodeid: guest.getattr(nodeid))  # type: ignore[misc]
    guest.forget(9 << 44 | 1)
    guest.lookup(b"one")
    refused(errno.ESTALE, lambda: guest.getattr(1 << 44 | 7))
    assert guest.getattr(1 << 44 | 1).mode


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
    assert guest.lookup(b"one").nodeid == 1 << 44 | 1, "a share's directory is never forgotten"


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


def test_what_a_guest_has_of_a_removed_share_is_stale(rig: Rig, guest: FuseGuest) -> None:
    (rig.add("one") / "file").write_text("old")
    (rig.add("two") / "file").write_text("stays")
    node, other = guest.walk("one/file").nodeid, guest.walk("two/file").nodeid
    root, handle = guest.lookup(b"one").nodeid, guest.open(node)
    listing = guest.opendir(root)
    rig.aggregate.remove("one")
    refused(errno.ENOENT, lambda: guest.lookup(b"one"))
    refused(errno.ESTALE, lambda: guest.getattr(node))
    refused(errno.ESTALE, lambda: guest.lookup(b"file", root))
    refused(errno.ESTALE, lambda: guest.readdir(listing, nodeid=root))
    body = fuse.READ_IN.pack(handle, 0, 10, 0, 0, 0)
    refused(errno.ESTALE, lambda: guest.call(Opcode.READ, node, body))
    refused(errno.ESTALE, lambda: guest.call(Opcode.FLUSH, node, fuse.FLUSH_IN.pack(handle, 0)))
    release = fuse.RELEASE_IN.pack(handle, 0, 0, 0)
    refused(errno.ESTALE, lambda: guest.call(Opcode.RELEASE, node, release))
    guest.forget(node)
    guest.forget(root)
    assert guest.getattr(other).size == 5
    assert awaited(lambda: open_descriptors(rig.directory("one")) == [])

    rig.add("one")
    again = guest.walk("one/file")
    assert again.nodeid != node
    assert again.attr.size == 3
    refused(errno.ESTALE, lambda: guest.getattr(node))


def test_what_a_guest_has_of_a_removed_share_is_of_no_later_one(rig: Rig, guest: FuseGuest) -> None:
    (rig.add("one") / "file").touch()
    node = guest.walk("one/file").nodeid
    [cookie] = [each.dirent.off for each in guest.readdir(guest.opendir()) if each.name == b"one"]
    rig.aggregate.remove("one")
    (rig.add("two") / "file").touch()
    assert guest.walk("two/file").nodeid != node
    refused(errno.ESTALE, lambda: guest.getattr(node))
    listed = guest.readdir(guest.opendir(), cookie)
    assert [each.name for each in listed] == [b"two"], "a place in the listing is no later one's"


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


def test_a_wait_for_a_lock_ends_when_its_share_is_removed(rig: Rig, guest: FuseGuest) -> None:
    (rig.add("one") / "file").touch()
    node = guest.walk("one/file").nodeid
    handle = guest.open(node, os.O_RDWR)

    def lock(owner: int) -> bytes:
        return fuse.LK_IN.pack(handle, owner, 0, 9, fcntl.F_WRLCK, 1, 0)

    guest.call(Opcode.SETLK, node, lock(1))
    room = buffers(bytes(100))
    waiting = guest.serve(buffers(guest.request(Opcode.SETLKW, node, lock(2))), room)
    assert not isinstance(waiting, int)
    rig.aggregate.remove("one")
    assert waiting.wait(ROOM_S)
    waiting.write()
    assert fuse.OUT_HEADER.unpack_from(room[0])[1] == -errno.ESTALE


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
    guest.one_way(Opcode.INTERRUPT, 0, fuse.INTERRUPT_IN.pack(guest.unique))
    assert waiting.wait(ROOM_S)
    waiting.write()
    assert fuse.OUT_HEADER.unpack_from(room[0])[1] == -errno.EINTR


def test_a_share_whose_directory_is_gone_disturbs_no_other(rig: Rig, guest: FuseGuest) -> None:
    gone = rig.add("gone")
    (rig.add("stays") / "file").touch()
    gone.rmdir()
    node = guest.lookup(b"gone").nodeid
    refused(errno.ENOENT, lambda: guest.lookup(b"file", node))
    refused(errno.ENOENT, lambda: guest.create(b"file", node))
    assert guest.walk("stays/file").attr.nlink == 1
    assert b"gone" in guest.list_all(guest.opendir())
    guest.call(Opcode.SYNCFS, 1, bytes(8))


def test_a_share_that_is_full_leaves_room_in_the_others(rig: Rig, guest: FuseGuest) -> None:
    (rig.add("one") / "file").touch()
    (rig.add("two") / "file").touch()
    node = guest.walk("one/file").nodeid
    for _ in range(20):
        guest.open(node)
    assert not rig.aggregate.bounds.is_exhausted(Resource.HANDLES)
    refused(errno.ENFILE, lambda: guest.open(node))
    assert rig.aggregate.bounds.is_exhausted(Resource.HANDLES)
    [usage] = [each for each in rig.aggregate.bounds.usage() if each.resource == Resource.HANDLES]
    assert (usage.used, usage.total, usage.exhaustions) == (20, 20, 1)
    other = guest.walk("two/file").nodeid
    guest.open(other)
    mount = rig.session.mount
    assert mount is not None
    assert mount.is_full(Resource.HANDLES, node)
    assert not mount.is_full(Resource.HANDLES, other), "what is used up is its own share's"


def test_init_and_destroy_forget_what_was_mounted(rig: Rig, guest: FuseGuest) -> None:
    (rig.add("one") / "file").touch()
    node = guest.walk("one/file").nodeid
    guest.init()
    refused(errno.ESTALE, lambda: guest.getattr(node))
    assert guest.walk("one/file").nodeid == node
    guest.call(Opcode.DESTROY)
    refused(errno.ENOTCONN, lambda: guest.getattr(node))
    assert awaited(lambda: open_descriptors(rig.directory("one")) == [])


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("", {}, "CHILD_NAME"),
        ("..", {}, "CHILD_NAME"),
        ("a/b", {}, "CHILD_NAME"),
        ("n" * 256, {}, "CHILD_NAME"),
        ("one", {}, "CHILD_EXISTS"),
        ("new", {"queues": 2}, "CHILD_OPTION"),
        ("new", {"writeback": True}, "CHILD_OPTION"),
    ],
)
def test_what_no_share_can_be_is_refused(
    rig: Rig, name: str, options: dict[str, object], reason: str
) -> None:
    shared = rig.add("one")
    with pytest.raises(PortholeError) as failure:
        rig.add(name, shared, **options)
    assert failure.value.reason == reason
    with pytest.raises(PortholeError) as failure:
        rig.aggregate.remove("unknown")
    assert failure.value.reason == "CHILD_UNKNOWN"


def test_the_number_of_shares_is_bounded(rig: Rig) -> None:
    shared = rig.directory("shared")
    for n in range(MAX_CHILDREN):
        rig.add(str(n), shared)
    with pytest.raises(PortholeError) as failure:
        rig.add("more", shared)
    assert failure.value.reason == "CHILD_LIMIT"
    rig.aggregate.remove("0")
    rig.add("more", shared)


def test_shares_come_and_go_while_others_are_used(rig: Rig) -> None:
    (rig.add("stays") / "file").write_bytes(b"x" * 4096)
    over = threading.Event()
    rounds: list[int] = []
    failures: list[BaseException] = []

    def use(first: int) -> None:
        guest, count = rig.guest(), 0
        guest.unique = first
        try:
            while not over.is_set():
                node = guest.walk("stays/file").nodeid
                body = fuse.OPEN_IN.pack(os.O_RDWR, 0)
                handle = fuse.OPEN_OUT.unpack(guest.call(Opcode.OPEN, node, body))[0]
                args = fuse.READ_IN.pack(handle, 0, 4096, 0, 0, 0)
                assert guest.call(Opcode.READ, node, args) == b"x" * 4096
                guest.call(Opcode.RELEASE, node, fuse.RELEASE_IN.pack(handle, 0, 0, 0))
                guest.forget(node)
                count += 1
        except BaseException as error:
            failures.append(error)
        rounds.append(count)

    def use_what_comes(first: int) -> None:
        guest = rig.guest()
        guest.unique = first
        try:
            while not over.is_set():
                try:
                    made, _ = guest.create(b"%d" % guest.unique, guest.lookup(b"comes").nodeid)
                    guest.getattr(made.nodeid)
                except FuseError as error:
                    if error.number not in (errno.ENOENT, errno.ESTALE, errno.ENFILE):
                        raise
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(turn << 32,))
        for turn, work in enumerate((use, use, use_what_comes), 1)
    ]
    for thread in threads:
        thread.start()
    guest = rig.guest()
    try:
        for turn in range(50):
            (rig.add("comes") / "file").write_text(str(turn))
            assert guest.walk("comes/file").attr.size == len(str(turn))
            rig.aggregate.remove("comes")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert min(rounds) > 0
    assert awaited(lambda: open_descriptors(rig.directory("comes")) == [])


def test_a_device_that_is_dropped_lets_go_of_all_shares_at_once(
    tmp_path: Path, library: ctypes.CDLL | None
) -> None:
    aggregate = Aggregate(FsOptions(name="shares", vm_id=VM_ID), LIMITS, library)
    rig = Rig(aggregate, FuseSession(aggregate, MAX_REQUEST_BYTES), library, tmp_path)
    guest = rig.guest()
    guest.init()
    (rig.add("one") / "file").touch()
    guest.open(guest.walk("one/file").nodeid)
    assert open_descriptors(tmp_path) != []
    del rig, guest, aggregate
    assert open_descriptors(tmp_path) == []
