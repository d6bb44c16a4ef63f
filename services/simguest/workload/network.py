"""Programs that run in the guest's network: an HTTP client and ping.

Owns HTTP GET and ICMP echo (RFC 792, RFC 4443) as plain functions over sockets. They run in the
network namespace of their thread; workload.py runs them in the guest's. Must not know virtio.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import os
import select
import socket
import statistics
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from services.handshake.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    UnavailableError,
)
from services.simguest.workload.names import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_TIMEOUT_S: Final = 10.0
MAX_PINGS: Final = 1000

_CHUNK_BYTES: Final = 1 << 18
_ECHO: Final = struct.Struct("!BBHHH")
_PAYLOAD: Final = bytes(range(48))
_RECEIVE_BYTES: Final = 2048


class HttpResult(NamedTuple):
    """The response to a GET; redirects are not followed."""

    status: int
    size_bytes: int
    sha256: bytes


class PingResult(NamedTuple):
    """Numbers of echo requests and replies; the median is 0.0 without a reply."""

    sent: int
    received: int
    round_trip_median_s: float


def http_get(url: str, timeout_s: float, name_servers: Sequence[str] = ()) -> HttpResult:
    """Fetch a URL.

    Args:
        url: "http://host[:port]/path".
        timeout_s: For connecting, and between two pieces of the response, in seconds; 0 means
            10 s.
        name_servers: They are asked for the host, if it is a name.

    Raises:
        InvalidArgumentError: HTTP_URL or NAME_INVALID.
        DeadlineExceededError: HTTP_TIMEOUT.
        UnavailableError: HTTP_FAILED or NAME_UNRESOLVED.
    """
    host, port, target = _parse_url(url)
    [address, *_] = resolve(host, name_servers, timeout_s)
    connection = http.client.HTTPConnection(address, port, timeout=timeout_s or DEFAULT_TIMEOUT_S)
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with contextlib.closing(connection):
            connection.request("GET", target, headers={"Host": urlsplit(url).netloc})
            with connection.getresponse() as response:
                while data := response.read(_CHUNK_BYTES):
                    digest.update(data)
                    size_bytes += len(data)
    except TimeoutError as error:
        raise DeadlineExceededError(
            "HTTP_TIMEOUT", f"{url} did not answer in time ({timeout_s} s)", url=url
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(
            "HTTP_FAILED", f"{url} cannot be fetched: {error or type(error).__name__}", url=url
        ) from error
    return HttpResult(response.status, size_bytes, digest.digest())


def ping(address: str, count: int, timeout_s: float) -> PingResult:
    """Send ICMP echo requests, each after the reply to the one before, or its timeout.

    Args:
        address: An IPv4 or IPv6 address.
        count: 1 to 1000; 0 means 1.
        timeout_s: How long to wait for each reply, in seconds; 0 means 10 s.

    Raises:
        InvalidArgumentError: PING_ADDRESS or PING_COUNT.
        UnavailableError: PING_FAILED, for instance without a route or without CAP_NET_RAW.
    """
    try:
        target = ipaddress.ip_address(address)
    except ValueError:
        raise InvalidArgumentError(
            "PING_ADDRESS", f"{address!r} is not an IP address", address=address
        ) from None
    if not 0 <= count <= MAX_PINGS:
        raise InvalidArgumentError(
            "PING_COUNT", f"{count} pings; 1 to {MAX_PINGS} are sent", count=count, bound=MAX_PINGS
        )
    echo = _echo_v4 if target.version == 4 else _echo_v6
    try:
        with echo.open() as raw:
            raw.connect((str(target), 0))
            times = [
                _round_trip(raw, echo, sequence, timeout_s or DEFAULT_TIMEOUT_S)
                for sequence in range(1, max(count, 1) + 1)
            ]
    except OSError as error:
        raise UnavailableError(
            "PING_FAILED", f"{address} cannot be pinged: {error.strerror}", address=address
        ) from error
    came = [elapsed for elapsed in times if elapsed is not None]
    return PingResult(len(times), len(came), statistics.median(came) if came else 0.0)


class _Echo(NamedTuple):
    """ICMP echo in one version of IP: message types, socket, and the message in a packet."""

    request: int
    reply: int
    open: Callable[[], socket.socket]
    body: Callable[[bytes], bytes]


_echo_v4 = _Echo(
    8,
    0,
    lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    lambda packet: packet[(packet[0] & 0x0F) * 4 :] if packet else b"",
)
_echo_v6 = _Echo(
    128,
    129,
    lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
    lambda packet: packet,
)


def _round_trip(raw: socket.socket, echo: _Echo, sequence: int, timeout_s: float) -> float | None:
    identity = os.getpid() & 0xFFFF
    message = _ECHO.pack(echo.request, 0, 0, identity, sequence) + _PAYLOAD
    # ICMPv6 checksums cover a pseudo header; the kernel fills them in (RFC 3542, section 3.1).
    checksum = _checksum(message)
    started = time.monotonic()
    raw.send(_ECHO.pack(echo.request, 0, checksum, identity, sequence) + _PAYLOAD)
    poll = select.poll()
    poll.register(raw, select.POLLIN)
    while (left := started + timeout_s - time.monotonic()) > 0:
        if not poll.poll(left * 1000):
            return None
        body = echo.body(raw.recv(_RECEIVE_BYTES))
        if len(body) >= _ECHO.size:
            kind, code, _, whose, number = _ECHO.unpack_from(body)
            if (kind, code, whose, number) == (echo.reply, 0, identity, sequence):
                return time.monotonic() - started
    return None


def _checksum(message: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _parse_url(url: str) -> tuple[str, int | None, str]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme != "http" or not parts.hostname or set(url) & set(" \r\n\t"):
        raise InvalidArgumentError(
            "HTTP_URL", f"{url!r} is not of the form http://host[:port]/path", url=url
        )
    query = f"?{parts.query}" if parts.query else ""
    return parts.hostname, port, (parts.path or "/") + query
