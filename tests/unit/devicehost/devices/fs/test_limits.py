"""Resources of a share that a guest uses up: each is reported once per episode."""

from __future__ import annotations

import errno
import fcntl
import gc
import itertools
import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.devicehost.accounting import bounds
from services.devicehost.devices.fs.host_files.descriptors import Limits
from services.devicehost.devices.fs.locks import owners, waits
from services.devicehost.devices.fs.mount import mount as mounts
from services.devicehost.virtio.deferral import Deferred
from services.handshake.exhaustion import Exhaustion, Resource
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, buffers, chain
from tests.unit.devicehost.devices.fs.native_guest import NativeGuest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest
    from tests.unit.devicehost.devices.fs.fuse_guest import FuseGuest

LOST_S = 60.0
"""By when queues must have come into each other's way."""


class Reports:
    """The exhaustions that the device of a guest reports."""

    def __init__(self, guest: FuseGuest) -> None:
        self._reports: list[Exhaustion] = []
        self._changed = threading.Condition()
        self.bounds = guest.session.bounds
        self.bounds.on_exhausted = self._report

    def _report(self, exhaustion: Exhaustion) -> None:
        with self._changed:
            self._reports.append(exhaustion)
            self._changed.notify_all()

    def so_far(self) -> list[tuple[str, int, int]]:
        with self._changed:
            return [(each.resource, each.used, each.total) for each in self._reports]


def refused(attempt: Callable[[], object]) -> str:
    with pytest.raises(FuseError) as error:
        attempt()
    return errno.errorcode[error.value.number]


def until_over(reports: Reports, what: Resource) -> None:
    """Wait for the check that ends an episode; it runs on a thread of its own."""
    while reports.bounds.is_exhausted(what):
        for thread in threading.enumerate():
            if thread.name == "exhaustion":
                thread.join(10)


def test_nodes(make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LOOK_INTERVAL_S", 0.02)
    guest = make_guest(limits=Limits(nodes=4, descriptors=4, handles=10))
    reports = Reports(guest)
    made = [guest.mkdir(b"d%d" % index).nodeid for index in range(4)]
    for _ in range(3):
        assert refused(lambda: guest.mkdir(b"more")) == "ENFILE"
    assert reports.so_far() == [("nodes", 4, 4)]
    guest.forget(made[0])
    guest.forget(made[1])
    until_over(reports, Resource.NODES)
    made = [guest.mkdir(b"e%d" % index).nodeid for index in range(2)]
    assert refused(lambda: guest.lookup(b"d0")) == "ENFILE"
    assert reports.so_far() == [("nodes", 4, 4)] * 2


def test_handles(make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch, shared: Path) -> None:
    monkeypatch.setattr(bounds, "LOOK_INTERVAL_S", 0.02)
    (shared / "file").touch()
    guest = make_guest(limits=Limits(nodes=10, descriptors=10, handles=4))
    reports = Reports(guest)
    nodeid = guest.lookup(b"file").nodeid
    opened = [guest.open(nodeid) for _ in range(4)]
    for attempt in (lambda: guest.open(nodeid), guest.opendir, lambda: guest.create(b"new")):
        assert refused(attempt) == "EMFILE"
    assert reports.so_far() == [("handles", 4, 4)]
    for handle in opened:
        guest.release(handle)
    until_over(reports, Resource.HANDLES)
    for _ in range(4):
        guest.open(nodeid)
    assert refused(lambda: guest.open(nodeid)) == "EMFILE"
    assert reports.so_far() == [("handles", 4, 4)] * 2
    usage = {each.resource: each for each in reports.bounds.usage()}
    assert (usage["handles"].used, usage["handles"].exhaustions) == (4, 2)


@pytest.mark.parametrize("library", ["native"], indirect=True)
def test_a_file_that_was_created_but_got_no_handle_is_forgotten(
    make_guest: MakeGuest, shared: Path
) -> None:
    """Queues find room for the last handle at once; all but one then get none for their file."""
    guest = make_guest(limits=Limits(nodes=100, descriptors=100, handles=1))
    queues = [guest, *(NativeGuest(guest.session) for _ in range(3))]
    together = threading.Barrier(len(queues), timeout=LOST_S)
    mount = guest.session.mount
    assert isinstance(mount, mounts.Mount)

    def create(queue: FuseGuest, name: str) -> bool:
        """Return whether the file was made and the guest got no handle."""
        together.wait()
        try:
            entry, handle = queue.create(name.encode())
        except FuseError:
            together.wait()
            return (shared / name).exists()
        together.wait()
        queue.release(handle)
        queue.forget(entry.nodeid)
        return False

    deadline = time.monotonic() + LOST_S
    with ThreadPoolExecutor(len(queues)) as pool:
        for attempt in itertools.count():
            names = [f"{attempt}-{queue}" for queue in range(len(queues))]
            was_late = list(pool.map(create, queues, names))
            assert len(mount.nodes) == 0
            if any(was_late):
                break
            assert time.monotonic() < deadline, "no queue was late"


def test_a_guest_that_mounts_anew_begins_no_new_episode(make_guest: MakeGuest) -> None:
    guest = make_guest(limits=Limits(nodes=0, descriptors=1, handles=10))
    reports = Reports(guest)
    for _ in range(5):
        assert refused(lambda: guest.mkdir(b"d")) == "ENFILE"
        guest.init()
    assert len(reports.so_far()) == 1


@pytest.fixture
def few_descriptors(request: pytest.FixtureRequest) -> Iterator[int]:
    """Leave this process some 20 descriptors for shares; the value is the first beyond them."""
    gc.collect()  # garbage of earlier tests would close descriptors in between
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(link.name) for link in Path("/proc/self/fd").iterdir())
    fill: list[int] = []
    while not fill or fill[-1] < highest:  # the kernel gives the lowest free number
        fill.append(os.dup(0))
    few: int = getattr(request, "param", 20)
    lowest_unusable = fill[-1] + few
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * lowest_unusable, hard))
    os.close(fill.pop())
    yield lowest_unusable
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for number in fill:
        os.close(number)


