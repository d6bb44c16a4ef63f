"""A file that two guests and host processes lock."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.host_files.syscalls import OFFSET_MAX
from services.devicehost.devices.fs.mount.mount import Mount
from services.devicehost.virtio.deferral import Deferred
from services.wire import fuse
from services.wire.fuse import LkIn, Opcode
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest, buffers, chain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest


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
