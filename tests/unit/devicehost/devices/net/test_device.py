"""Frames between the TAP and a guest's rings, lawful and not."""

from __future__ import annotations

import dataclasses
import os
import select
import threading
from typing import TYPE_CHECKING, Final

import pytest

from services.devicehost.accounting import DeviceMeter
from services.devicehost.devices.net.backend import NetBackend
from services.devicehost.devices.net.device import NetDevice, derive_mac
from services.devicehost.virtio.deferral import MAX_QUEUED
from services.devicehost.virtio.queue import QueueError
from services.handshake.exhaustion import Exhaustion
from services.handshake.options import NetOptions
from services.wire import virtio_net
from services.wire.virtio_net import HEADER_BYTES, MAX_FRAME_BYTES, NetConfig, NetHeader
from services.wire.virtio_ring import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor
from tests.unit.devicehost.devices.net.conftest import OFFLOADS, OPTIONS, PLAIN, VM_ID, Rig
from tests.unit.devicehost.virtio.conftest import DATA, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.guest_ring import GuestRing

RX, TX = virtio_net.RX_QUEUE, virtio_net.TX_QUEUE
FRAME = bytes(range(60))


def drops(rig: Rig) -> int:
    return rig.queues.meter.snapshot().frames_dropped


def test_the_configuration_space_has_mac_link_and_mtu(rig: Rig) -> None:
    config = NetConfig._make(virtio_net.CONFIG.unpack(rig.device.config()))
    assert config.mac == derive_mac(VM_ID, "eth0")
    assert (config.status, config.max_virtqueue_pairs, config.mtu) == (1, 1, 1500)


def test_the_options_mac_wins() -> None:
    mac = bytes.fromhex("525400abcdef")
    options = NetOptions(name="eth0", vm_id=VM_ID, client_mac=mac)
    device = NetDevice(options, NetBackend("wire"), DeviceMeter())
    assert device.config()[:6] == mac
    for wire in device._backend.wires:  # type: ignore[attr-defined]
        wire.close()
    device.close()


def test_derived_macs_are_local_unicast_stable_and_distinct() -> None:
    macs = {derive_mac(VM_ID, f"eth{number}") for number in range(100)}
    assert len(macs) == 100
    assert all(mac[0] & 0b11 == 0b10 for mac in macs)
    assert derive_mac(VM_ID, "eth0") in macs


def test_offloads_are_those_of_the_tap(rig: Rig) -> None:
    offered = rig.device.features
    assert offered & OFFLOADS == OFFLOADS
    assert offered & virtio_net.F_CTRL_VQ
    assert not offered & virtio_net.F_MQ
    assert rig.tap.negotiated == [PLAIN]
    rig.device.reset()
    assert rig.tap.negotiated == [PLAIN, 0]


COMMANDS = PLAIN | OFFLOADS | virtio_net.F_CTRL_VQ
OFFLOADS_SET = bytes([virtio_net.CTRL_GUEST_OFFLOADS, virtio_net.CTRL_GUEST_OFFLOADS_SET])
PAIRS_SET = bytes([virtio_net.CTRL_MQ, virtio_net.CTRL_MQ_VQ_PAIRS_SET])


def with_pairs(features: int = COMMANDS | virtio_net.F_MQ) -> Rig:
    return Rig(features, options=dataclasses.replace(OPTIONS, queues=4))


def command(rig: Rig, index: int, *requests: bytes, answer_bytes: int = 1) -> bytes:
    """Return the device's answers, a byte each; b"?" where it has written none."""
    ring = rig.serve(index, size=16)
    for number, request in enumerate(requests):
        at, answer = DATA + 8192 * number, DATA + 8192 * number + 4096
        rig.queues.ram.write(at, request)
        rig.queues.ram.write(answer, b"?")
        writable = [(answer, answer_bytes)] if answer_bytes else []
        ring.chain(3 * number, readable=[(at, 1), (at + 1, len(request) - 1)], writable=writable)
        ring.offer(3 * number)
        rig.queues.kick()
        rig.await_used(ring, number + 1)
    rig.stop()
    read = rig.queues.ram.read
    return b"".join(read(DATA + 8192 * number + 4096, 1) for number in range(len(requests)))


