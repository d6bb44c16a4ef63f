"""Confined means confined: what a device holds of guest memory, with any number of rings.

Real memory, real sockets, real threads; /proc says what is open and mapped.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from services.devicehost import fastpath
from services.devicehost.accounting import DeviceMeter
from services.devicehost.devices import FsBackend, FsDevice
from services.devicehost.memory import Aperture, Whole, WindowQuota, Windows, confined
from services.devicehost.vhost_user import Backend, Listener, ListeningSocket, held_descriptors
from services.handshake.options import FsOptions
from services.handshake.pool import Gpa, SwiotlbPool
from services.wire import fuse
from services.wire import vhost_user as wire
from services.wire.vhost_user import Request
from tests.support.front_end import RawFrontEnd, RingEvents
from tests.support.guest_ring import USER_BASE, GuestRam, GuestRing
from tests.support.memory_files import MemoryFiles
from tests.unit.devicehost.vhost_user.conftest import MIB, POOL, EchoDevice, Watcher, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.devicehost.memory import Access
    from services.devicehost.virtio.device import VirtioDevice

PRIVATE = 0
"""Where a guest's ordinary memory begins."""

FOREIGN = [32 * MIB + n * 4 * MIB for n in range(4)]
"""Where the pools of the guest's other devices begin."""

OUTSIDE = MIB
DATA = POOL.base + 2 * MIB
VM_ID = "00000000-0000-0000-0000-000000000001"
QUICK_S = 0.02


class Guest:
    """A guest as an arm64 one is: memory, the device's pool and four others, each of its own."""

    def __init__(self) -> None:
        self.private = GuestRam(8 * MIB, gpa=PRIVATE)
        self.pool = GuestRam(POOL.size_bytes, gpa=POOL.base)
        self.foreign = [GuestRam(4 * MIB, gpa=gpa) for gpa in FOREIGN]
        self.rams = [self.private, self.pool, *self.foreign]
        self.files = MemoryFiles(self.rams)

    def ring(self, index: int, *, inside: bool = False) -> GuestRing:
        start = POOL.base if inside else OUTSIDE
        return GuestRing(self.pool if inside else self.private, start + index * 0x10000, 16)

    def close(self) -> None:
        for ram in self.rams:
            ram.close()


class Served:
    """A device behind its socket, and a guest."""

    def __init__(self, path: Path, device: VirtioDevice, access: Access) -> None:
        self.path = path
        self.device = device
        self.watcher = Watcher()
        self.meter = DeviceMeter()
        self.guest = Guest()
        self.backend = Backend(device, access, self.meter, self.watcher)
        self.listener = Listener(ListeningSocket.at(path), self.backend)

    @property
    def held(self) -> int:
        """Descriptors of guest memory; the gauge agrees."""
        count = self.guest.files.descriptors()
        assert eventually(lambda: self.meter.guest_descriptors == self.guest.files.descriptors())
        return count

    def holds_none(self) -> bool:
        return eventually(lambda: self.held == 0)

    def close(self) -> None:
        self.listener.close()
        self.device.close()
        self.guest.close()


class ManyRings(EchoDevice):
    """An echo with as many queues as a test wants."""

    def __init__(self, num_queues: int) -> None:
        super().__init__()
        self.num_queues = num_queues


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_descriptors, "SILENCE_S", QUICK_S)


@pytest.fixture
def served(run_dir: Path) -> Iterator[Served]:
    """A device with four rings, whose guest uses one or two."""
    served = Served(run_dir / "s.sock", ManyRings(4), Aperture(POOL))
    yield served
    served.close()


@pytest.fixture
def inside(run_dir: Path) -> Iterator[Served]:
    """The same, with rings=inside."""
    served = Served(run_dir / "s.sock", ManyRings(4), Aperture(POOL, rings_inside=True))
    yield served
    served.close()


def ask(guest: Guest, ring: GuestRing, events: RingEvents, request: bytes) -> bytes:
    """Make one request by a ring, and wait for its answer."""
    offer(guest, ring, request)
    before = ring.used_idx
    os.eventfd_write(events.kick, 1)
    assert eventually(lambda: ring.used_idx != before)
    _, written = ring.completions()[-1]
    return guest.pool.read(DATA + 4096, written)


def offer(guest: Guest, ring: GuestRing, request: bytes) -> None:
    guest.pool.write(DATA, request)
    ring.chain(0, readable=[(DATA, len(request))], writable=[(DATA + 4096, 4096)])
    ring.set_used_event(ring.used_idx)
    ring.offer(0)


