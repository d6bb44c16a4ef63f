"""One ring, set up without a front-end: its pages, its descriptors and its worker."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.devicehost.accounting import DeviceMeter
from services.devicehost.memory import Aperture, TranslationError
from services.devicehost.vhost_user import worker as worker_module
from services.devicehost.vhost_user.ring import Ring, RingContext
from services.devicehost.vhost_user.ring_states import RingState
from services.handshake.errors import FailedPreconditionError, ResourceExhaustedError
from services.wire.vhost_user import VringAddr
from tests.support.descriptors import open_fds
from tests.support.guest_ring import USER_BASE, GuestRam, GuestRing
from tests.unit.devicehost.memory.test_aperture import mapped_bytes
from tests.unit.devicehost.vhost_user.conftest import MIB, POOL, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.devicehost.memory import GuestMemory
    from services.devicehost.virtio.queue import Queue

OUTSIDE = 20 * MIB
RING_PAGES = {(gpa, 4096) for gpa in (OUTSIDE, OUTSIDE + 4096, OUTSIDE + 8192)}
"""Of a ring of 16 at OUTSIDE; file offsets are guest addresses."""


class SleepingDevice:
    """Does what a test says when a queue is stopped."""

    device_class = "virtio-fs"
    goes_native = False
    num_queues = 1
    features = 0

    def __init__(self) -> None:
        self.began = threading.Event()
        self.at_stop: Callable[[], object] = lambda: None

    def config(self) -> bytes:
        return b""

    def activate(self, features: int) -> None: ...

    def serve(self, index: int, queue: Queue) -> None:
        self.began.set()
        while not queue.stopped:
            queue.wait()
        self.at_stop()

    def reset(self) -> None: ...

    def close(self) -> None: ...


class Rig:
    """A ring outside the pool of a guest, and what it needs to be served."""

    def __init__(self) -> None:
        self.ram = GuestRam(32 * MIB)
        self.table = self.ram.table()
        self.meter = DeviceMeter()
        self.memory: GuestMemory = Aperture(POOL).attach(self.table, self.meter)
        self.device = SleepingDevice()
        self.guest_ring = GuestRing(self.ram, OUTSIDE, 16)
        self.ring = Ring(0)

    def place(self, gpa: int = OUTSIDE, used: int | None = None) -> None:
        at = GuestRing(self.ram, gpa, 16)
        used = at.used if used is None else used
        addr = (USER_BASE + at.desc, USER_BASE + used, USER_BASE + at.avail)
        self.ring.set_addr(VringAddr(0, 0, *addr, 0), self.table, self.memory)

    def make_ready(self) -> None:
        self.ring.set_size(16)
        self.place()
        self.ring.set_kick(os.eventfd(0, os.EFD_NONBLOCK))
        self.ring.set_call(os.eventfd(0, os.EFD_NONBLOCK))
        self.ring.enable()

    def serve(self) -> None:
        self.ring.serve(
            RingContext(
                device=self.device,
                memory=self.memory,
                features=0,
                counters=self.meter.queue(0),
                on_first_request=lambda: None,
                on_failure=lambda error: None,
            )
        )
        assert self.device.began.wait(10)

    def close(self) -> None:
        self.ring.close()
        self.memory.release()
        self.table.close()
        self.ram.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    before = open_fds(), mapped_bytes()
    rig = Rig()
    yield rig
    rig.close()
    assert eventually(lambda: (open_fds(), mapped_bytes()) == before)


def own_pages() -> set[tuple[int, int]]:
    """The pages that are mapped for the ring alone."""
    return RING_PAGES & set(mapped_bytes())


def test_the_pages_of_a_ring_stay_mapped_for_a_worker_that_is_left_behind(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "STOP_DEADLINE_S", 0.05)
    released = threading.Event()
    rig.device.at_stop = lambda: released.wait(10)
    rig.make_ready()
    rig.serve()
    rig.ring.halt()
    rig.ring.unpin()
    assert own_pages() == RING_PAGES
    rig.memory.retain()  # as the back-end does for the next front-end
    rig.ring.close()
    rig.memory.release()
    assert own_pages() == RING_PAGES
    rig.ring = Ring(0)
    released.set()


def test_the_pages_of_a_ring_go_with_a_worker_that_ends_in_time(rig: Rig) -> None:
    rig.make_ready()
    rig.serve()
    assert own_pages() == RING_PAGES
    rig.ring.halt()
    assert own_pages() == RING_PAGES, "the ring may be started again"
    rig.ring.unpin()
    assert own_pages() == set()


def test_a_kick_descriptor_is_open_until_the_worker_that_sleeps_on_it_has_ended(rig: Rig) -> None:
    rig.ring.set_size(16)
    rig.place()
    first, second = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
    rig.ring.set_kick(first)
    rig.ring.enable()
    open_then: list[bool] = []
    rig.device.at_stop = lambda: open_then.append(Path(f"/proc/self/fd/{first}").exists())
    rig.serve()
    rig.ring.set_kick(second)
    assert open_then == [True]
    assert not Path(f"/proc/self/fd/{first}").exists()


def test_a_ring_that_stops_gives_up_its_kick_and_its_call_descriptor(rig: Rig) -> None:
    before = open_fds()
    rig.make_ready()
    assert open_fds() == before + 2
    rig.ring.halt()
    assert open_fds() == before


def test_a_part_that_cannot_be_pinned_leaves_none_pinned_and_no_addresses(rig: Rig) -> None:
    rig.ring.set_size(16)
    with pytest.raises(TranslationError):
        rig.place(used=1 << 40)
    assert own_pages() == set()
    assert not rig.ring.placed
    rig.ring.pin(rig.table, rig.memory)
    assert not rig.ring.reachable


def test_another_size_makes_the_addresses_out_of_date(rig: Rig) -> None:
    rig.ring.set_size(16)
    rig.place()
    rig.ring.set_size(16)
    assert own_pages() == RING_PAGES
    rig.ring.set_size(32)
    assert own_pages() == set()
    rig.ring.pin(rig.table, rig.memory)
    assert not rig.ring.reachable


def test_the_same_addresses_place_a_ring_that_has_stopped(rig: Rig) -> None:
    rig.make_ready()
    rig.ring.halt()
    assert rig.ring.reachable
    assert not rig.ring.placed
    rig.place()
    assert rig.ring.placed


@pytest.mark.parametrize("lacks", ["addresses", "kick", "enable"])
def test_a_ring_is_served_only_if_it_lacks_nothing(rig: Rig, lacks: str) -> None:
    rig.ring.set_size(16)
    if lacks != "addresses":
        rig.place()
    if lacks != "kick":
        rig.ring.set_kick(None)
    if lacks != "enable":
        rig.ring.enable()
    before = rig.ring.state
    with pytest.raises(FailedPreconditionError):
        rig.serve()
    assert rig.ring.state is before
    assert not rig.device.began.is_set()


def test_a_ring_is_not_served_twice(rig: Rig) -> None:
    rig.make_ready()
    rig.serve()
    with pytest.raises(FailedPreconditionError):
        rig.serve()
    assert rig.ring.state is RingState.SERVED


def test_a_ring_without_a_thread_keeps_nothing_and_can_be_served_later(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    rig.make_ready()
    before = open_fds()
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", no_thread)
        for _ in range(3):
            with pytest.raises(ResourceExhaustedError):
                rig.serve()
            assert rig.ring.state is RingState.STARTED_ENABLED
    assert open_fds() == before
    rig.serve()
