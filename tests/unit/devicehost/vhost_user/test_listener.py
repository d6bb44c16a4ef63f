"""The thread that reads from front-ends: whose descriptors it keeps, and what it outlives."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.devicehost.vhost_user import Listener, ListeningSocket, listener
from services.wire import vhost_user as wire
from services.wire.vhost_user import Request
from tests.support.descriptors import open_fds
from tests.support.front_end import RawFrontEnd, RingEvents
from tests.support.guest_ring import GuestRing
from tests.unit.devicehost.vhost_user.conftest import eventually, workers
from tests.unit.devicehost.vhost_user.test_backend import INSIDE

if TYPE_CHECKING:
    from tests.unit.devicehost.vhost_user.conftest import Service

UNKNOWN_REQUEST = 44


def is_closed(ours: socket.socket) -> bool:
    """Whether nobody has the other end of a pair any more."""
    try:
        return ours.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def test_a_descriptor_that_nobody_took_is_closed_before_the_reply_leaves(service: Service) -> None:
    with RawFrontEnd(service.path) as front:
        front.negotiate()
        for _ in range(20):
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    front.send(UNKNOWN_REQUEST, b"", [theirs.fileno()], wire.FLAG_NEED_REPLY)
                front.receive()
                assert is_closed(ours)


def test_descriptors_that_come_with_a_payload_are_closed(service: Service) -> None:
    with RawFrontEnd(service.path) as front:
        front.negotiate()
        message = wire.message(Request.SET_VRING_NUM, wire.VringState(0, 16).pack(), 8)
        before = open_fds()
        front.send_raw(message[: wire.HEADER_BYTES])
        front.send_raw(message[wire.HEADER_BYTES :], [front.socket.fileno()] * 3)
        header, _ = front.receive()
        assert header.request == Request.SET_VRING_NUM
        assert open_fds() == before


@pytest.mark.parametrize("pieces", [1, 3], ids=["at once", "in pieces"])
def test_more_descriptors_than_a_message_may_carry_are_refused(
    service: Service, caplog: pytest.LogCaptureFixture, pieces: int
) -> None:
    with RawFrontEnd(service.path) as front:
        message = wire.message(Request.SET_MEM_TABLE, wire.pack_mem_table([]))
        fds = [front.socket.fileno()] * (wire.MAX_MESSAGE_FDS + 1)
        for piece in range(pieces):
            front.send_raw(message[piece : piece + 1], fds[piece::pieces])
        assert front.is_closed()
    assert "more than 8 descriptors" in caplog.text


def test_what_a_front_end_sends_is_not_inherited_by_what_the_process_starts(
    window_service: Service,
) -> None:
    def inheritable() -> list[str]:
        found = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
        alive = [fd for fd in found if Path(f"/proc/self/fd/{fd}").exists()]
        return [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in alive if is_inheritable(fd)]

    before = inheritable()
    with RawFrontEnd(window_service.path) as front, RingEvents() as events:
        front.negotiate()
        front.attach(window_service.ram)
        front.start(0, GuestRing(window_service.ram, INSIDE, 16), events)
        assert front.command(Request.SET_BACKEND_REQ_FD, fds=[events.kick]) == 0
        assert inheritable() == before


def is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def test_what_is_refused_again_and_again_is_logged_once_a_second(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with RawFrontEnd(service.path) as front:
        front.negotiate()
        for _ in range(100):
            assert front.state(Request.SET_VRING_NUM, 0, 3) == 1
    assert caplog.text.count("SET_VRING_NUM refused") <= 3


def test_a_fault_of_the_back_end_closes_the_connection_and_the_next_one_is_served(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def execute(_: object) -> None:
        raise ZeroDivisionError("on purpose")

    with monkeypatch.context() as broken, RawFrontEnd(service.path) as front:
        broken.setattr(service.backend, "execute", execute)
        front.send(Request.RESET_OWNER)
        assert front.is_closed()
        service.watcher.wait_for("disconnected")
    assert "ZeroDivisionError: on purpose" in caplog.text
    with RawFrontEnd(service.path) as front:
        assert front.ask_u64(Request.GET_QUEUE_NUM) == 2


def test_closing_is_no_fault(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        front.attach(service.ram)
        front.start(0, GuestRing(service.ram, INSIDE, 16), events)
        service.listener.close()
        assert eventually(front.is_closed)
    assert not workers()
    assert service.watcher.calls[-1] == "disconnected"
    assert caplog.text == ""
    service.listener = Listener(ListeningSocket.at(service.path), service.backend)


def test_a_front_end_thread_that_is_stuck_is_left_behind_and_releases_later(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of a peer holds it up; this one is held up by its own device."""
    monkeypatch.setattr(listener, "CLOSE_DEADLINE_S", 0.05)
    before = open_fds()
    may_reset, released = threading.Event(), threading.Event()
    monkeypatch.setattr(service.device, "reset", lambda: may_reset.wait(10))
    with RawFrontEnd(service.path) as front, RingEvents() as events:
        front.negotiate()
        front.attach(service.ram)
        front.start(0, GuestRing(service.ram, INSIDE, 16), events)
        service.listener.close(released.set)
        assert "leaving it behind" in caplog.text
        assert not service.path.exists(), "the name is free at once"
        assert eventually(lambda: not workers())
        other = ListeningSocket.at(service.path)
        assert not released.is_set()
        may_reset.set()
        assert released.wait(10)
        assert service.path.exists(), "the name is another device's by now"
    other.close()
    assert eventually(lambda: open_fds() == before - 2)
    monkeypatch.undo()
    service.listener = Listener(ListeningSocket.at(service.path), service.backend)
