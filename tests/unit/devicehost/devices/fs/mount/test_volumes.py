"""Mounts and file systems of the host below a share: a guest tells files apart as the host does."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.devicehost.devices.fs.mount.volumes import foreign_mask
from services.wire import fuse
from services.wire.fuse import FUSE_ROOT_ID, Opcode
from tests.unit.devicehost.devices.fs.fuse_guest import OFFERED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest
    from tests.unit.devicehost.devices.fs.fuse_guest import FuseGuest

WITHOUT = OFFERED & ~fuse.FUSE_SUBMOUNTS
FOLDERS = {"data1", "data1/inner", "data2", "bound"}
"""The directories of `tree` that begin another mount."""
NUMBERS = st.integers(0, 2**32 - 1)


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, timeout=30)


@pytest.fixture
def tree(shared: Path) -> Iterator[Path]:
    """File systems that are alike to the inode number, a bound directory, and a bound file."""
    mounted: list[Path] = []
    try:
        for name in ("data1", "data2", "data1/inner"):
            (shared / name).mkdir()
            mount("-t", "tmpfs", "none", shared / name)
            mounted.append(shared / name)
            (shared / name / "file").write_text(name)
            os.link(shared / name / "file", shared / name / "link")
            (shared / name / "folder").mkdir()
        for name in ("own", "bound"):
            (shared / name).mkdir()
        (shared / "own" / "file").write_text("own")
        (shared / "single").touch()
        for source, target in (("own", "bound"), ("data2/file", "single")):
            mount("--bind", shared / source, shared / target)
            mounted.append(shared / target)
        yield shared
    finally:
        for path in reversed(mounted):
            subprocess.run(["umount", "-l", path], check=True, timeout=30)


class Place(NamedTuple):
    """Where Linux in a guest sees a file: its file system is that of the innermost submount."""

    submount: int
    ino: int


def seen(guest: FuseGuest, folder: Path, nodeid: int = FUSE_ROOT_ID) -> dict[Path, Place]:
    """Look up everything below a directory."""
    found = {}
    for path in sorted(folder.iterdir()):
        entry = guest.lookup(path.name.encode(), nodeid)
        flagged = entry.attr.flags & fuse.FUSE_ATTR_SUBMOUNT
        below = seen(guest, path, entry.nodeid) if path.is_dir() else {}
        found[path] = Place(0, entry.attr.ino)
        found |= below
        if flagged:
            found |= {
                each: Place(place.submount or entry.nodeid, place.ino)
                for each, place in {**below, path: found[path]}.items()
            }
    return found


def mount_of(path: Path) -> str:
    fd = os.open(path, os.O_PATH)
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    finally:
        os.close(fd)
    return next(line for line in lines if line.startswith("mnt_id:"))


def is_same(one: Path, other: Path, *, announced: bool) -> bool:
    """Whether the host has one file there; what is bound elsewhere is announced as another."""
    return one.samefile(other) and not (announced and mount_of(one) != mount_of(other))


@pytest.mark.root
@pytest.mark.parametrize("offered", [OFFERED, WITHOUT])
def test_two_files_are_one_exactly_where_they_are_on_the_host(
    make_guest: MakeGuest, tree: Path, offered: int
) -> None:
    guest = make_guest(mounted=False)
    guest.init(flags=offered)
    found = seen(guest, tree)
    for one, other in itertools.combinations(found, 2):
        wanted = is_same(one, other, announced=offered == OFFERED)
        assert (found[one] == found[other]) is wanted, (one, other)


@pytest.mark.root
def test_directories_that_begin_another_mount_are_announced(
    make_guest: MakeGuest, tree: Path
) -> None:
    guest = make_guest()
    found = seen(guest, tree)
    announced = {}
    for path in found:
        entry = guest.walk(path.relative_to(tree).as_posix())
        assert guest.getattr(entry.nodeid).flags == entry.attr.flags
        announced[path.relative_to(tree).as_posix()] = entry.attr.flags
    assert {name for name, flags in announced.items() if flags} == FOLDERS
    # Within a submount numbers are the host's own.
    for name in ("data1", "data1/file", "data1/inner/file", "data2/link", "bound/file", "own/file"):
        assert found[tree / name].ino == (tree / name).stat().st_ino
    made, handle = guest.create(b"new", parent=guest.walk("data1/inner").nodeid)
    assert (made.attr.flags, made.attr.ino) == (0, (tree / "data1/inner/new").stat().st_ino)
    guest.release(handle)
    folder = guest.mkdir(b"made", parent=guest.walk("data1").nodeid)
    assert (folder.attr.flags, folder.attr.ino) == (0, (tree / "data1/made").stat().st_ino)


@pytest.mark.root
@pytest.mark.parametrize("offered", [OFFERED, WITHOUT])
def test_every_request_shows_the_same_number_and_flag(
    make_guest: MakeGuest, tree: Path, offered: int
) -> None:
    guest = make_guest(mounted=False)
    guest.init(flags=offered)
    for folder in ("", "data1", "data1/inner", "bound"):
        nodeid = guest.walk(folder).nodeid if folder else FUSE_ROOT_ID
        handle = guest.opendir(nodeid)
        for each in guest.readdir(handle, nodeid=nodeid, plus=True):
            if each.name in (b".", b".."):
                continue
            found = guest.lookup(each.name, nodeid)
            assert each.attr == found.attr
            data = guest.call(Opcode.STATX, found.nodeid, fuse.STATX_IN.pack(0, 0, 0, 0xFFF))
            assert fuse.STATX.unpack_from(data, fuse.STATX_OUT.size)[7] == found.attr.ino
            name = f"{folder}/{os.fsdecode(each.name)}".lstrip("/")
            if name not in (*FOLDERS, "single"):  # the host lists what is below the mount, too
                assert each.dirent.ino == found.attr.ino
        guest.release(handle, Opcode.RELEASEDIR)


@pytest.mark.root
def test_numbers_of_other_file_systems_outlive_the_guests_mount(
    make_guest: MakeGuest, tree: Path
) -> None:
    guest = make_guest(mounted=False)
    guest.init(flags=WITHOUT)
    first = seen(guest, tree)
    guest.init(flags=WITHOUT)
    assert seen(guest, tree) == first
    device = (tree / "data1").stat().st_dev
    mask = foreign_mask(device, tree.stat().st_dev)
    assert first[tree / "data1/file"].ino == (tree / "data1/file").stat().st_ino ^ mask
    assert first[tree / "own/file"].ino == first[tree / "bound/file"].ino


@given(NUMBERS, NUMBERS, NUMBERS)
def test_bits_for_a_file_system_are_its_own_and_leave_the_lower_half(
    root: int, one: int, other: int
) -> None:
    assert foreign_mask(root, root) == 0
    assert (foreign_mask(one, root) == foreign_mask(other, root)) is (one == other)
    assert 0 <= foreign_mask(one, root) < 1 << 64
    assert foreign_mask(one, root) & 0xFFFF_FFFF == 0
