"""Looking up, making, renaming and removing names."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.host_files.descriptors import Limits
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.support.descriptors import open_descriptors
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest

if TYPE_CHECKING:
    from tests.unit.devicehost.devices.fs.conftest import MakeGuest

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


def number_of(error: pytest.ExceptionInfo[FuseError]) -> str:
    return errno.errorcode[error.value.number]


def test_lookup_finds_what_is_there(guest: FuseGuest, shared: Path) -> None:
    (shared / "file").write_bytes(b"12345")
    (shared / "dir").mkdir()
    found = guest.lookup(b"file")
    assert found.nodeid > 1
    assert (found.attr.size, found.attr.ino) == (5, (shared / "file").stat().st_ino)
    assert stat.S_ISDIR(guest.lookup(b"dir").attr.mode)
    with pytest.raises(FuseError) as error:
        guest.lookup(b"absent")
    assert number_of(error) == "ENOENT"
    with pytest.raises(FuseError) as error:
        guest.lookup(b"x", found.nodeid)
    assert number_of(error) == "ENOTDIR"


def test_hard_links_are_one_node(guest: FuseGuest, shared: Path) -> None:
    (shared / "a").write_bytes(b"")
    first = guest.lookup(b"a")
    second = guest.link(first.nodeid, b"b")
    assert second.nodeid == first.nodeid
    assert second.attr.nlink == 2
    assert guest.lookup(b"b").nodeid == first.nodeid
    assert (shared / "b").samefile(shared / "a")


def test_a_node_lives_until_every_lookup_is_forgotten(guest: FuseGuest, shared: Path) -> None:
    (shared / "a").write_bytes(b"")
    node = guest.lookup(b"a").nodeid
    assert guest.lookup(b"a").nodeid == node
    guest.forget(node)
    assert guest.getattr(node).size == 0
    guest.forget(node)
    with pytest.raises(FuseError) as error:
        guest.getattr(node)
    assert number_of(error) == "ESTALE"
    assert guest.lookup(b"a").nodeid != node, "ids are never used again"


def test_every_reply_with_an_entry_is_a_lookup_to_take_back(guest: FuseGuest, shared: Path) -> None:
    """FUSE: LOOKUP, READDIRPLUS and LINK each count one, and CREATE that opens what is there."""
    (shared / "a").write_bytes(b"")
    node = guest.lookup(b"a").nodeid
    guest.readdir(guest.opendir(), plus=True)
    guest.lookup(b"a")
    guest.link(node, b"b")
    guest.create(b"a")
    for _ in range(4):
        guest.forget(node)
        assert guest.getattr(node).nlink == 2
    guest.forget(node)
    with pytest.raises(FuseError) as error:
        guest.getattr(node)
    assert number_of(error) == "ESTALE"


def test_forgetting_closes_descriptors(guest: FuseGuest, shared: Path) -> None:
    names = [b"f%d" % index for index in range(20)]
    for name in names:
        (shared / name.decode()).write_bytes(b"")
    nodes = [guest.lookup(name).nodeid for name in names]
    assert len(open_descriptors(shared)) == 20
    ones = b"".join(fuse.FORGET_ONE.pack(node, 1) for node in nodes)
    guest.one_way(Opcode.BATCH_FORGET, 0, fuse.BATCH_FORGET_IN.pack(20) + ones)
    assert open_descriptors(shared) == []


@pytest.mark.parametrize("count", [0, 2, 2**32 - 1])
def test_a_batch_that_is_not_as_long_as_it_says_forgets_nothing(
    guest: FuseGuest, shared: Path, count: int
) -> None:
    (shared / "file").touch()
    node = guest.lookup(b"file").nodeid
    body = fuse.BATCH_FORGET_IN.pack(count) + fuse.FORGET_ONE.pack(node, 1)
    guest.one_way(Opcode.BATCH_FORGET, 0, body)
    assert guest.getattr(node).nlink == 1


@pytest.mark.parametrize(("nodeid", "count"), [(1, 1), (1, 2**64 - 1), (99, 1), (0, 5)])
def test_forgetting_too_much_is_harmless(guest: FuseGuest, nodeid: int, count: int) -> None:
    guest.forget(nodeid, count)
    assert stat.S_ISDIR(guest.getattr(1).mode)


def test_create_opens_what_it_makes(guest: FuseGuest, shared: Path) -> None:
    entry, handle = guest.create(b"new", mode=0o100640)
    assert guest.write(handle, b"text") == 4
    assert (shared / "new").read_bytes() == b"text"
    assert stat.S_IMODE(entry.attr.mode) == 0o640
    assert guest.lookup(b"new").nodeid == entry.nodeid


def test_create_of_a_mode_that_forbids_writing_still_writes(guest: FuseGuest) -> None:
    _, handle = guest.create(b"new", mode=0o100400)
    assert guest.write(handle, b"text") == 4


def test_create_opens_an_existing_file_unless_exclusive(guest: FuseGuest, shared: Path) -> None:
    (shared / "old").write_bytes(b"old")
    _, handle = guest.create(b"old")
    assert guest.read(handle, 10) == b"old"
    _, handle = guest.create(b"old", flags=os.O_RDWR | os.O_TRUNC)
    assert guest.read(handle, 10) == b""
    with pytest.raises(FuseError) as error:
        guest.create(b"old", flags=os.O_RDWR | os.O_EXCL)
    assert number_of(error) == "EEXIST"


def test_create_that_may_not_open_what_is_there_leaves_no_node(
    guest: FuseGuest, shared: Path
) -> None:
    (shared / "link").symlink_to("anywhere")
    with pytest.raises(FuseError) as caught:
        guest.create(b"link")
    assert caught.value.number == errno.ELOOP
    assert open_descriptors(shared) == []


def test_create_that_may_not_open_what_is_there_takes_no_lookup_of_others_back(
    guest: FuseGuest,
) -> None:
    node = guest.symlink(b"link", b"anywhere").nodeid
    with pytest.raises(FuseError):
        guest.create(b"link")
    assert stat.S_ISLNK(guest.getattr(node).mode)
    guest.forget(node)
    with pytest.raises(FuseError) as error:
        guest.getattr(node)
    assert number_of(error) == "ESTALE"


def test_the_longest_name(guest: FuseGuest, shared: Path) -> None:
    guest.create(b"n" * 255)
    assert guest.lookup(b"n" * 255).nodeid > 1
    assert [len(path.name) for path in shared.iterdir()] == [255]


@pytest.mark.parametrize("kind", [stat.S_IFDIR, stat.S_IFLNK])
def test_mknod_makes_no_directory_and_no_symlink(guest: FuseGuest, shared: Path, kind: int) -> None:
    with pytest.raises(FuseError) as error:
        guest.mknod(b"node", kind | 0o755)
    assert number_of(error) == "EPERM"
    assert list(shared.iterdir()) == []


def test_an_exclusive_tmpfile_never_gets_a_name(guest: FuseGuest, shared: Path) -> None:
    """open(2): with O_TMPFILE, O_EXCL keeps the file from being linked."""
    body = fuse.CREATE_IN.pack(os.O_RDWR | os.O_EXCL, 0o100600, 0, 0) + b"/\0"
    node = fuse.ENTRY_OUT.unpack_from(guest.call(Opcode.TMPFILE, 1, body))[0]
    with pytest.raises(FuseError) as error:
        guest.link(node, b"named")
    assert number_of(error) == "ENOENT"
    assert list(shared.iterdir()) == []


def test_tmpfile_has_no_name(guest: FuseGuest, shared: Path) -> None:
    body = fuse.CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0) + b"/\0"
    data = guest.call(Opcode.TMPFILE, 1, body)
    handle = fuse.OPEN_OUT.unpack_from(data, 128)[0]
    node = fuse.ENTRY_OUT.unpack_from(data)[0]
    assert guest.write(handle, b"text") == 4
    assert list(shared.iterdir()) == []
    guest.link(node, b"named")
    assert (shared / "named").read_bytes() == b"text"
    assert stat.S_IMODE((shared / "named").stat().st_mode) == 0o600


def test_a_tmpfile_is_made_in_a_directory_only(guest: FuseGuest, shared: Path) -> None:
    body = fuse.CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0) + b"/\0"
    (shared / "file").touch()
    (shared / "link").symlink_to(".")
    for name in (b"file", b"link"):
        node = guest.lookup(name).nodeid
        with pytest.raises(FuseError) as error:
            guest.call(Opcode.TMPFILE, node, body)
        assert number_of(error) == "ENOTDIR"


def test_mkdir_mknod_symlink(guest: FuseGuest, shared: Path) -> None:
    assert guest.mkdir(b"dir", mode=0o711).attr.mode == stat.S_IFDIR | 0o711
    assert guest.mknod(b"fifo", stat.S_IFIFO | 0o600).attr.mode == stat.S_IFIFO | 0o600
    assert guest.mknod(b"sock", stat.S_IFSOCK | 0o600).attr.mode == stat.S_IFSOCK | 0o600
    assert guest.mknod(b"file", stat.S_IFREG | 0o604).attr.mode == stat.S_IFREG | 0o604
    node = guest.symlink(b"link", b"../../etc/passwd")
    assert stat.S_ISLNK(node.attr.mode)
    assert guest.call(Opcode.READLINK, node.nodeid) == b"../../etc/passwd"
    assert (shared / "link").readlink() == Path("../../etc/passwd")
    with pytest.raises(FuseError) as error:
        guest.mkdir(b"dir")
    assert number_of(error) == "EEXIST"


@pytest.mark.root
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_a_device_file_has_the_number_that_the_guest_gave(
    guest: FuseGuest, shared: Path, kind: int
) -> None:
    number = os.makedev(240, 300)
    assert guest.mknod(b"device", kind | 0o600, number).attr.rdev == number
    status = (shared / "device").stat()
    assert (stat.S_IFMT(status.st_mode), status.st_rdev) == (kind, number)


def test_a_target_that_does_not_fit_is_not_cut(guest: FuseGuest) -> None:
    for target in (b"1", b"12345"):
        node = guest.symlink(b"to " + target, target).nodeid
        assert guest.call(Opcode.READLINK, node, room=len(target)) == target
        with pytest.raises(FuseError) as error:
            guest.call(Opcode.READLINK, node, room=len(target) - 1)
        assert number_of(error) == "EIO"


def test_readlink_of_what_is_none(guest: FuseGuest) -> None:
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.READLINK, 1)
    assert number_of(error) == "EINVAL"


def test_a_symlink_can_be_linked_itself(guest: FuseGuest, shared: Path) -> None:
    node = guest.symlink(b"link", b"nowhere")
    assert guest.link(node.nodeid, b"again").nodeid == node.nodeid
    assert (shared / "again").readlink() == Path("nowhere")


def test_unlink_and_rmdir_tell_why_not(guest: FuseGuest, shared: Path) -> None:
    (shared / "dir" / "child").mkdir(parents=True)
    (shared / "file").write_bytes(b"")
    for opcode, name, expected in (
        (Opcode.RMDIR, b"dir", "ENOTEMPTY"),
        (Opcode.RMDIR, b"file", "ENOTDIR"),
        (Opcode.UNLINK, b"dir", "EISDIR"),
        (Opcode.UNLINK, b"absent", "ENOENT"),
    ):
        with pytest.raises(FuseError) as error:
            guest.call(opcode, 1, name + b"\0")
        assert number_of(error) == expected
    guest.unlink(b"file")
    guest.call(Opcode.RMDIR, guest.lookup(b"dir").nodeid, b"child\0")
    guest.call(Opcode.RMDIR, 1, b"dir\0")
    assert list(shared.iterdir()) == []


def test_rename_between_directories(guest: FuseGuest, shared: Path) -> None:
    entry, handle = guest.create(b"a")
    directory = guest.mkdir(b"d").nodeid
    guest.rename(b"a", b"b", to=directory)
    guest.write(handle, b"still open")
    assert (shared / "d" / "b").read_bytes() == b"still open"
    assert guest.getattr(entry.nodeid).size == 10
    assert guest.lookup(b"b", directory).nodeid == entry.nodeid


def test_rename2_flags(guest: FuseGuest, shared: Path) -> None:
    (shared / "a").write_bytes(b"a")
    (shared / "b").write_bytes(b"b")
    with pytest.raises(FuseError) as error:
        guest.rename(b"a", b"b", flags=RENAME_NOREPLACE)
    assert number_of(error) == "EEXIST"
    guest.rename(b"a", b"b", flags=RENAME_EXCHANGE)
    assert (shared / "a").read_bytes() == b"b"
    with pytest.raises(FuseError) as error:
        guest.rename(b"a", b"b", flags=1 << 9)
    assert number_of(error) == "EINVAL"
    guest.rename(b"a", b"b", flags=0)
    assert (shared / "b").read_bytes() == b"b"


def test_a_file_that_is_unlinked_while_open_goes_on(guest: FuseGuest, shared: Path) -> None:
    entry, handle = guest.create(b"a")
    guest.unlink(b"a")
    assert guest.write(handle, b"text") == 4
    assert guest.read(handle, 9) == b"text"
    assert guest.getattr(entry.nodeid).nlink == 0
    assert guest.setattr(entry.nodeid, fuse.FATTR_SIZE, size=2).size == 2
    assert list(shared.iterdir()) == []


def test_a_full_node_table_refuses_and_recovers(make_guest: MakeGuest, shared: Path) -> None:
    guest = make_guest(limits=Limits(nodes=3, descriptors=3, handles=10))
    nodes = [guest.mkdir(b"d%d" % index).nodeid for index in range(3)]
    assert guest.lookup(b"d0").nodeid == nodes[0], "a node that is known needs no room"
    tmpfile = fuse.CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0) + b"/\0"
    for attempt in (
        lambda: guest.mkdir(b"d3"),
        lambda: guest.create(b"f"),
        lambda: guest.mknod(b"fifo", stat.S_IFIFO | 0o600),
        lambda: guest.symlink(b"link", b"d0"),
        lambda: guest.call(Opcode.TMPFILE, 1, tmpfile),
    ):
        with pytest.raises(FuseError) as error:
            attempt()
        assert number_of(error) == "ENFILE"
    assert sorted(path.name for path in shared.iterdir()) == ["d0", "d1", "d2"]
    guest.forget(nodes[1])
    guest.mkdir(b"d3")
