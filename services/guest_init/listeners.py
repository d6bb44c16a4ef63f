"""The TCP ports on which programs of the guest listen, for every address of the guest.

Owns reading them from the kernel's tables (proc_net_tcp), and looking for changes: no event tells
of listen(2), so the tables are read every PERIOD_S. A service that listens on one address only,
such as the guest's loopback, is not among them: what comes from outside does not reach it. Must not
know who wants to know, nor the channel of a Linux guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

PERIOD_S: Final = 0.5
"""Between two looks; so long does a port take to be reported, at most, and to be forgotten."""

MAX_LISTENERS: Final = 256
"""The most ports of one report, the lowest; those above are left out."""

_TABLE_BYTES: Final = 1 << 16
"""How much of a table is read: listening sockets come first, in lines of 150 characters."""
_HIGHEST_PORT: Final = 0xFFFF
_STATE_LISTEN: Final = "0A"
_TABLES: Final = ("tcp", "tcp6")


class Listener(NamedTuple):
    """A port on which a program of the guest takes connections.

    Attributes:
        port: 1 to 65535.
        ipv4: Whether to every IPv4 address of the guest.
        ipv6: Whether to every IPv6 address of the guest.
    """

    port: int
    ipv4: bool
    ipv6: bool


class Listeners(Protocol):
    """Where the ports of a guest are read."""

    def watch(self) -> AsyncIterator[tuple[Listener, ...]]:
        """Stream all of them now, and all of them whenever they have changed, by port."""
        ...


class Tables(Protocol):
    """The tables of the guest's kernel, /proc/net/tcp and /proc/net/tcp6."""

    def read(self) -> tuple[str, str]:
        """Return the beginning of each; empty where there is none."""
        ...


class ProcTables:
    """The tables of the kernel that this process runs on."""

    def __init__(self, directory: Path = Path("/proc/self/net")) -> None:
        self._directory = directory

    def read(self) -> tuple[str, str]:
        """Return the beginning of each."""
        v4, v6 = (self._read(self._directory / name) for name in _TABLES)
        return v4, v6

    @staticmethod
    def _read(path: Path) -> str:
        try:
            with path.open("rb") as table:
                return table.read(_TABLE_BYTES).decode("ascii", "replace")
        except OSError:
            return ""


class SentTables:
    """The tables of a user-space guest, whose descriptors come over a socket when it has a network.

    Args:
        receiving: The socket; it is this object's from now on.
    """

    def __init__(self, receiving: socket.socket) -> None:
        self._receiving = receiving
        self._receiving.setblocking(False)
        self._fds: list[int] = []

    def read(self) -> tuple[str, str]:
        """Return the beginning of each; empty as long as the guest has no network."""
        if not self._fds:
            with contextlib.suppress(OSError):
                _, fds, _, _ = socket.recv_fds(self._receiving, 1, len(_TABLES))
                self._fds = list(fds)
        if len(self._fds) != len(_TABLES):
            return "", ""
        v4, v6 = (_pread(fd) for fd in self._fds)
        return v4, v6


class PolledListeners:
    """The ports in tables that are read every PERIOD_S."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def watch(self) -> AsyncIterator[tuple[Listener, ...]]:
        """Stream all of them now, and all of them whenever they have changed."""
        before: tuple[Listener, ...] | None = None
        while True:
            now = listeners(*self._tables.read())
            if now != before:
                before = now
                yield now
            await asyncio.sleep(PERIOD_S)


def listeners(v4: str, v6: str) -> tuple[Listener, ...]:
    """Return the ports of two tables, the lowest MAX_LISTENERS.

    An IPv6 socket is taken to serve IPv4 as well, as it does by default: the table does not say
    (IPV6_V6ONLY).
    """
    of_v6 = set(_wildcard_ports(v6))
    ports = sorted({*_wildcard_ports(v4), *of_v6})[:MAX_LISTENERS]
    return tuple(Listener(port, ipv4=True, ipv6=port in of_v6) for port in ports)


def _wildcard_ports(table: str) -> Iterable[int]:
    """Yield the ports of the sockets that listen on the unspecified address."""
    for line in table.splitlines()[1:]:
        match line.split():
            case [_, local, _, state, *_] if state == _STATE_LISTEN:
                address, _, port = local.partition(":")
                with contextlib.suppress(ValueError):
                    if not address.strip("0") and 0 < int(port, 16) <= _HIGHEST_PORT:
                        yield int(port, 16)
            case [_, _, _, _, *_]:
                return  # listening sockets come first


def _pread(fd: int) -> str:
    # The kernel makes a page of the table for each read; the offset says where it goes on.
    parts, at = [], 0
    with contextlib.suppress(OSError):
        while at < _TABLE_BYTES and (part := os.pread(fd, _TABLE_BYTES - at, at)):
            parts.append(part)
            at += len(part)
    return b"".join(parts).decode("ascii", "replace")
