"""INIT, DESTROY, and what is agreed on."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from services.devicehost.memory import Access, Aperture, Whole
from services.handshake.exhaustion import Resource
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.support.descriptors import open_descriptors
from tests.unit.devicehost.devices.fs.fuse_guest import OFFERED, FuseError, FuseGuest, buffers

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest


def number_of(error: pytest.ExceptionInfo[FuseError]) -> str:
    return errno.errorcode[error.value.number]


def test_without_a_pool_requests_are_up_to_1_mib(make_guest: MakeGuest) -> None:
    out = make_guest(mounted=False).init()
    assert (out.max_write, out.max_pages) == (1 << 20, 256)


def test_behind_a_pool_no_request_exceeds_256_kib(make_guest: MakeGuest) -> None:
    out = make_guest(mounted=False, max_request_bytes=Aperture.max_request_bytes).init()
    assert (out.max_write, out.max_pages) == (256 << 10, 64)
    assert out.flags & fuse.FUSE_MAX_PAGES


@pytest.mark.parametrize("access", [Whole, Aperture])
def test_a_guest_without_max_pages_gets_fewer(make_guest: MakeGuest, access: type[Access]) -> None:
    guest = make_guest(mounted=False, max_request_bytes=access.max_request_bytes)
    out = guest.init(flags=OFFERED & ~fuse.FUSE_MAX_PAGES)
    assert out.max_write == 32 * 4096
    assert not out.flags & fuse.FUSE_MAX_PAGES


def test_only_what_is_offered_and_served_is_accepted(make_guest: MakeGuest) -> None:
    out = make_guest(mounted=False).init(flags2=0xFFFF_FFFF)
    for flag in (fuse.FUSE_WRITEBACK_CACHE, fuse.FUSE_ABORT_ERROR):
        assert not out.flags & flag
    for flag in (fuse.FUSE_ATOMIC_O_TRUNC, fuse.FUSE_DO_READDIRPLUS, fuse.FUSE_BIG_WRITES):
        assert out.flags & flag
    for flag in (fuse.FUSE_POSIX_LOCKS, fuse.FUSE_FLOCK_LOCKS):
        assert out.flags & flag
    assert out.flags2 << 32 == fuse.FUSE_CREATE_SUPP_GROUP
    out = make_guest(mounted=False).init(flags=fuse.FUSE_ASYNC_READ)
    assert out.flags == fuse.FUSE_ASYNC_READ


def test_more_flags_count_only_with_the_flag_that_announces_them(make_guest: MakeGuest) -> None:
    """FUSE_INIT_EXT: without it, what follows the flags may be anything."""
    out = make_guest(mounted=False).init(flags=fuse.FUSE_ASYNC_READ, flags2=0xFFFF_FFFF)
    assert (out.flags, out.flags2) == (fuse.FUSE_ASYNC_READ, 0)


def test_the_rest_of_the_answer(make_guest: MakeGuest) -> None:
    out = make_guest(mounted=False).init()
    assert out.max_readahead == 1 << 17, "as the guest offers"
    assert out.time_gran == 1, "times in nanoseconds"
    assert out.map_alignment == 0, "nothing can be mapped"
    assert 0 < out.congestion_threshold <= out.max_background


@pytest.mark.parametrize(("theirs", "agreed"), [(31, 31), (38, 38), (39, 39), (45, 39)])
def test_the_smaller_minor_version_counts(make_guest: MakeGuest, theirs: int, agreed: int) -> None:
    out = make_guest(mounted=False).init(minor=theirs)
    assert (out.major, out.minor) == (7, agreed)


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (6, 99), (0, 0)])
def test_versions_too_old_are_refused(make_guest: MakeGuest, major: int, minor: int) -> None:
    guest = make_guest(mounted=False)
    with pytest.raises(FuseError) as error:
        guest.init(major=major, minor=minor)
    assert number_of(error) == "EPROTO"
    with pytest.raises(FuseError) as error:
        guest.getattr(1)
    assert number_of(error) == "ENOTCONN"


def test_a_newer_major_version_is_asked_to_come_down(make_guest: MakeGuest) -> None:
    guest = make_guest(mounted=False)
    out = guest.init(major=8)
    assert (out.major, out.minor, out.flags, out.flags2) == (7, 39, 0, 0)
    assert (out.max_readahead, out.max_pages, out.max_write) == (0, 0, 0), "nothing is agreed on"
    with pytest.raises(FuseError):
        guest.getattr(1)
    guest.init()
    guest.getattr(1)


def test_the_short_form_of_init_is_understood(make_guest: MakeGuest) -> None:
    guest = make_guest(mounted=False)
    body = fuse.INIT_COMPAT_IN.pack(7, 31, 0, fuse.FUSE_MAX_PAGES)
    out = fuse.InitOut(*fuse.INIT_OUT.unpack(guest.call(Opcode.INIT, 0, body)))
    assert (out.minor, out.max_pages) == (31, 256)


@pytest.mark.parametrize(("rest", "agreed"), [(3, 0), (4, fuse.FUSE_CREATE_SUPP_GROUP)])
def test_more_flags_count_when_they_are_there_in_full(
    make_guest: MakeGuest, rest: int, agreed: int
) -> None:
    more = (fuse.FUSE_CREATE_SUPP_GROUP >> 32).to_bytes(4, "little")
    body = fuse.INIT_COMPAT_IN.pack(7, 39, 0, fuse.FUSE_INIT_EXT) + more[:rest]
    answer = make_guest(mounted=False).call(Opcode.INIT, 0, body)
    assert fuse.InitOut(*fuse.INIT_OUT.unpack(answer)).flags2 << 32 == agreed


@pytest.mark.parametrize(
    ("opcode", "body", "size"),
    [
        (Opcode.INIT, fuse.INIT_COMPAT_IN.pack(7, 39, 0, 0), fuse.INIT_OUT.size),
        (
            Opcode.GETATTR,
            fuse.GETATTR_IN.pack(0, 0),
            fuse.ATTR_OUT.size + fuse.ATTR.size,
        ),
        (Opcode.STATFS, b"", fuse.STATFS_OUT.size),
    ],
)
def test_a_reply_that_just_fits_is_given(
    guest: FuseGuest, opcode: Opcode, body: bytes, size: int
) -> None:
    assert len(guest.call(opcode, 1, body, room=size)) == size
    with pytest.raises(FuseError) as error:
        guest.call(opcode, 1, body, room=size - 1)
    assert number_of(error) == "EIO"
    guest.getattr(1)


@pytest.mark.parametrize("opcode", [Opcode.FORGET, Opcode.BATCH_FORGET])
@pytest.mark.parametrize("body", [bytes(8), b"short"])
def test_what_gets_no_reply_gets_none_though_there_is_room(
    guest: FuseGuest, opcode: Opcode, body: bytes
) -> None:
    room = buffers(bytes(100))
    assert guest.serve(buffers(guest.request(opcode, 1, body), 40), room) == 0
    assert b"".join(room) == bytes(100)


def test_nothing_works_before_init_or_after_destroy(guest: FuseGuest, shared: Path) -> None:
    _, handle = guest.create(b"f")
    guest.opendir()
    assert len(open_descriptors(shared)) == 2
    guest.call(Opcode.DESTROY)
    assert guest.session.mount is None
    assert open_descriptors(shared) == [], "DESTROY lets go of everything"
    for opcode in [*Opcode, 999]:
        if opcode in fuse.NO_REPLY:
            guest.one_way(opcode, 1, bytes(64))
        elif opcode != Opcode.INIT:
            with pytest.raises(FuseError) as error:
                guest.call(opcode, 1, bytes(64))
            assert number_of(error) == "ENOTCONN"
    guest.init()
    with pytest.raises(FuseError) as error:
        guest.read(handle, 1)
    assert number_of(error) == "EBADF"
    assert guest.lookup(b"f").nodeid > 1


def test_init_again_starts_anew(guest: FuseGuest, shared: Path) -> None:
    entry, _ = guest.create(b"f")
    guest.init()
    assert open_descriptors(shared) == []
    with pytest.raises(FuseError) as error:
        guest.getattr(entry.nodeid)
    assert number_of(error) == "ESTALE"


@pytest.mark.parametrize(
    "opcode", [Opcode.BMAP, Opcode.IOCTL, Opcode.POLL, Opcode.SETUPMAPPING, 7, 4096]
)
def test_what_is_not_served_is_enosys(guest: FuseGuest, opcode: int) -> None:
    with pytest.raises(FuseError) as error:
        guest.call(opcode, 1, bytes(64))
    assert number_of(error) == "ENOSYS"


def test_a_guest_that_has_not_mounted_uses_nothing(guest: FuseGuest) -> None:
    guest.create(b"f")
    guest.call(Opcode.DESTROY)
    used = {each.resource: each.used for each in guest.session.bounds.usage()}
    assert used == dict.fromkeys(used, 0)
    assert "nodes" in used


def test_a_device_that_is_gone_uses_nothing(make_guest: MakeGuest) -> None:
    guest = make_guest()
    guest.create(b"f")
    bounds = guest.session.bounds
    assert {each.resource: each.used for each in bounds.usage()}[Resource.NODES] == 1
    del guest
    assert {each.used for each in bounds.usage()} == {0}
