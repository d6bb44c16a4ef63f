"""Sockets that speak garbage: the connection is closed, nothing leaks, the next one is served."""

from __future__ import annotations

import os
import random
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from services.devicehost.vhost_user import listener
from services.wire import vhost_user as wire
from services.wire.vhost_user import Request
from tests.support.descriptors import open_fds
from tests.support.front_end import RawFrontEnd
from tests.unit.devicehost.vhost_user.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.devicehost.vhost_user.conftest import Service


@pytest.fixture(autouse=True)
def _still_serves_and_leaks_nothing(service: Service) -> Iterator[None]:
    before = open_fds()
    yield
    with RawFrontEnd(service.path) as front:
        assert front.ask_u64(Request.GET_QUEUE_NUM) == 2
    assert eventually(lambda: open_fds() == before)


def test_garbage_closes_the_connection(service: Service) -> None:
    with RawFrontEnd(service.path) as front:
        front.send_raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert front.is_closed()


def test_a_payload_longer_than_any_closes_the_connection_unread(service: Service) -> None:
    with RawFrontEnd(service.path) as front:
        front.send_raw(wire.HEADER.pack(Request.SET_CONFIG, wire.VERSION, 0xFFFF_FFFF))
        assert front.is_closed()


def test_a_message_that_ends_in_the_middle(service: Service) -> None:
    for length in (1, 11, 12, 19):
        with RawFrontEnd(service.path) as front:
            front.send_raw(wire.message(Request.SET_FEATURES, bytes(8))[:length])
            front.socket.shutdown(socket.SHUT_WR)
            assert front.is_closed()


def test_a_message_in_many_pieces_is_one_message(service: Service) -> None:
    with RawFrontEnd(service.path) as front:
        for byte in wire.message(Request.GET_QUEUE_NUM):
            front.send_raw(bytes([byte]))
        header, _ = front.receive()
        assert header.request == Request.GET_QUEUE_NUM


def test_descriptors_with_every_byte_are_bounded(service: Service) -> None:
    fd = os.eventfd(0)
    try:
        with RawFrontEnd(service.path) as front:
            for byte in wire.message(Request.SET_VRING_KICK, wire.U64.pack(0)):
                try:
                    front.send_raw(bytes([byte]), [fd, fd])
                except OSError:
                    break
            assert front.is_closed()
    finally:
        os.close(fd)


@pytest.mark.parametrize("count", [2, 8, 9, 100])
def test_too_many_descriptors_are_closed(service: Service, count: int) -> None:
    fd = os.eventfd(0)
    try:
        with RawFrontEnd(service.path) as front:
            front.send(Request.SET_VRING_KICK, wire.U64.pack(0), [fd] * count)
            assert front.is_closed()
    finally:
        os.close(fd)


def test_descriptors_where_none_belong_are_closed(service: Service) -> None:
    fd = os.eventfd(0)
    try:
        with RawFrontEnd(service.path) as front:
            front.send(Request.GET_FEATURES, fds=[fd])
            assert front.is_closed()
        with RawFrontEnd(service.path) as front:
            front.negotiate()
            assert front.command(44, b"unknown", [fd]) == 1
    finally:
        os.close(fd)


def test_a_front_end_that_never_reads_its_answers_does_not_keep_the_device(
    service: Service,
) -> None:
    with RawFrontEnd(service.path) as front:
        front.socket.setblocking(False)
        try:
            while True:
                front.send(Request.GET_FEATURES)
        except BlockingIOError:
            pass  # both directions are full


class TestHalfAMessage:
    @pytest.fixture(autouse=True)
    def _little_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(listener, "MESSAGE_DEADLINE_S", 0.2)

    @pytest.mark.parametrize("length", [1, 11, 12, 19])
    def test_it_does_not_hold_the_only_slot(
        self, service: Service, length: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        with RawFrontEnd(service.path) as front, RawFrontEnd(service.path) as other:
            front.send_raw(wire.message(Request.SET_FEATURES, bytes(8))[:length])
            assert other.ask_u64(Request.GET_QUEUE_NUM) == 2
            assert front.is_closed()
        assert "waited for more than 0.2 s" in caplog.text

    def test_nor_does_one_that_comes_byte_by_byte(self, service: Service) -> None:
        with RawFrontEnd(service.path) as front:
            sent = 0
            with suppress(ConnectionError):
                for byte in wire.message(Request.SET_FEATURES, bytes(8)):
                    front.send_raw(bytes([byte]))
                    sent += 1
                    time.sleep(0.05)
            assert sent < 12

    def test_nor_replies_that_nobody_reads(self, service: Service) -> None:
        with RawFrontEnd(service.path) as front, RawFrontEnd(service.path) as other:
            front.socket.settimeout(0.1)
            with suppress(TimeoutError):
                while True:
                    front.send(Request.GET_FEATURES)
            assert other.ask_u64(Request.GET_QUEUE_NUM) == 2

    def test_a_front_end_may_be_silent_between_messages(self, service: Service) -> None:
        with RawFrontEnd(service.path) as front:
            time.sleep(0.4)
            front.negotiate()
            time.sleep(0.4)
            assert front.ask_u64(Request.GET_QUEUE_NUM) == 2


def test_random_messages(service: Service) -> None:
    rng = random.Random(20)
    for _ in range(60):
        with RawFrontEnd(service.path) as front:
            try:
                front.negotiate()
                for _ in range(20):
                    payload = rng.randbytes(
                        rng.choice((0, 8, 8, 12, 40, 40, 72, rng.randrange(99)))
                    )
                    if len(payload) >= 8 and rng.random() < 0.7:
                        payload = bytes((rng.randrange(3), 0, 0, 0)) + payload[4:]
                    front.send(rng.randrange(45), payload, flags=wire.FLAG_NEED_REPLY)
            except OSError:
                pass
