"""Extended attributes."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from services.handshake.xattr_map import (
    XATTR_WORDS,
    Kind,
    Scope,
    XattrMap,
    XattrRule,
    parse_xattr_map,
)
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest


def number_of(error: pytest.ExceptionInfo[FuseError]) -> str:
    return errno.errorcode[error.value.number]


def set_value(guest: FuseGuest, node: int, name: bytes, value: bytes, flags: int = 0) -> None:
    body = fuse.SETXATTR_IN.pack(len(value), flags, 0) + name + b"\0" + value
    guest.call(Opcode.SETXATTR, node, body)


def get_value(guest: FuseGuest, node: int, name: bytes, size: int) -> bytes:
    return guest.call(Opcode.GETXATTR, node, fuse.GETXATTR_IN.pack(size) + name + b"\0")


def test_set_get_list_remove(guest: FuseGuest, shared: Path) -> None:
    (shared / "f").write_bytes(b"")
    node = guest.lookup(b"f").nodeid
    set_value(guest, node, b"user.a", b"value\0with nul")
    set_value(guest, node, b"user.empty", b"")
    assert os.getxattr(shared / "f", "user.a") == b"value\0with nul"
    assert get_value(guest, node, b"user.a", 100) == b"value\0with nul"
    assert fuse.GETXATTR_OUT.unpack(get_value(guest, node, b"user.a", 0)) == (14,)
    listed = guest.call(Opcode.LISTXATTR, node, fuse.GETXATTR_IN.pack(100))
    assert set(listed.split(b"\0")) == {b"user.a", b"user.empty", b""}
    size = fuse.GETXATTR_OUT.unpack(guest.call(Opcode.LISTXATTR, node, fuse.GETXATTR_IN.pack(0)))
    assert size == (len(listed),)
    guest.call(Opcode.REMOVEXATTR, node, b"user.a\0")
    assert os.listxattr(shared / "f") == ["user.empty"]


def test_refusals_keep_their_number(guest: FuseGuest, shared: Path) -> None:
    (shared / "f").write_bytes(b"")
    node = guest.lookup(b"f").nodeid
    set_value(guest, node, b"user.a", b"12345")
    create, replace = os.XATTR_CREATE, os.XATTR_REPLACE
    for attempt, expected in (
        (lambda: get_value(guest, node, b"user.a", 3), "ERANGE"),
        (lambda: get_value(guest, node, b"user.absent", 3), "ENODATA"),
        (lambda: set_value(guest, node, b"user.a", b"", create), "EEXIST"),
        (lambda: set_value(guest, node, b"user.b", b"", replace), "ENODATA"),
        (lambda: set_value(guest, node, b"user." + b"x" * 300, b""), "ERANGE"),
        (lambda: set_value(guest, node, b"nonsense", b""), errno.errorcode[errno.EOPNOTSUPP]),
        (lambda: set_value(guest, node, b"user.big", bytes(70_000)), "E2BIG"),
    ):
        with pytest.raises(FuseError) as error:
            attempt()
        assert number_of(error) == expected


@pytest.mark.parametrize("size", [0, 4, 6, 2**32 - 1])
def test_a_length_that_lies(guest: FuseGuest, size: int) -> None:
    body = fuse.SETXATTR_IN.pack(size, 0, 0) + b"user.a\0" + b"12345"
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.SETXATTR, 1, body)
    assert number_of(error) == "EINVAL"


def test_symlinks_are_not_followed(guest: FuseGuest, shared: Path) -> None:
    (shared / "f").write_bytes(b"")
    os.setxattr(shared / "f", "user.a", b"secret")
    node = guest.symlink(b"link", b"f").nodeid
    with pytest.raises(FuseError):
        get_value(guest, node, b"user.a", 100)
    with pytest.raises(FuseError):
        set_value(guest, node, b"user.b", b"")
    assert os.listxattr(shared / "f") == ["user.a"]


def test_a_value_that_just_fits_is_returned(guest: FuseGuest) -> None:
    set_value(guest, 1, b"user.a", b"12345")
    set_value(guest, 1, b"user.empty", b"")
    assert get_value(guest, 1, b"user.a", 5) == b"12345"
    assert get_value(guest, 1, b"user.empty", 1) == b""
    names = len(b"user.a\0user.empty\0")
    assert len(guest.call(Opcode.LISTXATTR, 1, fuse.GETXATTR_IN.pack(names))) == names
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.LISTXATTR, 1, fuse.GETXATTR_IN.pack(names - 1))
    assert number_of(error) == "ERANGE"


def listed(guest: FuseGuest, node: int, size: int = 4096) -> list[bytes]:
    return guest.call(Opcode.LISTXATTR, node, fuse.GETXATTR_IN.pack(size)).split(b"\0")[:-1]


def test_what_a_guest_may_not_use_it_does_not_see(make_guest: MakeGuest, shared: Path) -> None:
    (shared / "f").touch()
    for name in ("trusted.a", "security.b", "user.c"):
        os.setxattr(shared / "f", name, b"1")
    guest = make_guest(xattr=XATTR_WORDS["safe"])
    node = guest.lookup(b"f").nodeid
    assert listed(guest, node) == [b"user.c"]
    for attempt in (
        lambda: get_value(guest, node, b"trusted.a", 3),
        lambda: set_value(guest, node, b"trusted.a", b""),
        lambda: guest.call(Opcode.REMOVEXATTR, node, b"security.b\0"),
    ):
        with pytest.raises(FuseError) as error:
            attempt()
        assert number_of(error) == errno.errorcode[errno.EOPNOTSUPP]
    assert set(os.listxattr(shared / "f")) == {"trusted.a", "security.b", "user.c"}


def test_a_list_has_the_length_of_the_guests_names(make_guest: MakeGuest, shared: Path) -> None:
    rules = ":prefix:all:trusted.:user.x.: :bad:server::trusted.: :ok:all:::"
    guest = make_guest(xattr=parse_xattr_map(rules))
    (shared / "f").touch()
    os.setxattr(shared / "f", "trusted.hosts", b"1")
    node = guest.lookup(b"f").nodeid
    set_value(guest, node, b"trusted.a", b"1")
    assert set(os.listxattr(shared / "f")) == {"user.x.trusted.a", "trusted.hosts"}
    assert get_value(guest, node, b"trusted.a", 1) == b"1"
    size = len(b"trusted.a\0")
    asked = guest.call(Opcode.LISTXATTR, node, fuse.GETXATTR_IN.pack(0))
    assert fuse.GETXATTR_OUT.unpack(asked) == (size,)
    assert listed(guest, node, size) == [b"trusted.a"]
    with pytest.raises(FuseError) as error:
        listed(guest, node, size - 1)
    assert number_of(error) == "ERANGE"
    guest.call(Opcode.REMOVEXATTR, node, b"trusted.a\0")
    assert os.listxattr(shared / "f") == ["trusted.hosts"]


@pytest.mark.parametrize("name", [b"x.$LXUID", b"x.$lxuid"])
@pytest.mark.parametrize("metadata", [False, True])
def test_no_rule_leads_to_what_metadata_keeps(
    make_guest: MakeGuest, shared: Path, name: bytes, *, metadata: bool
) -> None:
    """A rule that makes `user.$LXUID` of a guest's name lets no guest choose an owner."""
    stripped = name.removeprefix(b"x.")
    rules = XattrMap((XattrRule(Kind.PREFIX, Scope.ALL, b"", b"user."),))
    guest = make_guest(metadata=metadata, xattr=rules)
    node = guest.create(b"f")[0].nodeid
    before = set(os.listxattr(shared / "f"))
    for attempt, expected in (
        (lambda: set_value(guest, node, stripped, bytes(4)), "EPERM"),
        (lambda: get_value(guest, node, stripped, 4), "ENODATA"),
        (lambda: guest.call(Opcode.REMOVEXATTR, node, stripped + b"\0"), "ENODATA"),
    ):
        with pytest.raises(FuseError) as error:
            attempt()
        assert number_of(error) == expected
    assert listed(guest, node) == []
    assert set(os.listxattr(shared / "f")) == before


def test_a_prefix_that_makes_names_too_long(make_guest: MakeGuest, shared: Path) -> None:
    rules = XattrMap((XattrRule(Kind.PREFIX, Scope.ALL, b"", b"user." + b"x" * 245),))
    guest = make_guest(xattr=rules)
    node, handle = guest.create(b"f")
    with pytest.raises(FuseError) as error:
        set_value(guest, node.nodeid, b"security.capability", b"1")
    assert number_of(error) == "ERANGE"
    guest.write(handle, b"data")
    set_value(guest, node.nodeid, b"a", b"1")
    assert listed(guest, node.nodeid) == [b"a"]
