"""The options `cache=` and `writeback`: how long a guest may keep what it knows."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.mount.mount import Mount
from services.wire import fuse
from services.wire.fuse import EntryOut, Opcode
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest

READDIRPLUS = fuse.FUSE_DO_READDIRPLUS | fuse.FUSE_READDIRPLUS_AUTO
ALLOW_MMAP = fuse.FUSE_DIRECT_IO_ALLOW_MMAP >> 32


def open_flags(guest: FuseGuest, opcode: Opcode, nodeid: int) -> int:
    data = guest.call(opcode, nodeid, fuse.OPEN_IN.pack(os.O_RDONLY, 0))
    flags: int = fuse.OPEN_OUT.unpack(data)[1]
    return flags


@pytest.mark.parametrize(
    ("cache", "valid_s", "file_flags", "directory_flags"),
    [
        ("none", 0, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES, 0),
        ("auto", 1, 0, 0),
        ("always", 86400, fuse.FOPEN_KEEP_CACHE, fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE),
    ],
)
def test_what_the_guest_may_keep(
    make_guest: MakeGuest,
    shared: Path,
    cache: str,
    valid_s: int,
    file_flags: int,
    directory_flags: int,
) -> None:
    (shared / "f").write_bytes(b"x")
    guest = make_guest(cache=cache)
    entry = EntryOut(*fuse.ENTRY_OUT.unpack_from(guest.call(Opcode.LOOKUP, 1, b"f\0")))
    assert (entry.entry_valid, entry.attr_valid) == (valid_s, valid_s)
    assert (entry.generation, entry[4:]) == (0, (0, 0))
    attr = guest.call(Opcode.GETATTR, entry.nodeid, fuse.GETATTR_IN.pack(0, 0))
    assert fuse.ATTR_OUT.unpack_from(attr) == (valid_s, 0)
    statx = guest.call(Opcode.STATX, entry.nodeid, fuse.STATX_IN.pack(0, 0, 0, 0xFFF))
    assert fuse.STATX_OUT.unpack_from(statx) == (valid_s, 0, 0)
    assert open_flags(guest, Opcode.OPEN, entry.nodeid) == file_flags
    assert open_flags(guest, Opcode.OPENDIR, 1) == directory_flags
    created = guest.call(Opcode.CREATE, 1, fuse.CREATE_IN.pack(2, 0o644, 0, 0) + b"new\0")
    assert fuse.OPEN_OUT.unpack_from(created, 128)[1] == file_flags


@pytest.mark.parametrize(("cache", "plus", "mmap"), [("none", 0, 1), ("auto", 1, 0)])
def test_what_is_agreed_on(make_guest: MakeGuest, cache: str, plus: int, mmap: int) -> None:
    out = make_guest(mounted=False, cache=cache).init(flags2=0xFFFF_FFFF)
    assert out.flags & READDIRPLUS == plus * READDIRPLUS
    assert out.flags2 & ALLOW_MMAP == mmap * ALLOW_MMAP


@pytest.mark.parametrize("submounts", [False, True])
def test_submounts_are_announced_unless_the_share_says_no(
    make_guest: MakeGuest, submounts: bool
) -> None:
    agreed = make_guest(mounted=False, submounts=submounts).init().flags & fuse.FUSE_SUBMOUNTS
    assert bool(agreed) is submounts


@pytest.mark.parametrize(
    ("cache", "asked", "agreed"),
    [("auto", False, 0), ("auto", True, 1), ("always", True, 1), ("none", True, 0)],
)
def test_writes_are_kept_back_only_if_asked(
    make_guest: MakeGuest, cache: str, asked: bool, agreed: int
) -> None:
    guest = make_guest(mounted=False, cache=cache, writeback=asked)
    assert guest.init().flags & fuse.FUSE_WRITEBACK_CACHE == agreed * fuse.FUSE_WRITEBACK_CACHE
    mount = guest.session.mount
    assert isinstance(mount, Mount)
    assert mount.writeback == bool(agreed)
    assert not guest.init(flags=fuse.FUSE_ASYNC_READ).flags & fuse.FUSE_WRITEBACK_CACHE


@pytest.mark.parametrize("writeback", [False, True])
@pytest.mark.parametrize("create", [False, True])
def test_with_writes_kept_back_what_surrounds_them_can_be_read(
    make_guest: MakeGuest, shared: Path, create: bool, writeback: bool
) -> None:
    flags = os.O_WRONLY | os.O_APPEND
    guest = make_guest(writeback=writeback)
    if create:
        _, handle = guest.create(b"f", flags=flags)
    else:
        (shared / "f").write_bytes(b"")
        handle = guest.open(guest.lookup(b"f").nodeid, flags)
    (shared / "f").write_bytes(b"0123456789")
    guest.write(handle, b"ab", offset=4, write_flags=fuse.FUSE_WRITE_CACHE)
    assert (shared / "f").read_bytes() == b"0123ab6789"
    if writeback:
        assert guest.read(handle, 10) == b"0123ab6789"
        return
    with pytest.raises(FuseError) as error:
        guest.read(handle, 10)
    assert error.value.number == errno.EBADF


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_with_writes_kept_back_what_can_be_read_is_open_as_asked(
    make_guest: MakeGuest, shared: Path, create: bool, flags: int
) -> None:
    guest = make_guest(writeback=True)
    if create:
        _, handle = guest.create(b"f", flags=flags)
    else:
        (shared / "f").touch()
        handle = guest.open(guest.lookup(b"f").nodeid, flags)
    (shared / "f").write_bytes(b"0123456789")
    assert guest.read(handle, 10) == b"0123456789"
    if flags == os.O_RDWR:
        assert guest.write(handle, b"ab") == 2
        return
    with pytest.raises(FuseError) as error:
        guest.write(handle, b"ab")
    assert error.value.number == errno.EBADF
