"""Requests of a hostile guest get a well-formed reply or none, and reach nothing outside."""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.wire import fuse
from services.wire.fuse import Opcode
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest, buffers, chain

if TYPE_CHECKING:
    from pathlib import Path


def number_of(error: pytest.ExceptionInfo[FuseError]) -> str:
    return errno.errorcode[error.value.number]


BAD_NAMES = [
    (b"", "ENOENT"),
    (b".", "EINVAL"),
    (b"..", "EINVAL"),
    (b"../secret", "EINVAL"),
    (b"dir/../../secret", "EINVAL"),
    (b"/etc/passwd", "EINVAL"),
    (b"dir/inner", "EINVAL"),
    (b"x" * 256, "ENAMETOOLONG"),
    (b"x" * 5000, "ENAMETOOLONG"),
    (b"a\0b", "EINVAL"),
]
BY_NAME = {
    Opcode.LOOKUP: b"",
    Opcode.UNLINK: b"",
    Opcode.RMDIR: b"",
    Opcode.MKDIR: fuse.MKDIR_IN.pack(0o755, 0),
    Opcode.MKNOD: fuse.MKNOD_IN.pack(stat.S_IFREG | 0o644, 0, 0),
    Opcode.CREATE: fuse.CREATE_IN.pack(os.O_RDWR, 0o100644, 0, 0),
    Opcode.LINK: fuse.LINK_IN.pack(1),
}


@pytest.fixture
def outside(shared: Path) -> Path:
    """A file next to the share, and files inside to start from."""
    secret = shared.parent / "secret"
    secret.write_bytes(b"secret")
    (shared / "dir").mkdir()
    (shared / "dir" / "inner").write_bytes(b"inner")
    return secret


@pytest.mark.parametrize("opcode", BY_NAME)
@pytest.mark.parametrize(("name", "expected"), BAD_NAMES)
def test_bad_names(
    guest: FuseGuest, outside: Path, opcode: Opcode, name: bytes, expected: str
) -> None:
    before = sorted(outside.parent.rglob("*"))
    with pytest.raises(FuseError) as error:
        guest.call(opcode, 1, BY_NAME[opcode] + name + b"\0")
    assert number_of(error) == expected
    assert sorted(outside.parent.rglob("*")) == before


@pytest.mark.parametrize("name", [name for name, _ in BAD_NAMES])
def test_bad_names_in_pairs(guest: FuseGuest, outside: Path, name: bytes) -> None:
    before = sorted(outside.parent.rglob("*"))
    for opcode, body in (
        (Opcode.RENAME, fuse.RENAME_IN.pack(1) + b"dir\0" + name + b"\0"),
        (Opcode.RENAME, fuse.RENAME_IN.pack(1) + name + b"\0new\0"),
        (Opcode.RENAME2, fuse.RENAME2_IN.pack(1, 2) + b"dir\0" + name + b"\0"),
        (Opcode.SYMLINK, name + b"\0target\0"),
    ):
        with pytest.raises(FuseError):
            guest.call(opcode, 1, body)
    assert sorted(outside.parent.rglob("*")) == before


@pytest.mark.parametrize("body", [b"", b"name", b"name\0more", b"name\0more\0"])
def test_names_without_nul_or_with_too_many(guest: FuseGuest, body: bytes) -> None:
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.LOOKUP, 1, body)
    assert number_of(error) == "EINVAL"


@pytest.mark.parametrize("extra", [-41, -1, 1, 100, 2**31])
def test_a_header_that_lies_about_the_length(guest: FuseGuest, extra: int) -> None:
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.LOOKUP, 1, b"na\0", extra=extra)
    assert number_of(error) == "EINVAL"


def test_extensions_longer_than_the_request(guest: FuseGuest) -> None:
    request = bytearray(guest.request(Opcode.LOOKUP, 1, b"name\0"))
    request[36:38] = (0xFFFF).to_bytes(2, "little")
    error, _ = guest.raw(buffers(bytes(request)), buffers(bytes(200)))
    assert errno.errorcode[error] == "EINVAL"


def test_extensions_are_set_aside(guest: FuseGuest, shared: Path) -> None:
    (shared / "f").write_bytes(b"")
    request = bytearray(guest.request(Opcode.LOOKUP, 1, b"f\0" + bytes(8)))
    request[36:38] = (1).to_bytes(2, "little")
    error, data = guest.raw(buffers(bytes(request)), buffers(bytes(200)))
    assert (error, len(data)) == (0, 128)


@pytest.mark.parametrize("size", [0, 4, 6, 2**32 - 1])
def test_a_write_that_lies_about_its_size(guest: FuseGuest, shared: Path, size: int) -> None:
    _, handle = guest.create(b"f")
    body = fuse.WRITE_IN.pack(handle, 0, size, 0, 0, 0) + b"12345"
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.WRITE, 1, body)
    assert number_of(error) == "EINVAL"
    assert (shared / "f").read_bytes() == b""


