"""The virtio-fs driver against the real device: operations, paths, errors, sizes."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest

from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    PortholeError,
    UnavailableError,
)
from services.simguest.fs import driver as fs_driver
from services.simguest.fs import replies
from services.simguest.fs.driver import FsDriver, read_config
from services.simguest.fs.operations import FsOperations
from services.simguest.fs.streams import scan
from services.wire import fuse
from services.wire.fuse import FUSE_ROOT_ID, Opcode

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.simguest.rig import Rig

MAX_POOL_REQUEST = 256 << 10


def test_the_session_behind_a_pool_keeps_requests_mappable(rig: Rig, shared: Path) -> None:
    rig.share("data", shared)
    driver = rig.workload.files("data").operations.driver
    assert driver.tag == "data"
    assert driver.max_read == MAX_POOL_REQUEST
    assert driver.max_write == MAX_POOL_REQUEST
    assert driver.flags & fuse.FUSE_MAX_PAGES


def test_a_session_neither_begins_nor_ends_without_a_deadline(
    rig: Rig, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest waits for both with locks held, which its power-off needs."""
    monkeypatch.setattr(fs_driver, "SESSION_DEADLINE_S", 0.05)
    rig.share("data", shared)
    driver = rig.workload.files("data").operations.driver
    for queue in driver._queues:
        monkeypatch.setattr(queue, "submit", lambda *_, **__: Future())
    for change in (driver.stop, driver.start):
        with pytest.raises(DeadlineExceededError) as raised:
            change()
        assert raised.value.reason == "REQUEST_TIMEOUT"
    driver.stop()  # does nothing: no session runs
    monkeypatch.undo()


def test_files_come_and_go_by_path(any_rig: Rig, shared: Path) -> None:
    any_rig.share("data", shared)
    files = any_rig.workload.files("data")
    contents = os.urandom(3 * MAX_POOL_REQUEST + 17)

    files.make_directories("a/b/c")
    assert files.write_file("a/b/c/big", contents, 0o640) == len(contents)
    assert (shared / "a/b/c/big").read_bytes() == contents
    assert stat.S_IMODE((shared / "a/b/c/big").stat().st_mode) == 0o640
    assert files.read_file("a/b/c/big") == contents

    files.rename("a/b/c/big", "a/big")
    files.link("a/big", "a/second")
    files.symlink(b"big", "a/pointer")
    assert files.readlink("a/pointer") == b"big"
    assert files.stat("a/second").nlink == 2
    assert set(files.list("a")) == {b"b", b"big", b"second", b"pointer"}

    files.truncate("a/big", 5)
    files.chmod("a/big", 0o600)
    files.set_times("a/big", 1_000_000_007, 2_000_000_009)
    host = (shared / "a/big").stat()
    assert (host.st_size, stat.S_IMODE(host.st_mode)) == (5, 0o600)
    assert (host.st_atime_ns, host.st_mtime_ns) == (1_000_000_007, 2_000_000_009)

    for name in ("a/big", "a/second", "a/pointer"):
        files.unlink(name)
    for name in ("a/b/c", "a/b", "a"):
        files.rmdir(name)
    assert list(shared.iterdir()) == []


def test_an_empty_file_is_read_and_written(rig: Rig, shared: Path) -> None:
    rig.share("data", shared)
    files = rig.workload.files("data")
    assert files.write_file("empty", b"") == 0
    assert files.read_file("empty") == b""


@pytest.mark.parametrize("size", [4095, 4096, 4097, MAX_POOL_REQUEST - 1, MAX_POOL_REQUEST])
def test_the_end_of_a_file_is_found_at_every_boundary(rig: Rig, shared: Path, size: int) -> None:
    contents = os.urandom(size)
    (shared / "file").write_bytes(contents)
    rig.share("data", shared)
    assert rig.workload.files("data").read_file("file") == contents


def test_a_big_directory_is_listed_whole_while_it_changes(rig: Rig, shared: Path) -> None:
    names = {f"entry-{number:05}".encode() for number in range(3000)}
    for name in names:
        (shared / name.decode()).touch()
    rig.share("data", shared)
    operations = rig.workload.files("data").operations
    seen = []
    for name, node in scan(operations, FUSE_ROOT_ID):
        seen.append(name)
        operations.forget(node.nodeid)
        if len(seen) == 100:
            (shared / name.decode()).unlink()
    assert len(seen) == len(set(seen))
    assert set(seen) == names