def test_a_driver_says_how_many_pairs_it_uses() -> None:
    rig = with_pairs()
    assert rig.device.num_queues == 9
    assert rig.device.features & virtio_net.F_MQ
    config = NetConfig._make(virtio_net.CONFIG.unpack(rig.device.config()))
    assert config.max_virtqueue_pairs == 4
    assert rig.tap.used == [1], "one pair, until the driver says more (section 5.1.5)"
    assert command(rig, 8, PAIRS_SET + b"\3\0") == virtio_net.CTRL_OK
    assert rig.tap.used == [1, 3]
    rig.close()


@pytest.mark.parametrize(
    "request_",
    [
        PAIRS_SET + b"\0\0",
        PAIRS_SET + b"\5\0",
        PAIRS_SET + b"\1",
        PAIRS_SET + b"\1\0\0",
        PAIRS_SET,
        bytes([virtio_net.CTRL_MQ, 1]) + b"\1\0",
        bytes([9, 0]) + b"\1\0",
        PAIRS_SET + b"\1\0" + bytes(100),
    ],
    ids=["none", "too many", "short", "long", "empty", "command", "class", "too long"],
)
def test_a_command_that_means_nothing_is_refused(request_: bytes) -> None:
    rig = with_pairs()
    assert command(rig, 8, request_) == virtio_net.CTRL_ERR
    assert rig.tap.used == [1]
    assert rig.failure == []
    rig.close()


def test_a_command_without_room_for_its_answer_is_given_back() -> None:
    rig = with_pairs()
    assert command(rig, 8, PAIRS_SET + b"\2\0", answer_bytes=0) == b"?"
    assert rig.tap.used == [1], "it was not carried out"
    assert rig.failure == []
    rig.close()


def test_without_several_pairs_the_control_queue_follows_the_first_one() -> None:
    rig = with_pairs(COMMANDS)
    requests = PAIRS_SET + b"\2\0", OFFLOADS_SET + bytes(8)
    assert command(rig, 2, *requests) == virtio_net.CTRL_ERR + virtio_net.CTRL_OK
    assert rig.tap.used == [4], "the front-end starts the queues that it uses"
    rig.close()


def test_a_driver_switches_offloads_off_and_on() -> None:
    rig = Rig(COMMANDS)
    some = virtio_net.F_GUEST_CSUM | virtio_net.F_GUEST_TSO4
    requests = [OFFLOADS_SET + each.to_bytes(8, "little") for each in (0, some)]
    assert command(rig, 2, *requests) == 2 * virtio_net.CTRL_OK
    assert rig.tap.negotiated == [COMMANDS, 0, some]
    rig.close()


@pytest.mark.parametrize(
    ("negotiated", "offloads"),
    [
        (COMMANDS, virtio_net.F_GUEST_UFO),
        (COMMANDS, virtio_net.F_CSUM),
        (COMMANDS & ~virtio_net.F_GUEST_TSO4, virtio_net.F_GUEST_TSO4),
        (COMMANDS & ~virtio_net.F_CTRL_GUEST_OFFLOADS, 0),
    ],
)
def test_a_driver_switches_nothing_on_that_it_has_not_negotiated(
    negotiated: int, offloads: int
) -> None:
    rig = Rig(negotiated)
    request = OFFLOADS_SET + offloads.to_bytes(8, "little")
    assert command(rig, 2, request) == virtio_net.CTRL_ERR
    assert rig.tap.negotiated == [negotiated]
    rig.close()


def test_each_pair_has_a_queue_of_the_tap() -> None:
    rig = with_pairs()
    ring = rig.serve(2 * 3 + TX)
    rig.queues.ram.write(DATA, HEADER + FRAME)
    ring.chain(0, readable=[(DATA, HEADER_BYTES + len(FRAME))])
    ring.offer(0)
    rig.queues.kick()
    rig.await_used(ring, 1)
    assert rig.tap.wires[3].recv(70000) == HEADER + FRAME
    rig.stop()
    rig.close()


