"""A device behind its socket: real descriptors, real memory, real threads."""

from __future__ import annotations

import os
import resource
import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from services.devicehost.memory import Windows
from services.devicehost.vhost_user import Listener, ListeningSocket, listener, worker
from services.handshake.errors import PermissionDeniedError
from services.wire import vhost_user as wire
from services.wire.vhost_user import Request
from services.wire.virtio_ring import F_EVENT_IDX
from tests.support.descriptors import open_fds
from tests.support.front_end import RawFrontEnd, RingEvents
from tests.support.guest_ring import USER_BASE, GuestRam, GuestRing
from tests.unit.devicehost.memory.test_aperture import mapped_bytes
from tests.unit.devicehost.vhost_user.conftest import (
    MIB,
    POOL,
    eventually,
    guest_fds,
    workers,
)

if TYPE_CHECKING:
    from tests.unit.devicehost.vhost_user.conftest import Service

DATA = POOL.base + 2 * MIB
INSIDE = POOL.base
OUTSIDE = 20 * MIB


def echo(ring: GuestRing, events: RingEvents, text: bytes = b"hello", data: int = DATA) -> bytes:
    """Send one request through the ring and wait for its answer by the call descriptor."""
    ring.ram.write(data, text)
    ring.chain(0, readable=[(data, len(text))], writable=[(data + 4096, 64)])
    before = ring.used_idx
    ring.set_used_event(before)
    ring.offer(0)
    os.eventfd_write(events.kick, 1)
    while ring.used_idx == before:
        ready, _, _ = select.select([events.call], [], [], 10)
        assert ready, "no notification came"
        os.eventfd_read(events.call)
    head, written = ring.completions()[-1]
    assert head == 0
    return ring.ram.read(data + 4096, written)


@pytest.mark.parametrize("where", [INSIDE, OUTSIDE], ids=["ring inside", "ring outside"])
def test_a_request_goes_through_an_aperture(service: Service, where: int) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        assert front.attach(service.ram) == 0
        ring = GuestRing(service.ram, where, 64)
        front.start(0, ring, events)
        assert echo(ring, events) == b"HELLO"
        service.watcher.wait_for("first request")
        assert front.get_base(0) == 1
    service.watcher.wait_for("disconnected")
    assert service.watcher.calls == [
        "connected",
        "attached",
        "doorbell 0",
        "first request",
        "disconnected",
    ]
    assert service.device.log[-1] == "reset"


def test_a_request_goes_through_windows(window_service: Service) -> None:
    service = window_service
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        assert front.attach(service.ram) == 0
        ring = GuestRing(service.ram, OUTSIDE, 64)
        front.start(0, ring, events)
        assert echo(ring, events, data=0) == b"HELLO"
        assert service.meter.snapshot().windows_mapped == 2
    service.watcher.wait_for("disconnected")
    assert isinstance(service.access, Windows)
    assert service.access.quota.used == 0


def test_only_the_pool_and_the_rings_outside_it_are_mapped_and_no_descriptor_stays(
    service: Service,
) -> None:
    mapped, fds = mapped_bytes(), guest_fds()
    with RawFrontEnd(service.path) as front, RingEvents() as first, RingEvents() as second:
        front.negotiate()
        assert front.attach(service.ram) == 0
        assert guest_fds() == fds + 1, "rings may still be anywhere"
        inside = GuestRing(service.ram, INSIDE, 64)
        outside = GuestRing(service.ram, OUTSIDE, 64)
        front.start(0, inside, first)
        assert guest_fds() == fds + 1
        front.start(1, outside, second)
        assert guest_fds() == fds, "all rings have their addresses"
        new = [span for span in mapped_bytes() if span not in mapped]
        ring_pages = [(part, 4096) for part in (outside.desc, outside.avail, outside.used)]
        merged = sum(length for _, length in new)
        assert (POOL.base, POOL.size_bytes) in new
        assert merged == POOL.size_bytes + len(ring_pages) * 4096
        assert echo(inside, first) == b"HELLO"
        assert echo(outside, second, data=DATA + 8192) == b"HELLO"
        # From now on nothing outside the pool is taken.
        assert front.get_base(1) == 1
        assert front.set_addr(1, GuestRing(service.ram, OUTSIDE + MIB, 64)) == 1
        assert front.set_addr(1, GuestRing(service.ram, INSIDE + MIB, 64)) == 0
    service.watcher.wait_for("disconnected")
    assert mapped_bytes() == mapped
    assert guest_fds() == fds


