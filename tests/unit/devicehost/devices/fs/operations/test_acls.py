"""ACLs as a guest's kernel gets and sets them, its umask, and how long set-id bits may be kept."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.host_files import umask
from services.wire import fuse
from services.wire.fuse import EntryOut, Opcode
from tests.support.acls import ACCESS, DEFAULT, NO_ID, acl, text_of
from tests.unit.devicehost.devices.fs.fuse_guest import OFFERED, FuseError, FuseGuest
from tests.unit.devicehost.devices.fs.native_guest import NativeGuest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest

BOB_READS = "u::rw-,u:20002:r--,g::---,m::r--,o::---"
WIDE = "u::rwx,g::rwx,o::rwx"


def get(guest: FuseGuest, node: int, name: str = ACCESS, size: int = 4096) -> bytes:
    return guest.call(Opcode.GETXATTR, node, fuse.GETXATTR_IN.pack(size) + name.encode() + b"\0")


def put(guest: FuseGuest, node: int, value: bytes, *, kinds: int = 0, name: str = ACCESS) -> None:
    head = fuse.SETXATTR_IN.pack(len(value), 0, kinds)
    guest.call(Opcode.SETXATTR, node, head + name.encode() + b"\0" + value)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(FuseError) as error:
        call()
    return errno.errorcode[error.value.number]


def names(guest: FuseGuest, node: int) -> set[bytes]:
    listed = guest.call(Opcode.LISTXATTR, node, fuse.GETXATTR_IN.pack(4096))
    return set(listed.split(b"\0")) - {b""}


@pytest.fixture
def file(shared: Path) -> Path:
    made = shared / "f"
    made.touch(0o600)
    return made


def test_the_guest_gets_and_sets_the_hosts_acl(guest: FuseGuest, file: Path) -> None:
    node = guest.lookup(b"f").nodeid
    assert refused(lambda: get(guest, node)) == "ENODATA"
    put(guest, node, acl(BOB_READS))
    assert os.getxattr(file, ACCESS) == acl(BOB_READS)
    assert stat.S_IMODE(guest.getattr(node).mode) == 0o640
    served = guest.served if isinstance(guest, NativeGuest) else -1
    assert get(guest, node) == acl(BOB_READS)
    if isinstance(guest, NativeGuest):
        assert guest.served == served + 1, "it is asked for at each look at a path"
    assert names(guest, node) == {ACCESS.encode()}
    assert refused(lambda: get(guest, node, size=8)) == "ERANGE"
    assert len(acl(BOB_READS)) == fuse.GETXATTR_OUT.unpack(get(guest, node, size=0))[0]
    guest.call(Opcode.REMOVEXATTR, node, ACCESS.encode() + b"\0")
    assert os.listxattr(file) == []


@pytest.mark.parametrize("name", [ACCESS + "x", ACCESS[:-1], "system.posix_acl_", "system.wrong"])
def test_names_that_are_almost_those_of_acls(guest: FuseGuest, file: Path, name: str) -> None:
    node = guest.lookup(b"f").nodeid
    assert refused(lambda: get(guest, node, name)) in ("ENOTSUP", "EOPNOTSUPP", "ENODATA")


@pytest.mark.parametrize("lacking", [fuse.FUSE_POSIX_ACL, fuse.FUSE_DONT_MASK])
def test_a_guest_that_would_not_obey_has_none(
    make_guest: MakeGuest, file: Path, lacking: int
) -> None:
    os.setxattr(file, ACCESS, acl(BOB_READS))
    os.setxattr(file, "user.a", b"1")
    guest = make_guest(mounted=False)
    assert not guest.init(flags=OFFERED & ~lacking).flags & fuse.FUSE_POSIX_ACL
    node = guest.lookup(b"f").nodeid
    for call in (
        lambda: get(guest, node),
        lambda: get(guest, node, DEFAULT),
        lambda: put(guest, node, acl(BOB_READS)),
        lambda: guest.call(Opcode.REMOVEXATTR, node, ACCESS.encode() + b"\0"),
    ):
        assert refused(call) in ("ENOTSUP", "EOPNOTSUPP")
    assert names(guest, node) == {b"user.a"}
    assert os.getxattr(file, ACCESS) == acl(BOB_READS)


def test_a_share_that_keeps_modes_agrees_on_none(make_guest: MakeGuest) -> None:
    guest = make_guest(mounted=False, metadata=True)
    flags = guest.init().flags
    assert flags & (fuse.FUSE_POSIX_ACL | fuse.FUSE_DONT_MASK) == fuse.FUSE_DONT_MASK


@pytest.mark.root
@pytest.mark.parametrize(
    ("kinds", "uid", "gid", "mode"),
    [
        (fuse.FUSE_SETXATTR_ACL_KILL_SGID, 20001, 20001, 0o750),
        (0, 20001, 20001, 0o2750),
        (None, 20001, 20001, 0o750),
        (None, 20001, 20003, 0o2750),
        (None, 0, 0, 0o2750),
    ],
)
def test_the_set_group_id_bit_of_an_outsider(
    make_guest: MakeGuest, file: Path, kinds: int | None, uid: int, gid: int, mode: int
) -> None:
    os.chown(file, 20001, 20003)
    file.chmod(0o2750)
    guest = make_guest(mounted=False)
    guest.uid, guest.gid = uid, gid
    guest.init(flags=OFFERED & ~(fuse.FUSE_SETXATTR_EXT if kinds is None else 0))
    node = guest.lookup(b"f").nodeid
    value = acl("u::rwx,u:20002:r-x,g::r-x,m::r-x,o::---")
    if kinds is None:
        head = fuse.SETXATTR_COMPAT_IN.pack(len(value), 0)
        guest.call(Opcode.SETXATTR, node, head + ACCESS.encode() + b"\0" + value)
    else:
        put(guest, node, value, kinds=kinds)
    assert os.getxattr(file, ACCESS) == value
    assert stat.S_IMODE(file.stat().st_mode) == mode


def test_a_default_acl_leaves_the_set_group_id_bit(guest: FuseGuest, shared: Path) -> None:
    shared.chmod(0o2755)
    put(guest, 1, acl(WIDE), kinds=fuse.FUSE_SETXATTR_ACL_KILL_SGID, name=DEFAULT)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o2755


def test_masks_of_the_share_count_for_access_acls_only(
    make_guest: MakeGuest, shared: Path, file: Path
) -> None:
    os.setxattr(file, ACCESS, acl("u::rwx,u:9:rwx,g::rwx,m::rwx,o::rwx"))
    (shared / "d").mkdir()
    os.setxattr(shared / "d", ACCESS, acl("u::rwx,u:9:rwx,g::rwx,m::rwx,o::rwx"))
    os.setxattr(shared / "d", DEFAULT, acl(WIDE))
    guest = make_guest(umask=0o002, fmask=0o110, dmask=0o027)
    one, other = (guest.lookup(name).nodeid for name in (b"f", b"d"))
    assert text_of(get(guest, one)) == "u::rw-,u:9:rwx,g::rw-,m::rw-,o::r-x"
    assert text_of(get(guest, other)) == "u::rwx,u:9:rwx,g::r-x,m::r-x,o::---"
    assert text_of(get(guest, other, DEFAULT)) == WIDE


@pytest.mark.root
@pytest.mark.parametrize("native", ["0", "1"])
def test_users_that_the_device_host_cannot_name(shared: Path, file: Path, native: str) -> None:
    """Linux would refuse all access to a file whose ACL has no number for a user."""
    os.setxattr(file, ACCESS, acl(BOB_READS))
    program = f"""
