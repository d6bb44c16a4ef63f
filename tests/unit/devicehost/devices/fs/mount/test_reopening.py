"""Evicted nodes whose volume's handles are not trusted: they are opened again by their names."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.host_files import syscalls
from services.wire.fuse import Opcode
from tests.support.descriptors import open_descriptors
from tests.unit.devicehost.devices.fs.mount.test_nodes import (
    FEW,
    by_handle,
    by_name,
    crowded,
    look_at_all,
    refused,
    residents,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.fuse_guest import FuseGuest

__all__ = ["crowded"]

pytestmark = pytest.mark.root

RENAME_EXCHANGE = 2


def evict_all(guest: FuseGuest) -> None:
    """Look at so many other files, twice, that nothing known before keeps its descriptor."""
    look_at_all(guest)
    look_at_all(guest)


def text(guest: FuseGuest, node: int) -> bytes:
    handle = guest.open(node)
    try:
        return guest.read(handle, 100)
    finally:
        guest.release(handle)


@by_name
def test_a_file_is_found_through_directories_that_were_evicted(
    crowded: FuseGuest, shared: Path
) -> None:
    deep = shared.joinpath(*["d"] * 50)
    deep.mkdir(parents=True)
    (deep / "file").write_text("deep")
    above = 1
    for _ in range(50):
        above = crowded.lookup(b"d", above).nodeid
    node = crowded.lookup(b"file", above).nodeid
    evict_all(crowded)
    assert text(crowded, node) == b"deep"
    evict_all(crowded)
    assert crowded.getattr(above).ino == deep.stat().st_ino
    assert len(open_descriptors(shared)) <= FEW


@by_name
def test_a_file_is_found_where_the_guest_has_renamed_it(crowded: FuseGuest, shared: Path) -> None:
    for name in ("from", "to"):
        (shared / name).mkdir()
        (shared / name / "file").write_text(name)
    old, new = (crowded.lookup(name).nodeid for name in (b"from", b"to"))
    first, second = (crowded.lookup(b"file", folder).nodeid for folder in (old, new))
    evict_all(crowded)
    crowded.rename(b"file", b"renamed", parent=old, to=new)
    crowded.rename(b"file", b"renamed", parent=new, to=new, flags=RENAME_EXCHANGE)
    evict_all(crowded)
    assert text(crowded, first) == b"from"
    assert text(crowded, second) == b"to"
    crowded.rename(b"to", b"elsewhere")
    evict_all(crowded)
    assert text(crowded, first) == b"from", "its directory was renamed"


@by_name
def test_a_file_that_the_host_has_renamed_is_stale_until_it_is_looked_up(
    crowded: FuseGuest, shared: Path
) -> None:
    (shared / "file").write_text("text")
    node = crowded.lookup(b"file").nodeid
    evict_all(crowded)
    (shared / "file").rename(shared / "elsewhere")
    assert refused(lambda: crowded.getattr(node)) == "ESTALE"
    assert crowded.lookup(b"elsewhere").nodeid == node
    evict_all(crowded)
    assert text(crowded, node) == b"text"


@by_name
def test_another_file_in_its_place_is_not_taken_for_it(crowded: FuseGuest, shared: Path) -> None:
    nodes = look_at_all(crowded)
    inode = (shared / "000").stat().st_ino
    (shared / "000").unlink()
    (shared / "000").write_text("another")
    assert refused(lambda: crowded.getattr(nodes[0])) == "ESTALE"
    (shared / "000").unlink()
    for attempt in range(1000):  # file systems give a freed inode number to another file
        (shared / f"new {attempt}").write_text("another")
        if (shared / f"new {attempt}").stat().st_ino == inode:
            (shared / f"new {attempt}").rename(shared / "000")
            break
    else:
        pytest.skip("this file system did not use the inode number again")
    assert refused(lambda: crowded.getattr(nodes[0])) == "ESTALE", "it was born later"
    assert crowded.lookup(b"000").nodeid not in nodes


@by_name
def test_a_symlink_in_its_place_is_not_followed(crowded: FuseGuest, shared: Path) -> None:
    (shared / "dir").mkdir()
    (shared / "dir" / "file").write_text("inside")
    above = crowded.lookup(b"dir").nodeid
    node = crowded.lookup(b"file", above).nodeid
    evict_all(crowded)
    (shared / "dir").rename(shared.parent / "moved out")
    (shared / "dir").symlink_to(shared.parent / "moved out")
    assert refused(lambda: crowded.getattr(node)) == "ESTALE"
    assert refused(lambda: crowded.lookup(b"file", above)) == "ESTALE"


@by_name
def test_another_mount_in_its_place_is_not_entered(crowded: FuseGuest, shared: Path) -> None:
    (shared / "dir").mkdir()
    (shared / "dir" / "file").write_text("inside")
    above = crowded.lookup(b"dir").nodeid
    node = crowded.lookup(b"file", above).nodeid
    evict_all(crowded)
    subprocess.run(["mount", "--bind", shared / "dir", shared / "dir"], check=True)
    try:
        assert refused(lambda: crowded.getattr(node)) == "ESTALE"
    finally:
        subprocess.run(["umount", shared / "dir"], check=True)
    assert text(crowded, node) == b"inside"


@by_name
@pytest.mark.parametrize("how", ["UNLINK", "RENAME", "LINK"])
def test_a_file_of_two_names_is_found_after_the_guest_removed_one(
    crowded: FuseGuest, shared: Path, how: str
) -> None:
    (shared / "first").write_text("text")
    node = crowded.lookup(b"first").nodeid
    if how == "LINK":
        crowded.link(node, b"second")
    else:
        os.link(shared / "first", shared / "second")
    evict_all(crowded)
    if how == "RENAME":
        crowded.rename(b"099", b"first")
        (shared / "099").write_text("file 99")
    else:
        crowded.unlink(b"first")
    evict_all(crowded)
    assert text(crowded, node) == b"text", "the guest knows no name of it"
    assert crowded.lookup(b"second").nodeid == node
    evict_all(crowded)
    assert len(open_descriptors(shared)) <= FEW
    assert text(crowded, node) == b"text"


@by_name
def test_a_name_that_could_not_be_removed_still_leads_back(
    crowded: FuseGuest, shared: Path
) -> None:
    (shared / "dir").mkdir()
    (shared / "dir" / "file").touch()
    node = crowded.lookup(b"dir").nodeid
    evict_all(crowded)
    assert refused(lambda: crowded.call(Opcode.RMDIR, 1, b"dir\0")) == "ENOTEMPTY"
    evict_all(crowded)
    assert "dir" not in residents(shared)
    assert crowded.getattr(node).ino == (shared / "dir").stat().st_ino


@by_name
def test_a_file_in_a_directory_that_the_guest_has_forgotten_is_stale(
    crowded: FuseGuest, shared: Path
) -> None:
    (shared / "dir").mkdir()
    (shared / "dir" / "file").write_text("text")
    above = crowded.lookup(b"dir").nodeid
    node = crowded.lookup(b"file", above).nodeid
    evict_all(crowded)
    crowded.forget(above)
    assert refused(lambda: crowded.getattr(node)) == "ESTALE"
    above = crowded.lookup(b"dir").nodeid
    assert crowded.lookup(b"file", above).nodeid == node
    assert text(crowded, node) == b"text"


@by_name
def test_directories_that_seem_to_be_in_each_other_are_stale(
    crowded: FuseGuest, shared: Path
) -> None:
    """The host may move a directory while the guest remembers where it was."""
    (shared / "a" / "b").mkdir(parents=True)
    a = crowded.lookup(b"a").nodeid
    b = crowded.lookup(b"b", a).nodeid
    (shared / "a" / "b").rename(shared / "b")
    (shared / "a").rename(shared / "b" / "a")
    crowded.getattr(b)
    assert crowded.lookup(b"a", b).nodeid == a
    evict_all(crowded)
    assert refused(lambda: crowded.getattr(a)) == "ESTALE"
    assert refused(lambda: crowded.getattr(b)) == "ESTALE"
    assert crowded.lookup(b"b").nodeid == b
    assert crowded.getattr(a).ino == (shared / "b" / "a").stat().st_ino


@by_handle
@pytest.mark.parametrize("library", ["python"], indirect=True)
def test_handles_are_trusted_until_one_leads_to_no_file_that_is_there(
    crowded: FuseGuest, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def forgotten(*_: object) -> int:
        tries.append(errno.ESTALE)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    nodes = look_at_all(crowded)
    monkeypatch.setattr(syscalls, "open_by_handle", forgotten)
    (shared / "000").unlink()
    assert refused(lambda: crowded.getattr(nodes[0])) == "ESTALE"
    assert len(tries) == 1
    assert text(crowded, nodes[1]) == b"file 1"
    assert len(tries) == 2, "the file that was gone was no reason for distrust"
    for number, node in enumerate(nodes[2:], 2):
        assert text(crowded, node) == b"file %d" % number
    assert len(tries) == 2