def fuse_request(opcode: int, node: int, body: bytes) -> bytes:
    size = fuse.IN_HEADER.size + len(body)
    return fuse.IN_HEADER.pack(size, opcode, 1, node, os.getuid(), os.getgid(), 0, 0) + body


def pages_of(*rings: GuestRing) -> list[tuple[int, int]]:
    """The stretches that are mapped for rings alone: three neighbouring pages each."""
    return [(ring.desc, ring.end - ring.desc) for ring in rings]


@pytest.mark.parametrize("loop", ["native", "Python"])
@pytest.mark.parametrize("queues", range(1, 9))
def test_a_device_with_more_queues_than_its_guest_uses_keeps_to_the_pool_and_its_rings(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queues: int, loop: str
) -> None:
    if loop == "Python":
        monkeypatch.setattr(fastpath, "library", None)
    elif fastpath.library is None:
        pytest.skip("the native fast path was not built: no C compiler (cc)")
    options = FsOptions(name="share", vm_id=VM_ID, queues=queues)
    device = FsDevice(options, FsBackend(str(tmp_path)), 256 << 10)
    served = Served(run_dir / "fs.sock", device, Aperture(POOL))
    guest = served.guest
    try:
        with RawFrontEnd(served.path) as front, RingEvents() as events:
            front.negotiate()
            assert front.attach(*guest.rams) == 0
            assert served.held == 6
            ring = guest.ring(0)
            front.start(1, ring, events)
            init = fuse_request(fuse.Opcode.INIT, 0, fuse.INIT_IN.pack(7, 36, 0, 0, 0))
            assert ask(guest, ring, events, init)
            assert served.holds_none()
            expected = sorted([(POOL.base, POOL.size_bytes), *pages_of(ring)])
            assert guest.files.mapped() == expected
            assert served.watcher.closed == [(6, "the guest makes requests")]
            # What is not mapped by now cannot be any more; the pool can be used for further rings.
            late = queues if queues > 1 else 0
            assert front.state(Request.SET_VRING_NUM, late, 16) == 0
            assert front.set_addr(late, guest.ring(2)) == 1
            assert front.set_addr(late, guest.ring(2, inside=True)) == 0
            getattr_ = fuse_request(fuse.Opcode.GETATTR, 1, bytes(16))
            assert ask(guest, ring, events, getattr_)
            assert served.meter.queue(1).native.requests == (loop == "native")
            assert guest.files.mapped() == expected
        served.watcher.wait_for("disconnected")
        assert guest.files.mapped() == []
        assert served.held == 0
    finally:
        served.close()


@pytest.mark.parametrize("rings", range(1, 10))
def test_when_all_rings_are_placed_nothing_is_kept_before_the_first_request(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, rings: int
) -> None:
    monkeypatch.setattr(held_descriptors, "SILENCE_S", 60.0)
    served = Served(run_dir / "s.sock", ManyRings(rings), Aperture(POOL))
    try:
        with ExitStack() as stack, RawFrontEnd(served.path) as front:
            front.negotiate()
            assert front.attach(*served.guest.rams) == 0
            for index in range(rings):
                assert served.held == 6
                events = stack.enter_context(RingEvents())
                front.start(index, served.guest.ring(index), events)
            assert served.held == 0
            assert served.watcher.closed == [(6, "all rings are placed")]
    finally:
        served.close()


@pytest.mark.parametrize("features", [0, wire.F_PROTOCOL_FEATURES], ids=["", "without protocol"])
def test_a_front_end_that_goes_on_with_requests_may_place_ring_after_ring(
    served: Served, monkeypatch: pytest.MonkeyPatch, features: int
) -> None:
    """A guest is resumed: requests wait in the first ring when it is enabled, before the others."""
    monkeypatch.setattr(held_descriptors, "SILENCE_S", 1.5)
    guest = served.guest
    with RawFrontEnd(served.path) as front, RingEvents() as first, RingEvents() as second:
        front.negotiate(without_virtio=features)
        assert front.attach(*guest.rams) == 0
        rings = [guest.ring(index) for index in range(3)]
        offer(guest, rings[0], b"waits")
        rings[0].next_avail = 0
        os.eventfd_write(first.kick, 1)
        start(front, 0, rings[0], first, enables=not features)
        assert eventually(lambda: rings[0].used_idx == 1)
        rings[0].next_avail = 1
        start(front, 1, rings[1], second, enables=not features)
        assert front.state(Request.SET_VRING_NUM, 2, 16) == 0
        assert front.set_addr(2, rings[2]) == 0
        assert served.holds_none()
        assert ask(guest, rings[1], second, b"more") == b"MORE"


