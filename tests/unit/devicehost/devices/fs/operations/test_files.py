"""Data of open files."""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.host_files.descriptors import Limits
from services.devicehost.devices.fs.operations import files
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.support.descriptors import open_descriptors
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest, buffers

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest


def number_of(error: pytest.ExceptionInfo[FuseError]) -> str:
    return errno.errorcode[error.value.number]


def test_read_at_offsets(guest: FuseGuest, shared: Path) -> None:
    data = os.urandom(300_000)
    (shared / "f").write_bytes(data)
    handle = guest.open(guest.lookup(b"f").nodeid)
    assert guest.read(handle, 300_000) == data
    assert guest.read(handle, 4096, 1000) == data[1000:5096]
    assert guest.read(handle, 4096, 299_990) == data[-10:]
    assert guest.read(handle, 4096, 300_000) == b""
    assert guest.read(handle, 0) == b""


def test_read_and_write_through_many_pages(guest: FuseGuest, shared: Path) -> None:
    data = os.urandom(64 * 4096)
    _, handle = guest.create(b"f")
    body = fuse.WRITE_IN.pack(handle, 0, len(data), 0, 0, 0) + data
    cuts = [40, *range(80, 80 + len(data), 4096)]
    error, reply = guest.raw(
        buffers(guest.request(Opcode.WRITE, 1, body), *cuts), buffers(bytes(24), 16)
    )
    assert (error, fuse.WRITE_OUT.unpack(reply)) == (0, (len(data),))
    assert (shared / "f").read_bytes() == data
    request = guest.request(Opcode.READ, 1, fuse.READ_IN.pack(handle, 0, len(data), 0, 0, 0))
    error, reply = guest.raw(
        buffers(request, 40), buffers(bytes(16 + len(data)), 16, *range(16, len(data), 4096))
    )
    assert (error, reply) == (0, data)


def test_no_more_is_read_than_was_asked_for(guest: FuseGuest, shared: Path) -> None:
    """FUSE: the reply to a READ has at most `size` bytes, whatever room there is."""
    (shared / "f").write_bytes(b"x" * 4096)
    handle = guest.open(guest.lookup(b"f").nodeid)
    for size in (60, 100, 150):
        request = guest.request(Opcode.READ, 1, fuse.READ_IN.pack(handle, 0, size, 0, 0, 0))
        room = buffers(bytes(1016), 16, *range(76, 1016, 60))
        assert guest.raw(buffers(request, 40), room) == (0, b"x" * size)


