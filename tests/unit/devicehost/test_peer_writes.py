"""The way out of a write that a peer makes block, and that nothing else is interrupted."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from services.devicehost import peer_writes
from tests.unit.devicehost.virtio.conftest import full_and_blocking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("interrupts")


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def started(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_a_thread_is_got_out_of_a_write_that_blocks(fd: int) -> None:
    with full_and_blocking(fd):
        thread = started(lambda: peer_writes.notify_peer(fd))
        assert not peer_writes.join(thread, 0.01)
        assert peer_writes.join(thread, 10)


def test_each_of_many_writes_is_interrupted(fd: int) -> None:
    done: list[int] = []

    def write_often() -> None:
        for turn in range(5):
            peer_writes.notify_peer(fd)
            done.append(turn)

    with full_and_blocking(fd):
        assert peer_writes.join(started(write_often), 10)
    assert done == [0, 1, 2, 3, 4]


def test_a_write_that_need_not_wait_is_not_lost(fd: int) -> None:
    stop = threading.Event()

    def write_often() -> None:
        while not stop.is_set():
            peer_writes.notify_peer(fd)

    thread = started(write_often)
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        peer_writes.interrupt(thread)
    stop.set()
    assert peer_writes.join(thread, 10)
    assert os.eventfd_read(fd) > 0


def test_no_other_system_call_is_interrupted(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(signal, "pthread_kill", lambda *_: sent.append(1))
    thread = started(lambda: os.eventfd_read(fd))
    assert not peer_writes.join(thread, 0.1)
    os.eventfd_write(fd, 1)
    assert peer_writes.join(thread, 10)
    assert sent == []


def test_without_permission_a_signal_does_no_harm(fd: int) -> None:
    signal.signal(peer_writes.SIGNAL, signal.SIG_DFL)
    with full_and_blocking(fd):
        thread = started(lambda: peer_writes.notify_peer(fd))
        assert not peer_writes.join(thread, 0.1)
    assert peer_writes.join(thread, 10)


def test_what_started_the_process_may_have_blocked_the_signal(fd: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {peer_writes.SIGNAL})
    peer_writes.allow_interrupts()
    with full_and_blocking(fd):
        assert peer_writes.join(started(lambda: peer_writes.notify_peer(fd)), 10)