def start(
    front: RawFrontEnd, index: int, ring: GuestRing, events: RingEvents, *, enables: bool
) -> None:
    if enables:
        front.start(index, ring, events)
        return
    assert front.state(Request.SET_VRING_NUM, index, ring.size) == 0
    assert front.state(Request.SET_VRING_BASE, index, ring.next_avail) == 0
    assert front.set_addr(index, ring) == 0
    assert front.command(Request.SET_VRING_CALL, wire.U64.pack(index), [events.call]) == 0
    assert front.command(Request.SET_VRING_KICK, wire.U64.pack(index), [events.kick]) == 0


def test_a_request_that_is_never_answered_counts_too(served: Served) -> None:
    guest = served.guest
    with RawFrontEnd(served.path) as front, RingEvents() as events:
        front.negotiate()
        assert front.attach(*guest.rams) == 0
        ring = guest.ring(0)
        front.start(0, ring, events)
        offer(guest, ring, b"block")
        os.eventfd_write(events.kick, 1)
        assert served.holds_none()
        assert ring.used_idx == 0
        assert isinstance(served.device, EchoDevice)
        served.device.unblock.set()


def test_a_guest_that_breaks_a_rule_with_its_first_request_leaves_nothing_open(
    served: Served,
) -> None:
    """Its buffer is in another device's pool, as with the token of that one."""
    guest = served.guest
    with RawFrontEnd(served.path) as front, RingEvents() as events:
        front.negotiate()
        assert front.attach(*guest.rams) == 0
        ring = guest.ring(0)
        front.start(0, ring, events)
        ring.chain(0, readable=[(FOREIGN[0], 16)])
        ring.offer(0)
        os.eventfd_write(events.kick, 1)
        served.watcher.wait_for("failed ADDRESS_OUT_OF_BOUNDS")
        assert served.holds_none()
        assert guest.files.mapped() == sorted([(POOL.base, POOL.size_bytes), *pages_of(ring)])


def test_a_front_end_that_polls_and_never_kicks_is_seen_by_its_requests(served: Served) -> None:
    guest = served.guest
    with RawFrontEnd(served.path) as front:
        front.negotiate()
        assert front.attach(*guest.rams) == 0
        ring = guest.ring(0)
        assert front.state(Request.SET_VRING_NUM, 0, ring.size) == 0
        assert front.set_addr(0, ring) == 0
        no_fd = wire.U64.pack(0 | wire.VRING_NO_FD)
        assert front.command(Request.SET_VRING_KICK, no_fd) == 0
        assert front.command(Request.SET_VRING_CALL, no_fd) == 0
        assert front.state(Request.SET_VRING_ENABLE, 0, 1) == 0
        assert served.held == 6
        offer(guest, ring, b"polled")
        assert eventually(lambda: ring.used_idx == 1)
        assert served.holds_none()


def test_without_any_request_the_descriptors_are_closed_when_no_ring_has_come_for_long(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_descriptors, "SETTLED_S", 0.3)
    guest = served.guest
    with RawFrontEnd(served.path) as front, RingEvents() as events:
        front.negotiate()
        assert front.attach(*guest.rams) == 0
        ring = guest.ring(0)
        began = time.monotonic()
        front.start(0, ring, events)
        assert served.holds_none()
        assert time.monotonic() - began >= 0.3
        assert served.watcher.closed == [(6, "no further ring was placed for 0.3 s")]
        assert ask(guest, ring, events, b"late") == b"LATE"


