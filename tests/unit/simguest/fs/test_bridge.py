"""Shares as mount points: the host kernel's FUSE client through virtqueues."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from services.handshake.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from services.simguest.fs import bridge, mount
from services.simguest.fs.bridge import SMALL_REPLY_BYTES, FuseBridge, reply_bytes
from services.simguest.virtio.interface import REQUEST_DEADLINE_S
from services.wire import fuse, virtio_fs
from services.wire.fuse import InHeader, Opcode
from tests.unit.simguest.fs.watched_device import WatchedQueue

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from services.simguest.memory.dma import Buffer
    from tests.unit.simguest.rig import Rig

needs_fuse = pytest.mark.fuse


@pytest.fixture
def mount_point(run_dir: Path) -> Iterator[Path]:
    place = run_dir / "mount point"
    place.mkdir()
    yield place
    assert not mount.is_mounted(place), "the mount point was left behind"


def run(*command: str | Path) -> str:
    """Run a program on the mount point, outside this interpreter."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_fuse
def test_programs_work_on_the_mount_point(any_rig: Rig, shared: Path, mount_point: Path) -> None:
    rig = any_rig
    contents = os.urandom(3 << 20)
    (shared / "from host").write_bytes(contents)
    rig.share("data", shared)
    rig.workload.mount("data", mount_point)
    try:
        digest = run("sha256sum", mount_point / "from host").split()[0]
        assert digest == hashlib.sha256(contents).hexdigest()

        run("cp", "-a", mount_point / "from host", mount_point / "copy")
        run("mkdir", "-p", mount_point / "a" / "b")
        run("mv", mount_point / "copy", mount_point / "a" / "b" / "moved")
        run("ln", mount_point / "a" / "b" / "moved", mount_point / "second")
        run("ln", "-s", "second", mount_point / "pointer")
        run("chmod", "600", mount_point / "second")
        run("truncate", "-s", "1000", mount_point / "second")
        assert sorted(run("ls", mount_point).split("\n")) == [
            *["", "a", "from host", "pointer", "second"]
        ]
        assert run("stat", "-c", "%F %a %s", mount_point / "second") == "regular file 600 1000\n"
        run("rm", "-r", mount_point / "a", mount_point / "pointer")
    finally:
        rig.workload.unmount("data")
    assert (shared / "second").read_bytes() == contents[:1000]
    assert {path.name for path in shared.iterdir()} == {"from host", "second"}
    assert rig.counters("data").bytes_out > len(contents)


@needs_fuse
def test_a_big_directory_and_many_readers(rig: Rig, shared: Path, mount_point: Path) -> None:
    for number in range(1500):
        (shared / f"file-{number:04}").write_bytes(b"%d" % number)
    rig.share("data", shared, "queues=2")
    rig.workload.mount("data", mount_point)
    try:
        assert len(run("ls", "-l", mount_point).splitlines()) == 1501
        names = [mount_point / f"file-{number:04}" for number in range(0, 1500, 10)]
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(Path.read_bytes, names))
        assert read == [b"%d" % number for number in range(0, 1500, 10)]
    finally:
        rig.workload.unmount("data")


@needs_fuse
def test_errors_reach_the_program(rig: Rig, shared: Path, mount_point: Path) -> None:
    (shared / "file").write_bytes(b"x")
    rig.share("data", shared, "ro")
    rig.workload.mount("data", mount_point)
    try:
        for number, call in (
            (errno.ENOENT, lambda: (mount_point / "missing").stat()),
            (errno.EROFS, lambda: (mount_point / "new").write_bytes(b"x")),
            (errno.ENOTDIR, lambda: (mount_point / "file" / "below").stat()),
        ):
            with pytest.raises(OSError) as raised:
                call()
            assert raised.value.errno == number
    finally:
        rig.workload.unmount("data")


