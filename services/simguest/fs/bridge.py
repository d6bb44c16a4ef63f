"""A share as a real mount point: the host kernel's FUSE client, bridged to a virtio-fs device.

Requests are read from /dev/fuse and sent to the device unchanged; its replies are written back.
That includes INIT, so the kernel and the device negotiate with each other. Owns the connection, the
requests in flight and the order of mounting and unmounting. Must not know the meaning of requests,
except how long a reply may be and which requests wait for locks.

The bridge unmounts when the process ends normally. When the process is killed, the kernel fails
every access with ENOTCONN; `umount -l <mount point>` then frees the directory.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import math
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Final

from services.handshake.errors import FailedPreconditionError, PortholeError, UnavailableError
from services.simguest.fs import mount as system
from services.simguest.fs.driver import read_config
from services.wire import fuse, virtio_fs
from services.wire.fuse import ERROR_REPLY, NO_REPLY, InHeader, Opcode, OutHeader

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from services.simguest.virtio.interface import ProbedDevice

READERS: Final = 2
"""Threads that read requests; one can copy while the other waits for room in the pool."""

REQUEST_BYTES: Final = (1 << 20) + 4096
"""The longest request: the kernel's largest WRITE (256 pages) and its headers."""

SMALL_REPLY_BYTES: Final = 512
"""Room for a reply when the request does not bound it; the longest is that of STATX, 288 bytes."""

MOUNT_DEADLINE_S: Final = 10.0
DRAIN_DEADLINE_S: Final = 5.0

_URGENT: Final = NO_REPLY | ERROR_REPLY
"""Opcodes for the high-priority queue (VIRTIO 1.2, section 5.11.6.1). No reply is awaited: a device
replies to INTERRUPT only to ask for a repetition, and ours remembers the interrupt instead."""

_HEADER: Final = fuse.IN_HEADER.size
_READ_SIZE_AT: Final = _HEADER + 16
_XATTR_SIZE_AT: Final = _HEADER
_IOCTL_OUT_SIZE_AT: Final = _HEADER + 28
_IOCTL_OUT_BYTES: Final = 16
_PATH_MAX: Final = 4096
_INTERRUPT_BIT: Final = 1
"""The bit by which the unique number of an INTERRUPT differs from that of its request (Linux,
fs/fuse/fuse_dev_i.h, FUSE_INT_REQ_BIT)."""
_U32: Final = 4
_SIZE_AT: Final[dict[int, tuple[int, int]]] = {
    Opcode.READ: (_READ_SIZE_AT, 0),
    Opcode.READDIR: (_READ_SIZE_AT, 0),
    Opcode.READDIRPLUS: (_READ_SIZE_AT, 0),
    Opcode.GETXATTR: (_XATTR_SIZE_AT, 0),
    Opcode.LISTXATTR: (_XATTR_SIZE_AT, 0),
    Opcode.IOCTL: (_IOCTL_OUT_SIZE_AT, _IOCTL_OUT_BYTES),
}
"""Opcodes whose request bounds the reply: offset of that bound, and bytes to add to it."""

_LOG = logging.getLogger(__name__)


