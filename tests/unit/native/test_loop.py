"""What the native loop must not do to a ring, and what it may have of a mount that is taken out."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from services.devicehost import fastpath
from services.devicehost.fastpath import Outcome
from services.wire import fuse
from tests.unit.native.loop import DEADLINE_S, Loop, root_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NO_ID: Final = 0xFFFF_FFFF

pytestmark = pytest.mark.skipif(
    fastpath.library is None, reason="the native fast path was not built"
)


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Loop() as loop:
        yield loop


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait for what nothing signals."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def is_open(directory: Path) -> bool:
    """Whether this process has a descriptor of the directory."""
    return any(os.path.realpath(link) == str(directory) for link in Path("/proc/self/fd").iterdir())


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    path = tmp_path / "shared"
    path.mkdir()
    return path


def test_a_queue_that_sleeps_holds_no_mount(loop: Loop, shared: Path) -> None:
    """The host may remove a share though its guest does nothing any more."""
    mount = loop.mount(0, shared)
    loop.start()
    loop.getattr(root_of(0))
    assert eventually(lambda: loop.used == 1)
    loop.put(0, None)
    loop.release(mount)
    assert eventually(lambda: not is_open(shared))
    assert not loop.outcomes


def test_a_mount_that_was_taken_out_is_not_served_again(loop: Loop, shared: Path) -> None:
    mount = loop.mount(0, shared)
    loop.start(sleeps=False)
    loop.getattr(root_of(0))
    assert eventually(lambda: loop.used == 1)
    loop.put(0, None)
    loop.release(mount)
    loop.getattr(root_of(0))
    loop.join()
    assert loop.outcomes == [Outcome.PYTHON]
    assert loop.used == 1
    assert not is_open(shared)


def test_a_mount_that_is_replaced_is_let_go_of(loop: Loop, shared: Path, tmp_path: Path) -> None:
    for directory in (shared, tmp_path):
        loop.release(loop.mount(0, directory))
    assert not is_open(shared)
    number = loop.getattr(root_of(0))
    assert loop.serve() == Outcome.WOKEN
    assert described(loop.reply(number)) == attributes_of(tmp_path)


def test_a_request_is_served_from_the_slot_that_its_node_names(
    loop: Loop, shared: Path, tmp_path: Path
) -> None:
    """Also when more are mounted than a queue caches."""
    places = [shared, *(tmp_path / str(slot) for slot in range(1, 20))]
    for slot, place in enumerate(places):
        place.mkdir(exist_ok=True)
        place.chmod(0o700 + slot)
        loop.release(loop.mount(slot, place))
    for slot in [0, 8, 16, 0, 1, 17, 9, 8, 19]:
        number = loop.getattr(root_of(slot))
        assert loop.serve() == Outcome.WOKEN
        assert described(loop.reply(number)) == attributes_of(places[slot])


def test_a_request_for_an_empty_slot_is_left_in_the_ring(loop: Loop, shared: Path) -> None:
    loop.release(loop.mount(1, shared))
    loop.getattr(root_of(0))
    before = loop.state.next_avail
    assert loop.serve() == Outcome.PYTHON
    assert (loop.used, loop.state.next_avail) == (0, before)


def test_a_kick_descriptor_that_blocks_does_not_hold_the_queue_up(loop: Loop) -> None:
    """The front-end shares its flags; and what wakes the queue up may be something else."""
    os.set_blocking(loop.kick_fd, True)
    loop.start(wakes=True)
    assert eventually(loop.wants_kicks)
    os.eventfd_write(loop.wake_fd, 1)
    loop.join()
    assert loop.outcomes == [Outcome.WOKEN]


@pytest.mark.root
def test_a_user_that_cannot_be_is_not_acted_as_at_all(loop: Loop, shared: Path) -> None:
    own = credentials()
    loop.release(loop.mount(0, shared, may_switch=True))
    loop.create(root_of(0), b"file", uid=NO_ID, gid=1000)
    assert loop.serve() == Outcome.PYTHON
    assert credentials() == own
    assert not (shared / "file").exists()


def test_a_file_that_was_made_is_not_left_to_python(loop: Loop, shared: Path) -> None:
    """Python would find it there. The process has one descriptor left, and CREATE needs two."""
    loop.release(loop.mount(0, shared))
    numbers = [os.dup(0), os.dup(0)]
    for number in numbers:
        os.close(number)
    loop.put(0, None)
    mount = loop.mount(0, shared, descriptor_limit=numbers[1])
    number = loop.create(root_of(0), b"file")
    assert loop.serve() == Outcome.WOKEN
    assert loop.reply(number) == (errno.EMFILE, b"")
    assert (shared / "file").exists()
    assert loop.library.ph_mount_node_count(mount) == 0
    assert loop.library.ph_mount_open_file_count(mount) == 0
    loop.release(mount)


def test_a_ring_that_was_closed_notifies_nobody(loop: Loop) -> None:
    """A thread that was stuck in a request comes back when its device may be gone."""
    queue = ctypes.c_void_p(loop.queue)
    loop.library.ph_queue_notify(queue)
    assert os.eventfd_read(loop.call_fd) == 1
    loop.library.ph_queue_close(queue)
    loop.library.ph_queue_notify(queue)
    loop.library.ph_queue_push(queue, ctypes.c_uint32(0))
    with pytest.raises(BlockingIOError):
        os.eventfd_read(loop.call_fd)
    assert loop.used == 0


def credentials() -> list[str]:
    """The calling thread's ids and capabilities."""
    status = Path("/proc/thread-self/status").read_text()
    return [line for line in status.splitlines() if line.startswith(("Uid", "Gid", "CapEff"))]


def described(reply: tuple[int, bytes]) -> tuple[int, int]:
    """Inode number and mode in the reply to GETATTR."""
    error, data = reply
    assert error == 0
    attr = fuse.Attr(*fuse.ATTR.unpack_from(data, fuse.ATTR_OUT.size))
    return attr.ino, attr.mode


def attributes_of(directory: Path) -> tuple[int, int]:
    status = directory.stat()
    return status.st_ino, status.st_mode