@needs_fuse
def test_driver_and_mount_point_take_turns(rig: Rig, shared: Path, mount_point: Path) -> None:
    (shared / "file").write_bytes(b"turns")
    rig.share("data", shared)
    files = rig.workload.files("data")
    for _ in range(3):
        assert files.read_file("file") == b"turns"
        rig.workload.mount("data", mount_point)
        assert (mount_point / "file").read_bytes() == b"turns"
        for refused in (
            lambda: rig.workload.files("data"),
            lambda: list(rig.workload.hash_tree("data")),
            lambda: rig.workload.mount("data", mount_point),
        ):
            with pytest.raises(FailedPreconditionError) as raised:
                refused()
            assert raised.value.reason == "SHARE_MOUNTED"
        rig.workload.unmount("data")
        assert list(mount_point.iterdir()) == []
    with pytest.raises(FailedPreconditionError) as raised:
        rig.workload.unmount("data")
    assert raised.value.reason == "SHARE_NOT_MOUNTED"


@needs_fuse
def test_a_mount_survives_the_death_of_its_device(
    rig: Rig, shared: Path, mount_point: Path
) -> None:
    (shared / "file").write_bytes(b"x" * 100_000)
    rig.share("data", shared)
    rig.workload.mount("data", mount_point)
    opened = os.open(mount_point / "file", os.O_RDONLY)
    assert os.read(opened, 10) == b"x" * 10
    rig.remove_from_host("data")
    for call in (
        lambda: (mount_point / "another").stat(),
        lambda: (mount_point / "new").write_bytes(b"x"),
        lambda: os.close(opened),  # its FLUSH finds no device any more
    ):
        with pytest.raises(OSError) as raised:
            call()
        assert raised.value.errno == errno.ENOTCONN
    rig.workload.detach("data")
    assert list(mount_point.iterdir()) == []


@needs_fuse
def test_unmounting_while_a_program_has_a_file_open(
    rig: Rig, shared: Path, mount_point: Path
) -> None:
    (shared / "file").write_bytes(b"x" * 300_000)
    rig.share("data", shared)
    rig.workload.mount("data", mount_point)
    opened = os.open(mount_point / "file", os.O_RDONLY)
    rig.workload.unmount("data")
    with pytest.raises(OSError) as raised:
        os.pread(opened, 100, 290_000)
    assert raised.value.errno in (errno.ENOTCONN, errno.EIO)
    with pytest.raises(OSError):
        os.close(opened)
    assert rig.workload.files("data").stat("file").size == 300_000


@needs_fuse
def test_another_program_unmounts(rig: Rig, shared: Path, mount_point: Path) -> None:
    rig.share("data", shared)
    rig.workload.mount("data", mount_point)
    run("umount", mount_point)
    assert not mount.is_mounted(mount_point)
    rig.workload.unmount("data")
    assert rig.workload.files("data").list() == {}


def readers() -> list[str]:
    """Return the bridge's reader threads of this process."""
    return [each.name for each in threading.enumerate() if each.name.startswith("fuse-")]


@needs_fuse
def test_closing_the_workload_unmounts(rig: Rig, shared: Path, mount_point: Path) -> None:
    rig.share("data", shared)
    rig.workload.mount("data", mount_point)
    assert len(readers()) == bridge.READERS
    rig.workload.close()
    assert not mount.is_mounted(mount_point)
    assert readers() == []


@needs_fuse
def test_unmounting_ends_the_session(rig: Rig, shared: Path, mount_point: Path) -> None:
    """The kernel sends no DESTROY here, and the device would keep its nodes."""
    rig.share("data", shared)
    rig.workload.mount("data", mount_point)
    before = rig.operations["data"].count(Opcode.DESTROY)
    rig.workload.unmount("data")
    assert rig.operations["data"].count(Opcode.DESTROY) == before + 1


