"""Addresses of services as text: "unix:/path", "host:port", or one of these as a URL.

Owns their syntax and limits, and which of them are on this machine. services.rpc.server owns the
sockets. A name is never resolved here.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from services.handshake.errors import InvalidArgumentError

UNIX_PATH_LIMIT_BYTES: Final = 107
"""Longest path of a Unix socket: sun_path holds 108 bytes with the final NUL (unix(7))."""

_TCP: Final = re.compile(
    r"(?:tcp://|dns:(?:///)?|ipv[46]:)?"
    r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):(?P<port>\d{1,5})",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket in the file system."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port; a server that listens on port 0 gets a port that the kernel chooses."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it: 127.0.0.0/8, ::1, or the name localhost."""
        with suppress(ValueError):
            return ip_address(self.host.strip("[]")).is_loopback
        return self.host == "localhost"


Address = UnixAddress | TcpAddress


def numeric(address: Address) -> Address:
    """Return the address that servers bind and clients connect to: 127.0.0.1 for localhost.

    Whatever a resolver makes of the name, both mean the same port. gRPC would try ::1 first, where
    another user of this machine may listen at the same number.
    """
    if isinstance(address, TcpAddress) and address.host == "localhost":
        return TcpAddress("127.0.0.1", address.port)
    return address


def parse_address(text: str) -> Address:
    """Parse an address. Its text, `str(address)`, has no scheme before a host.

    Args:
        text: "unix:/absolute/path" or "unix:///absolute/path" with a path of at most 107 bytes;
            "host:port", "tcp://host:port", or gRPC's "dns:///host:port", "ipv4:host:port" or
            "ipv6:[host]:port" with a port from 0 to 65535; an IPv6 host stands in brackets.

    Raises:
        InvalidArgumentError: ADDRESS_SYNTAX, or SOCKET_PATH_TOO_LONG.
    """
    if text.startswith("unix:"):
        return _unix(text)
    match = _TCP.fullmatch(text)
    if match is None or int(match["port"]) > 0xFFFF:
        raise InvalidArgumentError(
            "ADDRESS_SYNTAX",
            f"address {text!r} is neither unix:/absolute/path nor host:port, also as "
            "tcp://host:port (port 0 to 65535)",
            address=text,
        )
    return TcpAddress(match["host"], int(match["port"]))


def require_local(address: Address) -> None:
    """Check that only this machine can reach an address, because services authenticate nobody.

    Raises:
        InvalidArgumentError: ADDRESS_NOT_LOOPBACK.
    """
    if isinstance(address, TcpAddress) and not address.is_loopback:
        raise InvalidArgumentError(
            "ADDRESS_NOT_LOOPBACK",
            f"cannot listen on {address}: {address.host} is none of 127.0.0.0/8, [::1] and "
            f"localhost, and services have no authentication yet; listen on "
            f"127.0.0.1:{address.port}, and let others reach it through `ssh -L`",
            address=str(address),
        )


def _unix(text: str) -> UnixAddress:
    path = text.removeprefix("unix:")
    if path.startswith("///"):  # a URL without a host
        path = path.removeprefix("//")
    if path.startswith("//") or not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise InvalidArgumentError(
            "ADDRESS_SYNTAX", f"address {text!r}: write unix: and an absolute path", address=text
        )
    length = len(os.fsencode(path))
    if length > UNIX_PATH_LIMIT_BYTES:
        raise InvalidArgumentError(
            "SOCKET_PATH_TOO_LONG",
            f"socket path {path!r} has {length} bytes, a Unix socket takes at most "
            f"{UNIX_PATH_LIMIT_BYTES}; choose a shorter run directory",
            path=path,
            length=length,
            limit=UNIX_PATH_LIMIT_BYTES,
        )
    return UnixAddress(Path(path))
