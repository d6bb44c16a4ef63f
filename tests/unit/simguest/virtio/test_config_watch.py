"""A device that says that its configuration space has changed, or says something else."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, cast

import pytest

from services.simguest.virtio.config_watch import ConfigWatch
from services.wire.vhost_user import (
    FLAG_NEED_REPLY,
    U64,
    BackendRequest,
    Request,
    message,
    reply,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.simguest.virtio.front_end import FrontEnd

CHANGE = message(BackendRequest.CONFIG_CHANGE_MSG)


class Device:
    """The front-end of the watch, which keeps the device's end of the channel."""

    def send(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        assert request is Request.SET_BACKEND_REQ_FD
        (fd,) = fds
        self.channel = socket.socket(fileno=socket.dup(fd))
        self.channel.settimeout(10)


def watch(on_change: Callable[[], None]) -> tuple[Device, ConfigWatch]:
    device = Device()
    return device, ConfigWatch(cast("FrontEnd", device), "virtio-net 'eth0'", on_change)


def test_each_message_is_a_change() -> None:
    changes = threading.Semaphore(0)
    device, watching = watch(changes.release)
    with device.channel:
        device.channel.sendall(2 * CHANGE)
        for _ in range(2):
            assert changes.acquire(timeout=10)
        watching.close()


def test_one_that_wants_a_reply_gets_it() -> None:
    device, watching = watch(lambda: None)
    with device.channel:
        device.channel.sendall(message(BackendRequest.CONFIG_CHANGE_MSG, flags=FLAG_NEED_REPLY))
        answer = reply(BackendRequest.CONFIG_CHANGE_MSG, U64.pack(0))
        assert device.channel.recv(100) == answer
        watching.close()


@pytest.mark.parametrize(
    "data",
    [
        message(BackendRequest.VRING_CALL, bytes(8)),
        message(BackendRequest.CONFIG_CHANGE_MSG, bytes(8)),
        b"\0" * 12,
        CHANGE[:5],
    ],
    ids=["another message", "a payload", "no version", "a part of one"],
)
def test_what_breaks_the_protocol_ends_the_watch_alone(data: bytes) -> None:
    device, watching = watch(lambda: pytest.fail("no change"))
    with device.channel:
        device.channel.sendall(data)
        device.channel.shutdown(socket.SHUT_WR)
        watching._thread.join(10)
        assert not watching._thread.is_alive()
        watching.close()


def test_closing_ends_the_thread() -> None:
    device, watching = watch(lambda: None)
    with device.channel:
        watching.close()
        assert device.channel.recv(1) == b""
