"""The native loop against Python: on the same requests, the same replies, rings and refusals.

Each example is a stream of requests, lawful and not, cut into descriptors at any byte. It may end
in a chain that breaks a rule. It is served twice, by Python alone and with the native loop, on
equal shares: each the only one of its device, or one of two.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import shutil
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.devicehost import fastpath
from services.devicehost.devices.fs.aggregate.shares import Aggregate
from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits
from services.devicehost.devices.fs.protocol import FuseSession
from services.devicehost.devices.fs.share.share import Share
from services.devicehost.memory.access import MAX_REQUEST_BYTES
from services.devicehost.virtio.device import serve_natively, serve_requests
from services.devicehost.virtio.native_queue import NativeQueue, make_queue
from services.devicehost.virtio.queue_setup import QueueState
from services.handshake.errors import PortholeError
from services.handshake.options import FsOptions
from services.wire import fuse
from services.wire.fuse import Opcode
from services.wire.virtio_ring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    used_bytes,
)
from services.wire.virtio_ring import Descriptor as RingDescriptor
from tests.unit.devicehost.devices.fs.conftest import VM_ID
from tests.unit.devicehost.virtio.conftest import DATA, POOL, Rig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.guest_ring import GuestRing

RING_SIZE: Final = 256
MAX_REQUESTS: Final = 24
EXAMPLES: Final = int(os.environ.get("PORTHOLE_DIFFERENTIAL_EXAMPLES", "1000"))
PHASES: Final = [Phase.explicit, Phase.reuse, Phase.generate]
"""No shrinking: it takes minutes, and the assertion shows the difference."""
MOST_CHAINS: Final = MAX_REQUESTS + 3
BUFFERS: Final = 16 << 10
"""Guest memory of one request."""
FILL: Final = 0xA5
NAMES: Final = [b"a", b"b", b"dir", b"link", b"fifo", b"gone", b"n" * 255, b"n" * 256, b"x/y", b"."]
SIZES: Final = [0, 1, 8, 511, 4096, 70000, 1 << 31]
OFFSETS: Final = [0, 1, 4096, 5000, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
FLAGS: Final = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_RDWR | os.O_EXCL]

LIMITS: Final = Limits(nodes=6, descriptors=4, handles=4)
CHILDREN: Final = {b"a": "", b"dir": "dir"}
"""Shares of an aggregate, and what of the directory they share."""
_NODES: Final = [0, 1 << 44 | 1, 1 << 44 | 2, 1 << 44 | 3, 2 << 44 | 1, 3 << 44 | 1, 1]
"""Which nodes of an aggregate stand for those of a share: of the first, the second, of one that is
not there, and the root."""

_ids = st.integers(0, 6)
_name = st.sampled_from(NAMES)
_io = st.tuples(_ids, st.sampled_from(OFFSETS), st.sampled_from(SIZES))


def _named(opcode: Opcode, args: bytes = b"") -> st.SearchStrategy[tuple[int, bytes]]:
    return _name.map(lambda name: (int(opcode), args + name + b"\0"))


def _write(io: tuple[int, int, int], flags: int, file_flags: int) -> tuple[int, bytes]:
    number, offset, size = io
    size = min(size, 5000)
    args = fuse.WRITE_IN.pack(number, offset, size, flags, 0, file_flags)
    return int(Opcode.WRITE), args + bytes(i % 251 for i in range(size))


_read_like = st.tuples(st.sampled_from([Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS]), _io)
_BODIES: Final = st.one_of(
    _named(Opcode.LOOKUP),
    _named(Opcode.UNLINK),
    _named(Opcode.MKDIR, fuse.MKDIR_IN.pack(0o755, 0)),
    st.builds(
        lambda name, flags: (
            int(Opcode.CREATE),
            fuse.CREATE_IN.pack(flags, 0o100640, 0, 0) + name + b"\0",
        ),
        _name,
        st.sampled_from(FLAGS),
    ),
    st.just((int(Opcode.GETATTR), fuse.GETATTR_IN.pack(0, 0))),
    st.sampled_from(FLAGS).map(lambda flags: (int(Opcode.OPEN), fuse.OPEN_IN.pack(flags, 0))),
    st.just((int(Opcode.OPENDIR), fuse.OPEN_IN.pack(0, 0))),
    st.builds(
        lambda opcode, number: (int(opcode), fuse.RELEASE_IN.pack(number, 0, 0, 0)),
        st.sampled_from([Opcode.RELEASE, Opcode.RELEASEDIR]),
        _ids,
    ),
    _ids.map(lambda number: (int(Opcode.FLUSH), fuse.FLUSH_IN.pack(number, 0))),
    _read_like.map(lambda x: (int(x[0]), fuse.READ_IN.pack(*x[1], 0, 0, 0))),
    st.builds(_write, _io, st.sampled_from([0, 1, 4]), st.sampled_from([0, os.O_APPEND])),
    st.integers(0, 3).map(lambda count: (int(Opcode.FORGET), fuse.FORGET_IN.pack(count))),
    st.lists(st.tuples(_ids, st.integers(0, 2)), max_size=4).map(
        lambda pairs: (
            int(Opcode.BATCH_FORGET),
            fuse.BATCH_FORGET_IN.pack(len(pairs))
            + b"".join(fuse.FORGET_ONE.pack(*pair) for pair in pairs),
        )
    ),
    st.just((int(Opcode.STATFS), b"")),
    st.tuples(st.integers(0, 60), st.binary(max_size=64)),
)


@dataclass(frozen=True)
class Step:
    """One request, the places where it is cut, and the room that it leaves for the answer."""

    body: tuple[int, bytes]
    nodeid: int
    lie: int
    truncate: int
    room: int
    cuts: tuple[int, ...]
    indirect: bool


_STEPS: Final = st.lists(
    st.builds(
        Step,
        body=_BODIES,
        nodeid=st.integers(0, 6),
        lie=st.sampled_from([0, 0, 0, 0, 0, 0, 1, -1, 4096]),
        truncate=st.sampled_from([0, 0, 0, 0, 0, 0, 1, 30]),
        room=st.sampled_from([0, 8, 16, 100, 200, 5000, 7000]),
        cuts=st.lists(st.integers(1, 9000), max_size=4).map(tuple),
        indirect=st.booleans(),
    ),
    max_size=MAX_REQUESTS,
)

_OUT: Final = DATA + MOST_CHAINS * BUFFERS
BROKEN: Final[dict[str, Sequence[RingDescriptor]]] = {
    "loop": [RingDescriptor(DATA, 8, DESC_F_NEXT, 0)],
    "empty": [RingDescriptor(DATA, 0, 0, 0)],
    "outside": [RingDescriptor(POOL.base - 8, 16, 0, 0)],
    "past the end": [RingDescriptor(POOL.base + POOL.size_bytes - 8, 16, 0, 0)],
    "wraps": [RingDescriptor((1 << 64) - 8, 16, 0, 0)],
    "nested": [RingDescriptor(DATA, 8, DESC_F_NEXT, 1), RingDescriptor(_OUT, 16, 4, 0)],
    "indirect and next": [RingDescriptor(_OUT, 16, DESC_F_INDIRECT | DESC_F_NEXT, 0)],
    "indirect of odd length": [RingDescriptor(_OUT, 17, DESC_F_INDIRECT, 0)],
    "indirect outside": [RingDescriptor(0, 16, DESC_F_INDIRECT, 0)],
    "readable after writable": [
        RingDescriptor(DATA, 8, DESC_F_NEXT | DESC_F_WRITE, 1),
        RingDescriptor(DATA, 8, 0, 0),
    ],
    "next is outside": [RingDescriptor(DATA, 8, DESC_F_NEXT, RING_SIZE)],
    "head is outside": [],
    "index jumps": [],
}


class Place:
    """A guest with a ring, and a share; all of it is equal each time."""

    def __init__(self, directory: Path) -> None:
        self.rig = Rig()
        self.ring: GuestRing = self.rig.ring(RING_SIZE)
        self.ring.ram.write(DATA, bytes([FILL]) * MOST_CHAINS * BUFFERS)
        self.replies: list[tuple[int, list[tuple[int, int]]]] = []
        self.shared = directory
        (directory / "a").write_bytes(bytes(range(256)) * 20)
        (directory / "b").write_bytes(b"")
        (directory / "dir").mkdir()
        (directory / "dir" / "a").write_bytes(b"inner")
        (directory / "link").symlink_to("a")
        os.mkfifo(directory / "fifo")
        (directory / ("n" * 255)).touch()

    def prepare(self, steps: Sequence[Step], broken: str | None, *, aggregate: bool) -> int:
        """Put all requests into the ring; returns how many can be completed."""
        head = 0
        leading = [_plain(Opcode.INIT, 0, fuse.INIT_IN.pack(7, 39, 0, 0xFFFF_FFFF, 0))]
        if aggregate:
            leading += [_plain(Opcode.LOOKUP, 1, name + b"\0") for name in CHILDREN]
            steps = [replace(step, nodeid=_NODES[step.nodeid]) for step in steps]
        steps = [*leading, *steps]
        for place, step in enumerate(steps):
            head = self._add(place, step, head)
        if broken is not None:
            for index, descriptor in enumerate(BROKEN[broken]):
                following = descriptor.next + head if descriptor.flags & DESC_F_NEXT else 0
                packed = descriptor._replace(next=following).pack()
                self.ring.ram.write(self.ring.desc + 16 * (head + index), packed)
            self.ring.ram.write(_OUT, RingDescriptor(_OUT, 16, DESC_F_INDIRECT, 0).pack())
            self.ring.offer(RING_SIZE + 7 if broken == "head is outside" else head)
            if broken == "index jumps":
                self.ring.set_avail_idx(len(steps) + RING_SIZE + 1)
        self.ring.set_used_event(len(steps) - 1)  # notify of the last one
        return len(steps)

    def _add(self, place: int, step: Step, head: int) -> int:
        opcode, body = step.body
        body = body[: len(body) - step.truncate] if step.truncate <= len(body) else b""
        length = fuse.IN_HEADER.size + len(body)
        unique = 2 * place + 2
        header = fuse.IN_HEADER.pack(length + step.lie, opcode, unique, step.nodeid, 0, 0, 1, 0)
        start = DATA + place * BUFFERS
        self.ring.ram.write(start, header + body)
        readable = _cut(start, length, step.cuts)
        writable = _cut(start + 8192, min(step.room, BUFFERS - 8192), step.cuts)
        self.replies.append((opcode, writable))
        chain = [(*piece, 0) for piece in readable] + [(*p, DESC_F_WRITE) for p in writable]
        if step.indirect:
            table = start + BUFFERS - 512
            self._describe(table, 0, chain)
            self.ring.describe(head, table, 16 * len(chain), DESC_F_INDIRECT)
            self.ring.offer(head)
            return head + 1
        self._describe(self.ring.desc, head, chain)
        self.ring.offer(head)
        return head + len(chain)

    def _describe(self, table: int, first: int, chain: list[tuple[int, int, int]]) -> None:
        for index, (addr, length, flags) in enumerate(chain, first):
            more = DESC_F_NEXT if index - first < len(chain) - 1 else 0
            packed = RingDescriptor(addr, length, flags | more, index + 1 if more else 0).pack()
            self.ring.ram.write(table + 16 * index, packed)

    def outcome(self, failure: str) -> dict[str, object]:
        """All that a guest can see afterwards, except times and inode numbers."""
        ram = self.ring.ram
        seen: list[bytes] = []
        for opcode, writable in self.replies:
            reply = bytearray(b"".join(ram.read(*piece) for piece in writable))
            _mask(opcode, reply)
            seen.append(bytes(reply))
        return {
            "failure": failure,
            # Without the wish for notifications: the queue may be about to sleep, or not.
            "used": ram.read(self.ring.used + 2, used_bytes(RING_SIZE) - 4),
            "replies": seen,
            "files": sorted(
                (str(path.relative_to(self.shared)), path.lstat().st_mode, path.lstat().st_size)
                for path in self.shared.rglob("*")
            ),
        }


def _plain(opcode: Opcode, nodeid: int, body: bytes) -> Step:
    return Step((int(opcode), body), nodeid, 0, 0, 200, (), False)


def _cut(start: int, length: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    edges = [0, *sorted({cut for cut in cuts if cut < length}), length]
    return [(start + low, high - low) for low, high in itertools.pairwise(edges) if high > low]


def _mask_attr(reply: bytearray, at: int) -> None:
    attr = fuse.Attr(*fuse.ATTR.unpack_from(reply, at))
    reply[at : at + fuse.ATTR.size] = fuse.ATTR.pack(
        *attr._replace(ino=0, atime=0, mtime=0, ctime=0, atimensec=0, mtimensec=0, ctimensec=0)
    )


def _mask(opcode: int, reply: bytearray) -> None:
    if len(reply) < fuse.OUT_HEADER.size:
        return
    length, error, _ = fuse.OUT_HEADER.unpack_from(reply)
    if error or length > len(reply):
        return
    header, entry = fuse.OUT_HEADER.size, fuse.ENTRY_OUT.size
    if opcode in (Opcode.LOOKUP, Opcode.CREATE, Opcode.MKDIR):
        _mask_attr(reply, header + entry)
    elif opcode == Opcode.GETATTR:
        _mask_attr(reply, header + fuse.ATTR_OUT.size)
    elif opcode == Opcode.STATFS:
        reply[header:length] = bytes(length - header)
    elif opcode in (Opcode.READDIR, Opcode.READDIRPLUS):
        at = header
        while at < length:
            if opcode == Opcode.READDIRPLUS:
                if reply[at : at + 8] != bytes(8):
                    _mask_attr(reply, at + entry)
                at += entry + fuse.ATTR.size
            reply[at : at + 8] = bytes(8)
            (_, _, name_bytes, _) = fuse.DIRENT.unpack_from(reply, at)
            at += fuse.align8(fuse.DIRENT.size + name_bytes)


@contextlib.contextmanager
def a_place() -> Iterator[Place]:
    directory = Path(tempfile.mkdtemp(prefix="ph-", dir="/dev/shm"))
    place = Place(directory)
    try:
        yield place
    finally:
        place.rig.close()
        shutil.rmtree(directory)


def serve(
    steps: Sequence[Step],
    broken: str | None,
    *,
    native: bool,
    event_idx: bool,
    ro: bool,
    aggregate: bool,
) -> dict[str, object]:
    library = fastpath.library if native else None
    with a_place() as place:
        expected = place.prepare(steps, broken, aggregate=aggregate)
        rig, ring = place.rig, place.ring

        def share(directory: str) -> Share:
            root = Descriptor(os.open(place.shared / directory, os.O_PATH | os.O_DIRECTORY))
            options = FsOptions(name="share", vm_id=VM_ID, ro=ro)
            return Share(root, options, LIMITS, library)

        served: Share | Aggregate = share("")
        if aggregate:
            served = Aggregate(FsOptions(name="shares", vm_id=VM_ID), LIMITS, library)
            for name, directory in CHILDREN.items():
                served.add(name.decode(), share(directory))
        session = FuseSession(served, MAX_REQUEST_BYTES)
        setup = rig.setup(ring, event_idx=event_idx)
        queue = make_queue(setup, QueueState(), natively=native)

        failures: list[PortholeError] = []

        def work() -> None:
            syscalls.use_private_umask(0)
            try:
                if library:
                    assert isinstance(queue, NativeQueue)
                    assert session.native_mounts is not None
                    with session.native_mounts.worker() as loop:
                        serve_natively(queue, loop, session.handle)
                else:
                    serve_requests(queue, session.handle)
                queue.notify()
            except PortholeError as error:
                failures.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        try:
            if broken is None:
                await_completions(place, expected)
                queue.stop()
            worker.join(30)
            assert not worker.is_alive()
        finally:  # guest memory must not go before its last user
            queue.stop()
            worker.join()
        result = place.outcome(f"{failures[0].reason}: {failures[0]}" if failures else "")
        result["state"] = queue.state
        result["counters"] = rig.meter.snapshot()
        queue.close()
        session.reset()
        return result


def await_completions(place: Place, expected: int) -> None:
    """Wait for the call descriptor, like a driver."""
    while place.ring.used_idx < expected:
        ready, _, _ = select.select([place.rig.call_fd], [], [], 30)
        assert ready, f"{place.ring.used_idx} of {expected} requests were completed"
        os.eventfd_read(place.rig.call_fd)


@pytest.mark.skipif(fastpath.library is None, reason="the native fast path was not built")
@settings(
    deadline=None,
    max_examples=EXAMPLES,
    phases=PHASES,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    steps=_STEPS,
    broken=st.sampled_from([None, None, None, *BROKEN]),
    event_idx=st.booleans(),
    ro=st.booleans(),
    aggregate=st.booleans(),
)
def test_native_and_python_do_the_same(
    steps: list[Step], broken: str | None, event_idx: bool, ro: bool, aggregate: bool
) -> None:
    python, native = (
        serve(steps, broken, native=way, event_idx=event_idx, ro=ro, aggregate=aggregate)
        for way in (False, True)
    )
    assert native == python
    assert (python["failure"] != "") == (broken is not None)