def test_directories_are_listed_without_readdirplus_as_well(rig: Rig, shared: Path) -> None:
    (shared / "one").write_bytes(b"1")
    rig.share("data", shared)
    files = rig.workload.files("data")
    files.operations.driver.flags &= ~fuse.FUSE_DO_READDIRPLUS
    assert {name: attr.size for name, attr in files.list().items()} == {b"one": 1}


@pytest.mark.parametrize(
    ("number", "call"),
    [
        (errno.ENOENT, lambda files: files.read_file("missing")),
        (errno.ENOENT, lambda files: files.write_file("missing/file", b"x")),
        (errno.ENOTDIR, lambda files: files.stat("file/below")),
        (errno.EISDIR, lambda files: files.unlink("full")),
        (errno.ENOTEMPTY, lambda files: files.rmdir("full")),
        (errno.EEXIST, lambda files: files.mkdir("full")),
        (errno.EINVAL, lambda files: files.readlink("file")),
        (errno.EINVAL, lambda files: files.stat("../outside")),
        (errno.EINVAL, lambda files: files.stat("na\0me")),
        (errno.EBUSY, lambda files: files.unlink("/")),
        (errno.ENAMETOOLONG, lambda files: files.mkdir("x" * 256)),
    ],
)
def test_errors_are_the_devices_own(rig: Rig, shared: Path, number: int, call: object) -> None:
    (shared / "file").write_bytes(b"x")
    (shared / "full").mkdir()
    (shared / "full" / "inside").touch()
    rig.share("data", shared)
    with pytest.raises(OSError) as raised:
        call(rig.workload.files("data"))  # type: ignore[operator]
    assert raised.value.errno == number


def test_a_read_only_share_takes_nothing(rig: Rig, shared: Path) -> None:
    (shared / "file").write_bytes(b"kept")
    rig.share("data", shared, "ro")
    files = rig.workload.files("data")
    assert files.read_file("file") == b"kept"
    for call in (
        lambda: files.write_file("new", b"x"),
        lambda: files.mkdir("new"),
        lambda: files.unlink("file"),
        lambda: files.chmod("file", 0o777),
    ):
        with pytest.raises(OSError) as raised:
            call()
        assert raised.value.errno == errno.EROFS
    assert [path.name for path in shared.iterdir()] == ["file"]


def test_extended_attributes_and_space(rig: Rig, shared: Path) -> None:
    (shared / "file").touch()
    rig.share("data", shared)
    files = rig.workload.files("data")
    with files.walk("file") as node:
        files.operations.setxattr(node.nodeid, b"user.porthole", b"value" * 100)
        assert files.operations.getxattr(node.nodeid, b"user.porthole") == b"value" * 100
        assert files.operations.listxattr(node.nodeid) == [b"user.porthole"]
        files.operations.removexattr(node.nodeid, b"user.porthole")
        assert files.operations.listxattr(node.nodeid) == []
        with pytest.raises(OSError) as raised:
            files.operations.getxattr(node.nodeid, b"user.porthole")
    assert raised.value.errno == errno.ENODATA
    assert files.operations.statfs().blocks == os.statvfs(shared).f_blocks


def test_handles_and_special_files(rig: Rig, shared: Path) -> None:
    rig.share("data", shared)
    operations = rig.workload.files("data").operations
    pipe = operations.mknod(FUSE_ROOT_ID, b"pipe", stat.S_IFIFO | 0o600)
    assert stat.S_ISFIFO((shared / "pipe").stat().st_mode)
    node, fh = operations.begin_create(FUSE_ROOT_ID, b"file", 0o600, os.O_RDWR).result()
    assert operations.begin_write(node.nodeid, fh, 3, b"abc").result() == 3
    operations.fsync(node.nodeid, fh, data_only=True)
    operations.begin_flush(node.nodeid, fh).result()
    assert operations.begin_read(node.nodeid, fh, 0, 100).result() == b"\0\0\0abc"
    assert operations.getattr(node.nodeid, fh).size == 6
    operations.release(node.nodeid, fh)
    operations.rename(FUSE_ROOT_ID, b"file", FUSE_ROOT_ID, b"pipe", flags=2)  # RENAME_EXCHANGE
    assert (shared / "pipe").read_bytes() == b"\0\0\0abc"
    operations.forget_many([pipe.nodeid, node.nodeid])
    operations.interrupt(424242)  # no such request: nothing happens
    assert operations.getattr(FUSE_ROOT_ID).nlink >= 2


