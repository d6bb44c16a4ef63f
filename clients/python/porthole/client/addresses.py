"""Addresses of a VM owner as text, for instance unix:///run/porthole/owner.sock.

Owns their syntax; it is that of the services. Must not resolve names.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import Final

from porthole.client.errors import InvalidArgumentError

UNIX_PATH_LIMIT_BYTES: Final = 107
"""Longest path of a Unix socket: sun_path holds 108 bytes with the final NUL (unix(7))."""

_TCP: Final = re.compile(
    r"(?:tcp://|dns:(?:///)?|ipv[46]:)?"
    r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):(?P<port>\d{1,5})",
    re.ASCII,
)


def target(address: str) -> str:
    """Return the target of an address, as grpc.insecure_channel takes it.

    Args:
        address: "unix:///absolute/path" or "unix:/absolute/path" with a path of at most 107 bytes;
            "tcp://host:port", "host:port", or gRPC's "dns:///host:port", "ipv4:host:port" or
            "ipv6:[host]:port"; an IPv6 host stands in brackets. localhost is 127.0.0.1, where
            services listen.

    Raises:
        InvalidArgumentError: ADDRESS_SYNTAX, or SOCKET_PATH_TOO_LONG.
    """
    if address.startswith("unix:"):
        return _unix(address)
    match = _TCP.fullmatch(address)
    if match is None or int(match["port"]) > 0xFFFF:
        raise InvalidArgumentError(
            "ADDRESS_SYNTAX",
            f"address {address!r} is neither unix:///absolute/path nor tcp://host:port "
            "(port 0 to 65535)",
            {"address": address},
        )
    # gRPC would try ::1 first, where another user of this machine may listen.
    host = "127.0.0.1" if match["host"] == "localhost" else match["host"]
    return f"{host}:{int(match['port'])}"


def _unix(address: str) -> str:
    path = address.removeprefix("unix:")
    if path.startswith("///"):  # a URL without a host
        path = path.removeprefix("//")
    if path.startswith("//") or not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise InvalidArgumentError(
            "ADDRESS_SYNTAX",
            f"address {address!r}: write unix:// and an absolute path",
            {"address": address},
        )
    length = len(os.fsencode(path))
    if length > UNIX_PATH_LIMIT_BYTES:
        raise InvalidArgumentError(
            "SOCKET_PATH_TOO_LONG",
            f"socket path {path!r} has {length} bytes, a Unix socket takes at most "
            f"{UNIX_PATH_LIMIT_BYTES}",
            {"path": path, "length": str(length), "limit": str(UNIX_PATH_LIMIT_BYTES)},
        )
    return f"unix:{PurePosixPath(path)}"  # "//" and "/./" are "/"
