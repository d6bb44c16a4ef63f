"""Frames of a guest under addresses of its own and of others: in Python and in the native loop."""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.devicehost import fastpath
from services.devicehost.devices.net.spoofing import START_BYTES, Source
from services.handshake.errors import InvalidArgumentError
from services.handshake.options import SPOOFING_REFUSED, parse_net_options
from services.wire import virtio_net
from services.wire.virtio_net import NetHeader
from tests.unit.devicehost.devices.net.conftest import OPTIONS, PLAIN, VM_ID, Rig
from tests.unit.devicehost.devices.net.test_differential import (
    EXAMPLES,
    RING_SIZE,
    Sent,
    counted,
    lay_out,
    received_on,
)
from tests.unit.devicehost.virtio.conftest import DATA, eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

TX: Final = virtio_net.TX_QUEUE
MINE: Final = bytes.fromhex("525400123456")
OTHER: Final = bytes.fromhex("525400123457")
ADDRESS: Final = bytes([192, 0, 2, 2])
HEADER: Final = virtio_net.HEADER.pack(*NetHeader())
KNOWN: Final = replace(
    OPTIONS, client_mac=MINE, client_ip="192.0.2.2/24", spoofing=SPOOFING_REFUSED
)
KINDS: Final = pytest.mark.parametrize(
    "natively",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                fastpath.library is None, reason="the native fast path was not built"
            ),
        ),
    ],
    ids=["python", "native"],
)


def arp(
    mac: bytes = MINE,
    sender: bytes = MINE,
    ipv4: bytes = ADDRESS,
    tags: Sequence[int] = (),
    kind: tuple[int, int, int, int] = (1, 0x0800, 6, 4),
) -> bytes:
    """An ARP request of 42 bytes, without tags."""
    tagged = b"".join(struct.pack(">HH", tag, 7) for tag in tags)
    packet = struct.pack(">HHBBH", *kind, 1) + sender + ipv4 + bytes(6) + bytes([192, 0, 2, 1])
    return b"\xff" * 6 + mac + tagged + b"\x08\x06" + packet


def ip(mac: bytes = MINE, tags: Sequence[int] = (), length: int = 60) -> bytes:
    tagged = b"".join(struct.pack(">HH", tag, 7) for tag in tags)
    return (b"\xff" * 6 + mac + tagged + b"\x08\x00").ljust(length, b"\x45")


@dataclass(frozen=True)
class Bytes(Sent):
    """A frame of these very bytes."""

    frame: bytes = b""

    @property
    def data(self) -> bytes:
        return self.header + self.frame


@dataclass(frozen=True)
class Case:
    frame: bytes
    passes: bool


CASES: Final = {
    "own": Case(ip(), passes=True),
    "own, as short as a frame can be": Case(ip(length=14), passes=True),
    "own, long": Case(ip(length=9000), passes=True),
    "another station's": Case(ip(OTHER), passes=False),
    "of a group": Case(ip(b"\xff" * 6), passes=False),
    "own, tagged": Case(ip(tags=[0x8100]), passes=True),
    "own, tagged twice": Case(ip(tags=[0x88A8, 0x8100]), passes=True),
    "own, tagged three times": Case(ip(tags=[0x88A8, 0x8100, 0x8100]), passes=False),
    "a tag that is cut off": Case(MINE + MINE + b"\x81\x00\x00", passes=False),
    "own ARP": Case(arp(), passes=True),
    "own ARP with a trailer": Case(arp() + bytes(18), passes=True),
    "own ARP, a probe": Case(arp(ipv4=bytes(4)), passes=True),
    "ARP with another sender": Case(arp(sender=OTHER), passes=False),
    "ARP with another address": Case(arp(ipv4=bytes([192, 0, 2, 1])), passes=False),
    "ARP behind a tag with another address": Case(
        arp(ipv4=bytes([192, 0, 2, 1]), tags=[0x8100]), passes=False
    ),
    "ARP behind two tags with another sender": Case(
        arp(sender=OTHER, tags=[0x88A8, 0x8100]), passes=False
    ),
    "own ARP behind two tags": Case(arp(tags=[0x88A8, 0x8100]), passes=True),
    "ARP that is cut off": Case(arp()[:-1], passes=False),
    "ARP of another network": Case(arp(kind=(6, 0x0800, 6, 4)), passes=False),
    "ARP of another protocol": Case(arp(kind=(1, 0x86DD, 6, 4)), passes=False),
    "ARP with longer addresses": Case(arp(kind=(1, 0x0800, 6, 16)), passes=False),
}