def test_batch_forget_that_lies(guest: FuseGuest, shared: Path) -> None:
    (shared / "f").write_bytes(b"")
    node = guest.lookup(b"f").nodeid
    ones = fuse.FORGET_ONE.pack(node, 1)
    for count in (0, 2, 2**32 - 1):
        guest.one_way(Opcode.BATCH_FORGET, 0, fuse.BATCH_FORGET_IN.pack(count) + ones)
        guest.getattr(node)


def test_a_read_into_too_little_room(guest: FuseGuest) -> None:
    _, handle = guest.create(b"f")
    guest.write(handle, b"x" * 5000)
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.READ, 1, fuse.READ_IN.pack(handle, 0, 5000, 0, 0, 0), room=4096)
    assert number_of(error) == "EIO"


@pytest.mark.parametrize("room", [0, 1, 39, 119, 127])
def test_nothing_happens_when_the_reply_has_no_room(
    guest: FuseGuest, shared: Path, room: int
) -> None:
    for opcode, body in BY_NAME.items():
        if opcode in (Opcode.UNLINK, Opcode.RMDIR):
            continue
        with pytest.raises(FuseError) as error:
            guest.call(opcode, 1, body + b"name\0", room=room)
        assert number_of(error) == "EIO"
    assert list(shared.iterdir()) == []


@pytest.mark.parametrize("room", [0, 1, 15])
def test_no_room_for_a_header_is_no_reply(guest: FuseGuest, room: int) -> None:
    request = guest.request(Opcode.GETATTR, 1, fuse.GETATTR_IN.pack(0, 0))
    writable = buffers(bytes(room))
    assert guest.session.handle(chain(buffers(request), writable)) == 0
    assert b"".join(writable) == bytes(room)


@pytest.mark.parametrize("length", [0, 1, 39])
def test_less_than_a_header_is_no_reply(guest: FuseGuest, length: int) -> None:
    assert guest.session.handle(chain(buffers(bytes(length)), buffers(bytes(100)))) == 0


@pytest.mark.parametrize("nodeid", [0, 2, 2**64 - 1])
def test_unknown_nodes_are_stale(guest: FuseGuest, nodeid: int) -> None:
    bodies = {
        **{opcode: body + b"name\0" for opcode, body in BY_NAME.items()},
        Opcode.GETATTR: fuse.GETATTR_IN.pack(0, 0),
        Opcode.SETATTR: bytes(fuse.SETATTR_IN.size),
        Opcode.OPEN: fuse.OPEN_IN.pack(0, 0),
        Opcode.OPENDIR: fuse.OPEN_IN.pack(0, 0),
        Opcode.READLINK: b"",
        Opcode.STATFS: b"",
        Opcode.GETXATTR: fuse.GETXATTR_IN.pack(0) + b"user.a\0",
        Opcode.LISTXATTR: fuse.GETXATTR_IN.pack(0),
        Opcode.STATX: fuse.STATX_IN.pack(0, 0, 0, 0),
        Opcode.SYNCFS: fuse.SYNCFS_IN.pack(),
    }
    for opcode, body in bodies.items():
        with pytest.raises(FuseError) as error:
            guest.call(opcode, nodeid, body)
        assert (opcode, number_of(error)) == (opcode, "ESTALE")
    with pytest.raises(FuseError) as error:
        guest.rename(b"a", b"b", to=nodeid)
    assert number_of(error) == "ESTALE"


def test_symlinks_are_never_followed(guest: FuseGuest, outside: Path, shared: Path) -> None:
    (shared / "file").symlink_to(outside)
    (shared / "up").symlink_to("..")
    opened = os.open(outside, os.O_RDONLY)
    (shared / "magic").symlink_to(f"/proc/self/fd/{opened}")
    for name in (b"file", b"up", b"magic"):
        node = guest.lookup(name)
        assert stat.S_ISLNK(node.attr.mode)
        attempts = (
            lambda node=node: guest.open(node.nodeid),
            lambda node=node: guest.opendir(node.nodeid),
            lambda node=node: guest.lookup(b"secret", node.nodeid),
            lambda name=name: guest.create(name, flags=os.O_WRONLY | os.O_TRUNC),
            lambda node=node: guest.create(b"new", node.nodeid),
            lambda node=node: guest.rename(b"dir", b"moved", to=node.nodeid),
        )
        for attempt in attempts:
            with pytest.raises(FuseError) as error:
                attempt()
            assert number_of(error) in ("ELOOP", "ENOTDIR")
    assert outside.read_bytes() == b"secret"
    os.close(opened)


