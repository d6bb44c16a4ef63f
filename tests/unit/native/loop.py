"""One ring with its guest's memory, and the native loop on it: no device, no Python that serves."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import threading
from typing import TYPE_CHECKING, Final, Self

from services.devicehost import fastpath
from services.devicehost.fastpath import (
    PhChain,
    PhCounters,
    PhMountSetup,
    PhQueueSetup,
    PhQueueState,
    PhRules,
    PhSpan,
)
from services.wire import fuse
from services.wire.virtio_ring import DESC_F_NEXT, DESC_F_WRITE

if TYPE_CHECKING:
    from pathlib import Path

SIZE: Final = 16
GPA: Final = 0x10000
RAM_BYTES: Final = 16 << 20
TABLE: Final = 0x40000
"""Where tests may put an indirect table, from the start of the memory."""
_AVAIL, _USED, _REQUESTS, _AREA, _REPLY = 0x1000, 0x2000, 0x4000, 0x2000, 0x1000
_NO_NOTIFY: Final = 1
"""VRING_USED_F_NO_NOTIFY."""
_FOREVER_NS: Final = 3_600_000_000_000
DEADLINE_S: Final = 30.0


class Loop:
    """Requests go into the ring by `ask`; `serve` and `start` have the loop serve it.

    Attributes:
        outcomes: What the loop returned each time that it was started.
    """

    def __init__(self, *, indirect: bool = True) -> None:
        """Begin with an empty ring; `indirect`: whether indirect descriptors were agreed on."""
        assert fastpath.library is not None
        self.library = fastpath.library
        self.outcomes: list[int] = []
        self._memory = mmap.mmap(-1, RAM_BYTES)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._span = PhSpan(GPA, len(self._memory), base)
        self._counters = PhCounters()
        self._chain = PhChain()
        self.kick_fd, self.call_fd, self._stop_fd, self.wake_fd = (
            os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)
        )
        setup = PhQueueSetup(
            desc=base,
            avail=base + _AVAIL,
            used=base + _USED,
            spans=ctypes.addressof(self._span),
            counters=ctypes.addressof(self._counters),
            span_count=1,
            size=SIZE,
            kick_fd=self.kick_fd,
            call_fd=self.call_fd,
            stop_fd=self._stop_fd,
            event_idx=False,
            indirect=indirect,
        )
        self.queue: int = self.library.ph_queue_new(ctypes.byref(setup))
        self._mounts: int = self.library.ph_mounts_new()
        self._worker: int = self.library.ph_worker_new(False)
        self._asked = 0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.library.ph_queue_free(self.queue)
        self.library.ph_mounts_free(self._mounts)
        self.library.ph_worker_delete(self._worker)
        for fd in (self.kick_fd, self.call_fd, self._stop_fd, self.wake_fd):
            os.close(fd)

    @property
    def state(self) -> PhQueueState:
        state: PhQueueState = self.library.ph_queue_state(self.queue).contents
        return state

    @property
    def counted(self) -> tuple[int, int, int]:
        """Requests, bytes in and bytes out."""
        return self._counters.requests, self._counters.bytes_in, self._counters.bytes_out

    @property
    def used(self) -> int:
        """How many requests were served."""
        return int.from_bytes(self._memory[_USED + 2 : _USED + 4], "little")

    def mount(
        self,
        slot: int,
        directory: Path,
        *,
        descriptor_limit: int = 1 << 20,
        may_switch: bool = False,
    ) -> int:
        """Mount a directory; the mount is in the slot, and the caller has a reference."""
        setup = PhMountSetup(
            rules=PhRules(
                uid=fastpath.KEEP_ID,
                gid=fastpath.KEEP_ID,
                keep_dir=0o177777,
                keep_file=0o177777,
                valid_s=1,
            ),
            root_id=root_of(slot),
            nodes=100,
            all_nodes=100,
            descriptors=50,
            handles=20,
            all_handles=20,
            alone=True,
            root_fd=os.open(directory, os.O_PATH | os.O_DIRECTORY),
            descriptor_limit=descriptor_limit,
            may_switch=may_switch,
        )
        mount: int = self.library.ph_mount_new(ctypes.byref(setup))
        assert mount
        self.put(slot, mount)
        return mount

    def put(self, slot: int, mount: int | None) -> None:
        assert self.library.ph_mounts_put(self._mounts, slot, mount)

    def release(self, mount: int) -> None:
        self.library.ph_mount_release(mount)

    def ask(
        self, opcode: int, node: int, body: bytes, *, uid: int = 0, gid: int = 0, room: int = 1024
    ) -> int:
        """Put a request into the ring and kick; returns its number."""
        number, self._asked = self._asked, self._asked + 1
        area = _REQUESTS + number % 8 * _AREA
        request = (
            fuse.IN_HEADER.pack(fuse.IN_HEADER.size + len(body), opcode, 1, node, uid, gid, 1, 0)
            + body
        )
        self._memory[area : area + len(request)] = request
        self._memory[area + _REPLY : area + _REPLY + room] = bytes(room)
        head = number % (SIZE // 2) * 2
        self.describe(
            16 * head,
            (GPA + area, len(request), DESC_F_NEXT, head + 1),
            (GPA + area + _REPLY, room, DESC_F_WRITE, 0),
        )
        self._offer(number, head)
        return number

    def describe(self, at: int, *descs: tuple[int, int, int, int]) -> None:
        """Write descriptors (address, length, flags, next) into memory, from an offset on."""
        data = b"".join(struct.pack("<QIHH", *desc) for desc in descs)
        self._memory[at : at + len(data)] = data

    def offer(self) -> None:
        """Make the chain that begins with the first descriptor available."""
        self._offer(self._asked, 0)
        self._asked += 1

    def _offer(self, number: int, head: int) -> None:
        slot = _AVAIL + 4 + 2 * (number % SIZE)
        self._memory[slot : slot + 2] = head.to_bytes(2, "little")
        self._memory[_AVAIL + 2 : _AVAIL + 4] = (number + 1).to_bytes(2, "little")
        os.eventfd_write(self.kick_fd, 1)

    def take(self) -> bool:
        """Take the next chain out of the ring, if the loop would serve it."""
        queue = ctypes.c_void_p(self.queue)
        assert self.library.ph_queue_look(queue) == 1
        return bool(self.library.ph_queue_take(queue, ctypes.byref(self._chain)) & 0xFF)

    def getattr(self, node: int) -> int:
        return self.ask(fuse.Opcode.GETATTR, node, bytes(16))

    def create(self, node: int, name: bytes, *, uid: int = 0, gid: int = 0) -> int:
        body = fuse.CREATE_IN.pack(os.O_RDWR, 0o644, 0, 0) + name + b"\0"
        return self.ask(fuse.Opcode.CREATE, node, body, uid=uid, gid=gid)

    def reply(self, number: int) -> tuple[int, bytes]:
        """The errno and the data of the reply to a request that was served."""
        area = _REQUESTS + number % 8 * _AREA + _REPLY
        length, error, _ = fuse.OUT_HEADER.unpack_from(self._memory, area)
        return -error, self._memory[area + fuse.OUT_HEADER.size : area + length]

    def serve(self) -> int:
        """Have the loop serve what is there; returns its outcome."""
        os.eventfd_write(self.wake_fd, 1)
        self.library.ph_queue_set_wake(self.queue, self.wake_fd)
        outcome: int = self.library.ph_serve(self.queue, self._worker, self._mounts)
        os.eventfd_read(self.wake_fd)
        return outcome

    def start(self, *, sleeps: bool = True, wakes: bool = False) -> None:
        """Have a thread serve.

        Args:
            sleeps: Otherwise it looks around for chains for ever.
            wakes: Whether it ends when `wake_fd` is readable.
        """
        if not sleeps:
            self.state.spin_ns = _FOREVER_NS
        self.library.ph_queue_set_wake(self.queue, self.wake_fd if wakes else -1)
        self._memory[_USED] = _NO_NOTIFY  # as it is while the ring is served
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wants_kicks(self) -> bool:
        """Whether the thread goes to sleep, or is asleep."""
        return self._memory[_USED] & _NO_NOTIFY == 0

    def stop(self) -> None:
        """End the thread, whatever it waits for."""
        if self._thread is not None:
            self.library.ph_queue_stop(self.queue)
            os.eventfd_write(self._stop_fd, 1)
            os.eventfd_write(self.kick_fd, 1)
            self.join()

    def join(self) -> None:
        """Wait until the loop has returned by itself."""
        assert self._thread is not None
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        self._thread = None

    def _run(self) -> None:
        self.outcomes.append(self.library.ph_serve(self.queue, self._worker, self._mounts))


def root_of(slot: int) -> int:
    """The id of a share's root."""
    return slot << fastpath.SLOT_SHIFT | fuse.FUSE_ROOT_ID
