"""The device, used through the interface for its transport."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from services.devicehost import fastpath
from services.devicehost.accounting import DeviceMeter
from services.devicehost.devices import AggregateBackend, FsBackend, FsDevice
from services.devicehost.devices.fs.host_files import credentials
from services.devicehost.devices.fs.host_files.descriptors import MAX_NODES
from services.devicehost.devices.fs.protocol import FuseSession
from services.devicehost.memory.access import MAX_REQUEST_BYTES
from services.devicehost.virtio.native_queue import NativeQueue
from services.handshake.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PortholeError,
)
from services.handshake.exhaustion import Resource
from services.handshake.options import FsOptions
from services.handshake.pool import Gpa, SwiotlbPool
from services.wire import fuse
from services.wire.virtio_fs import CONFIG
from tests.support.descriptors import open_descriptors
from tests.unit.devicehost.devices.fs.conftest import VM_ID
from tests.unit.devicehost.devices.fs.fuse_guest import buffers, chain
from tests.unit.devicehost.devices.fs.ring_guest import RingGuest

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable
    from pathlib import Path

    from services.devicehost.virtio.deferral import Deferred
    from services.devicehost.virtio.queue import Chain, Queue


CAP_DAC_READ_SEARCH = 1 << 2


def device(shared: Path, name: str = "share", queues: int = 1) -> FsDevice:
    return FsDevice(
        FsOptions(name=name, vm_id=VM_ID, queues=queues), FsBackend(str(shared)), MAX_REQUEST_BYTES
    )


class ScriptedQueue:
    """Serves these requests, then stops."""

    def __init__(self, requests: list[bytes]) -> None:
        self.requests = list(requests)
        self.replies: list[bytes] = []
        self.stopped = False

    def pop(self) -> Chain | None:
        if not self.requests:
            return None
        return chain(buffers(self.requests.pop(0), 40), buffers(bytes(4096), 16))

    def push(self, chain: Chain, written_bytes: int) -> None:
        self.replies.append(b"".join(chain.writable)[:written_bytes])

    def wait(self) -> None:
        self.stopped = True


def request(opcode: int, body: bytes, nodeid: int = 1) -> bytes:
    return fuse.IN_HEADER.pack(40 + len(body), opcode, 1, nodeid, 0, 0, 1, 0) + body


INIT = request(fuse.Opcode.INIT, fuse.INIT_IN.pack(7, 39, 0, fuse.FUSE_MAX_PAGES, 0), 0)


def serve(target: FsDevice, *requests: bytes) -> list[bytes]:
    queue = ScriptedQueue(list(requests))
    target.serve(1, cast("Queue", queue))
    return queue.replies


@pytest.mark.parametrize(("queues", "tag"), [(1, "share"), (4, "x" * 36), (8, "日本")])
def test_configuration_space(shared: Path, queues: int, tag: str) -> None:
    made = device(shared, tag, queues)
    assert made.num_queues == queues + 1, "and the high-priority queue"
    assert made.config() == CONFIG.pack(tag.encode(), queues)
    assert len(made.config()) == 40
    made.close()


def test_requests_are_served_until_the_guest_is_reset(shared: Path) -> None:
    made = device(shared)
    replies = serve(made, INIT, request(fuse.Opcode.MKDIR, fuse.MKDIR_IN.pack(0o777, 0) + b"dir\0"))
    assert [fuse.OUT_HEADER.unpack_from(reply)[1] for reply in replies] == [0, 0]
    assert (shared / "dir").is_dir()
    assert len(open_descriptors(shared)) == 1
    made.reset()
    assert open_descriptors(shared) == [], "the guest's nodes are gone"
    (reply,) = serve(made, request(fuse.Opcode.GETATTR, fuse.GETATTR_IN.pack(0, 0)))
    assert fuse.OUT_HEADER.unpack_from(reply)[1] < 0, "INIT is due again"
    made.close()


def test_a_queues_thread_has_a_umask_of_its_own(shared: Path) -> None:
    made = device(shared)
    mkdir = request(fuse.Opcode.MKDIR, fuse.MKDIR_IN.pack(0o777, 0) + b"dir\0")
    before = os.umask(0o027)
    try:
        server = threading.Thread(target=serve, args=(made, INIT, mkdir))
        server.start()
        server.join()
    finally:
        after = os.umask(before)
    assert stat.S_IMODE((shared / "dir").stat().st_mode) == 0o777, "the guest applied its own"
    assert after == 0o027, "other threads of the process keep theirs"
    made.close()


@pytest.mark.root
def test_the_device_hosts_groups_are_not_the_guests_users(shared: Path) -> None:
    group, uid = 777, 12345
    os.chown(shared, 0, group)
    shared.chmod(0o2777)
    made = device(shared)
    body = fuse.CREATE_IN.pack(os.O_RDWR, stat.S_IFREG | 0o2775, 0, 0) + b"file\0"
    size = 40 + len(body)
    create = fuse.IN_HEADER.pack(size, fuse.Opcode.CREATE, 1, 1, uid, uid, 1, 0) + body
    before = os.getgroups()
    os.setgroups([group])
    try:
        server = threading.Thread(target=serve, args=(made, INIT, create))
        server.start()
        server.join()
        assert os.getgroups() == [group], "other threads of the process keep them"
    finally:
        os.setgroups(before)
    # The bit stays for members of the directory's group only (inode_init_owner of the kernel).
    assert stat.S_IMODE((shared / "file").stat().st_mode) == 0o775
    made.close()


def test_closing_lets_go_of_the_directory(shared: Path) -> None:
    made = device(shared)
    assert len(open_descriptors(shared.parent)) == 1
    made.close()
    assert open_descriptors(shared.parent) == []


def test_what_cannot_be_shared(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cases: list[tuple[type[PortholeError], str, Path, str]] = [
        (NotFoundError, "SHARED_DIR_MISSING", tmp_path / "absent", "share"),
        (InvalidArgumentError, "SHARED_DIR_NOT_A_DIRECTORY", tmp_path / "file", "share"),
        (InvalidArgumentError, "TAG_TOO_LONG", shared, "x" * 37),
        (InvalidArgumentError, "TAG_TOO_LONG", shared, "日" * 13),
    ]
    for kind, reason, path, tag in cases:
        with pytest.raises(kind) as error:
            device(path, tag)
        assert error.value.reason == reason


@pytest.mark.root
def test_a_directory_that_may_not_be_searched(shared: Path) -> None:
    (shared / "closed" / "inner").mkdir(parents=True)
    (shared / "closed").chmod(0)
    rights = credentials._CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH
    credentials._change(remove=rights)
    try:
        with pytest.raises(PermissionDeniedError) as error:
            device(shared / "closed" / "inner")
    finally:
        credentials._change(add=rights)
    assert error.value.reason == "SHARED_DIR_DENIED"


def test_a_path_that_leads_nowhere(shared: Path) -> None:
    (shared / "loop").symlink_to("loop")
    named = re.escape(f"'{shared / 'loop'}': {os.strerror(errno.ELOOP)}")
    with pytest.raises(InvalidArgumentError, match=named) as error:
        device(shared / "loop")
    assert error.value.reason == "SHARED_DIR_UNUSABLE"
    assert error.value.metadata == {"shared_dir": str(shared / "loop")}


def test_what_cannot_be_shared_is_named(shared: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="'here' is not an absolute path") as relative:
        FsDevice(FsOptions(name="share", vm_id=VM_ID), FsBackend("here"), MAX_REQUEST_BYTES)
    assert relative.value.reason == "SHARED_DIR_RELATIVE"
    assert relative.value.metadata == {"shared_dir": "here"}
    with pytest.raises(InvalidArgumentError, match=r"has 37 bytes; .* room for 36") as long:
        device(shared, "x" * 37)
    assert long.value.metadata == {"tag": "x" * 37, "bound": "36"}


def test_an_aggregate_takes_shares_and_no_options_of_one(shared: Path) -> None:
    pool = SwiotlbPool(Gpa(1 << 30), 64 << 20)
    own = FsOptions(
        name="all",
        vm_id=VM_ID,
        queues=4,
        writeback=True,
        swiotlb=pool,
        aperture=SwiotlbPool(pool.base, 8 << 20),
        rings="inside",
    )
    made = FsDevice(own, AggregateBackend(), MAX_REQUEST_BYTES)
    assert made.num_queues == 5
    children = [made.children]
    made.add_child("one", FsOptions(name="one", vm_id=VM_ID), shared)
    children.append(made.children)
    made.remove_child("one")
    children.append(made.children)
    assert children == [(), ("one",), ()]
    made.close()
    with pytest.raises(InvalidArgumentError, match="'all' takes the options queues, ") as caught:
        FsDevice(replace(own, ro=True), AggregateBackend(), MAX_REQUEST_BYTES)
    assert caught.value.reason == "AGGREGATE_OPTION"
    assert caught.value.metadata == {"options": str(replace(own, ro=True))}


def test_what_waits_on_any_queue_counts_for_the_device(
    shared: Path, library: ctypes.CDLL | None
) -> None:
    """One bound holds for all queues together: a guest chooses how many it uses."""
    meter = DeviceMeter()
    options = FsOptions(name="share", vm_id=VM_ID, queues=2)
    made = FsDevice(options, FsBackend(str(shared)), MAX_REQUEST_BYTES, meter)

    def queued() -> int:
        used = {each.resource: each.used for each in meter.bounds.usage()}
        return used[Resource.QUEUED_REQUESTS]

    def lock(handle: int, owner: int) -> bytes:
        return fuse.LK_IN.pack(handle, owner, 0, 9, fcntl.F_WRLCK, 1, 0)

    with contextlib.ExitStack() as stack:
        guests = [stack.enter_context(RingGuest(natively=library is not None)) for _ in range(2)]
        servers = [
            threading.Thread(target=made.serve, args=(index, guest.queue))
            for index, guest in enumerate(guests, 1)
        ]
        for server in servers:
            server.start()
        try:
            assert isinstance(guests[0].queue, NativeQueue) == (fastpath.library is library)
            guests[0].init()
            entry, handle = guests[0].create(b"file")
            guests[0].call(fuse.Opcode.SETLK, entry.nodeid, lock(handle, 1))
            for owner, guest in enumerate(guests, 2):
                guest.offer(
                    guest.request(fuse.Opcode.SETLKW, entry.nodeid, lock(handle, owner)), 16
                )
            deadline = time.monotonic() + 10
            while queued() < len(guests) and time.monotonic() < deadline:
                time.sleep(0.001)
            assert queued() == len(guests)
        finally:
            for guest in guests:
                guest.queue.stop()
            for server in servers:
                server.join()
        assert queued() == 0, "a queue that stops answers what it kept"
    made.close()


def test_a_device_that_is_closed_serves_nothing(shared: Path) -> None:
    made = FsDevice(FsOptions(name="all", vm_id=VM_ID), AggregateBackend(), MAX_REQUEST_BYTES)
    made.add_child("one", FsOptions(name="one", vm_id=VM_ID), shared)
    made.close()
    made.reset()
    assert made.children == ()
    assert serve(made, INIT) == []
    assert made.config() == CONFIG.pack(b"all", 1)
    refuses_shares(made, shared)


def refuses_shares(made: FsDevice, shared: Path) -> None:
    changes: tuple[Callable[[], None], ...] = (
        lambda: made.add_child("two", FsOptions(name="two", vm_id=VM_ID), shared),
        lambda: made.remove_child("one"),
    )
    for change in changes:
        with pytest.raises(FailedPreconditionError, match="'all' shares one directory") as error:
            change()
        assert error.value.reason == "NO_AGGREGATE"
        assert error.value.metadata == {"tag": "all"}


def test_a_device_of_one_directory_takes_no_shares(shared: Path) -> None:
    made = device(shared, "all")
    refuses_shares(made, shared)
    assert made.children == ()
    made.close()


@pytest.mark.parametrize("of_several", [False, True])
def test_hot_requests_of_a_native_queue_do_not_come_to_python(
    shared: Path,
    library: ctypes.CDLL | None,
    of_several: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handled: list[int] = []
    handle = FuseSession.handle

    def note(session: FuseSession, request: Chain) -> int | Deferred:
        _, opcode, *_ = fuse.IN_HEADER.unpack_from(b"".join(request.readable))
        handled.append(opcode)
        return handle(session, request)

    monkeypatch.setattr(FuseSession, "handle", note)
    (shared / "file").touch()
    meter = DeviceMeter()
    options = FsOptions(name="all", vm_id=VM_ID)
    if of_several:
        made = FsDevice(options, AggregateBackend(), MAX_REQUEST_BYTES, meter)
        made.add_child("one", FsOptions(name="one", vm_id=VM_ID), shared)
    else:
        made = FsDevice(options, FsBackend(str(shared)), MAX_REQUEST_BYTES, meter)
    with RingGuest(natively=library is not None) as guest:
        server = threading.Thread(target=made.serve, args=(1, guest.queue))
        server.start()
        try:
            guest.init()
            node = guest.walk("one/file" if of_several else "file").nodeid
            assert handled[0] == fuse.Opcode.INIT
            handled.clear()
            assert guest.getattr(node).nlink == 1
        finally:
            guest.queue.stop()
            server.join()
    assert handled == ([] if library else [fuse.Opcode.GETATTR])
    [nodes] = [each for each in meter.bounds.usage() if each.resource == Resource.NODES]
    assert (nodes.used, nodes.total) == (1, MAX_NODES), "the file"
    made.close()