def test_a_file_is_opened_without_noatime_where_the_host_refuses_it(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does to an ordinary user who does not own the file."""
    host_open = os.open

    def refusing(path: bytes, flags: int) -> int:
        if flags & os.O_NOATIME:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return host_open(path, flags)

    (shared / "f").write_bytes(b"x")
    monkeypatch.setattr(os, "open", refusing)
    fd = files.open_via_path(bytes(shared / "f"), os.O_RDONLY | os.O_NOATIME)
    assert os.read(fd, 2) == b"x"
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        files.open_via_path(bytes(shared / "none"), os.O_RDONLY)


def test_write_extends_and_appends(guest: FuseGuest, shared: Path) -> None:
    entry, handle = guest.create(b"f")
    assert guest.write(handle, b"end", 10) == 3
    assert (shared / "f").read_bytes() == bytes(10) + b"end"
    appending = guest.open(entry.nodeid, os.O_WRONLY | os.O_APPEND)
    (shared / "f").write_bytes(b"the host wrote meanwhile ")
    guest.write(appending, b"guest", 0, flags=os.O_WRONLY | os.O_APPEND)
    assert (shared / "f").read_bytes() == b"the host wrote meanwhile guest"


def test_o_append_is_what_the_file_has_when_it_is_written(guest: FuseGuest, shared: Path) -> None:
    """The flag can be set and cleared later, and pages of a mapping have an offset."""
    entry, handle = guest.create(b"f", flags=os.O_RDWR | os.O_APPEND)
    guest.write(handle, b"hello")
    guest.write(handle, b"J", 0)
    assert (shared / "f").read_bytes() == b"Jello"
    append = os.O_RDWR | os.O_APPEND
    guest.write(handle, b"ELL", 1, flags=append, write_flags=fuse.FUSE_WRITE_CACHE)
    assert (shared / "f").read_bytes() == b"JELLo"
    guest.write(guest.open(entry.nodeid, os.O_RDWR), b"!", 0, flags=append)
    assert (shared / "f").read_bytes() == b"JELLo!"


def test_a_write_of_nothing_writes_nothing(guest: FuseGuest, shared: Path) -> None:
    _, handle = guest.create(b"f")
    assert guest.write(handle, b"", 10) == 0
    assert (shared / "f").stat().st_size == 0


def test_open_truncates(guest: FuseGuest, shared: Path) -> None:
    (shared / "f").write_bytes(b"text")
    guest.open(guest.lookup(b"f").nodeid, os.O_WRONLY | os.O_TRUNC)
    assert (shared / "f").read_bytes() == b""


def test_access_modes_hold(guest: FuseGuest, shared: Path) -> None:
    (shared / "f").write_bytes(b"text")
    node = guest.lookup(b"f").nodeid
    with pytest.raises(FuseError) as error:
        guest.write(guest.open(node, os.O_RDONLY), b"x")
    assert number_of(error) == "EBADF"
    with pytest.raises(FuseError) as error:
        guest.read(guest.open(node, os.O_WRONLY), 1)
    assert number_of(error) == "EBADF"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(stat.S_IFIFO, "ENXIO"), (stat.S_IFSOCK, "ENXIO"), (stat.S_IFDIR, "EISDIR"), (0, "ELOOP")],
)
def test_only_regular_files_are_opened(guest: FuseGuest, kind: int, expected: str) -> None:
    if kind == stat.S_IFDIR:
        node = guest.mkdir(b"x")
    elif kind:
        node = guest.mknod(b"x", kind | 0o600)
    else:
        node = guest.symlink(b"x", b"y")
    for attempt in (lambda: guest.open(node.nodeid), lambda: guest.create(b"x")):
        with pytest.raises(FuseError) as error:
            attempt()
        assert number_of(error) == expected


def test_flags_that_could_harm_never_reach_the_host(guest: FuseGuest, shared: Path) -> None:
    (shared / "f").write_bytes(b"text")
    flags = os.O_CREAT | os.O_EXCL | os.O_DIRECTORY | os.O_PATH | os.O_NONBLOCK | os.O_DIRECT
    handle = guest.open(guest.lookup(b"f").nodeid, flags)
    assert guest.read(handle, 4) == b"text"


def test_released_handles_are_gone_and_closed(guest: FuseGuest, shared: Path) -> None:
    entry, handle = guest.create(b"f")
    guest.forget(entry.nodeid)
    assert len(open_descriptors(shared)) == 2, "the file as such, and as it is open"
    guest.release(handle)
    assert open_descriptors(shared) == []
    for attempt in (lambda: guest.read(handle, 1), lambda: guest.release(handle)):
        with pytest.raises(FuseError) as error:
            attempt()
        assert number_of(error) == "EBADF"


def test_handles_are_bounded(make_guest: MakeGuest) -> None:
    guest = make_guest(limits=Limits(nodes=10, descriptors=10, handles=2))
    entry, first = guest.create(b"f")
    guest.opendir()
    tmpfile = fuse.CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0) + b"/\0"
    for attempt in (
        lambda: guest.open(entry.nodeid),
        lambda: guest.opendir(),
        lambda: guest.create(b"g"),
        lambda: guest.call(Opcode.TMPFILE, 1, tmpfile),
    ):
        with pytest.raises(FuseError) as error:
            attempt()
        assert number_of(error) == "EMFILE"
    guest.release(first)
    assert guest.read(guest.open(entry.nodeid), 1) == b""


def test_a_read_under_way_keeps_its_file(guest: FuseGuest, shared: Path) -> None:
    """RELEASE on one queue while READs run on another never shows another file's data."""
    (shared / "mine").write_bytes(b"m" * 4096)
    (shared / "other").write_bytes(b"o" * 4096)
    node = guest.lookup(b"mine").nodeid
    seen: set[bytes] = set()
    stop = threading.Event()

    def reuse_numbers() -> None:
        while not stop.is_set():
            os.close(os.open(shared / "other", os.O_RDONLY))

    threads = [threading.Thread(target=reuse_numbers) for _ in range(2)]
    for thread in threads:
        thread.start()
    reader = FuseGuest(guest.session)
    try:
        for _ in range(100):
            handle = guest.open(node)
            releaser = threading.Thread(target=guest.release, args=(handle,))
            releaser.start()
            try:
                while releaser.is_alive():
                    seen.add(reader.read(handle, 1))
            except FuseError as error:
                assert error.number == errno.EBADF  # noqa: PT017 - the expected end of reading
            releaser.join()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert seen <= {b"m"}


def test_flush_and_fsync(guest: FuseGuest) -> None:
    _, handle = guest.create(b"f")
    guest.call(Opcode.FLUSH, 1, fuse.FLUSH_IN.pack(handle, 0))
    guest.call(Opcode.FSYNC, 1, fuse.FSYNC_IN.pack(handle, 0))
    guest.call(Opcode.FSYNC, 1, fuse.FSYNC_IN.pack(handle, fuse.FUSE_FSYNC_FDATASYNC))
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.FSYNC, 1, fuse.FSYNC_IN.pack(handle + 1, 0))
    assert number_of(error) == "EBADF"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(0, "fsync"), (fuse.FUSE_FSYNC_FDATASYNC, "fdatasync"), (1 << 1, "fsync")],
)
def test_fsync_leaves_metadata_out_only_if_asked(
    guest: FuseGuest, monkeypatch: pytest.MonkeyPatch, flags: int, expected: str
) -> None:
    _, file = guest.create(b"f")
    directory = guest.opendir()
    synced: list[str] = []
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _, name=name: synced.append(name))
    guest.call(Opcode.FSYNC, 1, fuse.FSYNC_IN.pack(file, flags))
    guest.call(Opcode.FSYNCDIR, 1, fuse.FSYNC_IN.pack(directory, flags))
    assert synced == [expected, expected]


