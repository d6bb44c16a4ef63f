"""What of the host's network a guest is told, at one moment.

Owns reading it: the default routes and the addresses of their interfaces (rtnetlink), and
resolv.conf. passt takes the same when it starts. Must not know when it changes.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.wire import rtnetlink

if TYPE_CHECKING:
    from collections.abc import Iterator

RESOLV_CONF: Final = Path("/etc/resolv.conf")
_MOST_BYTES: Final = 64 << 10
"""Of resolv.conf, which are looked at."""
_ANSWER_BYTES: Final = 64 << 10
_ANSWER_S: Final = 5.0
_USELESS: Final = (
    rtnetlink.IFA_F_TEMPORARY
    | rtnetlink.IFA_F_DADFAILED
    | rtnetlink.IFA_F_DEPRECATED
    | rtnetlink.IFA_F_TENTATIVE
)
"""Addresses that come and go by themselves (RFC 8981), or cannot be used."""


@dataclass(frozen=True, slots=True)
class Family:
    """The host's network in one version of IP.

    Attributes:
        interface: Index of the interface of the first default route; 0: there is no such route.
        gateway: Its next hop; empty: none.
        addresses: The addresses of that interface, with prefix lengths.
    """

    interface: int = 0
    gateway: str = ""
    addresses: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class HostView:
    """The host's network.

    Attributes:
        name_servers: In the order of resolv.conf.
        search_domains: In the same.
    """

    ipv4: Family = Family()
    ipv6: Family = Family()
    name_servers: tuple[str, ...] = ()
    search_domains: tuple[str, ...] = ()

    @property
    def is_connected(self) -> bool:
        """Whether there is a default route."""
        return bool(self.ipv4.interface or self.ipv6.interface)


def look() -> HostView:
    """Look at the network namespace of this thread, and at resolv.conf.

    Raises:
        OSError: The kernel does not answer.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, rtnetlink.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_ANSWER_S)
        ipv4, ipv6 = _family(netlink, socket.AF_INET), _family(netlink, socket.AF_INET6)
    return HostView(ipv4, ipv6, *read_resolv_conf(RESOLV_CONF))


def read_resolv_conf(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return name servers and search domains; a file that cannot be read has none (resolver(5))."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode(errors="replace")
    except OSError:
        return (), ()
    servers: list[str] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        match line.split():
            case ["nameserver", server, *_]:
                servers.append(server)
            case ["search", *domains]:
                search = tuple(domains)
    return tuple(servers), search


def _family(netlink: socket.socket, family: socket.AddressFamily) -> Family:
    routes = sorted(_default_routes(netlink, family))
    if not routes:
        return Family()
    _, interface, gateway = routes[0]
    return Family(interface, gateway, frozenset(_addresses(netlink, family, interface)))


def _default_routes(
    netlink: socket.socket, family: socket.AddressFamily
) -> Iterator[tuple[int, int, str]]:
    """Yield priority, interface and gateway of each default route."""
    for body in _dump(netlink, rtnetlink.RTM_GETROUTE, rtnetlink.RTM_NEWROUTE, family):
        answered, prefix, _, _, table, _, _, kind, _ = rtnetlink.ROUTE.unpack_from(body)
        if answered != family:  # a kernel without a family answers for all others
            continue
        if prefix or table != rtnetlink.RT_TABLE_MAIN or kind != rtnetlink.RTN_UNICAST:
            continue
        found = rtnetlink.attributes(body, rtnetlink.ROUTE.size)
        priority = _number(found.get(rtnetlink.RTA_PRIORITY))
        hops = found.get(rtnetlink.RTA_MULTIPATH)
        if hops is not None:  # the first of several
            length, _, _, interface = rtnetlink.NEXT_HOP.unpack_from(hops)
            found = rtnetlink.attributes(hops[:length], rtnetlink.NEXT_HOP.size)
        else:
            interface = _number(found.get(rtnetlink.RTA_OIF))
        if interface:
            yield priority, interface, _text(found.get(rtnetlink.RTA_GATEWAY))


def _addresses(
    netlink: socket.socket, family: socket.AddressFamily, interface: int
) -> Iterator[str]:
    for body in _dump(netlink, rtnetlink.RTM_GETADDR, rtnetlink.RTM_NEWADDR, family):
        answered, prefix, flags, scope, index = rtnetlink.ADDRESS.unpack_from(body)
        found = rtnetlink.attributes(body, rtnetlink.ADDRESS.size)
        flags = _number(found.get(rtnetlink.IFA_FLAGS)) or flags
        if answered != family or index != interface or scope != rtnetlink.RT_SCOPE_UNIVERSE:
            continue
        if family == socket.AF_INET6 and flags & _USELESS:
            continue
        address = found.get(rtnetlink.IFA_LOCAL, found.get(rtnetlink.IFA_ADDRESS))
        if address is not None:
            yield f"{_text(address)}/{prefix}"


def _dump(netlink: socket.socket, question: int, answer: int, family: int) -> Iterator[memoryview]:
    netlink.send(rtnetlink.dump_request(question, family))
    while True:
        for message in rtnetlink.messages(netlink.recv(_ANSWER_BYTES)):
            if message.kind == answer:
                yield message.body
            elif message.kind in (rtnetlink.NLMSG_DONE, rtnetlink.NLMSG_ERROR):
                return


def _number(value: memoryview | None) -> int:
    return 0 if value is None else rtnetlink.U32.unpack_from(value)[0]


def _text(value: memoryview | None) -> str:
    return "" if value is None else str(ipaddress.ip_address(bytes(value)))
