"""A TAP interface as a port of a bridge of the host (linux/sockios.h).

Owns joining and leaving, and what is wrong when that fails. Must not know who made either of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from typing import Final

from services.handshake.errors import FailedPreconditionError
from services.wire import tun

_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCGIFMTU: Final = 0x8921
_SIOCSIFMTU: Final = 0x8922
_SIOCBRADDIF: Final = 0x89A2
_SIOCBRDELIF: Final = 0x89A3
_IFF_UP: Final = 0x1


def join(tap: str, bridge: str) -> None:
    """Make an interface a port of a bridge, with the bridge's MTU, and set it up.

    Raises:
        FailedPreconditionError: BRIDGE_UNAVAILABLE, with the remedy.
    """
    with _any_socket() as sock:
        try:
            mtu = _ask(sock, _SIOCGIFMTU, bridge)
            # The other way round the bridge would take over the MTU of the port.
            with contextlib.suppress(OSError):  # as long as no TAP has: it is no bridge
                fcntl.ioctl(sock, _SIOCSIFMTU, tun.IFREQ_INT.pack(tap.encode(), mtu))
            index = socket.if_nametoindex(tap)
            fcntl.ioctl(sock, _SIOCBRADDIF, tun.IFREQ_INT.pack(bridge.encode(), index))
            flags = _ask(sock, _SIOCGIFFLAGS, tap) & 0xFFFF
            fcntl.ioctl(sock, _SIOCSIFFLAGS, tun.IFREQ_FLAGS.pack(tap.encode(), flags | _IFF_UP))
        except OSError as error:
            raise _refusal(tap, bridge, error.errno or 0) from error


def leave(tap: str, bridge: str) -> None:
    """Take an interface out of a bridge, if both are there."""
    with _any_socket() as sock, contextlib.suppress(OSError):
        index = socket.if_nametoindex(tap)
        fcntl.ioctl(sock, _SIOCBRDELIF, tun.IFREQ_INT.pack(bridge.encode(), index))


def _any_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _ask(sock: socket.socket, question: int, name: str) -> int:
    answer = fcntl.ioctl(sock, question, tun.IFREQ_INT.pack(name.encode(), 0))
    number: int = tun.IFREQ_INT.unpack(answer)[1]
    return number


def _refusal(tap: str, bridge: str, number: int) -> FailedPreconditionError:
    by_hand = (
        f"make the TAP a port yourself (ip link set {tap} master {bridge}) and leave the bridge out"
    )
    what = {
        errno.EPERM: f"joining it needs CAP_NET_ADMIN: run this as root, or {by_hand}",
        errno.ENODEV: f"there is none of that name: make it (ip link add {bridge} type bridge && "
        f"ip link set {bridge} up)",
        errno.EOPNOTSUPP: "the interface of that name is no bridge; ip link show type bridge lists "
        "those that are",
        errno.EBUSY: f"{tap} is a port of a bridge already; leave the bridge out, or take it out "
        f"there (ip link set {tap} nomaster)",
    }.get(number, f"{os.strerror(number)}; {by_hand}")
    return FailedPreconditionError(
        "BRIDGE_UNAVAILABLE", f"bridge {bridge} for TAP interface {tap}: {what}", bridge=bridge
    )
