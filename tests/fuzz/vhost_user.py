"""Fuzz target: messages of a front-end to a device's back-end, services/devicehost/vhost_user.

An input is a conversation: messages, well-formed or just bytes, with descriptors of all kinds, and
between them the guest's writes into its memory. A real device serves real memory. The only
exceptions allowed are those that the listener turns into a refusal. Afterwards nothing may be open
or mapped, and no thread may run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.devicehost.accounting import DeviceMeter
from services.devicehost.devices import FsBackend, FsDevice
from services.devicehost.memory import Aperture, OwnRisk, RegionTable, Whole, WindowQuota, Windows
from services.devicehost.memory.loss import survives_lost_pages
from services.devicehost.vhost_user import Backend
from services.devicehost.vhost_user.connection import Connection
from services.devicehost.vhost_user.messages import SHAPES, Command, ProtocolError
from services.handshake.errors import PortholeError
from services.handshake.options import FsOptions
from services.handshake.pool import Gpa, SwiotlbPool
from services.wire import vhost_user as wire
from services.wire.vhost_user import Header, MemRegion, Request, VringState
from tests.support.guest_ring import USER_BASE, GuestRam

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.memory import Access
    from tests.fuzz.reader import Reader

MIB: Final = 1 << 20
RAM_BYTES: Final = 8 * MIB
POOL: Final = SwiotlbPool(Gpa(2 * MIB), 2 * MIB)
MAX_STEPS: Final = 60
VM_ID: Final = "6f1d7c0e-9d7e-4b8e-8f0a-3a9a5f0d1c2b"

_REQUESTS: Final = [*SHAPES, Request.SET_LOG_BASE, Request.IOTLB_MSG]
_NUMBERS: Final = (0, 1, 2, 4, 64, 256, 32768, 65535, 65536, 1 << 31, (1 << 32) - 1)
_ADDRESSES: Final = (0, 4096, POOL.base, POOL.base + 4096, POOL.base + 8192, RAM_BYTES, 1 << 47)
_SIZES: Final = (RAM_BYTES, 4096, POOL.base, POOL.size_bytes, 0, 4097, 1 << 40, (1 << 64) - 4096)


class _Faults(logging.Handler):
    """Collects the log messages of failures that the back-end should not have."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(logging.Formatter().format(record))


class _Watcher:
    """Notes only that the device has failed by itself."""

    def __init__(self) -> None:
        self.doorbells: set[int] = set()

    def connected(self) -> None: ...

    def attached(self) -> None: ...

    def register_doorbell(self, queue: int) -> None:
        self.doorbells.add(queue)

    def unregister_doorbell(self, queue: int) -> None:
        self.doorbells.discard(queue)

    def first_request(self) -> None: ...

    def failed(self, error: PortholeError) -> None:
        assert error.reason != "DEVICE_FAILED", error

    def was_reset(self) -> None: ...

    def kept_out(self, error: object) -> None: ...

    def descriptors_closed(self, count: int, why: str) -> None: ...

    def disconnected(self, kept_out: object) -> None: ...