def test_many_threads_share_one_session(rig: Rig, shared: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    rig.share("data", shared, "queues=2")
    files = rig.workload.files("data")

    def work(number: int) -> bool:
        data = bytes([number]) * (100_000 + number)
        files.write_file(f"file-{number}", data)
        return files.read_file(f"file-{number}") == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(32)))


def test_forgotten_nodes_are_gone_after_the_session(rig: Rig, shared: Path) -> None:
    (shared / "file").touch()
    rig.share("data", shared)
    operations = rig.workload.files("data").operations
    node = operations.lookup(FUSE_ROOT_ID, b"file")
    operations.driver.stop()
    with pytest.raises(FailedPreconditionError) as raised:
        operations.getattr(node.nodeid)
    assert raised.value.reason == "FUSE_SESSION_DOWN"
    operations.driver.start()
    with pytest.raises(OSError):
        operations.getattr(node.nodeid)
    assert stat.S_ISDIR(operations.getattr(FUSE_ROOT_ID).mode)


def test_a_device_that_dies_fails_requests_at_once(rig: Rig, shared: Path) -> None:
    rig.share("data", shared)
    files = rig.workload.files("data")
    rig.remove_from_host("data")
    with pytest.raises(PortholeError) as raised:
        files.list()
    assert isinstance(raised.value, UnavailableError)
    files.operations.forget(FUSE_ROOT_ID)  # no device is left to forget it; that is no error


class _Scripted:
    """A device whose configuration the test chooses."""

    features = 0
    max_mapping_bytes = 1 << 20

    def __init__(self, raw: bytes, queues: int) -> None:
        self._raw = raw
        self.queues = [object()] * queues

    def config(self) -> bytes:
        return self._raw


@pytest.mark.parametrize(
    ("raw", "queues"),
    [
        (b"", 2),
        (b"tag".ljust(36, b"\0") + b"\0\0\0\0", 2),
        (b"t".ljust(36, b"\0") + b"\2\0\0\0", 2),
    ],
)
def test_a_configuration_that_is_not_virtio_fs_is_refused(raw: bytes, queues: int) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        read_config(_Scripted(raw, queues))  # type: ignore[arg-type]
    assert raised.value.reason == "FS_CONFIG"


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (replies.entry, b"short"),
        (replies.handle, b""),
        (replies.attr, bytes(fuse.ATTR_OUT.size)),
        (replies.statfs, b"x" * 79),
        (lambda body: replies.written(10, body), fuse.WRITE_OUT.pack(11)),
        (lambda body: replies.written(10, body), fuse.WRITE_OUT.pack(0)),
        (replies.names, fuse.DIRENT.pack(1, 1, 100, 4) + b"cut off"),
        (replies.names, fuse.DIRENT.pack(1, 1, 3, 4) + b"a/b" + b"\0" * 5),
        (replies.entries, bytes(replies.ENTRY_BYTES)),
    ],
)
def test_malformed_replies_are_input_output_errors(decode: object, body: bytes) -> None:
    with pytest.raises(OSError, match="malformed") as raised:
        decode(body)  # type: ignore[operator]
    assert raised.value.errno == errno.EIO


def test_a_negative_entry_is_no_such_file() -> None:
    with pytest.raises(FileNotFoundError):
        replies.entry(bytes(replies.ENTRY_BYTES))


def test_opcodes_without_session_are_not_sent(rig: Rig, shared: Path) -> None:
    rig.share("data", shared)
    driver = FsDriver(rig.devices["data"])
    with pytest.raises(FailedPreconditionError):
        driver.submit(Opcode.GETATTR, FUSE_ROOT_ID, b"", 0, bytes)
    assert FsOperations(driver).driver is driver