def test_frames_come_in_order_each_in_a_buffer(rig: Rig) -> None:
    ring = rig.serve(RX)
    rig.offer_buffers(ring, [2048] * 4)
    for number in range(4):
        rig.send_to_guest(FRAME + bytes([number]))
    used = rig.await_used(ring, 4)
    assert used == [(number, HEADER_BYTES + 61) for number in range(4)]
    for number in range(4):
        data = rig.queues.ram.read(DATA + 4096 * number, HEADER_BYTES + 61)
        assert NetHeader._make(virtio_net.HEADER.unpack_from(data)) == NetHeader(num_buffers=1)
        assert data[HEADER_BYTES:] == FRAME + bytes([number])


def test_a_long_frame_spans_buffers_that_appear_together(rig: Rig) -> None:
    frame = os.urandom(5000)
    ring = rig.serve(RX)
    rig.offer_buffers(ring, [2048, 100, 2048, 2048])
    rig.send_to_guest(frame)
    used = rig.await_used(ring, 4)
    assert [length for _, length in used] == [2048, 100, 2048, HEADER_BYTES + 5000 - 4196]
    data = b"".join(rig.queues.ram.read(DATA + 4096 * head, length) for head, length in used)
    assert NetHeader._make(virtio_net.HEADER.unpack_from(data)).num_buffers == 4
    assert data[HEADER_BYTES:] == frame


def test_a_buffer_may_be_several_descriptors(rig: Rig) -> None:
    ring = rig.serve(RX)
    ring.chain(0, writable=[(DATA, 5), (DATA + 100, 7), (DATA + 200, 1600)])
    ring.offer(0)
    rig.queues.kick()
    rig.send_to_guest(FRAME)
    assert rig.await_used(ring, 1) == [(0, HEADER_BYTES + len(FRAME))]
    read = rig.queues.ram.read
    data = read(DATA, 5) + read(DATA + 100, 7) + read(DATA + 200, len(FRAME))
    assert data == virtio_net.HEADER.pack(*NetHeader(num_buffers=1)) + FRAME


def test_without_mergeable_buffers_a_frame_that_does_not_fit_is_dropped(
    make_rig: Callable[..., Rig],
) -> None:
    rig = make_rig(features=PLAIN & ~virtio_net.F_MRG_RXBUF)
    ring = rig.serve(RX)
    rig.offer_buffers(ring, [1000, 1000])
    rig.send_to_guest(bytes(1500))
    rig.send_to_guest(FRAME)
    assert rig.await_used(ring, 1) == [(0, HEADER_BYTES + len(FRAME))]
    assert drops(rig) == 1


def test_a_frame_waits_for_further_buffers_that_the_ring_can_have(rig: Rig) -> None:
    frame = os.urandom(1400)
    ring = rig.serve(RX)
    rig.offer_buffers(ring, [500, 500])
    rig.send_to_guest(frame)
    assert eventually(lambda: not select.select([rig.tap.queues[0].fd], [], [], 0)[0])
    assert ring.used_idx == 0
    rig.offer_buffers(ring, [500], first=2)
    used = rig.await_used(ring, 3)
    data = b"".join(rig.queues.ram.read(DATA + 4096 * head, length) for head, length in used)
    assert data == virtio_net.HEADER.pack(*NetHeader(num_buffers=3)) + frame
    assert drops(rig) == 0


def test_a_frame_that_waits_for_buffers_ends_with_the_queue(rig: Rig) -> None:
    ring = rig.serve(RX)
    rig.offer_buffers(ring, [500, 500])
    rig.send_to_guest(bytes(1400))
    assert eventually(lambda: not select.select([rig.tap.queues[0].fd], [], [], 0)[0])
    rig.stop()
    assert (ring.used_idx, drops(rig)) == (0, 1)
    assert rig.queue is not None
    assert rig.queue.state.next_avail == 0


def test_a_frame_bigger_than_all_buffers_is_dropped_and_the_buffers_serve_the_next(
    rig: Rig,
) -> None:
    ring = rig.serve(RX, size=2)
    rig.offer_buffers(ring, [500, 500])
    rig.send_to_guest(bytes(1400))
    rig.send_to_guest(bytes(900))
    used = rig.await_used(ring, 2)
    assert used == [(0, 500), (1, HEADER_BYTES + 900 - 500)]
    assert drops(rig) == 1


