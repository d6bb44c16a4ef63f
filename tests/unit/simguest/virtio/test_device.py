"""The guest's side of a device against the device host's: rings, bouncing, life and death."""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    PortholeError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.simguest.kernel import Kernel, ordinary_ranges, reserve_pool
from services.simguest.memory.bounce import BouncePool, slots_of
from services.simguest.memory.dma import DirectDma
from services.simguest.memory.pages import PageAllocator
from services.simguest.memory.ram import GuestRam
from services.simguest.virtio.device import QUEUE_SIZE, DeviceKind, DeviceMemory, VirtioDevice
from services.simguest.virtio.front_end import FrontEnd
from services.simguest.virtio.ring import ring_bytes
from services.wire import vhost_user as wire
from services.wire.virtio_ring import (
    DESC,
    DESC_F_WRITE,
    F_ACCESS_PLATFORM,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_VERSION_1,
)
from tests.unit.simguest.echo import CONFIG, EchoHost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from services.simguest.virtio.queue import SplitQueue

KIND = DeviceKind(features=0b001, config_bytes=len(CONFIG), queues=2)
RING_SLOTS = 2 * slots_of(ring_bytes(QUEUE_SIZE))


class Rig:
    """A guest's memory, an echo device, and the guest's view of it."""

    def __init__(self, run_dir: Path, pool_mib: int, rings: str, ram_mib: int = 128) -> None:
        self.path = run_dir / "echo.sock"
        self.ram = GuestRam(ram_mib << 20)
        kernel = Kernel("6.18.26.3", publishes_pool=True)
        self.pool = reserve_pool(kernel, f"hv_pci_swiotlb={pool_mib}M", self.ram.regions[0])
        self.pages = PageAllocator(ordinary_ranges(self.ram.regions, self.pool))
        direct = DirectDma(self.ram, self.pages)
        self.bounce = BouncePool(self.ram, self.pool) if self.pool else None
        buffers = self.bounce or direct
        self.memory = DeviceMemory(self.ram, buffers, buffers if rings == "inside" else direct)
        self.host = EchoHost(self.path, self.pool)
        self.device = VirtioDevice("echo", self.path, KIND, self.memory)

    @property
    def slots_used(self) -> int:
        assert self.bounce is not None
        return self.bounce.usage().slots_used

    def close(self) -> None:
        self.host.device.may_answer.set()
        self.device.close()
        self.host.close()
        self.ram.close()


@pytest.fixture
def make_rig(run_dir: Path) -> Iterator[Callable[..., Rig]]:
    with ExitStack() as stack:

        def make(pool_mib: int = 4, rings: str = "outside", ram_mib: int = 128) -> Rig:
            rig = Rig(run_dir, pool_mib, rings, ram_mib)
            stack.callback(rig.close)
            return rig

        yield make


def join(queue: SplitQueue) -> None:
    """Wait until a failed queue has failed all its requests."""
    assert queue._thread is not None
    queue._thread.join(10)


def reason(future: Future[Any]) -> str:
    error = future.exception(10)
    assert isinstance(error, PortholeError)
    return error.reason


SHAPES = [(4, "outside"), (4, "inside"), (0, "outside")]


