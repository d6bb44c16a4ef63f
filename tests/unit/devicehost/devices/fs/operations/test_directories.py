"""Listing directories while they change."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.host_files.descriptors import Limits
from services.devicehost.devices.fs.operations import directories
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.support.descriptors import open_descriptors
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest, assert_exactly

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest

DT_DIR, DT_REG = 4, 8


def number_of(error: pytest.ExceptionInfo[FuseError]) -> str:
    return errno.errorcode[error.value.number]


def populate(shared: Path, count: int) -> set[bytes]:
    names = {f"entry-{index:05}" for index in range(count)}
    for name in names:
        (shared / name).write_bytes(b"")
    return {name.encode() for name in names}


def test_lists_everything_once(guest: FuseGuest, shared: Path) -> None:
    names = populate(shared, 1500)
    assert_exactly(guest.list_all(guest.opendir()), names | {b".", b".."})


@pytest.mark.parametrize("size", [48, 100, 700])
def test_small_replies_lose_nothing(guest: FuseGuest, shared: Path, size: int) -> None:
    names = populate(shared, 50)
    assert_exactly(guest.list_all(guest.opendir(), size), names | {b".", b".."})


@pytest.mark.parametrize("plus", [False, True])
def test_an_entry_that_just_fits_is_listed(guest: FuseGuest, plus: bool) -> None:
    size = fuse.align8(24 + len(b".")) + 128 * plus
    handle = guest.opendir()
    [first] = guest.readdir(handle, 0, size, plus=plus)
    assert len(guest.readdir(handle, 0, 2 * size, plus=plus)) == 2
    assert first.name in (b".", b"..")
    with pytest.raises(FuseError) as error:
        guest.readdir(handle, 0, size - 1, plus=plus)
    assert number_of(error) == "EINVAL"


@pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])
def test_a_reply_has_as_many_entries_as_there_is_room_for(
    guest: FuseGuest, shared: Path, opcode: Opcode
) -> None:
    populate(shared, 20)
    body = fuse.READ_IN.pack(guest.opendir(), 0, 4096, 0, 0, 0)
    assert 300 < len(guest.call(opcode, 1, body, room=500)) <= 500


@pytest.mark.parametrize("library", ["python"], indirect=True)
def test_one_reply_is_bounded(
    guest: FuseGuest, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest may name any size, and a reply is put together before it is placed."""
    names = populate(shared, 20)
    monkeypatch.setattr(directories, "_REPLY_BYTES", 100)
    handle = guest.opendir()
    assert len(guest.readdir(handle, 0, 4096)) < 4
    assert_exactly(guest.list_all(handle), names | {b".", b".."})


def test_removing_what_was_listed_skips_nothing(guest: FuseGuest, shared: Path) -> None:
    """Like `rm -r`: list a page, remove it, go on. Positions in a list as cookies fail here."""
    names = populate(shared, 400)
    handle = guest.opendir()
    seen: list[bytes] = []
    cookie = 0
    while page := guest.readdir(handle, cookie, 300):
        for listed in page:
            seen.append(listed.name)
            if listed.name not in (b".", b".."):
                guest.unlink(listed.name)
        cookie = page[-1].dirent.off
    assert_exactly(seen, names | {b".", b".."})
    assert list(shared.iterdir()) == []


def test_what_stays_is_listed_once_while_others_come_and_go(guest: FuseGuest, shared: Path) -> None:
    stays = populate(shared, 300)
    for index in range(300):
        (shared / f"goes-{index}").write_bytes(b"")
    handle = guest.opendir()
    seen: list[bytes] = []
    cookie, step = 0, 0
    while page := guest.readdir(handle, cookie, 500):
        seen += [listed.name for listed in page]
        cookie = page[-1].dirent.off
        for index in range(step * 10, step * 10 + 10):
            (shared / f"goes-{index}").unlink(missing_ok=True)
        (shared / f"comes-{step}").write_bytes(b"")
        step += 1
        assert step < 500, "new entries must not keep the listing from ending"
    assert_exactly([name for name in seen if name.startswith(b"entry-")], stays)


def test_any_cookie_that_was_given_can_be_returned_to(guest: FuseGuest, shared: Path) -> None:
    populate(shared, 40)
    handle = guest.opendir()
    everything = guest.readdir(handle, 0, 65536)
    for index in (30, 3, 17):
        again = guest.readdir(handle, everything[index].dirent.off, 65536)
        assert [entry.name for entry in again] == [entry.name for entry in everything[index + 1 :]]