class FuseBridge:
    """One mounted share. `close` may be called from any thread, and more than once."""

    def __init__(self, device: ProbedDevice, mount_point: Path) -> None:
        """Mount the share; it is usable when this returns.

        Args:
            device: A virtio-fs device without a FUSE session; nothing else uses it until `close`.
            mount_point: An existing directory.

        Raises:
            FailedPreconditionError: FUSE_UNAVAILABLE; or FUSE_REFUSED, when kernel and device
                agree on no session.
            UnavailableError: The device is gone.
        """
        self.tag, count = read_config(device)
        self.mount_point = mount_point.resolve()  # as the mount table names it
        self._device = device
        self._hiprio = device.queues[virtio_fs.HIPRIO_QUEUE]
        self._queues = device.queues[1 : 1 + count]
        self._idle = threading.Condition()
        self._in_flight = 0
        self._waiting: set[int] = set()
        self._negotiated = threading.Event()
        self._refusal = ""
        self._closing = threading.Lock()
        self._closed = False
        self._read_until = math.inf
        self._fd = system.mount(self.tag, self.mount_point)
        atexit.register(self.close)
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._readers = [
            threading.Thread(target=self._read_requests, name=f"fuse-{self.tag}-{n}", daemon=True)
            for n in range(READERS)
        ]
        for reader in self._readers:
            reader.start()
        agreed = self._negotiated.wait(MOUNT_DEADLINE_S)
        if not agreed or self._refusal:
            self.close()
            raise FailedPreconditionError(
                "FUSE_REFUSED",
                f"share {self.tag} at {mount_point}: kernel and device have agreed on no session: "
                + (self._refusal or f"no reply to INIT within {MOUNT_DEADLINE_S} s"),
                tag=self.tag,
            )

    def close(self) -> None:
        """Unmount, wait for the requests in flight, and end the device's session (DESTROY)."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            atexit.unregister(self.close)
            system.unmount(self.mount_point)
            # The kernel ends the connection with its last user, and the readers see that. While a
            # program has a file open, they are stopped here; closing the descriptor then aborts it.
            self._read_until = time.monotonic() + DRAIN_DEADLINE_S
            os.eventfd_write(self._stop_fd, 1)
            for reader in self._readers:
                reader.join()
            os.close(self._stop_fd)
            self._disconnect()
            self._destroy()

    def _disconnect(self) -> None:
        self._interrupt_waiting()
        with self._idle:
            drained = self._idle.wait_for(lambda: self._in_flight == 0, DRAIN_DEADLINE_S)
        if drained:
            os.close(self._fd)
            return
        # The device may still reply, so the number of this descriptor must not name another file.
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, self._fd, inheritable=False)
        os.close(nowhere)

    def _interrupt_waiting(self) -> None:
        """End the requests that wait for locks; their programs have lost the share."""
        with self._idle:
            waiting = set(self._waiting)
        for unique in waiting:
            # The kernel must not see EINTR: without a signal it would pass on ERESTARTSYS.
            self._write([_error_reply(unique, errno.ENOTCONN)])
        # A device that is gone holds no request; one that leaves no room is not asked again.
        with contextlib.suppress(PortholeError):
            for unique in waiting:
                length = _HEADER + fuse.INTERRUPT_IN.size
                header = InHeader(length, Opcode.INTERRUPT, unique | _INTERRUPT_BIT, 0, 0, 0, 0)
                self._hiprio.submit(
                    [fuse.IN_HEADER.pack(*header), fuse.INTERRUPT_IN.pack(unique)],
                    [],
                    deadline_s=DRAIN_DEADLINE_S,
                )

    def _destroy(self) -> None:
        # The kernel sends no DESTROY for such a connection, and the device would keep its nodes.
        header = InHeader(_HEADER, Opcode.DESTROY, 2, 0, 0, 0, 0)
        with contextlib.suppress(PortholeError):  # a device that is gone keeps nothing
            self._queues[0].transact(
                [fuse.IN_HEADER.pack(*header)],
                [fuse.OUT_HEADER.size],
                deadline_s=DRAIN_DEADLINE_S,
                timeout_s=DRAIN_DEADLINE_S,
            )

    # From the kernel to the device.

    def _read_requests(self) -> None:
        """Read and forward requests until the connection ends, or the bridge stops.

        It stops at the first pause, and in time without one: a program that has a file open may
        make requests without end.
        """
        buffer = memoryview(bytearray(REQUEST_BYTES))
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._stop_fd, select.POLLIN)
        while time.monotonic() < self._read_until:
            try:
                length = os.readv(self._fd, [buffer])
            except BlockingIOError:
                if any(fd == self._stop_fd for fd, _ in poll.poll()):
                    return
                continue
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):  # the request was interrupted
                    continue
                return  # ENODEV: unmounted; ECONNABORTED: ended from outside
            self._forward(buffer[:length])

    def _forward(self, request: memoryview) -> None:
        header = InHeader._make(fuse.IN_HEADER.unpack_from(request))
        head = _HEADER + (fuse.WRITE_IN.size if header.opcode == Opcode.WRITE else 0)
        out = [request[:head]]
        for piece in self._pieces(len(request) - head):
            out.append(request[head : head + piece])
            head += piece
        with self._idle:
            self._in_flight += 1
            if header.opcode == Opcode.SETLKW:
                self._waiting.add(header.unique)
        try:
            if header.opcode in _URGENT:
                future = self._hiprio.submit(out, [])
            else:
                sizes = [fuse.OUT_HEADER.size, *self._pieces(reply_bytes(header.opcode, request))]
                queue = self._queues[(header.unique >> 1) % len(self._queues)]
                future = queue.submit(out, sizes)
        except PortholeError as error:
            self._fail(header, error)
        else:
            future.add_done_callback(lambda done: self._reply(header, done))

    def _pieces(self, length: int) -> list[int]:
        """Divide a buffer into lengths that can be mapped."""
        most = self._device.max_mapping_bytes
        return [min(most, length - start) for start in range(0, length, most)]

    # From the device to the kernel.

    def _reply(self, header: InHeader, done: Future[list[bytes]]) -> None:
        """Write a reply back; runs on the completion thread of the queue."""
        failure = done.exception()
        if failure is not None:
            self._fail(header, failure)
            return
        if header.opcode in _URGENT:
            self._settle(header)
            return
        parts = done.result()
        if not self._write(parts):
            _LOG.warning(
                "share %s: malformed reply to %s", self.tag, fuse.opcode_name(header.opcode)
            )
            self._write([_error_reply(header.unique, errno.EIO)])
        if header.opcode == Opcode.INIT:
            self._note_init(parts)
        self._settle(header)

    def _fail(self, header: InHeader, failure: BaseException) -> None:
        if header.opcode == Opcode.INIT:
            self._refusal = str(failure)
            self._negotiated.set()
        if header.opcode not in _URGENT:
            gone = isinstance(failure, UnavailableError)
            self._write([_error_reply(header.unique, errno.ENOTCONN if gone else errno.EIO)])
        self._settle(header)

    def _write(self, parts: list[bytes]) -> bool:
        """Write a reply to the kernel; return False when the kernel finds it malformed."""
        try:
            os.writev(self._fd, [part for part in parts if part])
        except OSError as error:
            # ENOENT: the request was interrupted; ENODEV, EPERM, EBADF: the connection has ended.
            return error.errno != errno.EINVAL
        return True

    def _settle(self, header: InHeader) -> None:
        with self._idle:
            self._in_flight -= 1
            self._waiting.discard(header.unique)
            self._idle.notify_all()

    def _note_init(self, parts: list[bytes]) -> None:
        if len(parts[0]) != fuse.OUT_HEADER.size:
            self._refusal = f"a reply of {len(parts[0])} bytes"
        elif error := OutHeader._make(fuse.OUT_HEADER.unpack(parts[0])).error:
            self._refusal = os.strerror(-error)
        self._negotiated.set()


def reply_bytes(opcode: int, request: memoryview) -> int:
    """Return the most bytes that may follow the reply's header; the kernel has room for them."""
    if opcode == Opcode.READLINK:
        return _PATH_MAX
    if opcode not in _SIZE_AT:
        return SMALL_REPLY_BYTES
    at, extra = _SIZE_AT[opcode]
    return max(int.from_bytes(request[at : at + _U32], "little") + extra, SMALL_REPLY_BYTES)


def _error_reply(unique: int, number: int) -> bytes:
    return fuse.OUT_HEADER.pack(*OutHeader(fuse.OUT_HEADER.size, -number, unique))