def test_fallocate_and_seek_holes(guest: FuseGuest, shared: Path) -> None:
    _, handle = guest.create(b"f")
    guest.call(Opcode.FALLOCATE, 1, fuse.FALLOCATE_IN.pack(handle, 0, 1 << 20, 0))
    assert (shared / "f").stat().st_size == 1 << 20
    guest.write(handle, b"x" * 8192, 1 << 19)
    punch = 1 | 2  # KEEP_SIZE, PUNCH_HOLE
    guest.call(Opcode.FALLOCATE, 1, fuse.FALLOCATE_IN.pack(handle, 1 << 19, 4096, punch))
    assert guest.read(handle, 4097, 1 << 19) == bytes(4096) + b"x"
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.FALLOCATE, 1, fuse.FALLOCATE_IN.pack(handle, 1 << 63, 1, 0))
    assert number_of(error) == "EINVAL"


def test_lseek_finds_data(guest: FuseGuest, shared: Path) -> None:
    with (shared / "f").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"data")
    handle = guest.open(guest.lookup(b"f").nodeid)

    def seek(offset: int, whence: int) -> int:
        reply = guest.call(Opcode.LSEEK, 1, fuse.LSEEK_IN.pack(handle, offset, whence))
        position: int = fuse.LSEEK_OUT.unpack(reply)[0]
        return position

    expected = os.open(shared / "f", os.O_RDONLY)
    try:
        assert seek(0, os.SEEK_DATA) == os.lseek(expected, 0, os.SEEK_DATA)
        assert seek(1 << 19, os.SEEK_HOLE) == os.lseek(expected, 1 << 19, os.SEEK_HOLE)
    finally:
        os.close(expected)
    assert seek(0, os.SEEK_END) == 1 << 20
    for offset, whence, number in (
        (2 << 20, os.SEEK_DATA, "ENXIO"),
        (0, os.SEEK_CUR, "EINVAL"),
        (0, 77, "EINVAL"),
    ):
        with pytest.raises(FuseError) as error:
            seek(offset, whence)
        assert number_of(error) == number


def test_copy_file_range(guest: FuseGuest, shared: Path) -> None:
    data = os.urandom(100_000)
    (shared / "from").write_bytes(data)
    source = guest.open(guest.lookup(b"from").nodeid)
    entry, target = guest.create(b"to")
    body = fuse.COPY_FILE_RANGE_IN.pack(source, 10, entry.nodeid, target, 5, 1 << 40, 0)
    (copied,) = fuse.WRITE_OUT.unpack(guest.call(Opcode.COPY_FILE_RANGE, 1, body))
    assert copied == len(data) - 10
    assert (shared / "to").read_bytes() == bytes(5) + data[10:]


def test_one_copy_is_bounded(
    guest: FuseGuest, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue serves one request at a time; copy_file_range(2) may copy less than was asked for."""
    monkeypatch.setattr(files, "_COPY_BYTES", 1000)
    entry, handle = guest.create(b"f")
    guest.write(handle, bytes(5000))
    for length, expected in ((1 << 40, 1000), (999, 999)):
        body = fuse.COPY_FILE_RANGE_IN.pack(handle, 0, entry.nodeid, handle, 8000, length, 0)
        reply = guest.call(Opcode.COPY_FILE_RANGE, 1, body)
        assert fuse.WRITE_OUT.unpack(reply) == (expected,)


@pytest.mark.parametrize("flags", [1, 1 << 63])
def test_copy_file_range_has_no_flags(guest: FuseGuest, flags: int) -> None:
    entry, handle = guest.create(b"f")
    guest.write(handle, b"data")
    body = fuse.COPY_FILE_RANGE_IN.pack(handle, 0, entry.nodeid, handle, 4, 4, flags)
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.COPY_FILE_RANGE, 1, body)
    assert number_of(error) == "EINVAL"


def test_errors_keep_their_number(guest: FuseGuest) -> None:
    _, handle = guest.create(b"f")
    with pytest.raises(FuseError) as error:
        guest.write(handle, b"x", (1 << 63) - 1)
    assert number_of(error) in ("EFBIG", "EINVAL")
    with pytest.raises(FuseError) as error:
        guest.read(handle, 1, 1 << 63)
    assert number_of(error) == "EINVAL"
