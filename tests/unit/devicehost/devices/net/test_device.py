"""Frames between the TAP and a guest's rings, lawful and not."""

from __future__ import annotations

import os
import select
import threading
from typing import TYPE_CHECKING

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
from tests.unit.devicehost.devices.net.conftest import VM_ID, Rig
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
    device._backend.wire.close()  # type: ignore[attr-defined]
    device.close()


def test_derived_macs_are_local_unicast_stable_and_distinct() -> None:
    macs = {derive_mac(VM_ID, f"eth{number}") for number in range(100)}
    assert len(macs) == 100
    assert all(mac[0] & 0b11 == 0b10 for mac in macs)
    assert derive_mac(VM_ID, "eth0") in macs


def test_offloads_are_not_offered() -> None:
    offloads = (
        virtio_net.F_CSUM
        | virtio_net.F_GUEST_CSUM
        | virtio_net.F_HOST_TSO4
        | virtio_net.F_GUEST_TSO4
        | virtio_net.F_HOST_USO
    )
    assert NetDevice.features & offloads == 0


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
    rig = make_rig(features=NetDevice.features & ~virtio_net.F_MRG_RXBUF)
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
    assert eventually(lambda: not select.select([rig.device._backend.read_fd], [], [], 0)[0])
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
    assert eventually(lambda: not select.select([rig.device._backend.read_fd], [], [], 0)[0])
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

    rig.device._backend.read = gone  # type: ignore[method-assign]
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
