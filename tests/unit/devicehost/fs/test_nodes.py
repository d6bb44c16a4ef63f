"""Nodes beyond the number of descriptors: they become idle, and are found again."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs import credentials
from services.devicehost.devices.fs.descriptors import Limits
from tests.unit.devicehost.fs.conftest import MakeGuest, open_descriptors
from tests.unit.devicehost.fs.fuse_guest import FuseError, FuseGuest

if TYPE_CHECKING:
    from pathlib import Path

CAP_DAC_READ_SEARCH = 1 << 2
FEW = 4
FILES = 100


@pytest.fixture
def crowded(make_guest: MakeGuest, shared: Path) -> FuseGuest:
    """A guest that may know many files, of which few may have a descriptor."""
    for number in range(FILES):
        (shared / f"{number:03}").write_text(f"file {number}")
    return make_guest(limits=Limits(nodes=1000, descriptors=FEW, handles=100))


def look_at_all(guest: FuseGuest) -> list[int]:
    return [guest.lookup(b"%03d" % number).nodeid for number in range(FILES)]


@pytest.mark.root
def test_a_guest_knows_more_files_than_it_has_descriptors(crowded: FuseGuest, shared: Path) -> None:
    nodes = look_at_all(crowded)
    assert len(set(nodes)) == FILES
    assert len(open_descriptors(shared)) <= FEW
    for number, node in enumerate(nodes):
        assert crowded.getattr(node).ino == (shared / f"{number:03}").stat().st_ino
        handle = crowded.open(node)
        assert crowded.read(handle, 100) == b"file %d" % number
        crowded.release(handle)
    assert len(open_descriptors(shared)) <= FEW
    assert look_at_all(crowded) == nodes, "they are the same nodes"


@pytest.mark.root
def test_an_idle_node_is_found_under_its_new_name(crowded: FuseGuest, shared: Path) -> None:
    nodes = look_at_all(crowded)
    (shared / "dir").mkdir()
    (shared / "000").rename(shared / "dir" / "elsewhere")
    (shared / "000").write_text("another")
    assert crowded.read(crowded.open(nodes[0]), 100) == b"file 0"
    assert crowded.lookup(b"000").nodeid != nodes[0]


@pytest.mark.root
def test_an_idle_node_is_gone_with_its_file(crowded: FuseGuest, shared: Path) -> None:
    nodes = look_at_all(crowded)
    inode = (shared / "000").stat().st_ino
    (shared / "000").unlink()
    # File systems give a freed inode number to the next file, sooner or later.
    for attempt in range(1000):
        successor = shared / f"new-{attempt}"
        successor.write_text("successor")
        if successor.stat().st_ino == inode:
            break
    with pytest.raises(FuseError) as error:
        crowded.getattr(nodes[0])
    assert errno.errorcode[error.value.number] == "ESTALE"
    found = crowded.lookup(successor.name.encode())
    assert found.nodeid not in nodes
    assert crowded.read(crowded.open(found.nodeid), 100) == b"successor"


@pytest.mark.root
def test_an_open_file_without_a_name_never_becomes_idle(crowded: FuseGuest, shared: Path) -> None:
    entry, handle = crowded.create(b"brief")
    crowded.unlink(b"brief")
    nodes = look_at_all(crowded)
    assert crowded.write(handle, b"text") == 4
    attr = crowded.getattr(entry.nodeid)
    assert (attr.size, attr.nlink) == (4, 0)
    crowded.release(handle)
    assert crowded.getattr(nodes[0]).size == len("file 0")


def test_forgotten_nodes_keep_no_descriptor(crowded: FuseGuest, shared: Path) -> None:
    for number in range(FILES):
        crowded.forget(crowded.lookup(b"%03d" % number).nodeid)
        assert len(open_descriptors(shared)) <= FEW


def test_without_file_handles_there_are_as_many_nodes_as_descriptors(
    make_guest: MakeGuest, shared: Path
) -> None:
    credentials._change(remove=CAP_DAC_READ_SEARCH)
    try:
        guest = make_guest(limits=Limits(nodes=1000, descriptors=FEW, handles=100))
    finally:
        credentials._change(add=CAP_DAC_READ_SEARCH)
    for number in range(FEW):
        (shared / f"{number}").touch()
        guest.lookup(b"%d" % number)
    (shared / "more").touch()
    with pytest.raises(FuseError) as error:
        guest.lookup(b"more")
    assert errno.errorcode[error.value.number] == "ENFILE"
