"""Locks of two guests and of host processes on the same files."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.descriptors import Limits
from services.devicehost.devices.fs.host_files.syscalls import OFFSET_MAX
from services.devicehost.devices.fs.locks import owners, waits
from services.devicehost.devices.fs.locks.waits import MAX_WAITS, REMEMBERED
from services.devicehost.devices.fs.mount.mount import Mount
from services.devicehost.devices.fs.mount.open_files import OpenFile
from services.devicehost.virtio.deferral import Deferred
from services.wire import fuse
from services.wire.fuse import FUSE_LK_FLOCK, LkIn, Opcode
from tests.unit.devicehost.devices.fs.conftest import MakeGuest, open_descriptors
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest, buffers, chain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


SOON_S = 10.0
ALICE, BOB = 0xA11CE, 0xB0B
"""Lock owners."""


@dataclass
class Waiting:
    """A SETLKW that has not been answered."""

    answer: Deferred
    unique: int
    reply: list[memoryview]

    def result(self) -> int:
        """Wait for the answer; returns the errno in the reply."""
        assert self.answer.wait(SOON_S), "no answer"
        assert self.answer.write() == fuse.OUT_HEADER.size
        _, error, unique = fuse.OUT_HEADER.unpack(b"".join(self.reply))
        assert unique == self.unique
        return int(-error)


@dataclass
class Opened:
    """One open file of a guest."""

    guest: FuseGuest
    nodeid: int
    handle: int

    def body(self, owner: int, kind: int, start: int, end: int, flags: int) -> bytes:
        pid = 1000 + owner % 7
        return fuse.LK_IN.pack(*LkIn(self.handle, owner, start, end, kind, pid, flags))

    def set(
        self, owner: int, kind: int, start: int = 0, end: int = OFFSET_MAX, *, flags: int = 0
    ) -> None:
        body = self.body(owner, kind, start, end, flags)
        assert self.guest.call(Opcode.SETLK, self.nodeid, body) == b""

    def refused(self, owner: int, kind: int, start: int = 0, end: int = OFFSET_MAX) -> str:
        with pytest.raises(FuseError) as error:
            self.set(owner, kind, start, end)
        return errno.errorcode[error.value.number]

    def get(self, owner: int, kind: int, start: int = 0, end: int = OFFSET_MAX) -> tuple[int, ...]:
        data = self.guest.call(Opcode.GETLK, self.nodeid, self.body(owner, kind, start, end, 0))
        return fuse.LK_OUT.unpack(data)

    def wait(
        self, owner: int, kind: int, start: int = 0, end: int = OFFSET_MAX, *, flags: int = 0
    ) -> Waiting:
        body = self.body(owner, kind, start, end, flags)
        readable = buffers(self.guest.request(Opcode.SETLKW, self.nodeid, body), 40)
        writable = buffers(bytes(16))
        answer = self.guest.session.handle(chain(readable, writable))
        assert isinstance(answer, Deferred), fuse.OUT_HEADER.unpack(b"".join(writable))
        return Waiting(answer, self.guest.unique, writable)

    def flush(self, owner: int) -> None:
        self.guest.call(Opcode.FLUSH, self.nodeid, fuse.FLUSH_IN.pack(self.handle, owner))

    def release(self, flags: int = 0, owner: int = 0) -> None:
        body = fuse.RELEASE_IN.pack(self.handle, 0, flags, owner)
        self.guest.call(Opcode.RELEASE, self.nodeid, body)


def open_in(guest: FuseGuest, flags: int = os.O_RDWR, name: bytes = b"file") -> Opened:
    nodeid = guest.lookup(name).nodeid
    return Opened(guest, nodeid, guest.open(nodeid, flags))


def interrupt(guest: FuseGuest, unique: int, room: int = 0) -> int:
    """Send INTERRUPT; returns the errno of the answer, 0 for none."""
    request = guest.request(Opcode.INTERRUPT, 0, fuse.INTERRUPT_IN.pack(unique))
    writable = buffers(bytes(room))
    written = guest.session.handle(chain(buffers(request, 40), writable))
    assert isinstance(written, int)
    if not written:
        return 0
    length, error, answered = fuse.OUT_HEADER.unpack(b"".join(writable)[:written])
    assert (length, answered) == (16, guest.unique)
    return int(-error)


@pytest.fixture
def file(shared: Path) -> Path:
    path = shared / "file"
    path.write_bytes(bytes(100))
    return path


@pytest.fixture
def opened(guest: FuseGuest, file: Path) -> Opened:
    return open_in(guest)


@pytest.fixture
def other(make_guest: MakeGuest, file: Path) -> Opened:
    """The same file, open in another guest by another device."""
    return open_in(make_guest())


@pytest.fixture
def host_fd(file: Path) -> Iterator[int]:
    """The same file, open on the host."""
    fd = os.open(file, os.O_RDWR)
    yield fd
    os.close(fd)


def host_locks(path: Path) -> list[tuple[str, str, str]]:
    """Return kind, start and end of the kernel's record locks on a file."""
    inode = f":{path.stat().st_ino}"
    found = []
    with open("/proc/locks", encoding="ascii") as table:  # noqa: PTH123
        for line in table:
            fields = line.split()
            if fields[1] == "OFDLCK" and fields[5].endswith(inode):
                found.append((fields[3], *fields[6:8]))
    return sorted(found)  # type: ignore[arg-type]


