"""Several shares on one device: each with rules of its own, added and removed while it is used."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.aggregate.shares import Aggregate
from services.devicehost.devices.fs.host_files.syscalls import Statx
from services.devicehost.devices.fs.mount.mount import Mount
from services.devicehost.devices.fs.protocol import FuseSession
from services.devicehost.fastpath import Outcome
from services.devicehost.memory.access import MAX_REQUEST_BYTES
from services.devicehost.virtio.native_queue import NativeQueue
from services.handshake.exhaustion import Resource
from services.handshake.options import FsOptions
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.support.descriptors import open_descriptors
from tests.unit.devicehost.devices.fs.aggregate.conftest import (
    LIMITS,
    ROOM_S,
    Rig,
    awaited,
    refused,
)
from tests.unit.devicehost.devices.fs.conftest import VM_ID
from tests.unit.devicehost.devices.fs.fuse_guest import (
    OFFERED,
    FuseError,
    FuseGuest,
    buffers,
)
from tests.unit.devicehost.devices.fs.native_guest import NativeGuest
from tests.unit.devicehost.devices.fs.ring_guest import RingGuest

if TYPE_CHECKING:
    import ctypes
    from pathlib import Path

    from services.devicehost.devices.fs.share.share import Share


def test_the_hot_requests_of_a_share_are_served_natively(rig: Rig, guest: FuseGuest) -> None:
    (rig.add("one") / "file").write_text("1")
    node = guest.walk("one/file").nodeid
    if not isinstance(guest, NativeGuest):
        return
    served = guest.served
    guest.getattr(node)
    assert guest.served == served + 1


@pytest.mark.parametrize("ends", ["share", "mount"])
@pytest.mark.parametrize("library", ["native"], indirect=True)
def test_the_native_loop_of_a_queue_finds_the_share(rig: Rig, guest: FuseGuest, ends: str) -> None:
    rig.add("one")
    node = guest.lookup(b"one").nodeid
    mounts = rig.session.native_mounts
    assert mounts is not None
    woken = os.eventfd(1)
    outcomes = []
    with RingGuest(natively=True) as driver, mounts.worker() as loop:
        assert isinstance(driver.queue, NativeQueue)
        for ended in (False, True):
            if ended and ends == "share":
                rig.aggregate.remove("one")
            elif ended:
                guest.call(Opcode.DESTROY)
            driver.offer(driver.request(Opcode.GETATTR, node, fuse.GETATTR_IN.pack(0, 0)), 1024)
            outcomes.append(driver.queue.lend(loop, woken))
        assert driver.ring.used_idx == 1
    os.close(woken)
    assert outcomes == [Outcome.WOKEN, Outcome.PYTHON], "found until it ended"


class Unusable(Mount):
    """A mount that fails where the shared directory is "broken"."""

    def __init__(self, share: Share, *, slot: int = 0, agreed: int = 0) -> None:
        if share.options.name == "broken":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().__init__(share, slot=slot, agreed=agreed)


def test_a_share_that_cannot_be_mounted_is_logged_once_and_disturbs_no_other(
    rig: Rig,
    guest: FuseGuest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("services.devicehost.devices.fs.aggregate.mount.Mount", Unusable)
    rig.add("broken")
    (rig.add("stays") / "file").touch()
    for _ in range(3):
        refused(errno.EIO, lambda: guest.lookup(b"broken"))
    assert guest.walk("stays/file").attr.nlink == 1
    [record] = caplog.records
    assert record.levelname == "WARNING"
    for part in ("'broken'", "'shares'", VM_ID, os.strerror(errno.EIO)):
        assert part in record.getMessage()


def test_attributes_are_the_same_by_every_request(rig: Rig, guest: FuseGuest) -> None:
    (rig.add("one") / "file").touch()
    entry = guest.walk("one/file")
    data = guest.call(Opcode.STATX, entry.nodeid, fuse.STATX_IN.pack(0, 0, 0, 0xFFF))
    statx = Statx(*fuse.STATX.unpack_from(data, fuse.STATX_OUT.size))
    assert entry.attr.ino == guest.getattr(entry.nodeid).ino == statx.ino


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


@pytest.mark.parametrize("agreed", [False, True])
def test_a_guest_that_keeps_writes_back_does_so_in_every_share(
    tmp_path: Path, library: ctypes.CDLL | None, agreed: bool
) -> None:
    options = FsOptions(name="shares", vm_id=VM_ID, writeback=True)
    aggregate = Aggregate(options, LIMITS, library)
    rig = Rig(aggregate, FuseSession(aggregate, MAX_REQUEST_BYTES), library, tmp_path)
    guest = rig.guest()
    guest.init(flags=OFFERED if agreed else OFFERED & ~fuse.FUSE_WRITEBACK_CACHE)
    (rig.add("one") / "file").write_text("text")
    node = guest.walk("one/file").nodeid
    body = fuse.READ_IN.pack(guest.open(node, os.O_WRONLY), 0, 10, 0, 0, 0)
    if agreed:
        assert guest.call(Opcode.READ, node, body) == b"text", "the bytes around a write"
    else:
        refused(errno.EBADF, lambda: guest.call(Opcode.READ, node, body))


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
    folder = guest.mkdir(b"folder", one).nodeid
    guest.rename(b"renamed", b"moved", parent=one, to=folder)
    assert guest.link(file, b"link", folder).nodeid == file
    assert len(list((rig.directory("one") / "folder").iterdir())) == 2


def test_ids_that_are_of_no_share_are_stale(rig: Rig, guest: FuseGuest) -> None:
    rig.add("one")
    for nodeid in (0, 2, 1 << 44 | 1, 1 << 44 | 7, 9 << 44 | 1, (1 << 64) - 1):
        refused(errno.ESTALE, lambda nodeid=nodeid: guest.getattr(nodeid))  # type: ignore[misc]
    guest.forget(9 << 44 | 1)
    guest.lookup(b"one")
    refused(errno.ESTALE, lambda: guest.getattr(1 << 44 | 7))
    assert guest.getattr(1 << 44 | 1).mode


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
    refused(errno.EMFILE, lambda: guest.open(node))
    assert rig.aggregate.bounds.is_exhausted(Resource.HANDLES)
    [usage] = [each for each in rig.aggregate.bounds.usage() if each.resource == Resource.HANDLES]
    assert (usage.used, usage.total, usage.exhaustions) == (20, 20, 1)
    other = guest.walk("two/file").nodeid
    guest.open(other)
    mount = rig.session.mount
    assert mount is not None
    assert mount.is_full(Resource.HANDLES, node)
    assert not mount.is_full(Resource.HANDLES, other), "what is used up is its own share's"


def test_a_guest_that_has_looked_up_no_share_uses_nothing(rig: Rig) -> None:
    rig.add("one")
    usage = rig.aggregate.bounds.usage()
    assert {each.used for each in usage} == {0}
    totals = {each.resource: each.total for each in usage}
    for resource in (Resource.HANDLES, Resource.LOCK_OWNERS):
        assert totals[resource] == LIMITS.handles, "of each share"
    assert totals[Resource.NODES] == LIMITS.nodes


def test_a_share_that_is_looked_up_while_the_mount_ends_is_not_mounted(
    rig: Rig, guest: FuseGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Mount):
        def __init__(self, share: Share, *, slot: int = 0, agreed: int = 0) -> None:
            super().__init__(share, slot=slot, agreed=agreed)
            rig.session.reset()

    monkeypatch.setattr("services.devicehost.devices.fs.aggregate.mount.Mount", Late)
    (rig.add("one") / "file").touch()
    refused(errno.ENOENT, lambda: guest.lookup(b"one"))
    assert awaited(lambda: open_descriptors(rig.directory("one")) == [])


def test_init_and_destroy_forget_what_was_mounted(rig: Rig, guest: FuseGuest) -> None:
    (rig.add("one") / "file").touch()
    node = guest.walk("one/file").nodeid
    guest.init()
    refused(errno.ESTALE, lambda: guest.getattr(node))
    assert guest.walk("one/file").nodeid == node
    guest.call(Opcode.DESTROY)
    refused(errno.ENOTCONN, lambda: guest.getattr(node))
    assert awaited(lambda: open_descriptors(rig.directory("one")) == [])


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
                    if error.number not in (errno.ENOENT, errno.ESTALE, errno.ENFILE, errno.EMFILE):
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
