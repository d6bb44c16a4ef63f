"""Nodes beyond the number of descriptors: they are evicted, and reopened."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from services.devicehost.devices.fs.host_files import credentials, syscalls
from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits
from services.devicehost.devices.fs.mount.nodes import Node, NodeTable
from services.devicehost.devices.fs.mount.volumes import Volume
from services.wire.fuse import Opcode
from tests.support.descriptors import open_descriptors
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest

CAP_DAC_READ_SEARCH = 1 << 2
FEW = 4
FILES = 100


@pytest.fixture(params=["handles", "names"])
def crowded(make_guest: MakeGuest, shared: Path, request: pytest.FixtureRequest) -> FuseGuest:
    """A guest that may know many files, of which few may have a descriptor.

    Evicted nodes are opened again by their file handles, or by their names.
    """
    for number in range(FILES):
        (shared / f"{number:03}").write_text(f"file {number}")
    if request.param == "names":
        credentials._change(remove=CAP_DAC_READ_SEARCH)
    try:
        return make_guest(limits=Limits(nodes=1000, descriptors=FEW, handles=100))
    finally:
        credentials._change(add=CAP_DAC_READ_SEARCH)


by_handle = pytest.mark.parametrize("crowded", ["handles"], indirect=True)
by_name = pytest.mark.parametrize("crowded", ["names"], indirect=True)


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
    crowded.open(nodes[-1])


@by_handle
@pytest.mark.root
def test_an_evicted_node_is_found_under_its_new_name(crowded: FuseGuest, shared: Path) -> None:
    nodes = look_at_all(crowded)
    (shared / "dir").mkdir()
    (shared / "000").rename(shared / "dir" / "elsewhere")
    (shared / "000").write_text("another")
    assert crowded.read(crowded.open(nodes[0]), 100) == b"file 0"
    assert crowded.lookup(b"000").nodeid != nodes[0]


@pytest.mark.root
def test_an_evicted_node_is_gone_with_its_file(crowded: FuseGuest, shared: Path) -> None:
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
    crowded.forget(nodes[0])
    assert crowded.lookup(successor.name.encode()).nodeid == found.nodeid


@pytest.mark.root
def test_an_open_file_without_a_name_is_never_evicted(crowded: FuseGuest, shared: Path) -> None:
    entry, handle = crowded.create(b"brief")
    crowded.unlink(b"brief")
    nodes = look_at_all(crowded)
    assert crowded.write(handle, b"text") == 4
    attr = crowded.getattr(entry.nodeid)
    assert (attr.size, attr.nlink) == (4, 0)
    crowded.release(handle)
    assert crowded.getattr(nodes[0]).size == len("file 0")


@pytest.mark.root
def test_removed_files_that_a_guest_knows_keep_few_descriptors(
    crowded: FuseGuest, shared: Path
) -> None:
    entry, handle = crowded.create(b"open")
    crowded.unlink(b"open")
    nodes = []
    for number in range(FILES):
        nodes.append(crowded.lookup(b"%03d" % number).nodeid)
        (shared / f"{number:03}").unlink()
        # Half as many again, and the open file with its node.
        assert len(open_descriptors(shared)) <= FEW + FEW // 2 + 2
    answers = []
    for node in nodes:
        try:
            answers.append(crowded.getattr(node).nlink)
        except FuseError as error:
            answers.append(-error.number)
    assert set(answers) == {0, -errno.ESTALE}
    assert answers.count(0) <= FEW + FEW // 2
    assert crowded.write(handle, b"text") == 4
    attr = crowded.getattr(entry.nodeid)
    assert (attr.size, attr.nlink) == (4, 0), "an open file is there, however many others were"


def test_forgotten_nodes_keep_no_descriptor(crowded: FuseGuest, shared: Path) -> None:
    for number in range(FILES):
        crowded.forget(crowded.lookup(b"%03d" % number).nodeid)
        assert len(open_descriptors(shared)) <= FEW


@pytest.mark.root
def test_an_evicted_fifo_is_not_opened(make_guest: MakeGuest, shared: Path) -> None:
    """A file system below the share needs a file of its own for this: a FIFO must not be it."""
    inner = shared / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", inner], check=True)
    try:
        os.mkfifo(inner / "fifo")
        for number in range(FILES):
            (shared / f"{number:03}").write_text("")
        guest = make_guest(limits=Limits(nodes=1000, descriptors=FEW, handles=100))
        directory = guest.lookup(b"inner").nodeid
        handle = guest.opendir(directory)  # so it stays in use
        fifo = guest.lookup(b"fifo", directory).nodeid
        look_at_all(guest)
        assert guest.getattr(fifo).ino == (inner / "fifo").stat().st_ino
        with pytest.raises(OSError, match="No such device or address"):  # it has no reader
            os.close(os.open(inner / "fifo", os.O_WRONLY | os.O_NONBLOCK))
        guest.release(handle, Opcode.RELEASEDIR)
        del guest
    finally:
        subprocess.run(["umount", "-l", inner], check=True)


def test_a_volume_opens_no_file_that_it_did_not_prepare(shared: Path) -> None:
    root = Descriptor(os.open(shared, os.O_PATH))
    with pytest.raises(OSError) as error:
        Volume(mount=1).reopen(syscalls.name_to_handle(root.fd))
    assert error.value.errno == errno.ESTALE
    assert not Volume(mount=0).prepare(root), "the kernel does not tell mounts apart"


def test_a_volume_waits_for_no_lease(shared: Path) -> None:
    """An open(2) that blocks waits until the holder of a lease gives it back."""
    (shared / "file").touch()
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    holder = os.open(shared / "file", os.O_RDWR)
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        file = Descriptor(os.open(shared / "file", os.O_PATH))
        volume = Volume(mount=1)
        assert not volume.prepare(file)
        assert volume.prepare(Descriptor(os.open(shared, os.O_PATH))), "it tries again"
    finally:
        os.close(holder)
        signal.signal(signal.SIGIO, before)


def test_only_a_file_or_directory_is_opened_to_find_others_by(shared: Path) -> None:
    os.mkfifo(shared / "fifo")
    fifo = Descriptor(os.open(shared / "fifo", os.O_PATH))
    assert not Volume(mount=1).prepare(fifo)  # like the first file of another file system
    with pytest.raises(OSError, match="No such device or address"):  # it has no reader
        os.close(os.open(shared / "fifo", os.O_WRONLY | os.O_NONBLOCK))


@pytest.fixture
def with_mounts(shared: Path) -> Iterator[Path]:
    """The shared directory with `real`, and `lib`, a read-only mount of it."""
    (shared / "real").mkdir()
    (shared / "lib").mkdir()
    (shared / "real" / "file").write_text("text")
    subprocess.run(["mount", "--bind", shared / "real", shared / "lib"], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", shared / "lib"], check=True)
    yield shared
    subprocess.run(["umount", "-l", shared / "lib"], check=True)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(FuseError) as error:
        call()
    return errno.errorcode[error.value.number]


@pytest.mark.root
@pytest.mark.parametrize("order", [("real", "lib"), ("lib", "real")])
def test_a_file_is_written_through_its_own_mount_or_not_at_all(
    crowded: FuseGuest, with_mounts: Path, order: tuple[str, str]
) -> None:
    folders = {name: crowded.lookup(name.encode()).nodeid for name in order}
    files = {name: crowded.lookup(b"file", folder).nodeid for name, folder in folders.items()}
    assert len({*folders.values(), *files.values()}) == 4
    for _ in range(2):
        assert refused(lambda: crowded.open(files["lib"], os.O_RDWR)) == "EROFS"
        assert refused(lambda: crowded.create(b"new", parent=folders["lib"])) == "EROFS"
        handle = crowded.open(files["real"], os.O_RDWR)
        assert crowded.write(handle, b"TEXT") == 4
        crowded.release(handle)
        look_at_all(crowded)  # nothing of the two stays resident
    for name in order:
        assert crowded.lookup(name.encode()).nodeid == folders[name]
        assert crowded.lookup(b"file", folders[name]).nodeid == files[name]
        assert crowded.lookup(b"file", folders[name]).nodeid == files[name]


@pytest.mark.root
def test_a_mount_is_in_use_until_the_guest_forgets_its_files(
    crowded: FuseGuest, shared: Path
) -> None:
    inner = shared / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", inner], check=True)
    try:
        (inner / "file").touch()
        nodes = [crowded.lookup(b"inner").nodeid]
        nodes.append(crowded.lookup(b"file", nodes[0]).nodeid)
        look_at_all(crowded)
        assert crowded.getattr(nodes[1]).ino == (inner / "file").stat().st_ino
        assert subprocess.run(["umount", inner], check=False).returncode != 0
        for node in nodes:
            crowded.forget(node)
        subprocess.run(["umount", inner], check=True)
    finally:
        subprocess.run(["umount", "-l", inner], check=False)


def residents(shared: Path) -> set[str]:
    return {path.rpartition("/")[2] for path in open_descriptors(shared)}


@pytest.mark.root
@pytest.mark.parametrize("how", ["LOOKUP", "GETATTR"])
def test_a_node_that_was_used_lately_keeps_its_descriptor(
    crowded: FuseGuest, shared: Path, how: str
) -> None:
    nodes = [crowded.lookup(b"%03d" % number).nodeid for number in range(FEW + 1)]
    # All were new, so each was passed over once before the first was evicted.
    assert residents(shared) == {"001", "002", "003", "004"}
    if how == "LOOKUP":
        crowded.lookup(b"001")
    else:
        crowded.getattr(nodes[1])
    crowded.lookup(b"005")
    assert residents(shared) == {"001", "003", "004", "005"}
    for number in range(6, 9):
        crowded.lookup(b"%03d" % number)
    assert residents(shared) == {"005", "006", "007", "008"}, "001 was not used since"


@pytest.mark.root
@pytest.mark.parametrize("how", ["LOOKUP", "GETATTR"])
def test_an_evicted_node_that_is_used_again_is_resident_as_any_other(
    crowded: FuseGuest, shared: Path, how: str
) -> None:
    for number, node in enumerate(look_at_all(crowded)):
        if how == "LOOKUP":
            assert crowded.lookup(b"%03d" % number).nodeid == node
        else:
            crowded.getattr(node)
        assert f"{number:03}" in residents(shared)
        assert len(open_descriptors(shared)) == FEW, "it takes the place of one, not of two"


@pytest.mark.root
def test_an_evicted_node_whose_file_is_open_needs_no_second_descriptor(
    crowded: FuseGuest, shared: Path
) -> None:
    node = crowded.lookup(b"000").nodeid
    handle = crowded.open(node)
    look_at_all(crowded)
    assert crowded.lookup(b"000").nodeid == node
    of_it = [path for path in open_descriptors(shared) if path.endswith("/000")]
    assert len(of_it) == 2, "of its node, and of the open file"
    crowded.release(handle)


class ForgottenOnTheWay(NodeTable):
    """Nodes of a guest that forgets each while another request of it looks for it."""

    class _ById(dict[int, Any]):
        forget: Callable[[int], None] | None = None

        def get(self, node_id: int, default: Any = None) -> Any:
            found = super().get(node_id, default)
            forget, self.forget = self.forget, None
            if forget is not None:
                forget(node_id)
            return found

    def get(self, node_id: int) -> Node:
        self._by_id = by_id = self._ById(self._by_id)
        by_id.forget = lambda node_id: self.forget(node_id, 1)
        return super().get(node_id)


def test_a_node_that_is_forgotten_while_it_is_looked_for_is_stale(shared: Path) -> None:
    root = Descriptor(os.open(shared, os.O_PATH))
    limits = Limits(nodes=9, descriptors=9, handles=9)
    nodes = ForgottenOnTheWay(root, syscalls.status_of(root.fd), limits)
    (shared / "file").touch()
    file = Descriptor(os.open(shared / "file", os.O_PATH))
    node_id = nodes.count_lookup(file, syscalls.status_of(file.fd), nodes.root, b"file").id
    with pytest.raises(OSError) as error:
        nodes.get(node_id)
    assert error.value.errno == errno.ESTALE


@pytest.mark.root
def test_an_evicted_node_that_was_forgotten_is_not_found_again(crowded: FuseGuest) -> None:
    nodes = look_at_all(crowded)
    crowded.forget(nodes[0])
    again = crowded.lookup(b"000").nodeid
    assert again not in nodes, "ids are never used again"
    assert crowded.read(crowded.open(again), 100) == b"file 0"


@pytest.mark.root
def test_a_file_without_a_name_stays_while_there_are_few(crowded: FuseGuest, shared: Path) -> None:
    """A guest's process may be in a directory, or map a file, that has been removed."""
    (shared / "brief").write_text("brief")
    node = crowded.lookup(b"brief").nodeid
    (shared / "brief").unlink()
    look_at_all(crowded)
    attr = crowded.getattr(node)
    assert (attr.nlink, attr.size) == (0, 5)


@pytest.mark.root
@pytest.mark.parametrize("library", ["python"], indirect=True)
def test_removed_files_that_were_open_stay_up_to_half_as_many_again(crowded: FuseGuest) -> None:
    made = [crowded.create(b"open %d" % number) for number in range(20)]
    for number, (entry, _) in enumerate(made):
        crowded.unlink(b"open %d" % number)
        assert crowded.getattr(entry.nodeid).nlink == 0
    for _, handle in made:
        crowded.release(handle)
    stay = 0
    for entry, _ in made:
        with contextlib.suppress(FuseError):
            stay += crowded.getattr(entry.nodeid).nlink == 0
    assert stay == FEW + FEW // 2