@pytest.mark.parametrize(("pool_mib", "rings"), SHAPES)
def test_requests_come_back_and_leave_nothing_mapped(
    make_rig: Callable[..., Rig], pool_mib: int, rings: str
) -> None:
    rig = make_rig(pool_mib, rings)
    assert rig.device.features == (
        0b001 | F_VERSION_1 | F_ACCESS_PLATFORM | F_INDIRECT_DESC | F_EVENT_IDX
    )
    assert not rig.host.device.activated[0] & F_ACCESS_PLATFORM  # see VirtioDevice._negotiate
    assert rig.device.config() == CONFIG
    queue = rig.device.queues[0]
    assert queue.transact([b"abc", memoryview(b"defg")], [3, 100]) == [b"gfe", b"dcba"]
    assert queue.transact([b"tell"], []) == []
    assert queue.transact([bytes(range(256)) * 1024], [262144]) == [
        (bytes(range(256)) * 1024)[::-1]
    ]
    if rig.bounce is not None:
        assert rig.slots_used == (RING_SLOTS if rings == "inside" else 0)
        assert rig.bounce.usage().bytes_bounced > 524288
    elif rings == "outside":
        assert rig.pages.used_bytes == 2 * -(-ring_bytes(QUEUE_SIZE) // 4096) * 4096
    assert rig.host.watch.failures == []
    rig.device.close()
    assert rig.pages.used_bytes == 0
    if rig.bounce is not None:
        assert rig.slots_used == 0


def test_many_threads_keep_many_requests_in_flight(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(pool_mib=2, rings="inside")  # too small for all at once: submitters wait
    queue = rig.device.queues[0]
    wrong: list[bytes] = []

    def work(mark: int) -> None:
        futures = []
        for i in range(60):
            data = b"%d-%d" % (mark, i) * (2 + i * 40)
            futures.append((data, queue.submit([data[:5], data[5:]], [7, 30000])))
        for data, future in futures:
            if b"".join(future.result(30)) != data[::-1]:
                wrong.append(data)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(10, 18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert rig.host.meter.snapshot().requests == 8 * 60
    assert rig.slots_used == RING_SLOTS


@pytest.mark.parametrize(("pool_mib", "rings"), SHAPES)
def test_a_device_that_disappears_fails_requests_in_flight_at_once(
    make_rig: Callable[..., Rig], pool_mib: int, rings: str
) -> None:
    rig = make_rig(pool_mib, rings)
    queue = rig.device.queues[0]
    rig.host.device.may_answer.clear()
    futures = [queue.submit([b"x"], [16]) for _ in range(20)]
    threading.Thread(target=rig.host.listener.close).start()
    rig.host.device.may_answer.set()
    rig.host.listener.close = lambda *_: None  # type: ignore[method-assign]
    done, left = wait(futures, 10)
    assert not left
    outcomes = {reason(future) for future in done if future.exception()}
    assert outcomes <= {"DEVICE_GONE"}
    join(queue)
    with pytest.raises(UnavailableError, match="queue 0 of echo is gone"):
        queue.submit([b"y"], [1])
    with pytest.raises(UnavailableError):
        rig.device.config()
    rig.device.close()
    assert rig.pages.used_bytes == 0
    assert rig.bounce is None or rig.slots_used == 0


def test_closing_the_device_fails_requests_in_flight(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    queue = rig.device.queues[0]
    rig.host.device.may_answer.clear()
    future = queue.submit([b"x"], [16])
    with pytest.raises(DeadlineExceededError) as caught:
        queue.transact([b"x"], [16], timeout_s=0.01)
    assert caught.value.reason == "REQUEST_TIMEOUT"
    assert not future.cancel()
    queue.stop()
    assert reason(future) == "QUEUE_CLOSED"
    assert rig.slots_used > 0  # the device may still write to them
    rig.host.device.may_answer.set()
    rig.device.close()
    assert rig.slots_used == 0
    with pytest.raises(FailedPreconditionError):
        queue.submit([b"x"], [1])


def test_a_full_ring_waits_and_then_is_reported(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    queue = rig.device.queues[0]
    rig.host.device.may_answer.clear()
    futures = [queue.submit([b"x"], []) for _ in range(QUEUE_SIZE)]
    with pytest.raises(ResourceExhaustedError) as caught:
        queue.submit([b"x"], [], deadline_s=0.01)
    assert caught.value.reason == "RING_FULL"
    rig.host.device.may_answer.set()
    futures.append(queue.submit([b"x"], []))
    assert [future.result(10) for future in futures] == [[]] * (QUEUE_SIZE + 1)
    assert rig.slots_used == 0


def test_a_full_pool_waits_and_then_is_reported_by_name(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(pool_mib=2)
    queue = rig.device.queues[0]
    rig.host.device.may_answer.clear()
    futures = [queue.submit([bytes(262144)], []) for _ in range(8)]
    with pytest.raises(ResourceExhaustedError, match="1024 of 1024 are used") as caught:
        queue.submit([b"x"], [1], deadline_s=0.01)
    assert caught.value.reason == "POOL_EXHAUSTED"
    rig.host.device.may_answer.set()
    assert queue.transact([b"ab"], [2]) == [b"ba"]
    assert [future.result(10) for future in futures] == [[]] * 8
    assert rig.slots_used == 0


def test_buffers_that_cannot_be_mapped_are_refused_and_take_nothing(
    make_rig: Callable[..., Rig],
) -> None:
    rig = make_rig()
    queue = rig.device.queues[0]
    for out, sizes, why in [
        ([bytes(262145)], [], "MAPPING_TOO_LONG"),
        ([b"x"], [262145], "MAPPING_TOO_LONG"),
        ([b""], [1], "BUFFER_EMPTY"),
        ([], [], "CHAIN_LENGTH"),
        ([b"x"] * 257, [], "CHAIN_LENGTH"),
    ]:
        with pytest.raises(InvalidArgumentError) as caught:
            queue.submit(out, sizes)
        assert caught.value.reason == why
    assert rig.slots_used == 0
    assert queue.transact([b"ok"], [2]) == [b"ko"]


def test_receive_buffers_are_posted_again_and_again(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    queue = rig.device.queues[1]
    rig.host.device.may_answer.clear()
    frames: list[bytes] = []
    enough = threading.Event()

    def on_data(data: bytes) -> None:
        frames.append(data)
        if len(frames) == 1000:
            rig.host.device.may_answer.clear()
            enough.set()

    queue.post_receive(16, 1500, on_data)
    assert rig.slots_used == 16
    with pytest.raises(InvalidArgumentError) as caught:
        queue.post_receive(1, 1500, on_data)
    assert caught.value.reason == "RECEIVE_BUFFERS"
    rig.host.device.may_answer.set()
    assert enough.wait(30)
    assert set(frames) == {b"frame %d" % head for head in range(16)}
    assert rig.slots_used == 16
    rig.host.device.may_answer.set()
    rig.device.close()
    assert rig.slots_used == 0


def test_a_driver_that_fails_on_received_data_fails_its_queue(
    make_rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig()
    queue = rig.device.queues[1]

    def on_data(data: bytes) -> None:
        raise ValueError("no such frame")

    rig.host.device.may_answer.clear()
    queue.post_receive(4, 1500, on_data)
    rig.host.device.may_answer.set()
    join(queue)
    with pytest.raises(FailedPreconditionError, match="no such frame") as caught:
        queue.submit([b"x"], [])
    assert caught.value.reason == "DRIVER_FAILED"
    assert "queue 1 of echo: its driver failed" in caplog.text


def test_a_device_that_reports_an_error_fails_its_queues(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(rings="outside")
    requests, receive = rig.device.queues
    rig.host.device.may_answer.clear()
    held = requests.submit([b"x"], [1])
    # The guest makes an address outside the aperture available; the device must not reach it.
    outside = rig.memory.rings.map([4096], 0)
    table = receive.ring
    table.write_descriptors([0], DESC.pack(outside[0].gpa, 4096, DESC_F_WRITE, 0))
    table.publish(0)
    table.should_kick()
    os.eventfd_write(receive.kick_fd, 1)
    rig.host.device.may_answer.set()
    held.exception(10)
    for queue in (requests, receive):
        join(queue)
        with pytest.raises(FailedPreconditionError) as caught:
            queue.submit([b"x"], [])
        assert caught.value.reason in ("DEVICE_NEEDS_RESET", "DEVICE_BROKEN")
    assert rig.host.watch.has_failed.wait(10)
    assert [error.reason for error in rig.host.watch.failures] == ["ADDRESS_OUT_OF_BOUNDS"]
    rig.memory.rings.unmap(outside)


def test_a_socket_without_a_listener_is_reported(
    run_dir: Path, make_rig: Callable[..., Rig]
) -> None:
    rig = make_rig()
    before = rig.pages.used_bytes
    with pytest.raises(UnavailableError) as caught:
        VirtioDevice("gone", run_dir / "nobody.sock", KIND, rig.memory)
    assert caught.value.reason == "DEVICE_UNREACHABLE"
    assert str(run_dir / "nobody.sock") in caught.value.message
    with pytest.raises(InvalidArgumentError) as refused:
        VirtioDevice("long", run_dir / ("x" * 108), KIND, rig.memory)
    assert refused.value.reason == "SOCKET_PATH_TOO_LONG"
    assert rig.pages.used_bytes == before


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([b""], "DEVICE_GONE"),
        ([b"\0" * 12], "DEVICE_ANSWER"),
        ([wire.reply(wire.Request.GET_CONFIG, b"")], "DEVICE_ANSWER"),
        ([wire.message(wire.Request.GET_FEATURES, bytes(8))], "DEVICE_ANSWER"),
        ([wire.reply(wire.Request.GET_FEATURES, b"1234")], "DEVICE_ANSWER"),
        ([wire.HEADER.pack(1, 5, 1 << 31)], "DEVICE_ANSWER"),
        ([wire.reply(wire.Request.GET_FEATURES, bytes(8))], "DEVICE_LEGACY"),
        ([wire.reply(wire.Request.GET_FEATURES, bytes(8))[:-1]], "DEVICE_GONE"),
        (
            [
                wire.reply(
                    wire.Request.GET_FEATURES, wire.U64.pack(F_VERSION_1 | wire.F_PROTOCOL_FEATURES)
                ),
                wire.reply(wire.Request.GET_PROTOCOL_FEATURES, wire.U64.pack(wire.PROTOCOL_F_MQ)),
                wire.reply(wire.Request.GET_QUEUE_NUM, wire.U64.pack(1 << 40)),
            ],
            "DEVICE_QUEUES",
        ),
    ],
)
def test_a_socket_that_answers_garbage_is_a_clear_error(
    run_dir: Path, make_rig: Callable[..., Rig], answers: list[bytes], why: str
) -> None:
    rig = make_rig()
    before = rig.pages.used_bytes
    path = run_dir / "garbage.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)

        def speak() -> None:
            connection, _ = server.accept()
            with connection, suppress(ConnectionResetError):
                connection.sendall(b"".join(answers))
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=speak)
        thread.start()
        with pytest.raises(PortholeError) as caught:
            VirtioDevice("garbage", path, KIND, rig.memory)
        thread.join(10)
    assert caught.value.reason == why
    assert rig.pages.used_bytes == before


def test_an_answer_that_comes_byte_by_byte_has_the_same_deadline(run_dir: Path) -> None:
    path = run_dir / "slow.sock"
    answer = wire.reply(wire.Request.GET_FEATURES, bytes(8))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)

        def speak() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                for i in range(len(answer)):
                    connection.sendall(answer[i : i + 1])
                    time.sleep(0.1)

        thread = threading.Thread(target=speak)
        thread.start()
        front_end = FrontEnd(path, "slow", deadline_s=0.5)
        with pytest.raises(DeadlineExceededError) as caught:
            front_end.ask_u64(wire.Request.GET_FEATURES)
        front_end.close()
        thread.join(10)
    assert caught.value.reason == "DEVICE_TIMEOUT"