def test_while_no_ring_runs_rings_may_still_be_placed_anywhere(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A front-end that never starts a ring: no guest can reach the device, so nothing is closed."""
    monkeypatch.setattr(held_descriptors, "SETTLED_S", 0.0)
    guest = served.guest
    with RawFrontEnd(served.path) as front, RingEvents() as events:
        front.negotiate()
        assert front.attach(*guest.rams) == 0
        assert front.state(Request.SET_VRING_NUM, 0, 16) == 0
        assert front.set_addr(0, guest.ring(0)) == 0
        time.sleep(10 * QUICK_S)
        assert served.held == 6
        front.start(1, guest.ring(1), events)
        assert served.holds_none()


def test_a_table_that_is_sent_again_is_given_up_again_and_rings_may_have_moved(
    served: Served,
) -> None:
    guest = served.guest
    with RawFrontEnd(served.path) as front, RingEvents() as first, RingEvents() as second:
        front.negotiate()
        assert front.attach(*guest.rams) == 0
        ring, other = guest.ring(0), guest.ring(1)
        front.start(0, ring, first)
        assert ask(guest, ring, first, b"one") == b"ONE"
        assert served.holds_none()
        assert front.state(Request.SET_VRING_NUM, 1, 16) == 0
        assert front.set_addr(1, other) == 1
        # While the first one runs, as a front-end does when memory is added to its guest.
        more = GuestRam(4 * MIB, gpa=64 * MIB)
        files = MemoryFiles([more])
        assert front.attach(*guest.rams, more) == 0
        assert served.guest.files.descriptors() == 6
        assert served.meter.guest_descriptors == 7
        front.start(1, other, second)
        assert ask(guest, other, second, b"two") == b"TWO"
        assert ask(guest, ring, first, b"three") == b"THREE"
        assert served.holds_none()
        assert (files.descriptors(), files.mapped()) == (0, [])
        assert guest.files.mapped() == sorted(
            [(POOL.base, POOL.size_bytes), *pages_of(ring, other)]
        )
        more.close()
    assert [count for count, _ in served.watcher.closed] == [6, 7]


def test_a_front_end_that_only_disables_rings_may_place_them_elsewhere(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cloud Hypervisor does not stop the rings of a driver that is loaded anew."""
    monkeypatch.setattr(held_descriptors, "SILENCE_S", 1.5)
    served = Served(run_dir / "s.sock", ManyRings(2), Aperture(POOL))
    guest = served.guest
    try:
        with RawFrontEnd(served.path) as front, RingEvents() as first, RingEvents() as second:
            front.negotiate()
            for place in (0, 2):
                assert front.attach(*guest.rams) == 0
                assert served.held == 6
                for index, events in enumerate((first, second)):
                    front.start(index, guest.ring(place + index), events)
                assert served.held == 0
                assert ask(guest, guest.ring(place), first, b"hello") == b"HELLO"
                for index in range(2):
                    assert front.state(Request.SET_VRING_ENABLE, index, 0) == 0
    finally:
        served.close()


def test_memory_that_is_added_alone_is_refused_and_closed_and_the_device_goes_on(
    served: Served,
) -> None:
    """ADD_MEM_REG was not offered: a front-end sends the whole table instead."""
    guest = served.guest
    more = GuestRam(4 * MIB, gpa=64 * MIB)
    files = MemoryFiles([more])
    with RawFrontEnd(served.path) as front, RingEvents() as events:
        front.negotiate()
        offered = front.ask_u64(Request.GET_PROTOCOL_FEATURES)
        assert not offered & wire.PROTOCOL_F_CONFIGURE_MEM_SLOTS
        assert front.attach(*guest.rams) == 0
        ring = guest.ring(0)
        front.start(0, ring, events)
        assert ask(guest, ring, events, b"one") == b"ONE"
        assert served.holds_none()
        region = wire.MemRegion(more.gpa, more.size_bytes, USER_BASE + more.gpa, 0)
        payload = wire.pack_single_region(region)
        assert front.command(Request.ADD_MEM_REG, payload, [more.fd]) == 1
        assert (files.descriptors(), files.mapped()) == (0, [])
        assert ask(guest, ring, events, b"two") == b"TWO"
    more.close()


def test_each_front_end_begins_anew(served: Served) -> None:
    guest = served.guest
    for times in (1, 2):
        with RawFrontEnd(served.path) as front, RingEvents() as events:
            front.negotiate()
            assert front.attach(*guest.rams) == 0
            ring = guest.ring(0)
            guest.private.write(ring.desc, bytes(ring.end - ring.desc))
            assert served.held == 6
            front.start(times, ring, events)
            assert ask(guest, ring, events, b"hello") == b"HELLO"
            assert served.holds_none()
        served.watcher.wait_for("disconnected", times)
        assert guest.files.mapped() == []
    assert served.watcher.closed == [(6, "the guest makes requests")] * 2


def test_a_table_without_the_pool_is_closed_and_so_is_the_one_before(served: Served) -> None:
    guest = served.guest
    with RawFrontEnd(served.path) as front:
        front.negotiate()
        assert front.attach(*guest.rams) == 0
        assert served.held == 6
        assert front.attach(guest.private, *guest.foreign) == 1
        assert served.held == 0
        assert guest.files.mapped() == []


def test_one_that_leaves_before_anything_was_closed_leaves_nothing_open(served: Served) -> None:
    with RawFrontEnd(served.path) as front:
        front.negotiate()
        assert front.attach(*served.guest.rams) == 0
        assert served.held == 6
    served.watcher.wait_for("disconnected")
    assert served.held == 0
    assert served.watcher.closed == []


def test_a_front_end_thread_that_has_closed_all_of_them_sleeps(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    look = served.backend.look

    def look_and_count() -> None:
        looks.append(time.monotonic())
        look()

    monkeypatch.setattr(served.backend, "look", look_and_count)
    guest = served.guest
    with RawFrontEnd(served.path) as front, RingEvents() as events:
        front.negotiate()
        assert front.attach(*guest.rams) == 0
        ring = guest.ring(0)
        front.start(0, ring, events)
        assert ask(guest, ring, events, b"hello") == b"HELLO"
        assert served.holds_none()
        seen = len(looks)
        assert seen
        time.sleep(10 * QUICK_S)
        assert len(looks) == seen


@pytest.mark.parametrize("access", [Windows(WindowQuota()), Whole()], ids=["windows", "whole"])
def test_what_is_not_confined_to_a_pool_keeps_its_descriptors_and_shows_them(
    run_dir: Path, access: Access
) -> None:
    served = Served(run_dir / "s.sock", ManyRings(2), access)
    guest = served.guest
    try:
        with RawFrontEnd(served.path) as front, RingEvents() as events:
            front.negotiate()
            assert front.attach(*guest.rams) == 0
            ring = guest.ring(0)
            front.start(0, ring, events)
            assert ask(guest, ring, events, b"hello") == b"HELLO"
            time.sleep(5 * QUICK_S)
            assert served.held == 6
            assert served.backend.look_interval_ms() is None
        assert served.watcher.closed == []
    finally:
        served.close()


def test_with_rings_inside_everything_is_closed_at_once(inside: Served) -> None:
    guest = inside.guest
    with RawFrontEnd(inside.path) as front, RingEvents() as events:
        front.negotiate()
        assert front.attach(*guest.rams) == 0
        assert guest.files.descriptors() == 0
        assert inside.meter.guest_descriptors == 0
        assert guest.files.mapped() == [(POOL.base, POOL.size_bytes)]
        assert inside.watcher.closed == [(6, "rings are inside the pool")]
        assert front.state(Request.SET_VRING_NUM, 1, 16) == 0
        assert front.set_addr(1, guest.ring(1)) == 1, "a ring outside"
        half = GuestRing(guest.pool, POOL.end - 4096, 16)
        assert front.set_addr(1, half) == 1, "its other parts are outside"
        ring = guest.ring(0, inside=True)
        front.start(0, ring, events)
        assert ask(guest, ring, events, b"hello") == b"HELLO"
        assert guest.files.mapped() == [(POOL.base, POOL.size_bytes)]
    inside.watcher.wait_for("disconnected")
    assert inside.meter.snapshot().translations_refused == 2


@pytest.mark.parametrize("place", ["another pool", "nowhere"])
@pytest.mark.parametrize("rings_inside", [True, False])
def test_a_wrong_token_opens_nothing_either(
    run_dir: Path, place: str, rings_inside: bool, caplog: pytest.LogCaptureFixture
) -> None:
    base = FOREIGN[1] if place == "another pool" else 1 << 40
    wrong = SwiotlbPool(Gpa(base), 4 * MIB)
    access = Aperture(wrong, rings_inside=rings_inside)
    served = Served(run_dir / "s.sock", ManyRings(4), access)
    guest = served.guest
    mapped = [(base, 4 * MIB)] if place == "another pool" else []
    try:
        with RawFrontEnd(served.path) as front, RingEvents() as events:
            front.negotiate()
            assert front.attach(*guest.rams) == int(not mapped)
            assert guest.files.mapped() == mapped
            if rings_inside or not mapped:
                assert served.held == 0
            # The guest has its rings where it believes its pool to be.
            ring = guest.ring(0, inside=True)
            assert front.state(Request.SET_VRING_NUM, 0, 16) == 0
            assert front.set_addr(0, ring) == int(rings_inside and bool(mapped))
            if mapped and not rings_inside:
                front.start(0, ring, events)
                offer(guest, ring, b"wrong")
                os.eventfd_write(events.kick, 1)
                served.watcher.wait_for("failed ADDRESS_OUT_OF_BOUNDS")
                assert served.holds_none()
                mapped = sorted([*mapped, *pages_of(ring)])
            assert served.held == 0
            assert guest.files.mapped() == mapped
        served.watcher.wait_for("disconnected")
    finally:
        served.close()
    if rings_inside and mapped:
        assert served.watcher.last_kept_out is not None
        assert served.watcher.last_kept_out.reason == "RING_OUTSIDE_APERTURE"
        assert (
            "with rings=inside the device maps its pool alone"
            in served.watcher.last_kept_out.message
        )


def test_a_device_with_a_part_of_the_pool_has_nothing_of_the_other_parts(run_dir: Path) -> None:
    """The whole pool is five memory files; the device keeps its own, and by a mapping alone."""
    whole = SwiotlbPool(POOL.base, FOREIGN[-1] + 4 * MIB - POOL.base)
    served = Served(run_dir / "s.sock", ManyRings(4), confined(whole, WindowQuota(), POOL))
    guest = served.guest
    try:
        with RawFrontEnd(served.path) as front, RingEvents() as events:
            front.negotiate()
            assert front.attach(guest.pool, *guest.foreign) == 0
            assert served.held == 0
            assert guest.files.mapped() == [(POOL.base, POOL.size_bytes)]
            assert served.watcher.closed == [(5, "rings are inside the pool")]
            assert front.state(Request.SET_VRING_NUM, 1, 16) == 0
            another = GuestRing(guest.foreign[0], FOREIGN[0], 16)
            assert front.set_addr(1, another) == 1, "a ring in another device's part"
            ring = guest.ring(0, inside=True)
            front.start(0, ring, events)
            assert ask(guest, ring, events, b"hello") == b"HELLO"
            guest.foreign[0].write(FOREIGN[0], b"secret")
            ring.chain(0, readable=[(FOREIGN[0], 6)], writable=[(DATA, 4096)])
            ring.offer(0)
            os.eventfd_write(events.kick, 1)
            served.watcher.wait_for("failed ADDRESS_OUT_OF_BOUNDS")
            assert served.held == 0
            assert guest.files.mapped() == [(POOL.base, POOL.size_bytes)]
        served.watcher.wait_for("disconnected")
        assert served.meter.snapshot().translations_refused == 2
    finally:
        served.close()


def test_a_device_whose_part_is_not_there_attaches_nothing(run_dir: Path) -> None:
    whole = SwiotlbPool(POOL.base, FOREIGN[-1] + 4 * MIB - POOL.base)
    served = Served(run_dir / "s.sock", ManyRings(1), confined(whole, WindowQuota(), POOL))
    guest = served.guest
    try:
        with RawFrontEnd(served.path) as front:
            front.negotiate()
            assert front.attach(*guest.foreign) == 1
            assert served.held == 0
            assert guest.files.mapped() == []
        served.watcher.wait_for("disconnected")
        assert served.watcher.last_kept_out is not None
        assert served.watcher.last_kept_out.reason == "POOL_NOT_IN_GUEST_MEMORY"
    finally:
        served.close()


def test_with_rings_inside_a_table_under_a_ring_that_moved_out_is_refused(inside: Served) -> None:
    """The addresses of a ring are the front-end's, so a new table may put it somewhere else."""
    guest = inside.guest
    with RawFrontEnd(inside.path) as front, RingEvents() as events:
        front.negotiate()
        assert front.attach(*guest.rams) == 0
        ring = guest.ring(0, inside=True)
        front.start(0, ring, events)
        assert ask(guest, ring, events, b"hello") == b"HELLO"
        regions = [
            wire.MemRegion(guest.private.gpa, guest.private.size_bytes, USER_BASE + POOL.base, 0),
            wire.MemRegion(POOL.base, POOL.size_bytes, USER_BASE, 0),
        ]
        table = wire.pack_mem_table(regions)
        fds = [guest.private.fd, guest.pool.fd]
        assert front.command(Request.SET_MEM_TABLE, table, fds) == 1
        assert guest.files.mapped() == []
        assert inside.held == 0
        with suppress(BlockingIOError):
            os.preadv(events.call, [bytearray(8)], -1, os.RWF_NOWAIT)
        offer(guest, ring, b"again")
        os.eventfd_write(events.kick, 1)
        assert not select.select([events.call], [], [], 0.1)[0]
