"""Waits for locks of one mount: beginning, ending, and refused."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from services.devicehost.devices.fs.host_files.syscalls import OFFSET_MAX
from services.devicehost.devices.fs.locks import waits
from services.devicehost.devices.fs.locks.waits import MAX_WAITS, REMEMBERED, LockWait, LockWaits
from services.wire.fuse import FUSE_LK_FLOCK, Opcode
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError
from tests.unit.devicehost.devices.fs.locks.conftest import (
    ALICE,
    BOB,
    SOON_S,
    Opened,
    guest_mount,
    host_locks,
    interrupt,
    open_in,
    settled,
)

if TYPE_CHECKING:
    from pathlib import Path


class FreeLock:
    """A lock that is had as soon as it is waited for."""

    def set(self, *, wait: bool) -> None:
        assert wait

    def begin_wait(self) -> None: ...

    def end_wait(self) -> None: ...

    def undo(self) -> None: ...


class HeldLock(FreeLock):
    """A lock that others keep, while signals come."""

    def set(self, *, wait: bool) -> None:
        assert wait
        time.sleep(0.001)
        raise InterruptedError


class SlowLock(FreeLock):
    """A lock that is had after a while, whatever signals come.

    Attributes:
        undone: How often it was cleared again.
    """

    undone = 0

    def set(self, *, wait: bool) -> None:
        time.sleep(0.1)

    def undo(self) -> None:
        self.undone += 1


class BrokenLock(FreeLock):
    """A lock that fails after a signal that came from elsewhere."""

    def __init__(self, failure: Exception | None) -> None:
        self.failure = failure
        self.signals = 1

    def set(self, *, wait: bool) -> None:
        if self.signals:
            self.signals -= 1
            raise InterruptedError
        if self.failure is not None:
            raise self.failure


class DeafLock(FreeLock):
    """A lock that is had when the test says so, whatever signals come."""

    def __init__(self) -> None:
        self.comes = threading.Event()

    def set(self, *, wait: bool) -> None:
        assert self.comes.wait(SOON_S)


def as_it_is(number: int) -> int:
    return number


def lock_wait_thread() -> threading.Thread:
    [thread] = [each for each in threading.enumerate() if each.name == "lock-wait"]
    return thread


@pytest.mark.parametrize(
    ("failure", "number"),
    [(None, 0), (OSError(errno.EIO, "?"), errno.EIO), (OverflowError(), errno.EINVAL)],
)
def test_a_wait_ends_as_the_system_call_does(failure: Exception | None, number: int) -> None:
    lock = BrokenLock(failure)
    wait = LockWaits().start(1, as_it_is, lock)
    assert wait.wait(SOON_S)
    assert (wait.write(), lock.signals) == (number, 0)


def test_a_wait_does_not_keep_the_process_from_ending() -> None:
    lock = DeafLock()
    wait = LockWaits().start(1, as_it_is, lock)
    assert lock_wait_thread().daemon
    lock.comes.set()
    assert wait.wait(SOON_S)


def test_only_a_thread_that_runs_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of a thread that has ended may be another's by now."""
    woken: list[int] = []
    monkeypatch.setattr(waits, "wake", woken.append)
    lock = DeafLock()
    wait = LockWait(LockWaits(), 1, as_it_is, lock)
    wait.call_off(errno.EINTR)
    assert woken == [], "its thread has not begun"
    all_waits = LockWaits()
    wait = all_waits.start(2, as_it_is, lock)
    thread = lock_wait_thread()
    wait.call_off(errno.EINTR)
    assert woken == [thread.ident]
    lock.comes.set()
    thread.join(SOON_S)
    wait.call_off(errno.EINTR)
    assert woken == [thread.ident]