def test_descriptors_of_the_process(
    few_descriptors: int, make_guest: MakeGuest, shared: Path
) -> None:
    (shared / "file").touch()
    guest = make_guest()
    reports = Reports(guest)
    nodeid = guest.lookup(b"file").nodeid
    assert refused(lambda: [guest.open(nodeid) for _ in range(30)]) == "EMFILE"
    assert refused(lambda: guest.open(nodeid)) == "EMFILE"
    [(name, used, total)] = reports.so_far()
    assert (name, total) == ("descriptors", few_descriptors)
    assert used >= total - total // 32, "the last ones are left to nodes"


@pytest.mark.parametrize("few_descriptors", [80], indirect=True)
def test_nodes_give_descriptors_up_when_few_are_left(
    few_descriptors: int, make_guest: MakeGuest, shared: Path
) -> None:
    for number in range(200):
        (shared / f"{number}").write_text(f"{number}")
    guest = make_guest(limits=Limits(nodes=1000, descriptors=1000, handles=1000))
    reports = Reports(guest)
    nodes = [guest.lookup(b"%d" % number).nodeid for number in range(200)]
    for number, node in enumerate(nodes):
        handle = guest.open(node)
        assert guest.read(handle, 9) == b"%d" % number
        guest.release(handle)
    assert reports.so_far() == []


@pytest.mark.parametrize("few_descriptors", [80], indirect=True)
@pytest.mark.parametrize("library", ["native"], indirect=True)
def test_nodes_of_one_guest_give_descriptors_up_for_another(
    few_descriptors: int, make_guest: MakeGuest, shared: Path
) -> None:
    for number in range(200):
        (shared / f"{number}").write_text(f"{number}")
    idle, busy = (
        make_guest(limits=Limits(nodes=1000, descriptors=1000, handles=1000)) for _ in range(2)
    )
    nodes = [idle.lookup(b"%d" % number).nodeid for number in range(200)]
    node = busy.lookup(b"7").nodeid
    handles = [busy.open(node) for _ in range(50)]  # of 80
    assert {busy.read(handle, 9) for handle in handles} == {b"7"}
    assert [idle.getattr(node).size for node in nodes] == [len(str(n)) for n in range(200)]


@pytest.mark.parametrize("few_descriptors", [300], indirect=True)
def test_a_guest_with_all_files_open_leaves_others_enough_to_look_at_files(
    few_descriptors: int, make_guest: MakeGuest, shared: Path
) -> None:
    (shared / "file").touch()
    greedy, other = (make_guest(limits=Limits(1000, 1000, 1000)) for _ in range(2))
    nodeid = greedy.lookup(b"file").nodeid
    assert refused(lambda: [greedy.open(nodeid) for _ in range(few_descriptors)]) == "EMFILE"
    assert other.getattr(other.lookup(b"file").nodeid).size == 0