def test_a_pool_that_is_not_in_guest_memory_is_refused_and_the_device_goes_on(
    service: Service,
) -> None:
    small = GuestRam(4 * MIB)
    fds = guest_fds()
    with RawFrontEnd(service.path) as front:
        front.negotiate()
        assert front.attach(small) == 1
        assert guest_fds() == fds
        assert front.attach(service.ram) == 0
    small.close()


def test_the_pool_may_be_in_any_region(service: Service) -> None:
    low = GuestRam(4 * MIB)
    high = GuestRam(16 * MIB, gpa=4 * MIB, file_offset=MIB)
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        assert front.attach(low, high) == 0
        ring = GuestRing(low, 0, 16)
        front.start(0, ring, events)
        high.write(DATA, b"two regions")
        ring.chain(0, readable=[(DATA, 11)], writable=[(DATA + 4096, 64)])
        ring.offer(0)
        os.eventfd_write(events.kick, 1)
        assert select.select([events.call], [], [], 10)[0]
        assert high.read(DATA + 4096, 11) == b"TWO REGIONS"
    service.watcher.wait_for("disconnected")
    low.close()
    high.close()


def test_an_address_outside_the_aperture_makes_the_device_need_a_reset_and_reset_helps(
    service: Service,
) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        assert front.attach(service.ram) == 0
        ring = GuestRing(service.ram, INSIDE, 16)
        front.start(0, ring, events)
        ring.chain(0, readable=[(0, 16)])
        ring.offer(0)
        os.eventfd_write(events.kick, 1)
        service.watcher.wait_for("failed ADDRESS_OUT_OF_BOUNDS")
        assert ring.completions() == [(0, 0)]
        assert select.select([events.err], [], [], 10)[0], "the front-end is notified"
        assert service.meter.snapshot().translations_refused == 1
        # It serves nothing: a lawful request stays where it is.
        ring.chain(0, readable=[(DATA, 4)], writable=[(DATA + 4096, 4)])
        ring.offer(0)
        os.eventfd_write(events.kick, 1)
        assert front.command(Request.RESET_DEVICE) == 0
        assert ring.used_idx == 1
        service.watcher.wait_for("was reset")
        fresh = GuestRing(service.ram, INSIDE + MIB, 16)
        front.start(0, fresh, events)
        assert echo(fresh, events) == b"HELLO"


def test_stopping_every_ring_is_a_reset_too(service: Service) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        front.attach(service.ram)
        ring = GuestRing(service.ram, INSIDE, 16)
        front.start(0, ring, events)
        ring.describe(0, DATA, 8, flags=1, following=0)
        ring.offer(0)
        os.eventfd_write(events.kick, 1)
        service.watcher.wait_for("failed DESCRIPTOR_LOOP")
        front.get_base(0)
        service.watcher.wait_for("was reset")


def test_a_guest_that_is_paused_goes_on_with_the_device_it_had(service: Service) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        front.attach(service.ram)
        ring = GuestRing(service.ram, OUTSIDE, 16)
        front.start(0, ring, events)
        assert echo(ring, events) == b"HELLO"
        ring.next_avail = front.get_base(0)
        front.attach(service.ram)
        front.start(0, ring, events)
        assert echo(ring, events, b"again") == b"AGAIN"
        assert [what.split()[0] for what in service.device.log] == ["activate"]
    service.watcher.wait_for("disconnected")
    assert service.device.log[-1] == "reset"