def test_swapping_a_directory_for_a_symlink_gains_nothing(
    guest: FuseGuest, outside: Path, shared: Path
) -> None:
    """A second guest thread (or the host) swaps names as fast as it can."""
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (shared / "dir").rename(shared / "real")
            (shared / "dir").symlink_to("..")
            (shared / "dir").unlink()
            (shared / "real").rename(shared / "dir")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(1500):
            try:
                node = guest.lookup(b"dir")
                found = guest.lookup(b"secret", node.nodeid)
            except FuseError as error:
                assert error.number in (errno.ENOENT, errno.ENOTDIR)  # noqa: PT017
            else:
                pytest.fail(f"reached {found} outside the share")
    finally:
        stop.set()
        thread.join()


def test_a_node_is_not_what_has_its_name_now(guest: FuseGuest, outside: Path, shared: Path) -> None:
    entry, _ = guest.create(b"f")
    (shared / "f").unlink()
    (shared / "f").symlink_to(outside)
    handle = guest.open(entry.nodeid, os.O_RDWR)
    guest.write(handle, b"overwritten")
    guest.setattr(entry.nodeid, fuse.FATTR_SIZE, size=3)
    assert outside.read_bytes() == b"secret"


def test_fifos_never_block(guest: FuseGuest, shared: Path) -> None:
    os.mkfifo(shared / "fifo")
    done = threading.Event()

    def try_everything() -> None:
        node = guest.lookup(b"fifo").nodeid
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            with pytest.raises(FuseError):
                guest.open(node, flags)
            with pytest.raises(FuseError):
                guest.create(b"fifo", flags=flags)
        guest.getattr(node)
        done.set()

    thread = threading.Thread(target=try_everything, daemon=True)
    thread.start()
    assert done.wait(10)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(cuts=st.lists(st.integers(1, 400), max_size=12), out=st.lists(st.integers(1, 300)))
def test_requests_may_be_cut_anywhere(
    guest: FuseGuest, shared: Path, cuts: list[int], out: list[int]
) -> None:
    (shared / "f").write_bytes(b"0123456789" * 30)
    error, data = guest.raw(
        buffers(guest.request(Opcode.LOOKUP, 1, b"f\0"), *cuts), buffers(bytes(144), *out)
    )
    assert (error, len(data)) == (0, 128)
    handle = guest.open(fuse.ENTRY_OUT.unpack_from(data)[0], os.O_RDWR)
    payload = bytes(range(200))
    body = fuse.WRITE_IN.pack(handle, 5, 200, 0, 0, 0) + payload
    error, data = guest.raw(
        buffers(guest.request(Opcode.WRITE, 1, body), *cuts), buffers(bytes(24), *out)
    )
    assert (error, fuse.WRITE_OUT.unpack(data)) == (0, (200,))
    request = guest.request(Opcode.READ, 1, fuse.READ_IN.pack(handle, 5, 200, 0, 0, 0))
    error, data = guest.raw(buffers(request, *cuts), buffers(bytes(216), *out))
    assert (error, data) == (0, payload)
    guest.release(handle)


U64 = st.one_of(st.integers(0, 6), st.sampled_from([2**63 - 1, 2**63, 2**64 - 1]))
FIELDS = st.lists(U64.map(lambda value: value.to_bytes(8, "little")), max_size=14).map(b"".join)
TAILS = st.sampled_from(
    [b"", b"\0", b"f\0", b"d\0", b"f\0g\0", b"..\0", b"a/b\0", b"user.x\0", b"f"]
)


@settings(
    max_examples=600,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    opcode=st.one_of(st.sampled_from(sorted(Opcode)), st.integers(0, 2**32 - 1)),
    nodeid=U64,
    body=st.one_of(st.binary(max_size=200), st.tuples(FIELDS, TAILS).map(b"".join)),
    extra=st.sampled_from([0, 0, 0, 0, 1, -1]),
    room=st.sampled_from([0, 15, 16, 24, 100, 200, 5000]),
    cut=st.integers(0, 200),
)
def test_garbage_is_answered_in_good_form(
    guest: FuseGuest,
    outside: Path,
    shared: Path,
    opcode: int,
    nodeid: int,
    body: bytes,
    extra: int,
    room: int,
    cut: int,
) -> None:
    guest.init()
    (shared / "f").write_bytes(b"text")
    (shared / "d").mkdir(exist_ok=True)
    guest.readdir(guest.opendir(), plus=True)  # so that low numbers name nodes and handles
    guest.open(guest.lookup(b"f").nodeid, os.O_RDWR)
    readable = buffers(guest.request(opcode, nodeid, body, extra=extra), cut)
    writable = buffers(bytes(room), cut)
    written = guest.session.handle(chain(readable, writable))
    assert isinstance(written, int)
    assert 0 <= written <= room
    if written:
        length, error, unique = fuse.OUT_HEADER.unpack_from(b"".join(writable))
        assert (length, unique) == (written, guest.unique)
        assert -4096 < error <= 0
        assert error == 0 or written == 16
    assert outside.read_bytes() == b"secret"
    for path in (shared / "f", shared / "d"):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