def test_a_frame_takes_no_more_buffers_than_a_device_may_have_queued(rig: Rig) -> None:
    reported: list[Exhaustion] = []
    rig.queues.meter.bounds.on_exhausted = reported.append
    ring = rig.serve(RX, size=128)
    rig.offer_buffers(ring, [20] * (MAX_QUEUED + 1))
    for _ in range(2):
        rig.send_to_guest(bytes(20 * MAX_QUEUED))
    rig.send_to_guest(bytes(20 * MAX_QUEUED - HEADER_BYTES))
    assert len(rig.await_used(ring, MAX_QUEUED)) == MAX_QUEUED
    assert drops(rig) == 2
    assert reported == [Exhaustion("queued_requests", MAX_QUEUED, MAX_QUEUED)]


def test_without_buffers_frames_wait_in_the_tap(rig: Rig) -> None:
    ring = rig.serve(RX)
    for number in range(3):
        rig.send_to_guest(FRAME + bytes([number]))
    rig.offer_buffers(ring, [2048])
    rig.await_used(ring, 1)
    # The device has no buffer left: it sleeps on the ring, and the next frame is still on the wire.
    before = os.times()
    threading.Event().wait(0.2)
    after = os.times()
    assert (after.user + after.system) - (before.user + before.system) < 0.1
    assert ring.used_idx == 1
    rig.offer_buffers(ring, [2048, 2048], first=1)
    used = rig.await_used(ring, 3)
    assert [head for head, _ in used] == [0, 1, 2]
    assert drops(rig) == 0


def test_unused_buffers_are_available_again_after_a_stop(rig: Rig) -> None:
    ring = rig.serve(RX, size=4)
    rig.offer_buffers(ring, [500] * 4)
    rig.send_to_guest(bytes(2000))  # longer than the four buffers that are taken for it
    rig.send_to_guest(FRAME)
    rig.await_used(ring, 1)
    rig.stop()
    assert rig.queue is not None
    assert rig.queue.state.next_avail == 1


@pytest.mark.parametrize("writable", [False, True])
def test_a_receive_chain_that_is_readable_breaks_the_queue(rig: Rig, writable: bool) -> None:
    ring = rig.serve(RX)
    ring.chain(0, readable=[(DATA, 100)], writable=[(DATA, 2048)] if writable else [])
    ring.offer(0)
    rig.queues.kick()
    failure = rig.join()
    assert isinstance(failure, QueueError)
    assert failure.reason == "RX_BUFFER"


def test_a_tap_that_goes_away_is_a_link_that_is_down() -> None:
    rig = Rig()
    ring = rig.serve(RX)
    rig.offer_buffers(ring, [2048])
    rig.send_to_guest(FRAME)
    rig.await_used(ring, 1)
    rig.offer_buffers(ring, [2048], first=1)

    noticed = threading.Event()

    def gone(buffer: object) -> int:
        noticed.set()
        raise OSError(77, "File descriptor in bad state")  # EBADFD, from the kernel

    rig.tap.queues[0].read = gone  # type: ignore[method-assign]
    rig.send_to_guest(FRAME)
    assert noticed.wait(10)
    rig.stop()
    config = NetConfig._make(virtio_net.CONFIG.unpack(rig.device.config()))
    assert config.status == 0
    assert rig.failure == []
    rig.close()


def transmit(rig: Rig, ring: GuestRing, parts: list[bytes]) -> None:
    buffers = []
    for place, part in enumerate(parts):
        rig.queues.ram.write(DATA + 70000 * place, part)
        buffers.append((DATA + 70000 * place, len(part)))
    ring.chain(0, readable=buffers)
    ring.offer(0)
    rig.queues.kick()
    assert rig.await_used(ring, ring.next_avail)[-1] == (0, 0)


HEADER = virtio_net.HEADER.pack(*NetHeader())


@pytest.mark.parametrize(
    "parts",
    [
        [HEADER, FRAME],
        [HEADER + FRAME],
        [HEADER[:5], HEADER[5:] + FRAME[:1], FRAME[1:30], FRAME[30:]],
        [virtio_net.HEADER.pack(*NetHeader(flags=virtio_net.HDR_F_DATA_VALID)), FRAME],
    ],
)
def test_frames_leave_however_the_guest_divides_them(rig: Rig, parts: list[bytes]) -> None:
    ring = rig.serve(TX)
    transmit(rig, ring, parts)
    assert rig.wire.recv(70000) == HEADER + FRAME
    assert drops(rig) == 0