class Conversation:
    """One input: front-ends that come and go, and their guest."""

    def __init__(self, reader: Reader, shared_dir: Path) -> None:
        self._reader = reader
        self._ram = GuestRam(RAM_BYTES)
        self._kick_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._watcher = _Watcher()
        access = _ACCESSES[reader.number(1) % len(_ACCESSES)]()
        meter = DeviceMeter()
        options = FsOptions(name="share", vm_id=VM_ID, queues=2)
        self._device = FsDevice(
            options, FsBackend(str(shared_dir)), access.max_request_bytes, meter
        )
        self._backend = Backend(
            self._device,
            access,
            meter,
            self._watcher,
            table=RegionTable(OwnRisk()) if access == Whole() else None,
        )

    def run(self) -> None:
        """Go on until the input is used up."""
        steps = 0
        while self._reader and steps < MAX_STEPS:
            self._backend.connect()
            connection = Connection(self._backend.offer)
            try:
                while self._reader and steps < MAX_STEPS:
                    steps += 1
                    self._step(connection)
            except ProtocolError:
                pass  # the connection is closed; the next front-end comes
            finally:
                self._backend.disconnect()
            assert not self._watcher.doorbells

    def close(self) -> None:
        self._device.close()
        self._ram.close()
        os.close(self._kick_fd)

    def _step(self, connection: Connection) -> None:
        flags = self._reader.number(1)
        if flags & 0xC0 == 0xC0:
            self._act_as_guest()
            return
        request: int = _REQUESTS[self._reader.number(1) % len(_REQUESTS)]
        count = 0
        if flags & 1:
            request = self._reader.number(1)
        if flags & 2:
            payload = self._reader.bytes(self._reader.number(1))
            count = self._reader.number(1) % (wire.MAX_MESSAGE_FDS + 1)
        else:
            payload, count = self._payload(request)
        header = Header(request, flags >> 2 & 0xF ^ wire.VERSION, len(payload))
        fds: list[int] = []
        try:
            fds.extend(self._descriptor() for _ in range(count))
            self._exchange(connection, header, payload, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _exchange(
        self, connection: Connection, header: Header, payload: bytes, fds: list[int]
    ) -> None:
        """Serve one connection, as Listener does."""
        answer = connection.receive(header, payload, fds)
        if isinstance(answer, Command):
            command = answer
            try:
                answer = connection.answer(command, self._backend.execute(command))
            except PortholeError as error:
                answer = connection.refusal_reply(command, error)
        if answer is not None:
            reply = Header.parse(answer)
            assert reply.request == header.request
            assert reply.flags == wire.VERSION | wire.FLAG_REPLY
            assert reply.size == len(answer) - wire.HEADER_BYTES

    def _act_as_guest(self) -> None:
        """Write something into memory, kick, and let the front-end be silent."""
        place = POOL.base + self._reader.number(2) % (4 * 4096)
        self._ram.write(place, self._reader.bytes(1 + self._reader.number(1) % 32))
        os.eventfd_write(self._kick_fd, 1)
        if self._backend.look_interval_ms() is not None:
            self._backend.look()

    def _payload(self, request: int) -> tuple[bytes, int]:
        """Return a payload that fits the request, and the number of its descriptors."""
        reader = self._reader
        match request:
            case Request.SET_FEATURES:
                bits = reader.number(1)
                offered = self._backend.offer.features
                return wire.U64.pack(offered & ~(bits << 26) ^ (bits >> 7)), 0
            case Request.SET_PROTOCOL_FEATURES:
                offered = self._backend.offer.protocol_features
                return wire.U64.pack(offered & ~reader.number(2)), 0
            case Request.SET_MEM_TABLE:
                regions = [self._region() for _ in range(reader.number(1) % 4)]
                return wire.pack_mem_table(regions), len(regions)
            case Request.ADD_MEM_REG | Request.REM_MEM_REG:
                return wire.pack_single_region(self._region()), int(request == Request.ADD_MEM_REG)
            case Request.SET_VRING_ADDR:
                queue, desc, avail, used = (reader.number(1) for _ in range(4))
                parts = [USER_BASE + _of(_ADDRESSES, choice) for choice in (desc, used, avail)]
                return wire.VRING_ADDR.pack(queue % 4, 0, *parts, 0), 0
            case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
                value = reader.number(1)
                has_fd = not value & 0x40
                return wire.U64.pack(value % 4 | (0 if has_fd else wire.VRING_NO_FD)), int(has_fd)
            case Request.GET_CONFIG | Request.SET_CONFIG:
                size = reader.number(1) % 64
                return wire.Config(reader.number(2) % 300, size, 0, bytes(size)).pack(), 0
            case Request.SET_BACKEND_REQ_FD:
                return b"", 1
            case (
                Request.SET_VRING_NUM
                | Request.SET_VRING_BASE
                | Request.GET_VRING_BASE
                | Request.SET_VRING_ENABLE
            ):
                return VringState(reader.number(1) % 4, _of(_NUMBERS, reader.number(1))).pack(), 0
        return b"", 0

    def _region(self) -> MemRegion:
        place, size, offset = (self._reader.number(1) for _ in range(3))
        gpa = _of(_ADDRESSES, place)
        user = gpa if place & 0x80 else USER_BASE + gpa
        return MemRegion(gpa, _of(_SIZES, size), user, _of(_ADDRESSES, offset))

    def _descriptor(self) -> int:
        kind = self._reader.number(1)
        if kind < 0x40:
            return os.dup(self._ram.fd)
        if kind < 0x80:
            return os.dup(self._kick_fd)
        return _DESCRIPTORS[kind % len(_DESCRIPTORS)]()


def _of(palette: tuple[int, ...], choice: int) -> int:
    return palette[choice % len(palette)]


def _memfd(size_bytes: int, flags: int) -> int:
    fd = os.memfd_create("odd", os.MFD_CLOEXEC | flags)
    os.truncate(fd, size_bytes)
    return fd


def _pipe() -> int:
    reads, writes = os.pipe()
    os.close(writes)
    return reads


def _read_only_memfd() -> int:
    fd = _memfd(RAM_BYTES, os.MFD_ALLOW_SEALING)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    finally:
        os.close(fd)


_ACCESSES: Final[tuple[Callable[[], Access], ...]] = (
    lambda: Aperture(POOL),
    lambda: Windows(WindowQuota(limit=8, deadline_s=0.01)),
    Whole,
)
_DESCRIPTORS: Final[tuple[Callable[[], int], ...]] = (
    lambda: _memfd(0, os.MFD_ALLOW_SEALING),
    lambda: _memfd(4096, os.MFD_ALLOW_SEALING),
    lambda: _memfd(RAM_BYTES, 0),
    _read_only_memfd,
    _pipe,
    lambda: os.eventfd(0, os.EFD_SEMAPHORE),
    lambda: socket.socket(socket.AF_UNIX).detach(),
    lambda: os.open("/", os.O_PATH),
    lambda: os.open("/", os.O_RDONLY),
    lambda: os.open("/dev/null", os.O_RDWR),
    lambda: os.open("/dev/zero", os.O_RDWR),
)


def open_files() -> list[str]:
    """Return the open files of this process, and the guest memory that it has mapped."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    maps = Path("/proc/self/maps").read_text().splitlines()
    return sorted(found) + [line for line in maps if "memfd:guest" in line or "memfd:odd" in line]


def converse(reader: Reader, shared_dir: Path) -> None:
    """Run one input.

    Raises:
        AssertionError: Something is left open, mapped or running, or an error was logged.
        BaseException: The back-end raised an exception that it must not raise.
    """
    survives_lost_pages()  # its thread is the process's, not the device's
    before, threads = open_files(), threading.active_count()
    faults = _Faults()
    log = logging.getLogger("services.devicehost")
    log.addHandler(faults)
    try:
        conversation = Conversation(reader, shared_dir)
        try:
            conversation.run()
        finally:
            conversation.close()
    finally:
        log.removeHandler(faults)
    del conversation
    assert faults.messages == []
    assert threading.active_count() == threads
    assert open_files() == before
