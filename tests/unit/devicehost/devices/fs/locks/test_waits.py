"""Waits for locks of one mount: beginning, ending, and refused."""

from __future__ import annotations

import errno
import time

import pytest

from services.devicehost.devices.fs.locks.waits import REMEMBERED, LockWaits

SOON_S = 10.0


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


def begin(waits: LockWaits, unique: int) -> int:
    """Wait for a free lock; returns the errno of the wait, or of the refusal to begin one."""
    try:
        wait = waits.start(unique, lambda number: number, FreeLock())
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
    wait = LockWaits().start(1, lambda number: number, HeldLock())
    wait.give_up()
    assert wait.wait(SOON_S)
    assert wait.write() == errno.ENOLCK


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