def transmitted(
    frames: Sequence[bytes],
    cuts: tuple[int, ...] = (),
    header: bytes = HEADER,
    *,
    natively: bool,
    known: bool = True,
) -> tuple[list[bytes], tuple[int, ...], int]:
    """Return what has left, and what was counted; the guest divides each frame at `cuts`."""
    options = KNOWN if known else replace(KNOWN, client_ip=None)
    rig = Rig(PLAIN | virtio_net.F_CSUM, natively=natively, options=options)
    try:
        ring = rig.queues.ring(RING_SIZE)
        lay_out(rig, ring, [Bytes(header, 0, cuts, frame=frame) for frame in frames])
        rig.serve_ring(TX, ring)
        rig.queues.kick()
        rig.await_used(ring, len(frames))
        rig.stop()
        assert rig.failure == []
        spoofed = rig.queues.meter.snapshot().frames_spoofed
        return received_on(rig.wire), counted(rig), spoofed
    finally:
        rig.close()


@KINDS
@pytest.mark.parametrize("name", CASES)
def test_what_has_an_address_of_another_station_is_dropped_and_counted(
    name: str, natively: bool
) -> None:
    case = CASES[name]
    left, (requests, _, _, dropped), spoofed = transmitted([case.frame], natively=natively)
    assert left == ([HEADER + case.frame] if case.passes else [])
    assert (requests, dropped, spoofed) == (1, not case.passes, not case.passes)


CHECKSUMS: Final = {
    "of TCP": (ip(), (34, 16), True),
    "of TCP behind two tags": (ip(tags=[0x88A8, 0x8100], length=70), (42, 16), True),
    "right behind the type": (ip(), (14, 0), True),
    "right behind the type, tagged": (ip(tags=[0x8100]), (18, 0), True),
    "half in the type, tagged": (ip(tags=[0x8100]), (17, 0), False),
    "in the type behind a tag": (ip(tags=[0x8100]), (14, 2), False),
    "in the address of ARP's sender": (arp() + bytes(18), (20, 10), False),
    "in the MAC of ARP's sender": (arp() + bytes(18), (20, 2), False),
    "behind ARP": (arp() + bytes(18), (42, 4), False),
}
"""A frame, start and offset of a checksum which the kernel is to write there."""


@KINDS
@pytest.mark.parametrize("name", CHECKSUMS)
def test_no_checksum_is_written_where_addresses_were_looked_at(name: str, natively: bool) -> None:
    frame, (start, offset), passes = CHECKSUMS[name]
    asked = NetHeader(flags=virtio_net.HDR_F_NEEDS_CSUM, csum_start=start, csum_offset=offset)
    header = virtio_net.HEADER.pack(*asked)
    left, (_, _, _, dropped), spoofed = transmitted([frame], header=header, natively=natively)
    assert left == ([header + frame] if passes else [])
    assert (dropped, spoofed) == (not passes, not passes)


@KINDS
def test_an_address_that_is_not_known_is_not_looked_at(natively: bool) -> None:
    frames = [arp(ipv4=bytes([192, 0, 2, 1])), arp(sender=OTHER)]
    left, _, spoofed = transmitted(frames, natively=natively, known=False)
    assert (left, spoofed) == ([HEADER + frames[0]], 1)


