"""What a guest may leave on the host: set-id bits, file capabilities, device nodes."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from services.handshake.xattr_map import XATTR_WORDS
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest
from tests.unit.devicehost.devices.fs.native_guest import NativeGuest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest

pytestmark = pytest.mark.root

SET_IDS = stat.S_ISUID | stat.S_ISGID
KEPT = "user.virtiofs.security.capability"
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@pytest.fixture
def guest(make_guest: MakeGuest) -> FuseGuest:
    """A guest of a share with the options of a service of the owner."""
    return make_guest(suid=False, dev=False, xattr=XATTR_WORDS["safe"])


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def refused(call: Callable[[], Any], number: int = errno.EPERM) -> None:
    with pytest.raises(FuseError) as error:
        call()
    assert error.value.number == number


def set_value(guest: FuseGuest, node: int, name: str, value: bytes) -> None:
    body = fuse.SETXATTR_IN.pack(len(value), 0, 0) + name.encode() + b"\0" + value
    guest.call(Opcode.SETXATTR, node, body)


@pytest.mark.parametrize("bits", [stat.S_ISUID, stat.S_ISGID, SET_IDS])
def test_no_file_gets_set_id_bits(guest: FuseGuest, shared: Path, bits: int) -> None:
    made, _ = guest.create(b"created", mode=0o100755 | bits)
    assert made.attr.mode == 0o100755, "the guest learns at once what is stored"
    assert guest.mknod(b"node", 0o100755 | bits).attr.mode == 0o100755
    assert guest.mknod(b"fifo", 0o010755 | bits).attr.mode == 0o010755
    changed = guest.setattr(made.nodeid, fuse.FATTR_MODE, mode=0o100711 | bits | stat.S_ISVTX)
    assert changed.mode == 0o101711
    body = fuse.CREATE_IN.pack(os.O_RDWR, 0o100755 | bits, 0, 0)
    unnamed = fuse.EntryOut(
        *fuse.ENTRY_OUT.unpack_from(guest.call(Opcode.TMPFILE, 1, body + b"\0"))
    )
    assert guest.link(unnamed.nodeid, b"unnamed").attr.mode == 0o100755
    assert {path.name: mode_of(path) for path in shared.iterdir()} == {
        "created": 0o1711,
        "node": 0o755,
        "fifo": 0o755,
        "unnamed": 0o755,
    }


def test_a_directory_keeps_its_set_gid_bit(guest: FuseGuest, shared: Path) -> None:
    made = guest.mkdir(b"team")
    assert guest.setattr(made.nodeid, fuse.FATTR_MODE, mode=0o42775).mode == 0o42775
    guest.mkdir(b"inner", made.nodeid)
    assert mode_of(shared / "team" / "inner") & stat.S_ISGID


def write(guest: FuseGuest, node: int) -> None:
    guest.write(guest.open(node, os.O_RDWR), b"#!")


def fallocate(guest: FuseGuest, node: int) -> None:
    body = fuse.FALLOCATE_IN.pack(guest.open(node, os.O_RDWR), 0, 4096, 3)
    guest.call(Opcode.FALLOCATE, node, body)


def copy(guest: FuseGuest, node: int) -> None:
    source, handle = guest.create(b"source")
    guest.write(handle, b"#!")
    body = fuse.COPY_FILE_RANGE_IN.pack(handle, 0, node, guest.open(node, os.O_RDWR), 0, 2, 0)
    guest.call(Opcode.COPY_FILE_RANGE, source.nodeid, body)


CHANGES: dict[str, Any] = {
    "WRITE": write,
    "FALLOCATE": fallocate,
    "COPY_FILE_RANGE": copy,
    "OPEN with O_TRUNC": lambda guest, node: guest.open(node, os.O_RDWR | os.O_TRUNC),
    "CREATE with O_TRUNC": lambda guest, node: guest.create(b"tool", flags=os.O_RDWR | os.O_TRUNC),
    "size": lambda guest, node: guest.setattr(node, fuse.FATTR_SIZE, size=1),
    "size of an open file": lambda guest, node: guest.setattr(
        node, fuse.FATTR_SIZE | fuse.FATTR_FH, size=1, fh=guest.open(node, os.O_RDWR)
    ),
    "owner": lambda guest, node: guest.setattr(node, fuse.FATTR_UID, uid=1000),
    "mode": lambda guest, node: guest.setattr(node, fuse.FATTR_MODE, mode=0o106755),
}


@pytest.mark.parametrize("change", CHANGES)
def test_set_id_bits_of_the_host_do_not_outlast_a_change(
    guest: FuseGuest, shared: Path, change: str
) -> None:
    """Nobody says that the change is not root's: the guest's root has CAP_FSETID in the guest."""
    (shared / "tool").write_bytes(b"program")
    (shared / "tool").chmod(0o6755)
    CHANGES[change](guest, guest.lookup(b"tool").nodeid)
    assert mode_of(shared / "tool") == 0o755


@pytest.mark.parametrize("change", CHANGES)
def test_with_suid_they_outlast_what_they_do_on_a_disk(
    make_guest: MakeGuest, shared: Path, change: str
) -> None:
    guest = make_guest()
    (shared / "tool").write_bytes(b"program")
    (shared / "tool").chmod(0o6755)
    CHANGES[change](guest, guest.lookup(b"tool").nodeid)
    assert mode_of(shared / "tool") == (0o755 if change == "owner" else 0o6755)


def test_reading_and_opening_change_nothing(guest: FuseGuest, shared: Path) -> None:
    (shared / "tool").write_bytes(b"program")
    (shared / "tool").chmod(0o6755)
    node = guest.lookup(b"tool").nodeid
    assert guest.read(guest.open(node, os.O_RDWR), 7) == b"program"
    guest.rename(b"tool", b"moved")
    guest.link(node, b"linked")
    assert mode_of(shared / "linked") == 0o6755


def test_writes_stay_native_where_nothing_has_to_be_cleared(guest: FuseGuest) -> None:
    _, handle = guest.create(b"file")
    if isinstance(guest, NativeGuest):
        before = guest.served
        guest.write(handle, b"data")
        assert guest.served == before + 1


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_no_device_node_is_made(guest: FuseGuest, shared: Path, kind: int) -> None:
    for device in (os.makedev(1, 5), os.makedev(0, 1), os.makedev(1, 0)):
        refused(lambda: guest.mknod(b"device", kind | 0o666, device))  # noqa: B023
    assert list(shared.iterdir()) == []


def test_a_whiteout_is_no_device(guest: FuseGuest, shared: Path) -> None:
    guest.mknod(b"whiteout", stat.S_IFCHR, 0)
    refused(lambda: guest.mknod(b"block", stat.S_IFBLK, 0))
    guest.create(b"file")
    guest.rename(b"file", b"moved", flags=4)
    found = {path.name: path.lstat().st_rdev for path in shared.iterdir()}
    assert found == {"whiteout": 0, "file": 0, "moved": 0}


def test_nobody_else_gets_a_device_node_of_the_host(guest: FuseGuest, shared: Path) -> None:
    os.mknod(shared / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    node = guest.lookup(b"zero").nodeid
    for field, value in (("mode", 0o20666), ("uid", 1000), ("gid", 1000)):
        valid = {"mode": fuse.FATTR_MODE, "uid": fuse.FATTR_UID, "gid": fuse.FATTR_GID}[field]
        refused(lambda: guest.setattr(node, valid, **{field: value}))  # noqa: B023
    refused(lambda: set_value(guest, node, "system.posix_acl_access", b""))
    guest.setattr(node, fuse.FATTR_MTIME, mtime=1)
    status = (shared / "zero").stat()
    assert (status.st_mode, status.st_uid, status.st_gid) == (stat.S_IFCHR | 0o600, 0, 0)


@pytest.mark.parametrize("word", ["all", "safe"])
def test_file_capabilities_of_a_guest_do_not_reach_the_host(
    make_guest: MakeGuest, shared: Path, word: str
) -> None:
    guest = make_guest(suid=False, xattr=XATTR_WORDS[word])
    (shared / "tool").touch()
    node = guest.lookup(b"tool").nodeid
    number = errno.EPERM if word == "all" else errno.EOPNOTSUPP
    refused(lambda: set_value(guest, node, "security.capability", CAPABILITY), number)
    assert os.listxattr(shared / "tool") == []


def test_file_capabilities_of_the_host_end_when_others_get_rights(
    guest: FuseGuest, shared: Path
) -> None:
    for change in ("mode", "owner", "WRITE"):
        (shared / "tool").write_bytes(b"program")
        os.setxattr(shared / "tool", "security.capability", CAPABILITY)
        CHANGES[change](guest, guest.lookup(b"tool").nodeid)
        assert os.listxattr(shared / "tool") == [], change


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "mode"])
def test_kept_file_capabilities_end_with_a_change(
    make_guest: MakeGuest, shared: Path, change: str
) -> None:
    guest = make_guest(suid=False, xattr=XATTR_WORDS["map"])
    (shared / "tool").write_bytes(b"program")
    node = guest.lookup(b"tool").nodeid
    set_value(guest, node, "security.capability", CAPABILITY)
    assert os.listxattr(shared / "tool") == [KEPT]
    CHANGES[change](guest, node)
    assert os.listxattr(shared / "tool") == []


def test_metadata_protects_the_hosts_own_modes_and_nodes(
    make_guest: MakeGuest, shared: Path
) -> None:
    guest = make_guest(metadata=True, suid=True, dev=True)
    (shared / "tool").write_bytes(b"program")
    (shared / "tool").chmod(0o6755)
    os.mknod(shared / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    write(guest, guest.lookup(b"tool").nodeid)
    assert mode_of(shared / "tool") == 0o755
    node = guest.lookup(b"zero").nodeid
    refused(lambda: guest.setattr(node, fuse.FATTR_MODE, mode=0o20666))
    made, _ = guest.create(b"kept", mode=0o104755)
    assert made.attr.mode == 0o104755, "what the share keeps itself has no effect on the host"
    refused(lambda: set_value(guest, made.nodeid, "security.capability", CAPABILITY))


def test_metadata_without_set_id_bits_and_devices(make_guest: MakeGuest, shared: Path) -> None:
    other, guest = make_guest(metadata=True), make_guest(metadata=True, suid=False, dev=False)
    other.create(b"others", mode=0o104755)
    assert guest.lookup(b"others").attr.mode == 0o100755
    made, _ = guest.create(b"kept", mode=0o104755)
    assert made.attr.mode == 0o100755
    assert guest.setattr(made.nodeid, fuse.FATTR_MODE, mode=0o106711).mode == 0o100711
    assert other.lookup(b"kept").attr.mode == 0o100711
    refused(lambda: guest.mknod(b"device", stat.S_IFCHR | 0o666, os.makedev(1, 5)))
    assert mode_of(shared / "kept") & SET_IDS == 0
