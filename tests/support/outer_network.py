"""A network namespace that plays the host's network, for tests whose services run in it."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "192.0.2.1"
HOST_IPV6 = "2001:db8::1"
_CLONE_NEWNET = 0x4000_0000  # include/uapi/linux/sched.h


class OwnNetwork:
    """Moves this thread, and the processes that it starts, into a new network namespace."""

    def __enter__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        assert self._libc.unshare(_CLONE_NEWNET) == 0

    def __exit__(self, *_: object) -> None:
        assert self._libc.setns(self._before, _CLONE_NEWNET) == 0
        os.close(self._before)


def make_a_host() -> None:
    """Give this thread's network an interface with addresses and default routes."""
    for command in (
        "link set lo up",
        "tuntap add host0 mode tap",
        f"addr add {HOST}/24 dev host0",
        f"addr add {HOST_IPV6}/64 dev host0 nodad",
        "link set host0 up",
        "route add default via 192.0.2.254",
        "-6 route add default via 2001:db8::ffff dev host0",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    # Otherwise passt, which is nobody, sends no ICMP echo.
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")


def name_server_address() -> str:
    """Return the first name server of this machine's configuration, which passt asks."""
    for line in Path("/etc/resolv.conf").read_text().splitlines():
        match line.split():
            case ["nameserver", address, *_]:
                return address
    raise AssertionError("/etc/resolv.conf names no server")


@contextmanager
def name_server(addresses: dict[str, tuple[str, ...]]) -> Iterator[list[str]]:
    """Be the name server of this machine's configuration, in a network that make_a_host made.

    Args:
        addresses: The addresses of each name; other names do not exist.

    Yields:
        The names that were asked for.
    """
    place = name_server_address()
    if not place.startswith("127."):
        subprocess.run(["ip", "addr", "add", place, "dev", "lo"], check=True)
    family = socket.AF_INET6 if ":" in place else socket.AF_INET
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind((place, 53))
    asked: list[str] = []
    thread = threading.Thread(target=_answer, args=(server, addresses, asked))
    thread.start()
    try:
        yield asked
    finally:
        server.sendto(b"", (place, 53))
        thread.join()
        server.close()


def _answer(server: socket.socket, addresses: dict[str, tuple[str, ...]], asked: list[str]) -> None:
    while True:
        query, asker = server.recvfrom(512)
        if not query:
            return
        at, labels = 12, []
        while length := query[at]:
            labels.append(query[at + 1 : at + 1 + length].decode())
            at += 1 + length
        name = ".".join(labels)
        asked.append(name)
        (kind,) = struct.unpack_from("!H", query, at + 1)
        records = b""
        count = 0
        for address in addresses.get(name, ()):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            if kind == (28 if ":" in address else 1):
                data = socket.inet_pton(family, address)
                records += struct.pack("!HHHIH", 0xC00C, kind, 1, 60, len(data)) + data
                count += 1
        flags = 0x8180 if name in addresses else 0x8183  # RFC 1035: no error, or no such name
        header = query[:2] + struct.pack("!5H", flags, 1, count, 0, 0)
        server.sendto(header + query[12 : at + 5] + records, asker)
