"""The guest's virtio-fs driver: one FUSE session over the queues of one device.

Owns the session (INIT, DESTROY), unique numbers, the choice of a queue, and the envelope of
requests and replies. operations.py has the requests, paths.py the paths. Must not know rings or
bounce pools.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
)
from services.handshake.pool import PAGE_BYTES
from services.wire import fuse, virtio_fs
from services.wire.fuse import InHeader, InitOut, Opcode, OutHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from struct import Struct

    from services.simguest.memory.dma import Buffer
    from services.simguest.virtio.interface import DriverQueue, ProbedDevice

T = TypeVar("T")

WANTED_FEATURES: Final = 0
"""Device-type feature bits that this driver understands (virtio 1.2, section 5.11.3)."""

MAX_READAHEAD_BYTES: Final = 128 << 10
DEFAULT_MAX_PAGES: Final = 32
"""Pages of one request without FUSE_MAX_PAGES (kernel: fs/fuse/fuse_i.h)."""

SESSION_DEADLINE_S: Final = 10.0
"""Longest that a device takes to answer INIT or DESTROY. The guest waits for both with locks held,
and powers off even if a device answers nothing."""

SESSION_FLAGS: Final = (
    fuse.FUSE_ASYNC_READ
    | fuse.FUSE_ATOMIC_O_TRUNC
    | fuse.FUSE_BIG_WRITES
    | fuse.FUSE_DO_READDIRPLUS
    | fuse.FUSE_PARALLEL_DIROPS
    | fuse.FUSE_MAX_PAGES
    | fuse.FUSE_SETXATTR_EXT
    | fuse.FUSE_INIT_EXT
)
"""Flags that this driver offers in INIT."""


class Pending(Generic[T]):
    """A request in flight, and its reply once it has arrived."""

    __slots__ = ("_decode", "_future", "_opcode", "_unique")

    def __init__(
        self,
        future: Future[list[bytes]],
        decode: Callable[[bytes], T],
        opcode: Opcode,
        unique: int,
    ) -> None:
        self._future = future
        self._decode = decode
        self._opcode = opcode
        self._unique = unique

    def result(self, timeout_s: float | None = None) -> T:
        """Wait for the reply and return its decoded value; may be called from any thread.

        Args:
            timeout_s: How long to wait for the reply, in seconds; None waits for ever.

        Raises:
            OSError: The errno of the reply; EIO when the reply is malformed.
            DeadlineExceededError: REQUEST_TIMEOUT; the device keeps the request.
            PortholeError: The device is gone or its queue is closed.
        """
        try:
            head, *rest = self._future.result(timeout_s)
        except FutureTimeoutError:
            raise DeadlineExceededError(
                "REQUEST_TIMEOUT",
                f"the device has not answered {self._opcode.name} within {timeout_s} s",
            ) from None
        if len(head) != fuse.OUT_HEADER.size:
            raise self._malformed(f"{len(head)} bytes of header")
        reply = OutHeader._make(fuse.OUT_HEADER.unpack(head))
        if reply.error:
            number = -reply.error
            raise OSError(number, os.strerror(number), self._opcode.name)
        body = b"".join(rest) if len(rest) != 1 else rest[0]
        if reply.unique != self._unique:
            raise self._malformed(f"unique {reply.unique} instead of {self._unique}")
        if reply.len != len(head) + len(body):
            raise self._malformed(f"length {reply.len} but {len(head) + len(body)} bytes written")
        return self._decode(body)

    def _malformed(self, what: str) -> OSError:
        return malformed_reply(self._opcode, what)


def malformed_reply(opcode: Opcode, what: str) -> OSError:
    """Return the error for a reply that breaks the FUSE protocol."""
    return OSError(errno.EIO, f"the device's reply is malformed: {what}", opcode.name)


def unpack(opcode: Opcode, layout: Struct, body: bytes) -> tuple[Any, ...]:
    """Unpack a reply that must have exactly this layout.

    Raises:
        OSError: EIO when the length differs.
    """
    if len(body) != layout.size:
        raise malformed_reply(opcode, f"{len(body)} bytes instead of {layout.size}")
    return layout.unpack(body)


def nothing(_: bytes) -> None:
    """Decode a reply without a body."""


class FsDriver:
    """A FUSE session on a virtio-fs device. Every method may be called from any thread.

    Attributes:
        tag: The mount tag of the device.
        device: The probed device.
        max_read: Bytes that one READ may ask for; valid while the session runs.
        max_write: Bytes that one WRITE may carry; valid while the session runs.
        flags: The negotiated flags of INIT; valid while the session runs.
    """

    def __init__(self, device: ProbedDevice, *, uid: int = 0, gid: int = 0) -> None:
        """Bind to a probed device; `start` begins the session.

        Args:
            device: A virtio-fs device that nothing else uses.
            uid: The guest's user that makes the requests.
            gid: The group of that user.

        Raises:
            InvalidArgumentError: FS_CONFIG, when the configuration space is not that of virtio-fs.
        """
        self.device = device
        self.tag, count = read_config(device)
        self._hiprio: DriverQueue = device.queues[virtio_fs.HIPRIO_QUEUE]
        self._queues: Sequence[DriverQueue] = device.queues[1 : 1 + count]
        self._owner = (uid, gid, os.getpid())
        self._uniques = itertools.count(2, 2)  # Linux uses odd numbers for INTERRUPT
        self._lock = threading.Lock()
        self._running = False
        self.max_read = self.max_write = self.flags = 0

    def start(self) -> None:
        """Negotiate a session (INIT). Does nothing while one runs.

        Raises:
            FailedPreconditionError: FUSE_VERSION, when the device speaks another protocol.
            OSError: The device refused.
            DeadlineExceededError: REQUEST_TIMEOUT, after SESSION_DEADLINE_S.
            PortholeError: The device is gone.
        """
        with self._lock:
            if self._running:
                return
            self._adopt(self._negotiate())
            self._running = True

    def stop(self) -> None:
        """End the session (DESTROY); the device forgets all nodes. Does nothing without one.

        Raises:
            OSError: The device refused; the session is over all the same.
            PortholeError: The device is gone, or REQUEST_TIMEOUT after SESSION_DEADLINE_S; the
                session is over all the same.
        """
        with self._lock:
            if not self._running:
                return
            self._running = False
            self._request(Opcode.DESTROY, 0, b"", 0, nothing).result(SESSION_DEADLINE_S)

    def submit(
        self,
        opcode: Opcode,
        nodeid: int,
        args: bytes,
        reply_bytes: int,
        decode: Callable[[bytes], T],
        *,
        payload: Buffer = b"",
    ) -> Pending[T]:
        """Put a request on a queue.

        Args:
            opcode: The operation.
            nodeid: The node that it is for.
            args: The bytes behind the request's header, names included.
            reply_bytes: The most bytes that may follow the reply's header.
            decode: Decodes those bytes; raises OSError when they are malformed.
            payload: The data of a WRITE; it gets a descriptor of its own.

        Raises:
            FailedPreconditionError: FUSE_SESSION_DOWN, when no session runs.
            PortholeError: An error of `DriverQueue.submit`.
        """
        if not self._running:
            raise FailedPreconditionError(
                "FUSE_SESSION_DOWN",
                f"share {self.tag}: its FUSE session is not running; a mount point may be using "
                "the device, unmount that first",
                tag=self.tag,
            )
        return self._request(opcode, nodeid, args, reply_bytes, decode, payload)

    def submit_hiprio(self, opcode: Opcode, nodeid: int, args: bytes) -> None:
        """Put a FORGET, BATCH_FORGET or INTERRUPT, which has no reply, on the high-priority queue.

        Raises:
            PortholeError: An error of `DriverQueue.submit`.
        """
        _, header = self._header(opcode, nodeid, len(args))
        self._hiprio.submit([header, args], [])

    def _request(
        self,
        opcode: Opcode,
        nodeid: int,
        args: bytes,
        reply_bytes: int,
        decode: Callable[[bytes], T],
        payload: Buffer = b"",
    ) -> Pending[T]:
        unique, header = self._header(opcode, nodeid, len(args) + len(payload))
        out: list[Buffer] = [part for part in (header, args, payload) if len(part)]
        sizes = [fuse.OUT_HEADER.size, reply_bytes] if reply_bytes else [fuse.OUT_HEADER.size]
        queue = self._queues[(unique >> 1) % len(self._queues)]
        return Pending(queue.submit(out, sizes), decode, opcode, unique)

    def _header(self, opcode: Opcode, nodeid: int, body_bytes: int) -> tuple[int, bytes]:
        unique = next(self._uniques)
        length = fuse.IN_HEADER.size + body_bytes
        return unique, fuse.IN_HEADER.pack(
            *InHeader(length, opcode, unique, nodeid, *self._owner, 0)
        )

    def _negotiate(self) -> InitOut:
        request = fuse.INIT_IN.pack(
            fuse.FUSE_KERNEL_VERSION,
            fuse.FUSE_KERNEL_MINOR_VERSION,
            MAX_READAHEAD_BYTES,
            SESSION_FLAGS & 0xFFFFFFFF,
            SESSION_FLAGS >> 32,
        )
        pending = self._request(Opcode.INIT, 0, request, fuse.INIT_OUT.size, bytes)
        body = pending.result(SESSION_DEADLINE_S)
        reply = InitOut._make(unpack(Opcode.INIT, fuse.INIT_OUT, body))
        if reply.major != fuse.FUSE_KERNEL_VERSION or reply.minor < fuse.FUSE_MIN_MINOR_VERSION:
            raise FailedPreconditionError(
                "FUSE_VERSION",
                f"share {self.tag}: the device speaks FUSE {reply.major}.{reply.minor}, this "
                f"driver 7.{fuse.FUSE_MIN_MINOR_VERSION} to 7.{fuse.FUSE_KERNEL_MINOR_VERSION}; "
                "update the older one",
                tag=self.tag,
            )
        return reply

    def _adopt(self, reply: InitOut) -> None:
        self.flags = (reply.flags | reply.flags2 << 32) & SESSION_FLAGS
        pages = reply.max_pages if self.flags & fuse.FUSE_MAX_PAGES else DEFAULT_MAX_PAGES
        most = min(max(pages, 1) * PAGE_BYTES, self.device.max_mapping_bytes)
        self.max_read = most
        self.max_write = min(max(reply.max_write, PAGE_BYTES), most)


def read_config(device: ProbedDevice) -> tuple[str, int]:
    """Read a virtio-fs device's tag and number of request queues (virtio 1.2, section 5.11.4).

    Raises:
        InvalidArgumentError: FS_CONFIG.
        UnavailableError: DEVICE_GONE.
    """
    raw = device.config()
    if len(raw) >= virtio_fs.CONFIG.size:
        tag, count = virtio_fs.CONFIG.unpack_from(raw)
        if 1 <= count < len(device.queues):
            return tag.rstrip(b"\0").decode(errors="replace"), count
    raise InvalidArgumentError(
        "FS_CONFIG",
        f"configuration space {raw.hex()} with {len(device.queues)} queues is not that of a "
        "virtio-fs device with at least one request queue",
    )