def test_two_handles_have_their_own_positions(guest: FuseGuest, shared: Path) -> None:
    populate(shared, 10)
    first, second = guest.opendir(), guest.opendir()
    page = guest.readdir(first, 0, 100)
    assert [e.name for e in guest.readdir(second, 0, 100)] == [e.name for e in page]


def test_types_and_inode_numbers(guest: FuseGuest, shared: Path) -> None:
    (shared / "d").mkdir()
    (shared / "f").write_bytes(b"")
    listed = {entry.name: entry.dirent for entry in guest.readdir(guest.opendir())}
    assert (listed[b"d"].type, listed[b"f"].type) == (DT_DIR, DT_REG)
    assert listed[b"f"].ino == (shared / "f").stat().st_ino
    assert listed[b".."].ino == shared.stat().st_ino, "what is above the share stays unknown"


def test_readdirplus_looks_up_and_counts(guest: FuseGuest, shared: Path) -> None:
    (shared / "f").write_bytes(b"")
    listed = {
        entry.name: entry.entry for entry in guest.readdir(guest.opendir(), 0, 4096, plus=True)
    }
    dot, file = listed[b"."], listed[b"f"]
    assert dot is not None
    assert dot.nodeid == 0
    assert file is not None
    assert guest.lookup(b"f").nodeid == file.nodeid
    guest.forget(file.nodeid)
    assert stat.S_ISREG(guest.getattr(file.nodeid).mode)
    guest.forget(file.nodeid)
    with pytest.raises(FuseError) as error:
        guest.getattr(file.nodeid)
    assert number_of(error) == "ESTALE"


def test_an_entry_that_cannot_be_looked_up_hides_no_other(
    make_guest: MakeGuest, shared: Path
) -> None:
    names = {b"%d" % number for number in range(5)}
    for name in names:
        (shared / name.decode()).touch()
    guest = make_guest(limits=Limits(nodes=2, descriptors=2, handles=10))
    listed = guest.readdir(guest.opendir(), plus=True)
    assert_exactly([each.name for each in listed], names | {b".", b".."})
    found = [each.entry.nodeid for each in listed if each.entry and each.name in names]
    assert sorted(found)[:3] == [0, 0, 0], "listed, but not looked up"
    assert len(set(found)) == 3, "there was room for two"


def test_readdirplus_counts_only_the_entries_of_its_reply(guest: FuseGuest, shared: Path) -> None:
    populate(shared, 20)
    handle = guest.opendir()
    page = guest.readdir(handle, 0, 700, plus=True)
    looked_up = [e.entry.nodeid for e in page if e.entry is not None and e.entry.nodeid]
    assert len(looked_up) < 20
    assert len(open_descriptors(shared)) == len(looked_up)
    for node in looked_up:
        guest.forget(node)
    assert open_descriptors(shared) == []


def test_refusals(guest: FuseGuest, shared: Path) -> None:
    (shared / "f").write_bytes(b"")
    node = guest.lookup(b"f").nodeid
    with pytest.raises(FuseError) as error:
        guest.opendir(node)
    assert number_of(error) == "ENOTDIR"
    handle = guest.opendir()
    for attempt, expected in (
        (lambda: guest.read(handle, 10), "EBADF"),
        (lambda: guest.readdir(guest.open(node)), "EBADF"),
        (lambda: guest.readdir(handle, 0, 8), "EINVAL"),
        (lambda: guest.readdir(handle, 1 << 63), "EINVAL"),
        (lambda: guest.release(handle), "EBADF"),
    ):
        with pytest.raises(FuseError) as error:
            attempt()
        assert number_of(error) == expected
    guest.call(Opcode.FSYNCDIR, 1, fuse.FSYNC_IN.pack(handle, 0))
    guest.release(handle, Opcode.RELEASEDIR)
    with pytest.raises(FuseError) as error:
        guest.readdir(handle)
    assert number_of(error) == "EBADF"


def test_names_that_are_not_utf8(guest: FuseGuest, shared: Path) -> None:
    (shared / os.fsdecode(b"\xff\xfe")).write_bytes(b"")
    assert b"\xff\xfe" in guest.list_all(guest.opendir())
    assert guest.lookup(b"\xff\xfe").nodeid > 1