# POSIX locks


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


# flock


def test_flock_belongs_to_the_open_file(opened: Opened, other: Opened, host_fd: int) -> None:
    second = open_in(opened.guest)
    opened.set(ALICE, F_WRLCK, flags=FUSE_LK_FLOCK)
    for refused in (second, other):
        with pytest.raises(FuseError) as error:
            refused.set(ALICE, F_RDLCK, flags=FUSE_LK_FLOCK)
        assert error.value.number == errno.EAGAIN
    with pytest.raises(BlockingIOError):
        fcntl.flock(host_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    second.set(ALICE, F_WRLCK)  # a POSIX lock is another matter
    opened.set(ALICE, F_RDLCK, flags=FUSE_LK_FLOCK)
    fcntl.flock(host_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    opened.set(ALICE, F_UNLCK, flags=FUSE_LK_FLOCK)
    fcntl.flock(host_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_release_unlocks(opened: Opened, host_fd: int) -> None:
    opened.set(ALICE, F_WRLCK, flags=FUSE_LK_FLOCK)
    under_way = guest_mount(opened.guest).open_files.get(opened.handle, OpenFile)
    opened.release(fuse.FUSE_RELEASE_FLOCK_UNLOCK, ALICE)
    fcntl.flock(host_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert under_way.fd > 0, "although a request still uses the file"


# Waiting


@pytest.mark.parametrize("flags", [0, FUSE_LK_FLOCK])
def test_a_waiting_owner_gets_the_lock(opened: Opened, other: Opened, flags: int) -> None:
    opened.set(ALICE, F_WRLCK, flags=flags)
    waiting = other.wait(BOB, F_WRLCK, flags=flags)
    assert not waiting.answer.wait(0)
    opened.set(ALICE, F_UNLCK, flags=flags)
    assert waiting.result() == 0
    with pytest.raises(FuseError) as error:
        opened.set(ALICE, F_RDLCK, flags=flags)
    assert error.value.number == errno.EAGAIN
    settled(other.guest)


def test_a_lock_of_a_host_process_is_waited_for(opened: Opened, file: Path) -> None:
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert opened.get(ALICE, F_WRLCK) == (0, OFFSET_MAX, F_WRLCK, 0)
        waiting = opened.wait(ALICE, F_WRLCK)
        holder.stdin.close()
        assert waiting.result() == 0


def test_a_free_lock_is_not_waited_for(opened: Opened) -> None:
    body = opened.body(ALICE, F_WRLCK, 0, 9, 0)
    assert opened.guest.call(Opcode.SETLKW, opened.nodeid, body) == b""
    assert opened.guest.call(Opcode.SETLKW, opened.nodeid, body) == b""


@pytest.mark.parametrize("flags", [0, FUSE_LK_FLOCK])
def test_interrupt_ends_a_wait(opened: Opened, other: Opened, flags: int) -> None:
    opened.set(ALICE, F_WRLCK, flags=flags)
    waiting = other.wait(BOB, F_WRLCK, flags=flags)
    bystander = other.wait(ALICE, F_RDLCK, 5, 6) if not flags else None
    assert interrupt(other.guest, waiting.unique, room=100) == 0
    assert waiting.result() == errno.EINTR
    opened.set(ALICE, F_UNLCK, flags=flags)
    if bystander is not None:
        assert bystander.result() == 0
    settled(other.guest)
    opened.set(BOB, F_RDLCK, flags=flags)  # nothing was left behind by the wait


def test_interrupt_of_what_does_not_wait_is_answered_if_there_is_room(opened: Opened) -> None:
    guest = opened.guest
    assert interrupt(guest, 4711, room=100) == errno.EAGAIN
    assert interrupt(guest, 4711, room=16) == errno.EAGAIN
    for room in (0, 15):
        assert interrupt(guest, 4711, room) == 0


def test_an_interrupt_that_overtakes_its_request_is_remembered(
    opened: Opened, other: Opened
) -> None:
    opened.set(ALICE, F_WRLCK)
    guest = other.guest
    assert interrupt(guest, guest.unique + 4) == 0  # the number after INTERRUPT's own
    body = other.body(BOB, F_WRLCK, 0, 9, 0)
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.SETLKW, other.nodeid, body)
    assert error.value.number == errno.EINTR
    for number in range(3 * REMEMBERED):
        interrupt(guest, 1_000_000 + number)
    waiting = other.wait(BOB, F_WRLCK)
    assert interrupt(guest, waiting.unique) == 0
    assert waiting.result() == errno.EINTR


def test_waits_end_with_the_mount(opened: Opened, other: Opened) -> None:
    opened.set(ALICE, F_WRLCK)
    endings = (
        lambda: other.guest.call(Opcode.DESTROY),
        lambda: other.guest.init() and None,
        other.guest.session.reset,
    )
    for end in endings:
        waiting = [other.wait(BOB, F_WRLCK), other.wait(ALICE, F_RDLCK)]
        end()
        assert [each.result() for each in waiting] == [errno.ENOTCONN] * 2
        other.guest.init()
        other = open_in(other.guest)
    settled(other.guest)


def test_waits_are_bounded(opened: Opened, other: Opened) -> None:
    opened.set(ALICE, F_WRLCK)
    waiting = [other.wait(BOB + n, F_RDLCK) for n in range(MAX_WAITS)]
    with pytest.raises(FuseError) as error:
        other.guest.call(Opcode.SETLKW, other.nodeid, other.body(ALICE, F_RDLCK, 0, 9, 0))
    assert error.value.number == errno.ENOLCK
    opened.set(ALICE, F_UNLCK)
    assert {each.result() for each in waiting} == {0}
    settled(other.guest)
    other.set(ALICE, F_RDLCK)


def test_a_second_wait_of_the_same_number_is_refused(opened: Opened, other: Opened) -> None:
    opened.set(ALICE, F_WRLCK)
    waiting = other.wait(BOB, F_WRLCK)
    other.guest.unique -= 2
    with pytest.raises(FuseError) as error:
        other.guest.call(Opcode.SETLKW, other.nodeid, other.body(BOB, F_WRLCK, 0, 9, 0))
    assert error.value.number == errno.EINVAL
    opened.release()
    assert waiting.result() == 0


def test_without_a_thread_there_is_no_wait(
    opened: Opened, other: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    opened.set(ALICE, F_WRLCK)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(FuseError) as error:
        other.guest.call(Opcode.SETLKW, other.nodeid, other.body(BOB, F_WRLCK, 0, 9, 0))
    assert error.value.number == errno.ENOLCK
    settled(other.guest)


def test_flush_during_a_wait_leaves_the_awaited_lock(opened: Opened, other: Opened) -> None:
    """One thread of a process waits while another closes a descriptor of the same file."""
    opened.set(ALICE, F_WRLCK, 0, 9)
    other.set(BOB, F_WRLCK, 20, 29)
    waiting = other.wait(BOB, F_WRLCK, 0, 9)
    other.flush(BOB)
    opened.set(ALICE, F_WRLCK, 20, 29)  # what was held before is free
    opened.set(ALICE, F_UNLCK, 0, 9)
    assert waiting.result() == 0
    assert opened.refused(ALICE, F_RDLCK, 0, 0) == "EAGAIN", "and what was waited for is held"
    other.flush(BOB)
    opened.set(ALICE, F_RDLCK, 0, 0)


def test_a_lock_that_comes_too_late_is_undone(
    opened: Opened, other: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread cannot be woken up, as on a dead network drive, and gets the lock in the end."""
    monkeypatch.setattr(waits, "wake", lambda ident: None)
    opened.set(ALICE, F_WRLCK)
    waiting = other.wait(BOB, F_WRLCK)
    waiting.answer.expire(time.monotonic())
    assert waiting.result() == errno.ENOLCK
    opened.set(ALICE, F_UNLCK)
    settled(other.guest)
    opened.set(ALICE, F_WRLCK)


def guest_mount(guest: FuseGuest) -> Mount:
    mount = guest.session.mount
    assert isinstance(mount, Mount)
    return mount


def settled(guest: FuseGuest) -> None:
    """Wait until no thread waits for a lock any more."""
    for thread in threading.enumerate():
        if thread.name == "lock-wait":
            thread.join(SOON_S)
            assert not thread.is_alive()
    assert len(guest_mount(guest).lock_waits) == 0
