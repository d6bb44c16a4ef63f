from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.devicehost.vhost_user import event_fds
from services.devicehost.vhost_user.event_fds import Notification, check_event_fd
from services.handshake.errors import InvalidArgumentError
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


@pytest.mark.parametrize("blocking", [True, False])
def test_the_flags_of_an_eventfd_stay_those_of_the_front_end(
    theirs: tuple[int, int], blocking: bool
) -> None:
    """It may wait in a read, or rely on not waiting."""
    os.set_blocking(theirs[0], blocking)
    for is_read in (True, False):
        check_event_fd(0, theirs[0], is_read=is_read)
    assert os.get_blocking(theirs[0]) is blocking


def test_what_is_no_eventfd_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"ring 3: .*not an eventfd") as caught:
        check_event_fd(3, 0, is_read=False)
    assert caught.value.reason == "RING_EVENT_FD"


@pytest.mark.parametrize("is_read", [True, False])
@pytest.mark.parametrize("count", [0, 1, (1 << 32) - 1])
def test_a_semaphore_is_refused(count: int, is_read: bool) -> None:
    fd = os.eventfd(count, os.EFD_SEMAPHORE)
    try:
        if event_fds.kernel_says_semaphore(fd) is None:
            pytest.skip("this kernel does not say what a semaphore is")
        with pytest.raises(InvalidArgumentError, match="EFD_SEMAPHORE") as caught:
            check_event_fd(0, fd, is_read=is_read)
        assert caught.value.reason == "RING_EVENT_FD"
    finally:
        os.close(fd)


class TestKernelThatDoesNotSay:
    """Before Linux 6.5 the file in fdinfo has no such line."""

    @pytest.fixture(autouse=True)
    def _older_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(event_fds, "kernel_says_semaphore", lambda _: None)

    @pytest.mark.parametrize("count", [0, 1, 5, (1 << 32) - 1])
    def test_a_semaphore_is_found_by_reading(self, count: int) -> None:
        fd = os.eventfd(count, os.EFD_SEMAPHORE)
        try:
            with pytest.raises(InvalidArgumentError, match="EFD_SEMAPHORE"):
                check_event_fd(0, fd, is_read=True)
        finally:
            os.close(fd)

    @pytest.mark.parametrize("blocking", [True, False])
    @pytest.mark.parametrize("count", [0, 1, 5, (1 << 32) - 1])
    def test_any_other_eventfd_is_taken(
        self, theirs: tuple[int, int], count: int, blocking: bool
    ) -> None:
        os.set_blocking(theirs[0], blocking)
        os.eventfd_write(theirs[0], count)
        check_event_fd(0, theirs[0], is_read=True)

    def test_what_nobody_here_reads_is_left_alone(self) -> None:
        fd = os.eventfd(7, os.EFD_SEMAPHORE)
        try:
            check_event_fd(0, fd, is_read=False)
            assert os.eventfd_read(fd) == 1
        finally:
            os.close(fd)
