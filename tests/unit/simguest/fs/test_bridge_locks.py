"""Processes that contend for locks through mount points, with each other and with the host."""

from __future__ import annotations

import signal
import time
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN
from typing import TYPE_CHECKING

import pytest

from services.simguest.fs import bridge, mount
from tests.support.locker import Locker, until_waiting, waiting_locks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.simguest.rig import Rig

pytestmark = pytest.mark.fuse

CALLS = pytest.mark.parametrize("call", ["lockf", "flock"])
TRY = LOCK_EX | LOCK_NB


@pytest.fixture
def file(shared: Path) -> Path:
    """The file on the host."""
    path = shared / "file"
    path.write_bytes(bytes(100))
    return path


@pytest.fixture
def mounted(rig: Rig, file: Path, run_dir: Path) -> Iterator[Path]:
    """The same file on the guest's mount point."""
    place = run_dir / "mount point"
    place.mkdir()
    rig.share("data", file.parent)
    rig.workload.mount("data", place)
    yield place / file.name
    if mount.is_mounted(place):
        rig.workload.unmount("data")


@pytest.fixture
def mounted_again(rig: Rig, file: Path, run_dir: Path) -> Iterator[Path]:
    """The same file on the mount point of another device."""
    place = run_dir / "other mount point"
    place.mkdir()
    rig.share("other", file.parent)
    rig.workload.mount("other", place)
    yield place / file.name
    rig.workload.unmount("other")


@CALLS
def test_processes_of_one_guest(mounted: Path, file: Path, call: str) -> None:
    with Locker(mounted) as holder, Locker(mounted) as waiter:
        assert holder.lock(call, LOCK_SH) == "done"
        assert waiter.lock(call, LOCK_SH) == "done"
        assert holder.lock(call, TRY) == "EAGAIN"
        assert waiter.lock(call, LOCK_UN) == "done"
        assert holder.lock(call, LOCK_EX) == "done"
        waiter.send(call, LOCK_EX, "0")
        until_waiting(file)
        assert holder.lock(call, LOCK_UN) == "done"
        assert waiter.answer() == "done"
        assert holder.lock(call, TRY) == "EAGAIN"
        waiter.kill()
        waiter.end()
        assert holder.lock(call, LOCK_EX) == "done", "a process that ends must release its locks"


@CALLS
def test_guest_host_and_another_device(
    mounted: Path, mounted_again: Path, file: Path, call: str
) -> None:
    with Locker(mounted) as one, Locker(mounted_again) as two, Locker(file) as host:
        turns = (one, two, host)
        for holder in turns:
            assert holder.lock(call, LOCK_EX) == "done"
            others = [each for each in turns if each is not holder]
            for count, other in enumerate(others, 1):
                assert other.lock(call, TRY) == "EAGAIN"
                other.send(call, LOCK_EX, "0")
                until_waiting(file, count)
            assert holder.lock(call, LOCK_UN) == "done"
            for other in others:  # the first to wait gets it first
                assert other.answer() == "done"
                assert other.lock(call, LOCK_UN) == "done"
            assert waiting_locks(file) == 0


def test_closing_any_descriptor_drops_posix_locks(mounted: Path) -> None:
    with Locker(mounted) as holder, Locker(mounted) as other:
        holder.open(mounted)
        assert holder.lock("lockf", LOCK_EX) == "done"
        assert other.lock("lockf", TRY) == "EAGAIN"
        holder.close()
        assert other.lock("lockf", TRY) == "done"


def test_processes_that_wait_for_each_other(mounted: Path, file: Path) -> None:
    """Two readers that both want to write; fcntl(2) reports it to the second."""
    with Locker(mounted) as one, Locker(mounted) as two:
        assert one.lock("lockf", LOCK_SH) == "done"
        assert two.lock("lockf", LOCK_SH) == "done"
        one.send("lockf", LOCK_EX, "0")
        until_waiting(file)
        assert two.lock("lockf", LOCK_EX) in ("EDEADLK", "EDEADLOCK")  # two names of one number
        assert two.lock("lockf", LOCK_UN) == "done"
        assert one.answer() == "done"


@CALLS
def test_a_killed_waiter_ends(mounted: Path, file: Path, call: str) -> None:
    """The kernel sends INTERRUPT, and the process ends although the lock is not free."""
    with Locker(mounted) as holder, Locker(mounted) as waiter, Locker(mounted) as next_one:
        assert holder.lock(call, LOCK_EX) == "done"
        waiter.send(call, LOCK_EX, "0")
        until_waiting(file)
        waiter.kill()
        assert waiter.end() == -signal.SIGKILL
        assert waiting_locks(file) == 0
        assert holder.lock(call, LOCK_UN) == "done"
        assert next_one.lock(call, TRY) == "done", "a killed waiter must leave nothing behind"


@CALLS
def test_a_signal_interrupts_and_the_wait_goes_on(mounted: Path, file: Path, call: str) -> None:
    with Locker(mounted) as holder, Locker(mounted) as waiter:
        assert holder.lock(call, LOCK_EX) == "done"
        waiter.send(call, LOCK_EX, "0")
        until_waiting(file)
        waiter.kill(signal.SIGUSR1)
        assert waiter.answer() == "signal"
        until_waiting(file)
        waiter.kill(signal.SIGUSR2)
        assert waiter.answer() == "interrupted"
        assert waiting_locks(file) == 0
        assert waiter.lock(call, TRY) == "EAGAIN"


def test_waiting_holds_up_neither_readers_nor_queue(mounted: Path, file: Path) -> None:
    count = 2 * bridge.READERS
    lockers = [Locker(mounted) for _ in range(count)]
    try:
        with Locker(mounted) as holder:
            assert holder.lock("lockf", LOCK_EX) == "done"
            for locker in lockers:
                locker.send("lockf", LOCK_SH, "0")
            until_waiting(file, count)
            (mounted.parent / "new").write_bytes(b"meanwhile")
            assert (file.parent / "new").read_bytes() == b"meanwhile"
            assert waiting_locks(file) == count
            assert holder.lock("lockf", LOCK_UN) == "done"
        assert {locker.answer() for locker in lockers} == {"done"}
    finally:
        for locker in lockers:
            locker.__exit__()


def test_unmounting_ends_waits(rig: Rig, mounted: Path, file: Path) -> None:
    with Locker(mounted) as holder, Locker(mounted) as waiter:
        assert holder.lock("lockf", LOCK_EX) == "done"
        waiter.send("lockf", LOCK_EX, "0")
        until_waiting(file)
        before = time.monotonic()
        rig.workload.unmount("data")
        assert time.monotonic() - before < bridge.DRAIN_DEADLINE_S
        assert waiter.answer() == "ENOTCONN"
        assert waiting_locks(file) == 0
    with Locker(file) as host:
        assert host.lock("lockf", TRY) == "done", "the guest's locks went with its mount"


def test_removing_the_device_ends_waits(rig: Rig, mounted: Path, file: Path) -> None:
    with Locker(mounted) as holder, Locker(mounted) as waiter:
        assert holder.lock("lockf", LOCK_EX) == "done"
        waiter.send("lockf", LOCK_EX, "0")
        until_waiting(file)
        rig.remove_from_host("data")
        assert waiter.answer() in ("ENOLCK", "ENOTCONN")
        assert waiting_locks(file) == 0
        with Locker(file) as host:
            assert host.lock("lockf", TRY) == "done"
    rig.workload.detach("data")
