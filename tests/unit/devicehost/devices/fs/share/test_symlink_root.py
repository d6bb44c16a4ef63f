"""The option `symlinkroot=`."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.devicehost.devices.fs.share.symlink_root import SymlinkRoot
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest


def on_host(link: Path) -> bytes:
    return os.readlink(os.fsencode(link))  # noqa: PTH115 - a Path has no double slashes


def readlink(guest: FuseGuest, name: bytes) -> bytes:
    entry = guest.lookup(name)
    target = guest.call(Opcode.READLINK, entry.nodeid)
    assert entry.attr.size == len(target), "lstat returns the target's length"
    assert guest.getattr(entry.nodeid).size == len(target)
    statx = guest.call(Opcode.STATX, entry.nodeid, fuse.STATX_IN.pack(0, 0, 0, 0xFFF))
    assert fuse.STATX.unpack_from(statx, fuse.STATX_OUT.size)[8] == len(target)
    listed = {each.name: each.entry for each in guest.readdir(guest.opendir(), plus=True)}
    assert listed[name] is not None
    return target


@pytest.mark.parametrize("root", ["/mnt/host", "/mnt/host/", "/mnt/host//"])
@pytest.mark.parametrize(
    ("target", "stored"),
    [
        (b"/mnt/host/usr/bin/env", b"/usr/bin/env"),
        (b"/mnt/host/", b"/"),
        (b"relative/path", b"relative/path"),
        (b"../up", b"../up"),
        (b"/usr/bin/env", b"//usr/bin/env"),  # of the guest itself
        (b"/", b"//"),
        (b"/mnt/host", b"//mnt/host"),
        (b"/mnt/hostile", b"//mnt/hostile"),
        (b"/mnt/host//x", b"//mnt/host//x"),
        (b"//double", b"///double"),
        (b"/mnt/host/not \xff utf-8", b"/not \xff utf-8"),
    ],
)
def test_what_the_guest_makes_comes_back(
    make_guest: MakeGuest, shared: Path, root: str, target: bytes, stored: bytes
) -> None:
    guest = make_guest(symlinkroot=root)
    assert guest.symlink(b"link", target).attr.size == len(target)
    assert on_host(shared / "link") == stored
    assert readlink(guest, b"link") == target
    (shared / "other").symlink_to("/etc/hosts")
    assert readlink(guest, b"other") == b"/mnt/host/etc/hosts"


def test_without_the_option_nothing_is_changed(guest: FuseGuest, shared: Path) -> None:
    guest.symlink(b"link", b"/usr/bin")
    assert on_host(shared / "link") == b"/usr/bin"
    assert readlink(guest, b"link") == b"/usr/bin"


def test_a_target_that_gets_too_long(make_guest: MakeGuest, shared: Path) -> None:
    (shared / "long").symlink_to("/" + "x" * 4090)
    guest = make_guest(symlinkroot="/mnt/host")
    entry = guest.lookup(b"long")
    assert entry.attr.size == 4091
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.READLINK, entry.nodeid)
    assert error.value.number == errno.ENAMETOOLONG


def test_only_slashes_at_the_end_of_the_root_do_not_count() -> None:
    assert SymlinkRoot("/mnt/X//").shown(b"/a") == b"/mnt/X/a"


def test_the_longest_target_is_the_longest_path() -> None:
    """PATH_MAX is 4096 with the NUL at the end (limits.h)."""
    links = SymlinkRoot("/mnt")
    fits = b"/" + b"x" * (4095 - len("/mnt/"))
    assert links.shown(fits) == b"/mnt" + fits
    with pytest.raises(OSError) as error:
        links.shown(fits + b"x")
    assert error.value.errno == errno.ENAMETOOLONG


@given(st.lists(st.sampled_from([b"/", b"mnt", b"host", b"a", b".."]), min_size=1).map(b"".join))
def test_every_target_comes_back(target: bytes) -> None:
    for root in ("/mnt", "/mnt/host", "/"):
        links = SymlinkRoot(root)
        assert links.shown(links.stored(target)) == target
