"""What a user-mode network is to be: the values of a request, their checks, passt's arguments.

And what of the host's network passt adds to them, which it takes when it starts. Does no I/O.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.net.host_network import Family, HostView
from services.handshake.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.handshake.options import NetOptions

MAX_MTU: Final = 65520
"""Of passt, and its default: with frames of 64 KiB a guest needs no segmentation offload."""
MIN_MTU: Final = 1280
"""What IPv6 needs (RFC 8200, section 5)."""
MAX_NAMES: Final = 8
"""Name servers, and search domains, that a guest is told of."""

_DOMAIN: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?", re.ASCII)
_MAX_DOMAIN: Final = 253


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSettings:
    """A user-mode network, without the addresses that are in the adapter's options.

    Attributes:
        dns: Name servers that the guest is told of; none: `dns_forward`, or the host's.
        search_domains: Search domains that the guest is told of; none: the host's.
        dns_forward: At most one address of each family, in the guest's network, at which queries
            are taken and sent on to `dns_host`.
        dns_host: At most one name server of each family that takes them; none: the host's first.
        host_loopback: At most one address of each family at which the guest reaches the host's
            loopback; none: it does not reach it.
        gateway_ip_ipv6: The gateway of IPv6; empty: passt's choice.
        mtu: Bytes of payload per frame, 1280 to 65520.
    """

    dns: tuple[str, ...] = ()
    search_domains: tuple[str, ...] = ()
    dns_forward: tuple[str, ...] = ()
    dns_host: tuple[str, ...] = ()
    host_loopback: tuple[str, ...] = ()
    gateway_ip_ipv6: str = ""
    mtu: int = MAX_MTU

    def with_resolver(self, name_servers: Sequence[str]) -> UserSettings:
        """Return it with the host's name servers for `dns_forward`, unless it names its own.

        passt takes none from the host where it is told which ones the guest is told of.

        Args:
            name_servers: One of each family at most; those that are no address alone are left out.
        """
        if self.dns_host or not self.dns_forward:
            return self
        return replace(self, dns_host=tuple(filter(_is_address, name_servers)))


def check(settings: UserSettings) -> None:
    """Check what a request says.

    Raises:
        InvalidArgumentError: USER_NETWORK_VALUE; it names the setting and the bound.
    """
    if not MIN_MTU <= settings.mtu <= MAX_MTU:
        raise _refusal("mtu", settings.mtu, f"must be {MIN_MTU} to {MAX_MTU}")
    for name in ("dns", "search_domains"):
        if len(getattr(settings, name)) > MAX_NAMES:
            raise _refusal(name, len(getattr(settings, name)), f"must be at most {MAX_NAMES}")
    for domain in settings.search_domains:
        if not _DOMAIN.fullmatch(domain) or len(domain) > _MAX_DOMAIN:
            raise _refusal("search_domains", repr(domain), "must be the name of a domain")
    for address in settings.dns:
        _parse("dns", address)
    for name in ("dns_forward", "dns_host", "host_loopback"):
        versions = [_parse(name, address).version for address in getattr(settings, name)]
        if len(set(versions)) != len(versions):
            raise _refusal(name, len(versions), "must be at most one IPv4 and one IPv6 address")
    if settings.gateway_ip_ipv6 and _parse("gateway", settings.gateway_ip_ipv6).version != 6:
        raise _refusal("gateway_ip_ipv6", settings.gateway_ip_ipv6, "must be an IPv6 address")


def arguments(settings: UserSettings, options: NetOptions) -> list[str]:
    """Return passt's arguments for a network; those for one process are added to them.

    The guest reaches no address of the host's loopback unless a setting maps one (--no-map-gw).
    """
    return [
        "--foreground",
        "--quiet",
        "--no-map-gw",
        *("--mtu", str(settings.mtu)),
        *_addresses(options),
        *_each("--gateway", [options.gateway_ip or "", settings.gateway_ip_ipv6]),
        *_each("--dns", settings.dns or settings.dns_forward),
        *_each("--search", settings.search_domains),
        *_each("--dns-forward", settings.dns_forward),
        *_each("--dns-host", settings.dns_host),
        *_each("--map-host-loopback", settings.host_loopback),
    ]


def given(settings: UserSettings, options: NetOptions, view: HostView) -> HostView:
    """Return what of the host's network the guest is given; what a request decides is left out."""
    ipv4, ipv6 = view.ipv4, view.ipv6
    if options.client_ip:
        ipv4 = Family()
    elif options.gateway_ip:
        ipv4 = replace(ipv4, gateway="")
    if options.client_ip_ipv6:
        ipv6 = Family()
    elif settings.gateway_ip_ipv6:
        ipv6 = replace(ipv6, gateway="")
    servers: tuple[str, ...] = ()
    if not settings.dns and not settings.dns_forward:
        servers = view.name_servers
    elif settings.dns_forward and not settings.dns_host:
        servers = _first_of_each_family(view.name_servers)
    search = () if settings.search_domains else view.search_domains
    return HostView(ipv4, ipv6, servers, search)


def what_moved(before: HostView, now: HostView) -> str:
    """Return what a guest was given and is not right any more, for people; empty: nothing.

    Args:
        before: What it was given.
        now: What it would be given.
    """
    moved = []
    for name, old, new in (("IPv4", before.ipv4, now.ipv4), ("IPv6", before.ipv6, now.ipv6)):
        # Further addresses do not matter: the guest keeps the one that it has.
        kept = old.addresses <= new.addresses if old.addresses else not new.addresses
        if not kept or (old.interface, old.gateway) != (new.interface, new.gateway):
            shown = ", ".join(sorted(new.addresses)) or "no address"
            moved.append(f"{name} is {shown} via {new.gateway or 'no gateway'}")
    if now.name_servers not in ((), before.name_servers):
        moved.append(f"name servers are {', '.join(now.name_servers)}")
    if now.search_domains != before.search_domains:
        moved.append(f"search domains are {', '.join(now.search_domains) or 'none'}")
    return "; ".join(moved)


def _first_of_each_family(servers: Sequence[str]) -> tuple[str, ...]:
    found: dict[bool, str] = {}
    for server in servers:
        found.setdefault(":" in server, server)
    return tuple(found.values())


def _addresses(options: NetOptions) -> list[str]:
    """Return the arguments for the guest's addresses; passt announces IPv6 with /64 always."""
    found = []
    if options.client_ip:
        interface = ipaddress.IPv4Interface(options.client_ip)
        found += ["--address", str(interface.ip), "--netmask", str(interface.network.prefixlen)]
    if options.client_ip_ipv6:
        found += ["--address", str(ipaddress.IPv6Interface(options.client_ip_ipv6).ip)]
    return found


def _each(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values if value for word in (option, value)]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _parse(name: str, address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise _refusal(name, repr(address), "must be an IPv4 or IPv6 address") from None
    if "%" in address or parsed.is_unspecified or parsed.is_multicast:
        raise _refusal(name, address, "must be the address of one host, without a zone")
    return parsed


def _refusal(name: str, value: object, rule: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "USER_NETWORK_VALUE", f"user-mode network: {name} is {value}; it {rule}", setting=name
    )