@KINDS
def test_by_default_a_guest_may_send_under_any_address(natively: bool) -> None:
    rig = Rig(PLAIN, natively=natively, options=replace(KNOWN, spoofing="allow"))
    try:
        ring = rig.queues.ring(RING_SIZE)
        frame = arp(OTHER, OTHER)
        lay_out(rig, ring, [Bytes(HEADER, 0, (), frame=frame)])
        rig.serve_ring(TX, ring)
        rig.queues.kick()
        rig.await_used(ring, 1)
        assert received_on(rig.wire) == [HEADER + frame]
    finally:
        rig.close()


_words = st.sampled_from([MINE, OTHER])
_made = st.builds(
    arp,
    mac=_words,
    sender=_words,
    ipv4=st.sampled_from([ADDRESS, bytes(4), b"\xff" * 4]),
    tags=st.lists(st.sampled_from([0x8100, 0x88A8, 0x9100]), max_size=3),
)
_frames = st.lists(
    st.one_of(
        st.builds(lambda frame, end: frame[: max(end, 14)], _made, st.integers(14, 60)),
        st.builds(ip, _words, length=st.sampled_from([14, 63, 64, 65, 1514])),
        st.binary(min_size=14, max_size=80),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.skipif(fastpath.library is None, reason="the native fast path was not built")
@settings(max_examples=EXAMPLES, deadline=None)
@given(
    frames=_frames,
    cuts=st.lists(st.integers(1, 90), max_size=4).map(tuple),
    checksum=st.none() | st.tuples(st.integers(14, 40), st.integers(0, 20)),
)
def test_both_drop_the_same_frames(
    frames: list[bytes], cuts: tuple[int, ...], checksum: tuple[int, int] | None
) -> None:
    asked, at = NetHeader(), 0
    if checksum is not None:
        asked, at = NetHeader(virtio_net.HDR_F_NEEDS_CSUM, 0, 0, 0, *checksum), sum(checksum)
    header = virtio_net.HEADER.pack(*asked)
    python = transmitted(frames, cuts, header, natively=False)
    assert transmitted(frames, cuts, header, natively=True) == python
    own = Source(MINE, ADDRESS)
    assert python[0] == [
        header + each
        for each in frames
        if own.is_own(each[:START_BYTES], at) and not 0 < len(each) - 2 < at
    ]


def test_without_its_own_address_a_guest_cannot_be_kept_to_it() -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        parse_net_options(f"eth0;spoofing=refuse;vm_id={VM_ID}")
    assert refused.value.reason == "OPTION_VALUE"
    assert "client_mac=" in refused.value.message


@KINDS
def test_what_was_looked_at_is_what_is_sent(natively: bool) -> None:
    """The guest changes the source of its frames all the time while they are served."""
    rig = Rig(PLAIN, natively=natively, options=KNOWN)
    size, rounds = 128, 200 if natively else 20
    try:
        ring = rig.queues.ring(size)
        rig.queues.ram.write(DATA, HEADER + ip())
        for place in range(size):
            ring.describe(place, DATA, len(HEADER + ip()))
        served = threading.Event()

        def change() -> None:
            write, at = rig.queues.ram.write, DATA + len(HEADER) + len(MINE)
            while not served.is_set():
                write(at, OTHER)
                write(at, MINE)

        def has_used(count: int) -> bool:
            return ring.used_idx == count

        guest = threading.Thread(target=change)
        guest.start()
        rig.serve_ring(TX, ring)
        left: list[bytes] = []
        for turn in range(1, rounds + 1):
            ring.offer(*range(size))
            rig.queues.kick()
            assert eventually(partial(has_used, size * turn))
            left += received_on(rig.wire)
        served.set()
        guest.join()
        assert rig.queues.meter.snapshot().frames_spoofed > 0
        assert left
        assert {each[len(HEADER) + 6 :][:6] for each in left} == {MINE}
    finally:
        served.set()
        rig.close()