class Paced(LockWait):
    """Notes how long it is waited for, and does not wait."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.pauses: list[float] = []

    def wait(self, timeout_s: float) -> bool:
        if timeout_s:
            self.pauses.append(timeout_s)
        return super().wait(0)


def test_a_thread_is_woken_ever_more_rarely_until_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([*[0.0] * 9, 5.0])
    monkeypatch.setattr(waits, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    wait = Paced(LockWaits(), 1, as_it_is, DeafLock())
    wait.end(errno.EINTR, 5.0)
    assert wait.pauses == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.1, 0.1, 0.1]
    assert wait.write() == errno.EINTR, "its time is over at the deadline"


def test_all_waits_are_called_off_before_one_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waits, "INTERRUPT_DEADLINE_S", 2 * SOON_S)
    all_waits, lock = LockWaits(), DeafLock()
    deaf = all_waits.start(1, as_it_is, lock)
    other = all_waits.start(2, as_it_is, HeldLock())
    ending = threading.Thread(target=all_waits.end, args=(errno.ENOTCONN,))
    ending.start()
    assert other.wait(SOON_S / 2)
    assert not deaf.wait(0)
    lock.comes.set()
    ending.join(SOON_S)
    assert (deaf.write(), other.write()) == (0, errno.ENOTCONN)


def test_a_wait_that_cannot_be_ended_is_over_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waits, "INTERRUPT_DEADLINE_S", 0.0)
    all_waits, lock = LockWaits(), DeafLock()
    wait = all_waits.start(1, as_it_is, lock)
    all_waits.end(errno.ENOTCONN)
    assert wait.wait(0)
    lock.comes.set()
    assert wait.write() == errno.ENOTCONN


def begin(waits: LockWaits, unique: int) -> int:
    """Wait for a free lock; returns the errno of the wait, or of the refusal to begin one."""
    try:
        wait = waits.start(unique, as_it_is, FreeLock())
    except OSError as error:
        return error.errno or 0
    assert wait.wait(SOON_S)
    return wait.write()


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE])
def test_no_wait_begins_after_the_end(number: int) -> None:
    waits = LockWaits()
    assert begin(waits, 1) == 0
    waits.end(number)
    assert begin(waits, 2) == number
    assert len(waits) == 0


def test_a_queue_that_stops_ends_a_wait_without_eintr() -> None:
    """EINTR without a signal would confuse Linux."""
    wait = LockWaits().start(1, as_it_is, HeldLock())
    wait.give_up()
    assert wait.wait(SOON_S)
    assert wait.write() == errno.ENOLCK


@pytest.mark.parametrize("by_interrupt", [False, True])
def test_a_lock_that_comes_while_its_wait_is_ended_is_kept(by_interrupt: bool) -> None:
    waits, lock = LockWaits(), SlowLock()
    wait = waits.start(1, as_it_is, lock)
    if by_interrupt:
        assert waits.interrupt(1)
    else:
        waits.end(errno.ENOTCONN)
    assert wait.wait(0)
    assert (wait.write(), lock.undone) == (0, 0)


def test_an_interrupt_is_remembered_once() -> None:
    waits = LockWaits()
    assert not waits.interrupt(7)
    assert begin(waits, 7) == errno.EINTR
    assert begin(waits, 7) == 0


def test_the_interrupts_that_are_remembered_are_bounded() -> None:
    waits = LockWaits()
    for unique in range(REMEMBERED + 1):
        assert not waits.interrupt(unique)
    assert begin(waits, 0) == 0, "it was the first, and is forgotten"
    assert begin(waits, 1) == errno.EINTR
    assert begin(waits, REMEMBERED) == errno.EINTR


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
    nothing = opened.body(BOB, F_UNLCK, 0, 9, 0)
    assert opened.guest.call(Opcode.SETLKW, opened.nodeid, nothing) == b""


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


def test_two_threads_of_one_owner_wait(opened: Opened, other: Opened, file: Path) -> None:
    opened.set(ALICE, F_WRLCK, 0, 9)
    opened.set(ALICE, F_WRLCK, 20, 29)
    first, second = other.wait(BOB, F_WRLCK, 0, 9), other.wait(BOB, F_WRLCK, 20, 29)
    opened.set(ALICE, F_UNLCK, 0, 9)
    assert first.result() == 0
    other.flush(BOB)
    opened.set(ALICE, F_UNLCK, 20, 29)
    assert second.result() == 0
    assert host_locks(file) == [("WRITE", "20", "29")], "it is held, and its owner is known"
    settled(other.guest)
    other.flush(BOB)
    assert host_locks(file) == []
    assert len(guest_mount(other.guest).lock_owners) == 0


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


@pytest.mark.parametrize("flags", [0, FUSE_LK_FLOCK])
def test_a_lock_that_comes_too_late_is_undone(
    opened: Opened, other: Opened, monkeypatch: pytest.MonkeyPatch, flags: int
) -> None:
    """The thread cannot be woken up, as on a dead network drive, and gets the lock in the end."""
    monkeypatch.setattr(waits, "wake", lambda ident: None)
    opened.set(ALICE, F_WRLCK, flags=flags)
    waiting = other.wait(BOB, F_WRLCK, flags=flags)
    waiting.answer.expire(time.monotonic())
    assert waiting.result() == errno.ENOLCK
    opened.set(ALICE, F_UNLCK, flags=flags)
    settled(other.guest)
    opened.set(ALICE, F_WRLCK, flags=flags)