@needs_fuse
def test_a_late_reply_is_written_to_no_other_file(
    rig: Rig, shared: Path, mount_point: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of the bridge's descriptor stays taken while the device may still reply."""
    replies: SimpleQueue[Future[list[bytes]]] = SimpleQueue()
    submit = WatchedQueue.submit

    def hold_statfs(queue: WatchedQueue, out: Sequence[Buffer], sizes: Sequence[int]) -> object:
        if InHeader._make(fuse.IN_HEADER.unpack_from(out[0])).opcode != Opcode.STATFS:
            return submit(queue, out, sizes)
        future: Future[list[bytes]] = Future()
        replies.put(future)
        return future

    monkeypatch.setattr(WatchedQueue, "submit", hold_statfs)
    monkeypatch.setattr(bridge, "DRAIN_DEADLINE_S", 0.05)
    rig.share("data", shared)
    rig.workload.mount("data", mount_point)
    mounted = rig.workload._shares["data"].bridge
    assert mounted is not None
    with ThreadPoolExecutor(1) as program:
        asking = program.submit(os.statvfs, mount_point)
        late = replies.get(timeout=10)
        rig.workload.unmount("data")
        assert isinstance(asking.exception(10), OSError)
    assert Path(f"/proc/self/fd/{mounted._fd}").readlink() == Path(os.devnull)
    late.set_result([bytes(fuse.OUT_HEADER.size)])
    os.close(mounted._fd)


class FakeQueue:
    """A queue whose device answers everything at once, but for SETLKW; `room` ends `submit`."""

    index, size = 0, 256

    def __init__(self) -> None:
        self.room = True
        self.deadlines: list[float] = []

    def submit(
        self,
        out: Sequence[Buffer],
        in_sizes: Sequence[int],
        *,
        deadline_s: float = REQUEST_DEADLINE_S,
    ) -> Future[list[bytes]]:
        self.deadlines.append(deadline_s)
        if not self.room:
            raise ResourceExhaustedError("RING_FULL", "on purpose")
        future: Future[list[bytes]] = Future()
        if InHeader._make(fuse.IN_HEADER.unpack_from(out[0])).opcode != Opcode.SETLKW:
            future.set_result([bytes(size) for size in in_sizes])
        return future

    def transact(
        self,
        out: Sequence[Buffer],
        in_sizes: Sequence[int],
        *,
        deadline_s: float = REQUEST_DEADLINE_S,
        timeout_s: float | None = None,
    ) -> list[bytes]:
        return self.submit(out, in_sizes, deadline_s=deadline_s).result(timeout_s)

    def post_receive(self, buffers: int, size_bytes: int, on_data: object) -> None: ...


class FakeDevice:
    """A virtio-fs device with fake queues."""

    features = 0
    max_mapping_bytes = 1 << 20

    def __init__(self) -> None:
        self.queues = [FakeQueue(), FakeQueue()]

    def config(self) -> bytes:
        return virtio_fs.CONFIG.pack(b"data", 1)


def fake_kernel(monkeypatch: pytest.MonkeyPatch, connection: int) -> None:
    """Give a bridge this descriptor in place of /dev/fuse, and short deadlines."""
    monkeypatch.setattr(mount, "mount", lambda *_: connection)
    monkeypatch.setattr(bridge, "DRAIN_DEADLINE_S", 0.05)


def test_a_bridge_closes_while_requests_come_without_end(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device of zeros is a kernel that always has a request; none of them is INIT."""
    fake_kernel(monkeypatch, os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC))
    monkeypatch.setattr(bridge, "MOUNT_DEADLINE_S", 0.05)
    outcome: SimpleQueue[str] = SimpleQueue()

    def refused() -> None:
        with pytest.raises(FailedPreconditionError) as raised:
            FuseBridge(FakeDevice(), run_dir)
        outcome.put(raised.value.reason)

    threading.Thread(target=refused, daemon=True).start()
    assert outcome.get(timeout=20) == "FUSE_REFUSED"


def test_a_device_without_room_is_asked_once_to_interrupt(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setblocking(False)
    number = connection.detach()
    fake_kernel(monkeypatch, number)
    device = FakeDevice()

    def request(opcode: Opcode, unique: int) -> None:
        size = fuse.IN_HEADER.size
        kernel.send(fuse.IN_HEADER.pack(*InHeader(size, opcode, unique, 1, 0, 0, 0, 0)))

    with kernel:
        request(Opcode.INIT, 2)
        mounted = FuseBridge(device, run_dir)
        for unique in (4, 6, 8):
            request(Opcode.SETLKW, unique)
        end = time.monotonic() + 10
        while len(mounted._waiting) < 3 and time.monotonic() < end:
            time.sleep(0.01)
        device.queues[0].room = False
        mounted.close()
    assert device.queues[0].deadlines == [bridge.DRAIN_DEADLINE_S]
    os.close(number)  # the requests were not answered, so the bridge kept its number


@needs_fuse
def test_a_mount_point_that_cannot_be_used(rig: Rig, shared: Path, run_dir: Path) -> None:
    (run_dir / "file").touch()
    rig.share("data", shared)
    for place in (run_dir / "missing", run_dir / "file"):
        with pytest.raises(FailedPreconditionError) as raised:
            rig.workload.mount("data", place)
        assert raised.value.reason == "FUSE_UNAVAILABLE"
        assert "create the directory first" in raised.value.message
    with pytest.raises(InvalidArgumentError) as relative:
        rig.workload.mount("data", "relative")
    assert relative.value.reason == "MOUNT_POINT"
    assert rig.workload.files("data").list() == {}  # the driver goes on


def test_without_the_fuse_device(
    rig: Rig, shared: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount, "FUSE_DEVICE", str(run_dir / "no fuse"))
    rig.share("data", shared)
    with pytest.raises(FailedPreconditionError) as raised:
        rig.workload.mount("data", run_dir)
    assert raised.value.reason == "FUSE_UNAVAILABLE"
    assert "modprobe fuse" in raised.value.message
    assert rig.workload.files("data").list() == {}


def request(opcode: int, body: bytes) -> memoryview:
    header = InHeader(fuse.IN_HEADER.size + len(body), opcode, 2, 1, 0, 0, 0)
    return memoryview(fuse.IN_HEADER.pack(*header) + body)


@pytest.mark.parametrize(
    ("opcode", "body", "expected"),
    [
        (Opcode.READ, fuse.READ_IN.pack(7, 0, 262144, 0, 0, 0), 262144),
        (Opcode.READDIR, fuse.READ_IN.pack(7, 0, 4096, 0, 0, 0), 4096),
        (Opcode.READDIRPLUS, fuse.READ_IN.pack(7, 9, 65536, 0, 0, 0), 65536),
        (Opcode.GETXATTR, fuse.GETXATTR_IN.pack(65536) + b"user.x\0", 65536),
        (Opcode.LISTXATTR, fuse.GETXATTR_IN.pack(0), SMALL_REPLY_BYTES),
        (Opcode.READLINK, b"", 4096),
        (Opcode.IOCTL, bytes(28) + (8192).to_bytes(4, "little"), 8192 + 16),
        (Opcode.LOOKUP, b"name\0", SMALL_REPLY_BYTES),
        (Opcode.INIT, bytes(64), SMALL_REPLY_BYTES),
        (4095, b"", SMALL_REPLY_BYTES),
    ],
)
def test_replies_have_room(opcode: int, body: bytes, expected: int) -> None:
    assert reply_bytes(opcode, request(opcode, body)) == expected


def test_the_longest_fixed_replies_fit() -> None:
    entry = fuse.ENTRY_OUT.size + fuse.ATTR.size
    longest = max(entry + fuse.OPEN_OUT.size, fuse.STATX_OUT.size + fuse.STATX.size)
    assert longest <= SMALL_REPLY_BYTES
