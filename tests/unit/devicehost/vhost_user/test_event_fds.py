from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.devicehost.vhost_user.event_fds import Notification, check_event_fd
from tests.support.descriptors import open_fds

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def theirs() -> Iterator[tuple[int, int]]:
    """Two eventfds of a front-end, which keeps them open."""
    fds = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    yield fds
    for fd in fds:
        os.close(fd)


def counts(fds: tuple[int, int]) -> list[int]:
    """How often each was notified since the last time that this was asked."""
    found = []
    for fd in fds:
        try:
            found.append(os.eventfd_read(fd))
        except BlockingIOError:
            found.append(0)
    return found


def test_another_eventfd_comes_under_the_number_that_a_holder_has(theirs: tuple[int, int]) -> None:
    before = open_fds()
    call = Notification()
    call.replace(os.dup(theirs[0]))
    number = call.fd
    call.notify()
    call.replace(os.dup(theirs[1]))
    assert call.fd == number
    call.notify()
    call.notify()
    assert counts(theirs) == [1, 2]
    call.release()
    assert open_fds() == before


def test_the_number_stays_open_until_its_last_holder_has_released_it(
    theirs: tuple[int, int],
) -> None:
    call = Notification()
    call.replace(os.dup(theirs[0]))
    number = call.fd
    assert number is not None
    assert call.retain()
    call.release()
    os.eventfd_write(number, 1)
    assert counts(theirs) == [1, 0]
    call.release()
    assert not Path(f"/proc/self/fd/{number}").exists()
    assert not call.retain()
    call.notify()
    assert counts(theirs) == [0, 0]


def test_nobody_is_notified_who_wants_no_notification(theirs: tuple[int, int]) -> None:
    err = Notification()
    err.notify()
    err.replace(os.dup(theirs[0]))
    err.replace(None)
    assert err.fd is None
    err.notify()
    assert counts(theirs) == [0, 0]
    err.release()


def test_an_eventfd_is_not_inherited_by_what_the_process_starts(theirs: tuple[int, int]) -> None:
    call = Notification()
    for fd in theirs:
        call.replace(os.dup(fd))
        assert call.fd is not None
        assert not os.get_inheritable(call.fd)
    call.release()


def test_an_eventfd_that_would_block_is_made_not_to(theirs: tuple[int, int]) -> None:
    """A front-end could make it block again, but does not do so by accident."""
    os.set_blocking(theirs[0], True)
    check_event_fd(0, theirs[0])
    assert not os.get_blocking(theirs[0])
