"""The guest's resolver against name servers of the test."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from services.handshake.errors import InvalidArgumentError, UnavailableError
from services.simguest.workload import names
from services.simguest.workload.names import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "a.test"
LABELS = b"\x01a\x04test\x00"
A, AAAA, CNAME = 1, 28, 5


def record(kind: int, data: bytes, owner: bytes = b"\xc0\x0c") -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, 60, len(data)) + data


def reply(query: bytes, *records: bytes, flags: int = 0x8180) -> bytes:
    return (
        query[:2]
        + struct.pack("!5H", flags, 1, len(records), 0, 0)
        + query[12:]
        + b"".join(records)
    )


@contextmanager
def server(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[int, bytes], list[bytes]]
) -> Iterator[None]:
    """A name server on loopback; `answer` gets the kind and the query, and returns datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        monkeypatch.setattr(names, "_PORT", listening.getsockname()[1])

        def serve() -> None:
            while query := listening.recvfrom(512):
                data, asker = query
                if not data:
                    return
                assert data[12:-4] == LABELS
                for datagram in answer(struct.unpack("!H", data[-4:-2])[0], data):
                    listening.sendto(datagram, asker)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listening.sendto(b"", listening.getsockname())
            thread.join()


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
def test_an_address_is_its_own(address: str) -> None:
    assert resolve(address, [], 1.0) == [address]


@pytest.mark.parametrize("name", ["", "-a", "a..b", "a b", "x" * 64, "a." * 130, "a\n"])
def test_what_is_no_name_is_asked_of_nobody(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        resolve(name, ["192.0.2.1"], 1.0)
    assert raised.value.reason == "NAME_INVALID"


def test_without_a_name_server_nothing_is_resolved() -> None:
    with pytest.raises(UnavailableError, match="no name server") as raised:
        resolve(NAME, [], 1.0)
    assert raised.value.reason == "NAME_UNRESOLVED"


def test_both_families_and_aliases_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(kind: int, query: bytes) -> list[bytes]:
        alias = record(CNAME, b"\x01b\xc0\x0e")
        if kind == A:
            other = reply(query, record(A, bytes(4)))
            wrong_number = bytes([query[0] ^ 1]) + other[1:]
            return [wrong_number, reply(query, alias, record(A, b"\xc0\0\2\7", b"\x01b\xc0\x0e"))]
        return [reply(query, alias, record(AAAA, bytes(15) + b"\7", b"\x01b\xc0\x0e"))]

    with server(monkeypatch, answer):
        assert resolve(NAME, ["127.0.0.1"], 5.0) == ["192.0.2.7", "::7"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda _, query: [reply(query)], "knows no address"),
        (lambda _, query: [reply(query, flags=0x8183)], "error 3"),
        (lambda _, query: [query], "another question"),
        (lambda _, query: [reply(query[:13] + b"b" + query[14:])], "another question"),
        (lambda _, query: [query[:2]], "too early"),
        (lambda _, query: [reply(query, record(A, b"\xc0\0\2\7"))[:-10]], "too early"),
        (lambda _, query: [reply(query, record(A, b"\xc0\0\2"))], "IPv4"),
        (lambda _, query: [reply(query, record(A, b"", b"\x3f"))], "too early"),
    ],
    ids=["none", "no such name", "a query", "other name", "short", "cut", "length", "label"],
)
def test_what_a_server_says_instead_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[int, bytes], list[bytes]], why: str
) -> None:
    with server(monkeypatch, answer), pytest.raises(UnavailableError, match=why):
        resolve(NAME, ["127.0.0.1"], 5.0)


def test_the_next_server_is_asked_when_one_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(
        monkeypatch,
        lambda kind, q: [reply(q, record(A, b"\xc0\0\2\7"))] * (kind == A) or [reply(q)],
    ):
        # 127.0.0.2 refuses: nobody listens there.
        assert resolve(NAME, ["127.0.0.2", "127.0.0.1"], 5.0) == ["192.0.2.7"]