def test_a_driver_that_is_loaded_anew_may_put_its_rings_elsewhere(service: Service) -> None:
    fds = guest_fds()
    with RawFrontEnd(service.path) as front, RingEvents() as first, RingEvents() as second:
        front.negotiate()
        for place in (OUTSIDE, OUTSIDE + 2 * MIB):
            assert front.attach(service.ram) == 0
            assert guest_fds() == fds + 1
            rings = [GuestRing(service.ram, place + n * MIB, 16) for n in range(2)]
            front.start(0, rings[0], first)
            front.start(1, rings[1], second)
            assert guest_fds() == fds
            assert echo(rings[0], first) == b"HELLO"
            assert [front.get_base(0), front.get_base(1)] == [1, 0]


def test_a_refused_table_changes_nothing_for_rings_that_run(service: Service) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        front.attach(service.ram)
        ring = GuestRing(service.ram, INSIDE, 16)
        front.start(0, ring, events)
        bad = wire.pack_mem_table([wire.MemRegion(0, 1 << 40, USER_BASE, 0)])
        assert front.command(Request.SET_MEM_TABLE, bad, [service.ram.fd]) == 1
        assert echo(ring, events) == b"HELLO"


def test_a_fault_of_the_device_is_not_the_end_of_the_process(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        front.attach(service.ram)
        ring = GuestRing(service.ram, INSIDE, 16)
        front.start(0, ring, events)
        service.ram.write(DATA, b"fail")
        ring.chain(0, readable=[(DATA, 4)], writable=[(DATA + 4096, 4)])
        ring.offer(0)
        os.eventfd_write(events.kick, 1)
        service.watcher.wait_for("failed DEVICE_FAILED")
        assert front.ask_u64(Request.GET_QUEUE_NUM) == 2
    assert "on purpose" in caplog.text


@pytest.mark.parametrize("where", [INSIDE, OUTSIDE], ids=["ring inside", "ring outside"])
@pytest.mark.parametrize("without", [0, F_EVENT_IDX], ids=["event index", "flags"])
def test_a_worker_that_is_stuck_is_left_behind_and_harms_nobody(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: int,
    without: int,
) -> None:
    """A ring outside the pool has pages of its own; touching them unmapped would kill us all."""
    monkeypatch.setattr(worker, "STOP_DEADLINE_S", 0.05)
    mapped = mapped_bytes()
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate(without_virtio=without)
        front.attach(service.ram)
        ring = GuestRing(service.ram, where, 16)
        front.start(0, ring, events)
        service.ram.write(DATA, b"block")
        ring.chain(0, readable=[(DATA, 5)], writable=[(DATA + 4096, 5)])
        ring.offer(0)
        os.eventfd_write(events.kick, 1)
        assert service.device.blocked.wait(10)
        assert front.get_base(0) == 1
    service.watcher.wait_for("disconnected")
    assert "leaving it behind" in caplog.text
    assert mapped_bytes() != mapped, "what it may touch stays mapped"
    service.device.unblock.set()
    assert eventually(lambda: mapped_bytes() == mapped)
    assert ring.used_idx == 0


def test_rings_run_only_while_enabled_and_go_on_where_they_stopped(service: Service) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        front.attach(service.ram)
        ring = GuestRing(service.ram, INSIDE, 16)
        front.start(0, ring, events)
        assert echo(ring, events, b"one") == b"ONE"
        assert front.state(Request.SET_VRING_ENABLE, 0, 0) == 0
        ring.ram.write(DATA, b"two")
        ring.chain(0, readable=[(DATA, 3)], writable=[(DATA + 4096, 64)])
        ring.offer(0)
        os.eventfd_write(events.kick, 1)
        assert front.state(Request.SET_VRING_NUM, 0, 16) == 0  # answered after the kick
        assert ring.used_idx == 1
        assert front.state(Request.SET_VRING_ENABLE, 0, 1) == 0
        while ring.used_idx == 1:
            assert select.select([events.call], [], [], 10)[0]
            os.eventfd_read(events.call)
        assert front.get_base(0) == 2


def test_without_protocol_features_a_ring_runs_at_once(service: Service) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate(without_virtio=wire.F_PROTOCOL_FEATURES)
        front.attach(service.ram)
        ring = GuestRing(service.ram, INSIDE, 16)
        assert front.state(Request.SET_VRING_NUM, 0, 16) == 0
        assert front.set_addr(0, ring) == 0
        assert front.command(Request.SET_VRING_CALL, wire.U64.pack(0), [events.call]) == 0
        assert front.command(Request.SET_VRING_KICK, wire.U64.pack(0), [events.kick]) == 0
        assert echo(ring, events) == b"HELLO"


def test_memory_may_change_while_rings_run(service: Service) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as first, RingEvents() as second:
        front.negotiate()
        front.attach(service.ram)
        rings = [GuestRing(service.ram, INSIDE + n * MIB, 16) for n in range(2)]
        front.start(0, rings[0], first)
        front.start(1, rings[1], second)
        assert echo(rings[0], first) == b"HELLO"
        assert front.attach(service.ram) == 0
        assert echo(rings[0], first, b"again") == b"AGAIN"
        assert echo(rings[1], second, b"both") == b"BOTH"
        assert front.get_base(0) == 2


def test_regions_are_added_and_removed_for_a_device_with_windows(window_service: Service) -> None:
    service = window_service
    fds = guest_fds()
    region = wire.MemRegion(0, service.ram.size_bytes, USER_BASE, 0)
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        assert front.ask_u64(Request.GET_MAX_MEM_SLOTS) == 32
        payload = wire.pack_single_region(region)
        assert front.command(Request.ADD_MEM_REG, payload, [service.ram.fd]) == 0
        assert guest_fds() == fds + 1
        ring = GuestRing(service.ram, OUTSIDE, 16)
        front.start(0, ring, events)
        assert echo(ring, events) == b"HELLO"
        front.get_base(0)
        # A descriptor that comes with a removal is closed unused.
        assert front.command(Request.REM_MEM_REG, payload, [service.ram.fd]) == 0
        assert guest_fds() == fds
        assert front.command(Request.REM_MEM_REG, payload) == 1


def test_a_doorbell_that_is_refused_leaves_the_ring_stopped(service: Service) -> None:
    service.watcher.refuse_doorbell = PermissionDeniedError("DOORBELL_LIMIT", "no more")
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        front.attach(service.ram)
        before = open_fds()
        assert front.command(Request.SET_VRING_KICK, wire.U64.pack(0), [events.kick]) == 1
        assert open_fds() == before


def test_what_is_no_eventfd_is_refused(service: Service) -> None:
    read_end, write_end = os.pipe()
    try:
        with RawFrontEnd(service.path) as front:
            front.negotiate()
            for request in (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR):
                for fd in (read_end, service.ram.fd):
                    assert front.command(request, wire.U64.pack(0), [fd]) == 1
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize(
    ("request_", "num"),
    [
        (Request.SET_VRING_NUM, 0),
        (Request.SET_VRING_NUM, 3),
        (Request.SET_VRING_NUM, 65536),
        (Request.SET_VRING_BASE, 65536),
    ],
)
def test_ring_numbers_are_checked(service: Service, request_: Request, num: int) -> None:
    with RawFrontEnd(service.path) as front:
        front.negotiate()
        assert front.state(request_, 0, num) == 1


def test_ring_addresses_are_checked(service: Service) -> None:
    with RawFrontEnd(service.path) as front:
        front.negotiate()
        front.attach(service.ram)
        assert front.set_addr(0, GuestRing(service.ram, INSIDE, 16)) == 1, "no size yet"
        front.state(Request.SET_VRING_NUM, 0, 16)
        assert front.set_addr(0, GuestRing(service.ram, 2**46, 16)) == 1, "not in memory"
        assert front.set_addr(0, GuestRing(service.ram, INSIDE + 8, 16)) == 1, "not aligned"
        assert front.set_addr(0, GuestRing(service.ram, INSIDE, 16)) == 0


@pytest.mark.parametrize("what", ["memory", "ring", "order"])
def test_who_leaves_without_a_ring_leaves_the_refusal(service: Service, what: str) -> None:
    small = GuestRam(4 * MIB)
    with RawFrontEnd(service.path) as front:
        front.negotiate()
        if what == "memory":
            assert front.attach(small) == 1
        else:
            assert front.attach(service.ram) == 0
            assert what == "order" or front.state(Request.SET_VRING_NUM, 0, 16) == 0
            assert front.set_addr(0, GuestRing(service.ram, 2**46, 16)) == 1
        reason = {
            "memory": "POOL_NOT_IN_GUEST_MEMORY",
            "ring": "ADDRESS_OUT_OF_BOUNDS",
            "order": "RING_SIZE_FIRST",
        }[what]
        assert service.watcher.calls.count(f"kept out {reason}") == 1, "said at once"
    small.close()
    service.watcher.wait_for("disconnected")
    assert service.watcher.last_kept_out is not None
    assert service.watcher.last_kept_out.reason == reason
    with RawFrontEnd(service.path) as front:
        front.negotiate()
    service.watcher.wait_for("disconnected", 2)
    assert service.watcher.last_kept_out is None, "the next one was refused nothing"


def test_a_refusal_beside_a_ring_that_was_served_is_not_why(service: Service) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        assert front.attach(service.ram) == 0
        assert front.set_addr(1, GuestRing(service.ram, INSIDE, 16)) == 1, "no size yet"
        front.start(0, GuestRing(service.ram, INSIDE, 16), events)
        assert front.set_addr(1, GuestRing(service.ram, INSIDE, 16)) == 1
        assert service.watcher.calls.count("kept out RING_SIZE_FIRST") == 1, "the first only"
    service.watcher.wait_for("disconnected")
    assert service.watcher.last_kept_out is None


def test_what_a_running_ring_stands_on_cannot_be_changed(service: Service) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        features = front.negotiate()
        front.attach(service.ram)
        ring = GuestRing(service.ram, INSIDE, 16)
        front.start(0, ring, events)
        assert front.state(Request.SET_VRING_NUM, 0, 32) == 1
        assert front.state(Request.SET_VRING_BASE, 0, 7) == 1
        assert front.set_addr(0, GuestRing(service.ram, INSIDE + MIB, 16)) == 1
        assert front.set_addr(0, ring) == 0, "the same addresses again change nothing"
        assert front.command(Request.SET_FEATURES, wire.U64.pack(features & ~(1 << 29))) == 1
        assert front.command(Request.SET_FEATURES, wire.U64.pack(features)) == 0
        assert echo(ring, events) == b"HELLO"


def test_config_is_read_only(service: Service) -> None:
    with RawFrontEnd(service.path) as front:
        front.negotiate()
        assert front.command(Request.SET_CONFIG, wire.Config(0, 2, 0, b"xy").pack()) == 1
        answer = front.ask(Request.GET_CONFIG, wire.Config(0, 6, 0, bytes(6)).pack())
        assert wire.Config.parse(answer) == wire.Config(0, 6, 0, b"config")


def test_connections_come_and_go_without_a_trace(service: Service) -> None:
    def once() -> None:
        with RawFrontEnd(service.path) as front, RingEvents() as events:
            front.negotiate()
            channel = os.eventfd(0)
            assert front.command(Request.SET_BACKEND_REQ_FD, fds=[channel]) == 0
            os.close(channel)
            front.attach(service.ram)
            ring = GuestRing(service.ram, INSIDE, 16)
            service.ram.write(ring.desc, bytes(ring.end - ring.desc))
            front.start(0, ring, events)
            assert echo(ring, events) == b"HELLO"

    fds, mapped = open_fds(), mapped_bytes()
    for _ in range(5):
        once()
    assert eventually(lambda: open_fds() == fds)
    assert mapped_bytes() == mapped


def test_a_second_front_end_is_served_after_the_first(service: Service) -> None:
    with RawFrontEnd(service.path) as first:
        assert first.ask_u64(Request.GET_QUEUE_NUM) == 2
        with RawFrontEnd(service.path) as second:
            second.send(Request.GET_QUEUE_NUM)
            first.socket.close()
            header, _ = second.receive()
            assert header.request == Request.GET_QUEUE_NUM
    assert service.watcher.calls[:3] == ["connected", "disconnected", "connected"]


def test_a_front_end_waits_while_the_process_has_no_descriptor_left(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "ACCEPT_RETRY_MS", 1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with RawFrontEnd(service.path) as first:
        first.negotiate()
        second = RawFrontEnd(service.path)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            first.socket.close()
            assert eventually(lambda: "cannot accept a front-end" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with second:
        second.negotiate()


def test_a_ring_that_gets_no_thread_is_refused_and_the_device_goes_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        front.attach(service.ram)
        ring = GuestRing(service.ram, OUTSIDE, 16)
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", _no_thread)
            with pytest.raises(AssertionError):
                front.start(0, ring, events)
        assert front.state(Request.SET_VRING_ENABLE, 0, 1) == 0
        assert front.command(Request.SET_VRING_CALL, wire.U64.pack(0), [events.call]) == 0
        assert echo(ring, events) == b"HELLO"


def _no_thread(_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_closing_removes_the_socket_and_drops_the_front_end(service: Service) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        front.attach(service.ram)
        front.start(0, GuestRing(service.ram, INSIDE, 16), events)
        service.listener.close()
        assert front.is_closed()
        assert not service.path.exists()
    # The socket can be made again, and the fixture closes it.
    service.listener = Listener(ListeningSocket.at(service.path), service.backend)


def test_the_next_front_end_finds_no_features_negotiated(service: Service) -> None:
    with RawFrontEnd(service.path) as front:
        front.negotiate()
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        protocol = front.ask_u64(Request.GET_PROTOCOL_FEATURES)
        front.send(Request.SET_PROTOCOL_FEATURES, wire.U64.pack(protocol))
        front.attach(service.ram)
        front.start(0, GuestRing(service.ram, INSIDE, 16), events)
    service.watcher.wait_for("disconnected", 2)
    assert service.device.log == ["activate 0x0", "reset"]


def test_other_features_mean_another_driver_so_the_device_is_reset_first(service: Service) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        features = front.negotiate()
        front.attach(service.ram)
        ring = GuestRing(service.ram, INSIDE, 16)
        front.start(0, ring, events)
        front.get_base(0)
        fewer = features & ~F_EVENT_IDX
        assert front.command(Request.SET_FEATURES, wire.U64.pack(fewer)) == 0
        front.start(0, ring, events)
        assert service.device.log == [
            f"activate {features:#x}",
            "reset",
            f"activate {fewer:#x}",
        ]


def test_no_ring_is_served_while_guest_memory_changes(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[set[str]] = []
    attached = service.watcher.attached

    def attached_and_looks() -> None:
        served.append(workers())
        attached()

    monkeypatch.setattr(service.watcher, "attached", attached_and_looks)
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        front.attach(service.ram)
        front.start(0, GuestRing(service.ram, INSIDE, 16), events)
        assert workers() == {"virtio-fs-q0"}
        assert front.attach(service.ram) == 0
        assert workers() == {"virtio-fs-q0"}
    assert served == [set(), set()]


def test_a_doorbell_is_given_up_with_its_ring(service: Service) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as first, RingEvents() as second:
        front.negotiate()
        front.attach(service.ram)
        front.start(0, GuestRing(service.ram, INSIDE, 16), first)
        front.start(1, GuestRing(service.ram, INSIDE + MIB, 16), second)
        assert service.watcher.doorbells == {0, 1}
        front.get_base(0)
        assert service.watcher.doorbells == {1}
        assert front.command(Request.RESET_DEVICE) == 0
        assert service.watcher.doorbells == set()


def test_the_back_ends_channel_stays_open_until_it_is_replaced_or_the_front_end_goes(
    service: Service,
) -> None:
    """An end of file on it would look to a front-end like a crashed back-end."""
    first, second = (socket.socketpair() for _ in range(2))
    with RawFrontEnd(service.path) as front:
        front.negotiate()
        for ours, theirs in (first, second):
            assert front.command(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()]) == 0
            theirs.close()
            with pytest.raises(BlockingIOError):
                ours.recv(1, socket.MSG_DONTWAIT)
            ours.settimeout(10)
        assert first[0].recv(1) == b"", "replaced"
    assert second[0].recv(1) == b"", "the front-end has gone"
    first[0].close()
    second[0].close()
