from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.devicehost.accounting import DeviceMeter
from services.devicehost.memory import Aperture, WindowQuota, Windows
from services.devicehost.vhost_user import Backend, Listener, ListeningSocket
from services.devicehost.virtio.device import serve_requests
from services.handshake.pool import Gpa, SwiotlbPool
from tests.support.guest_ring import GuestRam

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.devicehost.memory import Access
    from services.devicehost.virtio.queue import Chain, Queue
    from services.handshake.errors import PortholeError

MIB = 1 << 20
POOL = SwiotlbPool(Gpa(8 * MIB), 4 * MIB)
DEADLINE_S = 10.0


class EchoDevice:
    """Writes each request back in upper case; two queues.

    It waits for `unblock` when a request begins with "block", and fails when one ends with "fail".
    """

    device_class = "virtio-fs"
    goes_native = False
    num_queues = 2
    features = 1 << 5

    def __init__(self) -> None:
        self.log: list[str] = []
        self.configuration = b"config of the echo"
        self.blocked, self.unblock = threading.Event(), threading.Event()

    def config(self) -> bytes:
        return self.configuration

    def activate(self, features: int) -> None:
        self.log.append(f"activate {features:#x}")

    def serve(self, index: int, queue: Queue) -> None:
        serve_requests(queue, self._echo)

    def reset(self) -> None:
        self.log.append("reset")

    def close(self) -> None:
        self.log.append("close")

    def _echo(self, chain: Chain) -> int:
        data = b"".join(map(bytes, chain.readable)).upper()
        if data.startswith(b"BLOCK"):
            self.blocked.set()
            self.unblock.wait(DEADLINE_S)
        if data.endswith(b"FAIL"):
            raise RuntimeError("a fault of the device, on purpose")
        chain.writable[0][: len(data)] = data
        return len(data)


class Watcher:
    """Records the calls of the back-end; `wait_for` blocks until one has come."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.doorbells: set[int] = set()
        self._changed = threading.Condition()
        self.refuse_doorbell: PortholeError | None = None
        self.last_kept_out: PortholeError | None = None
        self.closed: list[tuple[int, str]] = []

    def connected(self) -> None:
        self._record("connected")

    def attached(self) -> None:
        self._record("attached")

    def register_doorbell(self, queue: int) -> None:
        if self.refuse_doorbell is not None:
            raise self.refuse_doorbell
        self.doorbells.add(queue)
        self._record(f"doorbell {queue}")

    def unregister_doorbell(self, queue: int) -> None:
        self.doorbells.discard(queue)

    def first_request(self) -> None:
        self._record("first request")

    def failed(self, error: PortholeError) -> None:
        self._record(f"failed {error.reason}")

    def was_reset(self) -> None:
        self._record("was reset")

    def kept_out(self, error: PortholeError) -> None:
        self._record(f"kept out {error.reason}")

    def descriptors_closed(self, count: int, why: str) -> None:
        self.closed.append((count, why))

    def disconnected(self, kept_out: PortholeError | None) -> None:
        self.last_kept_out = kept_out
        self._record("disconnected")

    def wait_for(self, what: str, times: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.calls.count(what) >= times, DEADLINE_S), (
                f"{what!r} did not come {times} times: {self.calls}"
            )

    def _record(self, what: str) -> None:
        with self._changed:
            self.calls.append(what)
            self._changed.notify_all()


class Service:
    """An echo device behind its socket, and a guest of 32 MiB."""

    def __init__(self, path: Path, access: Access) -> None:
        self.path = path
        self.access = access
        self.device = EchoDevice()
        self.watcher = Watcher()
        self.meter = DeviceMeter()
        self.ram = GuestRam(32 * MIB)
        self.backend = Backend(self.device, access, self.meter, self.watcher)
        self.listener = Listener(ListeningSocket.at(path), self.backend)

    def close(self) -> None:
        self.listener.close()
        self.ram.close()


@pytest.fixture
def service(run_dir: Path) -> Iterator[Service]:
    """A device with an aperture."""
    service = Service(run_dir / "echo.sock", Aperture(POOL))
    yield service
    service.close()


@pytest.fixture
def window_service(run_dir: Path) -> Iterator[Service]:
    """A device with on-demand windows."""
    service = Service(run_dir / "windows.sock", Windows(WindowQuota()))
    yield service
    service.close()


def guest_fds(pid: int | str = "self") -> int:
    """Return the number of a process's descriptors that are guest memory."""
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += "memfd:guest" in str(entry.readlink())
        except FileNotFoundError:
            continue
    return count


def eventually(question: Callable[[], bool]) -> bool:
    """Ask again until the answer is yes; a thread that releases something sends no event."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := question()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return answer


def workers() -> set[str]:
    """Return the names of the threads that serve a ring."""
    return {thread.name for thread in threading.enumerate() if "-q" in thread.name}