import os
from pathlib import Path
from services.devicehost import fastpath
from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits
from services.devicehost.devices.fs.protocol import FuseSession
from services.devicehost.devices.fs.share.share import Share
from services.handshake.options import FsOptions
from tests.support.acls import ACCESS, text_of
from tests.unit.devicehost.devices.fs.fuse_guest import FuseGuest
from tests.unit.devicehost.devices.fs.native_guest import NativeGuest
from tests.unit.devicehost.devices.fs.operations.test_acls import get
root = Descriptor(os.open({str(shared)!r}, os.O_PATH))
share = Share(root, FsOptions(name="s", vm_id="x"), Limits(9, 9, 9), fastpath.library)
guest = (NativeGuest if fastpath.library else FuseGuest)(FuseSession(share, 1 << 20))
guest.init()
print(text_of(os.getxattr({str(file)!r}, ACCESS)), text_of(get(guest, guest.lookup(b"f").nodeid)))
"""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", program],
        env={**os.environ, "PORTHOLE_NATIVE": native},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    hosts, shown = done.stdout.split()
    assert hosts == BOB_READS.replace("20002", str(NO_ID))
    assert shown == BOB_READS.replace("20002", "65534")


def make_all(guest: FuseGuest, mask: int) -> list[int]:
    """Make a file of each kind under a umask; return their modes."""
    rdwr, mode = os.O_RDWR, 0o666
    create = fuse.CREATE_IN.pack(rdwr, stat.S_IFREG | mode, mask, 0)
    made = [
        guest.call(Opcode.CREATE, 1, create + b"file\0"),
        guest.call(Opcode.TMPFILE, 1, create + b"/\0"),
        guest.call(Opcode.MKDIR, 1, fuse.MKDIR_IN.pack(mode, mask) + b"dir\0"),
        guest.call(Opcode.MKNOD, 1, fuse.MKNOD_IN.pack(stat.S_IFIFO | mode, 0, mask) + b"fifo\0"),
    ]
    attrs = [fuse.ATTR.unpack_from(data, fuse.ENTRY_OUT.size) for data in made]
    return [stat.S_IMODE(fuse.Attr(*attr).mode) for attr in attrs]


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(
    ("default", "flags", "expected"),
    [
        (None, OFFERED, 0o640),
        (WIDE, OFFERED, 0o666),
        ("u::rw-,g::r--,o::---", OFFERED, 0o640),
        (None, OFFERED & ~fuse.FUSE_DONT_MASK, 0o666),
    ],
)
def test_a_umask_counts_unless_there_is_a_default_acl(
    make_guest: MakeGuest,
    shared: Path,
    private: bool,
    default: str | None,
    flags: int,
    expected: int,
) -> None:
    if default:
        os.setxattr(shared, DEFAULT, acl(default))
    modes: list[int] = []
    left: list[int] = []

    def serve() -> None:
        if private:
            umask.clear()
        guest = make_guest(mounted=False)
        guest.init(flags=flags)
        modes.extend(make_all(guest, 0o027))
        left.append(os.umask(0))

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert modes == [expected] * 4
    assert left == [0]


def test_a_umask_that_threads_share_is_left_alone(
    make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(mask: int) -> int:
        raise AssertionError(f"another thread would make files under {mask:o}")

    guest = make_guest()
    monkeypatch.setattr(os, "umask", change)
    modes = make_all(guest, 0o027)
    monkeypatch.undo()
    assert modes == [0o640] * 4


def test_a_share_with_metadata_applies_the_umask_itself(
    make_guest: MakeGuest, shared: Path
) -> None:
    os.setxattr(shared, DEFAULT, acl(WIDE))
    assert make_all(make_guest(metadata=True), 0o027) == [0o640] * 4


def test_the_umask_ends_with_the_call(make_guest: MakeGuest, shared: Path) -> None:
    """Whether or not it succeeds."""
    (shared / "f").mkdir()
    left: list[int] = []

    def serve() -> None:
        umask.clear()
        guest = make_guest()
        create = fuse.CREATE_IN.pack(os.O_RDWR | os.O_EXCL, 0o100666, 0o077, 0) + b"f\0"
        assert refused(lambda: guest.call(Opcode.CREATE, 1, create)) == "EEXIST"
        left.append(os.umask(0))

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert left == [0]


def entry_of(data: bytes) -> EntryOut:
    return EntryOut(*fuse.ENTRY_OUT.unpack_from(data))


@pytest.mark.parametrize("metadata", [False, True])
@pytest.mark.parametrize(
    ("mode", "kept"), [(0o4755, False), (0o2755, False), (0o2644, False), (0o1755, True)]
)
def test_attributes_of_a_file_with_set_id_bits_are_not_kept(
    make_guest: MakeGuest, shared: Path, metadata: bool, mode: int, kept: bool
) -> None:
    guest = make_guest(cache="always", metadata=metadata)
    data = guest.call(Opcode.CREATE, 1, fuse.CREATE_IN.pack(2, 0o100755, 0, 0) + b"f\0")
    node = entry_of(data).nodeid
    expected = 86400 if kept else 0
    wanted = fuse.SetattrIn(*([0] * 13))._replace(valid=fuse.FATTR_MODE, mode=mode)
    replies = [
        guest.call(Opcode.SETATTR, node, fuse.SETATTR_IN.pack(*wanted)),
        guest.call(Opcode.GETATTR, node, fuse.GETATTR_IN.pack(0, 0)),
        guest.call(Opcode.STATX, node, fuse.STATX_IN.pack(0, 0, 0, 0xFFF)),
    ]
    assert [int.from_bytes(reply[:8], "little") for reply in replies] == [expected] * 3
    entries = [entry_of(guest.call(Opcode.LOOKUP, 1, b"f\0"))]
    listed = guest.readdir(guest.opendir(), plus=True)
    entries += [each.entry for each in listed if each.name == b"f" and each.entry]
    assert [(entry.entry_valid, entry.attr_valid) for entry in entries] == [(86400, expected)] * 2


def test_those_of_a_directory_are(make_guest: MakeGuest, shared: Path) -> None:
    (shared / "d").mkdir()
    (shared / "d").chmod(0o2755)
    entry = entry_of(make_guest(cache="always").call(Opcode.LOOKUP, 1, b"d\0"))
    assert entry.attr_valid == 86400