def test_the_largest_frame_leaves(rig: Rig) -> None:
    frame = os.urandom(MAX_FRAME_BYTES)
    ring = rig.serve(TX)
    transmit(rig, ring, [HEADER, frame])
    assert rig.wire.recv(70000) == HEADER + frame


PIECES: Final = 1020
"""More than the native loop holds at a time (1,000), and fewer than a table of descriptors has."""


def in_pieces(rig: Rig, ring: GuestRing, size: int, flags: int = 0) -> list[int]:
    """Offer one chain of PIECES buffers, none beside another; return where they are."""
    places = [DATA + 2 * size * place for place in range(PIECES)]
    table = DATA + (1 << 18)
    descriptors = [
        Descriptor(at, size, flags | (DESC_F_NEXT if place + 1 < PIECES else 0), place + 1).pack()
        for place, at in enumerate(places)
    ]
    rig.queues.ram.write(table, b"".join(descriptors))
    ring.describe(0, table, 16 * PIECES, DESC_F_INDIRECT)
    ring.offer(0)
    return places


def test_a_frame_in_more_than_a_thousand_pieces_leaves_and_so_does_the_next_one(rig: Rig) -> None:
    ring = rig.queues.ring(8)
    sent = HEADER + os.urandom(3 * PIECES - len(HEADER))
    for place, at in enumerate(in_pieces(rig, ring, 3)):
        rig.queues.ram.write(at, sent[3 * place : 3 * place + 3])
    rig.queues.ram.write(DATA + (1 << 19), HEADER + FRAME)
    ring.chain(1, readable=[(DATA + (1 << 19), len(HEADER + FRAME))])
    ring.offer(1)
    rig.serve_ring(TX, ring)
    rig.queues.kick()
    assert rig.await_used(ring, 2) == [(0, 0), (1, 0)]
    assert [rig.wire.recv(70000), rig.wire.recv(70000)] == [sent, HEADER + FRAME]
    assert drops(rig) == 0


def test_a_frame_arrives_in_more_than_a_thousand_pieces(rig: Rig) -> None:
    ring = rig.queues.ring(8)
    places = in_pieces(rig, ring, 2, DESC_F_WRITE)
    frame = os.urandom(2 * PIECES - len(HEADER))
    rig.serve_ring(RX, ring)
    rig.queues.kick()
    rig.send_to_guest(frame)
    assert rig.await_used(ring, 1) == [(0, 2 * PIECES)]
    got = b"".join(rig.queues.ram.read(at, 2) for at in places)
    assert got[len(HEADER) :] == frame
    assert drops(rig) == 0


@pytest.mark.parametrize(
    "parts",
    [
        [HEADER[:11]],
        [HEADER],
        [HEADER, FRAME[:13]],
        [HEADER, bytes(MAX_FRAME_BYTES + 1)],
        [virtio_net.HEADER.pack(*NetHeader(flags=virtio_net.HDR_F_NEEDS_CSUM)), FRAME],
        [virtio_net.HEADER.pack(*NetHeader(gso_type=virtio_net.HDR_GSO_TCPV4)), FRAME],
    ],
)
def test_what_is_no_frame_is_dropped_and_counted(rig: Rig, parts: list[bytes]) -> None:
    ring = rig.serve(TX)
    transmit(rig, ring, parts)
    assert drops(rig) == 1
    transmit(rig, ring, [HEADER, FRAME])  # the device goes on
    assert rig.wire.recv(70000) == HEADER + FRAME


def test_a_full_wire_drops(rig: Rig) -> None:
    ring = rig.serve(TX)
    sent = 0
    while not drops(rig):
        transmit(rig, ring, [HEADER, bytes(60000)])
        sent += 1
        assert sent < 1000
    assert rig.failure == []


def test_reset_forgets_what_was_negotiated(rig: Rig) -> None:
    rig.device.reset()
    ring = rig.serve(RX)
    rig.offer_buffers(ring, [1000, 1000])
    rig.send_to_guest(bytes(1500))
    rig.send_to_guest(FRAME)
    assert rig.await_used(ring, 1) == [(0, HEADER_BYTES + len(FRAME))]
    assert drops(rig) == 1
