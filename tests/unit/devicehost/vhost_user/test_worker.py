"""The thread of a queue, with devices that do one thing each."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from services.devicehost.vhost_user.event_fds import Notification
from services.devicehost.vhost_user.worker import Worker
from services.devicehost.virtio.queue import Queue, QueueError
from services.devicehost.virtio.queue_setup import QueueState
from tests.unit.devicehost.virtio.conftest import DATA, Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.handshake.errors import PortholeError


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


class OneThing:
    """Serves a queue by one function."""

    device_class = "virtio-fs"
    goes_native = False
    num_queues = 1
    features = 0

    def __init__(self, serve: Callable[[Queue], object]) -> None:
        self._serve = serve
        self.done = threading.Event()

    def config(self) -> bytes:
        return b""

    def activate(self, features: int) -> None: ...

    def serve(self, index: int, queue: Queue) -> None:
        try:
            self._serve(queue)
        finally:
            self.done.set()

    def reset(self) -> None: ...

    def close(self) -> None: ...


def run(rig: Rig, serve: Callable[[Queue], object]) -> tuple[Worker, list[PortholeError]]:
    """Let a worker come to its end, and return what it reported."""
    reported: list[PortholeError] = []
    device = OneThing(serve)
    queue = Queue(rig.setup(rig.ring()), QueueState())
    worker = Worker(queue, device, rig.memory, Notification(), reported.append)
    assert device.done.wait(10)
    assert worker.stop()
    return worker, reported


def test_a_worker_notifies_the_driver_of_what_was_pushed_last(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 4)])
    ring.offer(0)

    def push_one(queue: Queue) -> None:
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)

    assert run(rig, push_one)[1] == []
    assert ring.used_idx == 1
    assert rig.calls() == 1


def test_what_the_guest_did_wrong_is_reported_as_it_is(rig: Rig) -> None:
    error = QueueError("DESCRIPTOR_LOOP", "a loop")

    def fail(_: Queue) -> None:
        raise error

    assert run(rig, fail)[1] == [error]


def test_a_fault_of_the_device_is_logged_and_reported(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Queue) -> None:
        raise ZeroDivisionError("on purpose")

    assert [error.reason for error in run(rig, fail)[1]] == ["DEVICE_FAILED"]
    assert "ZeroDivisionError: on purpose" in caplog.text


def test_what_has_stopped_says_where_the_next_queue_goes_on(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 4)])
    ring.offer(0, 0, 0)

    def take_two(queue: Queue) -> None:
        for _ in range(2):
            chain = queue.pop()
            assert chain is not None
            queue.push(chain, 0)

    worker, _ = run(rig, take_two)
    assert worker.queue_state == QueueState(2)
