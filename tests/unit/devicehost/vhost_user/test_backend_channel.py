"""What a device tells its front-end: that its configuration space has changed."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.devicehost.vhost_user.backend_channel import BackendChannel
from services.wire import vhost_user as wire
from services.wire.vhost_user import Request
from tests.support.front_end import RawFrontEnd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.devicehost.vhost_user.conftest import Service

CHANGE = bytes.fromhex("020000000100000000000000")
"""Back-end message 2, version 1, without a payload."""
ALL = wire.PROTOCOL_F_BACKEND_REQ | wire.PROTOCOL_F_CONFIG | wire.PROTOCOL_F_REPLY_ACK


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        mine.settimeout(10)
        yield mine, theirs


def is_silent(sock: socket.socket) -> bool:
    return not select.select([sock], [], [], 0)[0]


def test_a_front_end_is_told_and_asks_for_what_is_new(
    service: Service, ends: tuple[socket.socket, socket.socket]
) -> None:
    mine, theirs = ends
    with RawFrontEnd(service.path) as front:
        front.negotiate()
        assert front.command(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()]) == 0
        service.device.configuration = b"another config"
        service.backend.config_changed()
        assert mine.recv(100) == CHANGE
        answer = front.ask(Request.GET_CONFIG, wire.Config(0, 7, 0, bytes(7)).pack())
        assert wire.Config.parse(answer) == wire.Config(0, 7, 0, b"another")


@pytest.mark.parametrize("left_out", [wire.PROTOCOL_F_CONFIG, wire.PROTOCOL_F_BACKEND_REQ])
def test_a_front_end_that_cannot_ask_is_never_told(
    service: Service, ends: tuple[socket.socket, socket.socket], left_out: int
) -> None:
    mine, theirs = ends
    with RawFrontEnd(service.path) as front:
        front.negotiate()
        assert front.command(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()]) == 0
        accepted = wire.U64.pack(ALL & ~left_out)
        assert front.command(Request.SET_PROTOCOL_FEATURES, accepted) == 0
        service.backend.config_changed()
        assert is_silent(mine)


def test_the_next_front_end_has_to_ask_anew(
    service: Service, ends: tuple[socket.socket, socket.socket]
) -> None:
    mine, theirs = ends
    with RawFrontEnd(service.path) as front:
        front.negotiate()
    service.watcher.wait_for("disconnected")
    with RawFrontEnd(service.path) as front:
        front.send(Request.SET_OWNER)
        front.send(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        front.ask_u64(Request.GET_FEATURES)
        service.backend.config_changed()
        assert is_silent(mine)


def test_without_a_front_end_nobody_is_told(service: Service) -> None:
    service.backend.config_changed()


def test_one_that_does_not_read_holds_up_nothing_and_hears_of_the_last_change(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    mine, theirs = ends
    channel = BackendChannel()
    channel.negotiated(ALL)
    theirs.setblocking(True)
    channel.replace(os.dup(theirs.fileno()))

    def change_often() -> None:
        for _ in range(20_000):
            channel.config_changed()

    flood = threading.Thread(target=change_often)
    flood.start()
    flood.join(30)
    assert not flood.is_alive()
    channel.close()
    theirs.close()
    said = b"".join(iter(lambda: mine.recv(1 << 16), b""))
    assert 0 < len(said) < 20_000 * len(CHANGE), "the channel was full, or this shows nothing"
    assert said == CHANGE * (len(said) // len(CHANGE)), "none is torn"


@pytest.mark.parametrize("kind", ["full pipe", "eventfd", "datagrams"])
def test_what_is_no_stream_socket_is_not_written_to(kind: str) -> None:
    read_fd, write_fd = os.pipe()
    datagrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    event = os.eventfd(0)
    os.set_blocking(write_fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_fd, bytes(4096))
    os.set_blocking(write_fd, True)
    given = {"full pipe": write_fd, "eventfd": event, "datagrams": datagrams[0].fileno()}
    channel = BackendChannel()
    channel.negotiated(ALL)
    channel.replace(os.dup(given[kind]))
    held = len(list(Path("/proc/self/fd").iterdir()))
    telling = threading.Thread(target=channel.config_changed, daemon=True)
    telling.start()
    telling.join(10)
    assert not telling.is_alive()
    assert len(list(Path("/proc/self/fd").iterdir())) == held
    channel.close()
    assert is_silent(datagrams[1])
    for fd in (read_fd, write_fd, event):
        os.close(fd)
    for each in datagrams:
        each.close()


def test_one_that_has_gone_is_no_error(ends: tuple[socket.socket, socket.socket]) -> None:
    mine, theirs = ends
    channel = BackendChannel()
    channel.negotiated(ALL)
    channel.replace(os.dup(theirs.fileno()))
    mine.close()
    channel.config_changed()
    channel.close()
