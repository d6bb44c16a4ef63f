"""Record locks of two guests and of host processes on the same files."""

from __future__ import annotations

import errno
import fcntl
import os
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.host_files import credentials, syscalls
from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits
from services.devicehost.devices.fs.host_files.syscalls import OFFSET_MAX
from services.devicehost.devices.fs.locks import owners
from services.wire import fuse
from services.wire.fuse import FUSE_LK_FLOCK, Opcode
from tests.support.descriptors import open_descriptors
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest
from tests.unit.devicehost.devices.fs.locks.conftest import (
    ALICE,
    BOB,
    Opened,
    guest_mount,
    host_locks,
    open_in,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest


def test_owners_of_one_guest_exclude_each_other(opened: Opened, file: Path) -> None:
    opened.set(ALICE, F_WRLCK, 10, 19)
    opened.set(ALICE, F_WRLCK, 10, 19)  # an owner may have its own lock again
    assert opened.refused(BOB, F_RDLCK, 19, 30) == "EAGAIN"
    opened.set(BOB, F_WRLCK, 20, 29)
    opened.set(ALICE, F_UNLCK, 12, 14)  # splits the lock
    opened.set(BOB, F_RDLCK, 12, 14)
    assert host_locks(file) == [
        *[("READ", "12", "14"), ("WRITE", "10", "11"), ("WRITE", "15", "19")],
        ("WRITE", "20", "29"),
    ]


def test_readers_share(opened: Opened, other: Opened) -> None:
    opened.set(ALICE, F_RDLCK)
    opened.set(BOB, F_RDLCK)
    other.set(ALICE, F_RDLCK)
    assert other.refused(ALICE, F_WRLCK) == "EAGAIN", "the same number, another guest"
    opened.set(ALICE, F_UNLCK)
    opened.set(BOB, F_UNLCK)
    other.set(ALICE, F_WRLCK)


def test_a_lock_reaches_to_the_end_of_the_file_and_beyond(opened: Opened, host_fd: int) -> None:
    opened.set(ALICE, F_WRLCK, 1 << 62, OFFSET_MAX)
    with pytest.raises(BlockingIOError):
        fcntl.lockf(host_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, OFFSET_MAX - 1)
    fcntl.lockf(host_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, (1 << 62) - 1)


def test_host_processes_and_guests_exclude_each_other(opened: Opened, host_fd: int) -> None:
    opened.set(ALICE, F_WRLCK, 0, 9)
    for lock in (fcntl.lockf, lambda fd, how, *_: ofd_lock(fd, F_WRLCK)):
        with pytest.raises(BlockingIOError):
            lock(host_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    fcntl.lockf(host_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 50)
    assert opened.refused(ALICE, F_RDLCK, 55, 55) == "EAGAIN"


def ofd_lock(fd: int, kind: int) -> None:
    syscalls.set_record_lock(fd, syscalls.RecordLock(kind, 0, OFFSET_MAX), wait=False)


def test_getlk_returns_the_lock_in_the_way(opened: Opened, other: Opened, host_fd: int) -> None:
    assert opened.get(BOB, F_WRLCK) == (0, 0, F_UNLCK, 0)
    opened.set(ALICE, F_RDLCK, 10, 19)
    opened.set(ALICE, F_WRLCK, 30, OFFSET_MAX)
    pid = 1000 + ALICE % 7
    assert opened.get(BOB, F_WRLCK) == (10, 19, F_RDLCK, pid)
    assert opened.get(BOB, F_RDLCK) == (30, OFFSET_MAX, F_WRLCK, pid)
    assert opened.get(ALICE, F_WRLCK) == (0, 0, F_UNLCK, 0), "one's own locks are not in the way"
    assert other.get(ALICE, F_WRLCK) == (10, 19, F_RDLCK, 0), "processes of others have no number"
    fcntl.lockf(host_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)
    assert opened.get(BOB, F_WRLCK, 0, 9) == (0, 4, F_WRLCK, 0)


def test_flush_drops_the_locks_of_its_owner_alone(
    opened: Opened, guest: FuseGuest, file: Path
) -> None:
    second = open_in(guest)
    opened.set(ALICE, F_WRLCK, 0, 9)
    opened.set(BOB, F_WRLCK, 20, 29)
    second.flush(ALICE)  # closing one descriptor of a file drops the locks of all
    assert host_locks(file) == [("WRITE", "20", "29")]
    second.flush(ALICE)
    assert len(guest_mount(guest).lock_owners) == 1


def test_locks_go_with_their_description_where_unlocking_fails(
    opened: Opened, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network drive whose server does not answer."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    opened.set(ALICE, F_WRLCK, 0, 9)
    monkeypatch.setattr(syscalls, "set_record_lock", fail)
    opened.flush(ALICE)
    assert host_locks(file) == []


def test_release_drops_what_was_set_by_its_handle(opened: Opened, file: Path) -> None:
    second = open_in(opened.guest)
    opened.set(ALICE, F_WRLCK, 0, 9)
    opened.set(BOB, F_WRLCK, 20, 29)
    second.set(BOB, F_WRLCK, 40, 49)
    opened.release()
    assert host_locks(file) == [("WRITE", "20", "29"), ("WRITE", "40", "49")]
    second.release(fuse.FUSE_RELEASE_FLUSH, BOB)
    assert host_locks(file) == []
    assert len(guest_mount(opened.guest).lock_owners) == 0
    assert len(open_descriptors(file.parent)) == 1, "the node's alone"


def test_locks_go_with_the_guest(opened: Opened, file: Path) -> None:
    opened.set(ALICE, F_WRLCK)
    opened.set(ALICE, F_WRLCK, flags=FUSE_LK_FLOCK)
    assert host_locks(file)
    opened.guest.call(Opcode.DESTROY)
    assert host_locks(file) == []
    opened.guest.init()
    again = open_in(opened.guest)
    again.set(BOB, F_WRLCK, flags=FUSE_LK_FLOCK)
    opened.guest.session.reset()
    assert open_descriptors(file.parent) == []


@pytest.mark.parametrize(
    ("kind", "start", "end"),
    [
        (3, 0, 1),
        (0xFFFF_FFFF, 0, 1),
        (F_WRLCK, 2, 1),
        (F_WRLCK, 0, 1 << 63),
        (F_WRLCK, (1 << 64) - 1, (1 << 64) - 1),
    ],
)
def test_what_is_no_lock(opened: Opened, kind: int, start: int, end: int) -> None:
    assert opened.refused(ALICE, kind, start, end) == "EINVAL"
    with pytest.raises(FuseError) as error:
        opened.get(ALICE, kind, start, end)
    assert error.value.number == errno.EINVAL
    with pytest.raises(FuseError) as error:
        opened.get(ALICE, F_UNLCK)
    assert error.value.number == errno.EINVAL
    with pytest.raises(FuseError) as error:
        opened.set(ALICE, 3, flags=FUSE_LK_FLOCK)
    assert error.value.number == errno.EINVAL


def test_a_lock_needs_an_open_file(opened: Opened) -> None:
    opened.handle += 1
    assert opened.refused(ALICE, F_WRLCK) == "EBADF"
    opened.handle = opened.guest.opendir()
    assert opened.refused(ALICE, F_WRLCK) == "EBADF"
    opened.handle -= 1
    opened.nodeid = 99  # the handle's node counts, not the request's
    opened.set(ALICE, F_WRLCK)
    opened.flush(ALICE)
    assert len(guest_mount(opened.guest).lock_owners) == 0


def test_a_read_only_share_can_be_locked_for_reading(make_guest: MakeGuest, file: Path) -> None:
    opened = open_in(make_guest(ro=True), os.O_RDONLY)
    opened.set(ALICE, F_RDLCK)
    assert host_locks(file) == [("READ", "0", "EOF")]
    opened.set(ALICE, F_WRLCK, flags=FUSE_LK_FLOCK)


def test_owners_and_locks_are_bounded(
    make_guest: MakeGuest, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_in(make_guest(limits=Limits(nodes=10, descriptors=10, handles=3)))
    for owner in range(3):
        opened.set(owner, F_WRLCK, owner, owner)
    assert opened.refused(3, F_WRLCK, 50, 50) == "ENOLCK"
    opened.set(4, F_UNLCK)  # takes nothing
    opened.flush(0)
    opened.set(3, F_WRLCK, 50, 50)
    for owner in (1, 2, 3):
        opened.flush(owner)

    monkeypatch.setattr(owners, "MAX_LOCKS", 20)
    for byte in range(0, 40, 2):
        opened.set(ALICE, F_WRLCK, byte, byte)
    assert opened.refused(ALICE, F_WRLCK, 40, 40) == "ENOLCK"
    assert len(host_locks(file)) == 20
    opened.flush(ALICE)
    for _ in range(50):  # changes are not locks
        opened.set(ALICE, F_WRLCK)
        opened.set(ALICE, F_UNLCK)


def test_the_last_lock_is_granted_however_often_others_changed(
    opened: Opened, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "MAX_LOCKS", 3)
    opened.set(ALICE, F_WRLCK, 0, 0)
    for _ in range(3):
        opened.set(BOB, F_WRLCK, 2, 2)
    opened.set(ALICE, F_WRLCK, 4, 4)
    assert opened.refused(BOB, F_WRLCK, 6, 6) == "ENOLCK"
    assert len(host_locks(file)) == 3


def test_a_file_that_cannot_be_written_can_be_locked_for_reading(
    guest: FuseGuest, file: Path
) -> None:
    """As in fcntl(2): a read lock needs a file open for reading, a write lock one for writing."""
    file.chmod(0o444)
    credentials._change(remove=credentials._CAP_DAC_OVERRIDE)
    try:
        opened = open_in(guest, os.O_RDONLY)
        opened.set(ALICE, F_RDLCK, 0, 9)
        assert opened.refused(ALICE, F_WRLCK, 0, 9) == "EBADF"
        assert opened.get(BOB, F_WRLCK) == (0, 9, F_RDLCK, 1000 + ALICE % 7)
    finally:
        credentials._change(add=credentials._CAP_DAC_OVERRIDE)
    assert host_locks(file) == [("READ", "0", "9")]


class DropsOnce(owners.OwnerTable):
    """Drops an owner between the look-up and what follows, as a FLUSH of another queue may."""

    due = True

    def find(self, node_id: int, owner_id: int) -> owners.Owner | None:
        found = super().find(node_id, owner_id)
        if found and self.due:
            self.due = False
            self.drop(node_id, owner_id)
        return found


def test_an_owner_that_is_dropped_meanwhile_is_made_anew(file: Path) -> None:
    table = DropsOnce(1)
    opened = Descriptor(os.open(file, os.O_RDWR))
    first = table.find_or_add(1, ALICE, 7, opened)
    second = table.find_or_add(1, ALICE, 7, opened)
    assert second is not first
    assert len(table) == 1
    lock = syscalls.RecordLock(F_WRLCK, 0, 9)
    syscalls.set_record_lock(second.descriptor.fd, lock, wait=False)
    assert host_locks(file) == [("WRITE", "0", "9")]
    table.release(1, 7)
    assert host_locks(file) == [], "it was set by that handle"


def test_the_owner_in_release_counts_only_with_its_flag(opened: Opened, file: Path) -> None:
    """FUSE_RELEASE_FLUSH: without it, lock_owner may be anything."""
    second = open_in(opened.guest)
    second.set(BOB, F_WRLCK, 0, 9)
    opened.release(0, BOB)
    assert host_locks(file) == [("WRITE", "0", "9")]
    opened = open_in(opened.guest)
    opened.release(fuse.FUSE_RELEASE_FLUSH, BOB)
    assert host_locks(file) == [], "it has closed the file, by whichever handle"


class AsItWas(dict[int, dict[int, owners.Owner]]):
    """Has every node at the first look, as before another queue's thread dropped its owners."""

    def __contains__(self, _: object) -> bool:
        return True


def test_what_is_dropped_meanwhile_need_not_be_dropped_or_released() -> None:
    table = owners.OwnerTable(1)
    table._by_node = AsItWas()
    table.drop(1, ALICE)
    table.release(1, 7)
    assert len(table) == 0


def test_each_change_counts_as_one_lock(opened: Opened) -> None:
    for number in range(1, 4):
        opened.set(ALICE, F_WRLCK, 2 * number, 2 * number)
        assert guest_mount(opened.guest).lock_owners.locks == number


def test_an_owner_that_is_refused_leaves_nothing(file: Path) -> None:
    table = owners.OwnerTable(0)
    opened = Descriptor(os.open(file, os.O_RDWR))
    for node_id in range(3):
        with pytest.raises(OSError) as error:
            table.find_or_add(node_id, ALICE, 7, opened)
        assert error.value.errno == errno.ENOLCK
        del error
    assert (len(table), table._by_node) == (0, {})
    assert len(open_descriptors(file.parent)) == 1
