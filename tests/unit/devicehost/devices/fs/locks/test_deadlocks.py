"""Circles of waits: the owner whose wait would close one is refused, the others go on."""

from __future__ import annotations

import errno
import fcntl
from typing import TYPE_CHECKING

import pytest

from services.wire import fuse
from services.wire.fuse import Opcode
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError
from tests.unit.devicehost.devices.fs.locks.conftest import (
    ALICE,
    BOB,
    guest_mount,
    open_in,
    settled,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest
    from tests.unit.devicehost.devices.fs.fuse_guest import FuseGuest
    from tests.unit.devicehost.devices.fs.locks.conftest import Opened

READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
CAROL = 0xCA501


def refused(opened: Opened, owner: int, kind: int, start: int, end: int) -> int:
    """Ask for a lock that is never waited for; returns the errno."""
    with pytest.raises(FuseError) as error:
        opened.guest.call(Opcode.SETLKW, opened.nodeid, opened.body(owner, kind, start, end, 0))
    return error.value.number


@pytest.fixture
def second(guest: FuseGuest, shared: Path) -> Opened:
    (shared / "second").write_bytes(bytes(100))
    return open_in(guest, name=b"second")


def test_two_owners_of_two_files(opened: Opened, second: Opened) -> None:
    opened.set(ALICE, WRITE, 0, 9)
    second.set(BOB, WRITE, 0, 9)
    waiting = opened.wait(BOB, WRITE, 0, 9)
    assert refused(second, ALICE, WRITE, 5, 5) == errno.EDEADLK
    assert refused(second, ALICE, READ, 5, 5) == errno.EDEADLK
    assert opened.get(BOB, WRITE, 0, 9)[:3] == (0, 9, WRITE), "what she has stays hers"
    opened.set(ALICE, UNLOCK, 0, 9)
    assert waiting.result() == 0
    settled(opened.guest)
    mine = second.wait(ALICE, WRITE, 5, 5)  # Bob waits for nobody any more
    second.set(BOB, UNLOCK, 0, 9)
    assert mine.result() == 0
    settled(opened.guest)


def test_a_circle_of_three_by_one_of_two_locks_in_the_way(opened: Opened) -> None:
    for start, owner in ((0, ALICE), (10, BOB), (20, CAROL)):
        opened.set(owner, WRITE, start, start + 9)
    waits = [opened.wait(ALICE, WRITE, 10, 29), opened.wait(BOB, WRITE, 20, 29)]
    # Alice waits for Bob, and for Carol.
    assert refused(opened, CAROL, WRITE, 0, 0) == errno.EDEADLK
    opened.set(CAROL, UNLOCK, 20, 29)
    assert waits[1].result() == 0
    opened.set(BOB, UNLOCK)
    assert waits[0].result() == 0
    settled(opened.guest)


def test_two_readers_that_both_want_to_write(opened: Opened) -> None:
    opened.set(ALICE, READ)
    opened.set(BOB, READ)
    waiting = opened.wait(ALICE, WRITE)
    assert refused(opened, BOB, WRITE, 0, 0) == errno.EDEADLK
    opened.set(BOB, UNLOCK)
    assert waiting.result() == 0
    settled(opened.guest)


def test_a_queue_of_waits_is_no_circle(opened: Opened, second: Opened) -> None:
    opened.set(ALICE, WRITE, 0, 0)
    second.set(BOB, READ, 0, 0)
    second.set(ALICE, READ, 0, 0)
    waits = [opened.wait(BOB, WRITE, 0, 0), opened.wait(CAROL, READ, 0, 0)]
    # Bob waits for Alice. He is not in her way: two read locks agree, and other bytes are free.
    second.set(ALICE, READ, 0, 9)
    second.set(ALICE, WRITE, 5, 9)
    third = second.wait(CAROL, WRITE, 0, 9)
    opened.set(ALICE, UNLOCK)
    assert waits[0].result() == 0
    opened.set(BOB, UNLOCK)
    assert waits[1].result() == 0
    for owner in (ALICE, BOB):
        second.set(owner, UNLOCK)
    assert third.result() == 0
    settled(opened.guest)


def test_a_wait_that_was_called_off_closes_no_circle(opened: Opened, second: Opened) -> None:
    opened.set(ALICE, WRITE)
    second.set(BOB, WRITE)
    waiting = opened.wait(BOB, WRITE)
    assert guest_mount(opened.guest).lock_waits.interrupt(waiting.unique)
    assert waiting.result() == errno.EINTR
    settled(opened.guest)
    mine = second.wait(ALICE, WRITE)
    second.set(BOB, UNLOCK)
    assert mine.result() == 0
    settled(opened.guest)


def test_what_other_guests_wait_for_is_not_known(
    opened: Opened, make_guest: MakeGuest, file: Path
) -> None:
    other = open_in(make_guest())
    opened.set(ALICE, WRITE, 0, 0)
    other.set(ALICE, WRITE, 1, 1)
    waits = [opened.wait(ALICE, WRITE, 1, 1), other.wait(ALICE, WRITE, 0, 0)]
    for guest, waiting in zip((opened.guest, other.guest), waits, strict=True):
        assert guest_mount(guest).lock_waits.interrupt(waiting.unique)
        assert waiting.result() == errno.EINTR
    settled(opened.guest)


def test_flock_has_no_circles(opened: Opened) -> None:
    again = open_in(opened.guest)
    opened.set(ALICE, WRITE, flags=fuse.FUSE_LK_FLOCK)
    waiting = again.wait(BOB, WRITE, flags=fuse.FUSE_LK_FLOCK)
    opened.set(ALICE, UNLOCK, flags=fuse.FUSE_LK_FLOCK)
    assert waiting.result() == 0
    settled(opened.guest)