def take_all(guest: FuseGuest, what: Resource) -> int:
    """Take nodes or open files until there are none; return how many there were."""
    mount = guest.session.mount
    assert isinstance(mount, mounts.Mount)
    if what is Resource.NODES:
        assert refused(lambda: [guest.lookup(b"%d" % each) for each in range(100)]) == "ENFILE"
    else:
        assert refused(lambda: [guest.opendir() for _ in range(100)]) == "EMFILE"
    assert mount.is_full(what, 1)
    return mount.used(what)


@pytest.mark.parametrize("what", [Resource.NODES, Resource.HANDLES])
def test_no_guest_gets_more_than_it_leaves_to_the_others(
    make_guest: MakeGuest, shared: Path, what: Resource
) -> None:
    for number in range(100):
        (shared / f"{number}").touch()
    gc.collect()  # guests of other tests
    limits = Limits(100, 100, 100, all_nodes=64, all_handles=64, one_guest=False)
    guests = [make_guest(limits=limits) for _ in range(3)]
    assert [take_all(guest, what) for guest in guests] == [32, 16, 8]
    guests.clear()
    gc.collect()
    alone = make_guest(limits=limits._replace(one_guest=True))
    assert take_all(alone, what) == 64, "those of guests that are gone count no more"


def test_a_lock_that_is_refused_for_want_of_a_descriptor_names_those(
    few_descriptors: int, make_guest: MakeGuest
) -> None:
    guest = make_guest()
    reports = Reports(guest)
    entry, handle = guest.create(b"file")
    held = [os.dup(0) for _ in range(few_descriptors)]
    try:
        assert refused(lambda: record_lock(guest, entry.nodeid, handle, 1)) == "ENOLCK"
    finally:
        for descriptor in held:
            os.close(descriptor)
    assert [name for name, _, _ in reports.so_far()] == ["descriptors"]


def record_lock(guest: FuseGuest, nodeid: int, handle: int, owner: int) -> None:
    body = fuse.LK_IN.pack(handle, owner, owner * 2, owner * 2, fcntl.F_WRLCK, owner, 0)
    guest.call(Opcode.SETLK, nodeid, body)


@pytest.mark.parametrize("what", [Resource.LOCK_OWNERS, Resource.LOCKS])
def test_locks(make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch, what: Resource) -> None:
    limit = 3
    if what is Resource.LOCKS:
        monkeypatch.setattr(owners, "MAX_LOCKS", limit)
        monkeypatch.setattr(mounts, "MAX_LOCKS", limit)
        guest = make_guest()
    else:
        guest = make_guest(limits=Limits(nodes=10, descriptors=10, handles=limit))
    reports = Reports(guest)
    entry, handle = guest.create(b"file")
    for owner in range(1, limit + 1):
        record_lock(guest, entry.nodeid, handle, owner)
    for _ in range(2):
        number = refused(lambda: record_lock(guest, entry.nodeid, handle, limit + 1))
        assert number == "ENOLCK"
    [(name, used, total)] = reports.so_far()
    assert (name, total) == (what, limit)
    assert used >= limit


def wait_for_lock(guest: FuseGuest, nodeid: int, handle: int, owner: int) -> int | Deferred:
    """Ask for the lock that owner 1 has."""
    body = fuse.LK_IN.pack(handle, owner, 2, 2, fcntl.F_RDLCK, owner, 0)
    request = guest.request(Opcode.SETLKW, nodeid, body)
    return guest.session.handle(chain(buffers(request, 40), buffers(bytes(16))))


def test_waits_for_locks(make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 2
    monkeypatch.setattr(waits, "MAX_WAITS", limit)
    monkeypatch.setattr(mounts, "MAX_WAITS", limit)
    monkeypatch.setattr(bounds, "LOOK_INTERVAL_S", 0.02)
    guest = make_guest()
    reports = Reports(guest)
    entry, handle = guest.create(b"file")
    for episode in (1, 2):
        record_lock(guest, entry.nodeid, handle, 1)
        waiting = [wait_for_lock(guest, entry.nodeid, handle, owner) for owner in (2, 3)]
        for owner in (4, 5):
            assert isinstance(wait_for_lock(guest, entry.nodeid, handle, owner), int)
        assert reports.so_far() == [("lock_waits", limit, limit)] * episode
        guest.call(Opcode.FLUSH, entry.nodeid, fuse.FLUSH_IN.pack(handle, 1))
        for answer in waiting:
            assert isinstance(answer, Deferred)
            assert answer.wait(10)
        until_over(reports, Resource.LOCK_WAITS)
        for owner in (2, 3):
            guest.call(Opcode.FLUSH, entry.nodeid, fuse.FLUSH_IN.pack(handle, owner))
