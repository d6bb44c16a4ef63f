"""The locks of flock(2), of two guests and of host processes."""

from __future__ import annotations

import errno
import fcntl
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK

import pytest

from services.devicehost.devices.fs.mount.open_files import OpenFile
from services.wire import fuse
from services.wire.fuse import FUSE_LK_FLOCK
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError
from tests.unit.devicehost.devices.fs.locks.conftest import ALICE, Opened, guest_mount, open_in


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


def test_release_leaves_the_lock_to_a_request_under_way_unless_told(
    opened: Opened, host_fd: int
) -> None:
    opened.set(ALICE, F_WRLCK, flags=FUSE_LK_FLOCK)
    under_way = guest_mount(opened.guest).open_files.get(opened.handle, OpenFile)
    opened.release(0, ALICE)
    with pytest.raises(BlockingIOError):
        fcntl.flock(host_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    del under_way
    fcntl.flock(host_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_release_unlocks(opened: Opened, host_fd: int) -> None:
    opened.set(ALICE, F_WRLCK, flags=FUSE_LK_FLOCK)
    under_way = guest_mount(opened.guest).open_files.get(opened.handle, OpenFile)
    opened.release(fuse.FUSE_RELEASE_FLOCK_UNLOCK, ALICE)
    fcntl.flock(host_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert under_way.fd > 0, "although a request still uses the file"
