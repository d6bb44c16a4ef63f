"""The ports on which a guest listens, from tables as the kernel writes them, and from a kernel."""

from __future__ import annotations

import os
import socket

import pytest

from services.guest_init import listeners as module
from services.guest_init.listeners import (
    MAX_LISTENERS,
    Listener,
    PolledListeners,
    ProcTables,
    SentTables,
    listeners,
)

HEADING = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
ANY, LOOPBACK = "00000000", "0100007F"
ANY6, LOOPBACK6 = "0" * 32, "0" * 24 + "01000000"


def table(*sockets: tuple[str, int, str]) -> str:
    return HEADING + "".join(
        f"{number:4}: {address}:{port:04X} {'0' * len(address)}:0000 {state} 00000000:00000000 "
        "00:00000000 00000000     0        0 12345 1 0000000000000000 100 0 0 10 0\n"
        for number, (address, port, state) in enumerate(sockets)
    )


def test_sockets_that_listen_on_every_address_are_found() -> None:
    v4 = table((ANY, 8080, "0A"), (LOOPBACK, 631, "0A"), (ANY, 22, "0A"))
    v6 = table((ANY6, 8080, "0A"), (LOOPBACK6, 5432, "0A"), (ANY6, 3000, "0A"))
    assert listeners(v4, v6) == (
        Listener(22, ipv4=True, ipv6=False),
        Listener(3000, ipv4=True, ipv6=True),
        Listener(8080, ipv4=True, ipv6=True),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        HEADING,
        HEADING + "0: zz:1F90 00000000:0000 0A x\n",
        HEADING + "0: 00000000:zz 00000000:0000 0A x\n",
        HEADING + "0: 00000000:1FFFF 00000000:0000 0A x\n",
        HEADING + "0: 00000000:0000 00000000:0000 0A x\n",
        HEADING + "0: 00000000:1F90 0000",
        table((ANY, 8080, "01")),
    ],
)
def test_what_is_no_listening_socket_is_left_out(text: str) -> None:
    assert listeners(text, text) == ()


def test_nothing_is_read_after_the_sockets_that_listen() -> None:
    assert listeners(table((ANY, 1, "0A"), (ANY, 2, "01"), (ANY, 3, "0A")), "") == (
        Listener(1, ipv4=True, ipv6=False),
    )


def test_there_are_at_most_so_many() -> None:
    found = listeners(table(*((ANY, port, "0A") for port in range(5000, 1000, -1))), "")
    assert [each.port for each in found] == list(range(1001, 1001 + MAX_LISTENERS))


def test_a_table_is_read_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TABLE_BYTES", 100)
    assert max(map(len, ProcTables().read())) <= 100


def test_descriptors_that_were_sent_are_read_again_and_again() -> None:
    receiving, sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    tables = SentTables(receiving)
    assert tables.read() == ("", "")
    fds = [os.open(f"/proc/self/net/{name}", os.O_RDONLY) for name in ("tcp", "tcp6")]
    with sending:
        socket.send_fds(sending, [b"n"], fds)
    for fd in fds:
        os.close(fd)
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        assert Listener(port, ipv4=True, ipv6=False) in listeners(*tables.read())
    assert port not in [each.port for each in listeners(*tables.read())]
    receiving.close()
    for fd in tables._fds:
        os.close(fd)


async def test_a_change_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PERIOD_S", 0.0)
    looks = iter([("", ""), ("", ""), (table((ANY, 8080, "0A")), ""), ("", "")])

    class Tables:
        def read(self) -> tuple[str, str]:
            return next(looks)

    watching = PolledListeners(Tables()).watch()
    assert [await anext(watching) for _ in range(3)] == [
        (),
        (Listener(8080, ipv4=True, ipv6=False),),
        (),
    ]
