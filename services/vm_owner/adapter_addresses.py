"""The addresses of adapters: those that a client asks for, and those that follow from a subnet.

Owns what may be asked for, and the defaults; also the name of a bridge. Must not know VMs, TAPs, or
which networks are taken.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake.errors import InvalidArgumentError
from services.handshake.options import (
    SPOOFING_ALLOWED,
    SPOOFING_REFUSED,
    build_options,
    parse_net_options,
)
from services.vm_owner.bounds import check_length
from services.vm_owner.wslconfig import NetworkingMode

if TYPE_CHECKING:
    from services.handshake.options import NetOptions

FURTHER: Final = ("limit_tx", "limit_rx")
"""Those of KEYS that are no addresses, and pass as they are."""
KEYS: Final = (
    "client_ip",
    "gateway_ip",
    "client_ip_ipv6",
    "client_mac",
    "bridge",
    *FURTHER,
    "spoofing",
)
"""The options that ConfigureNetworking takes: `spoofing=` of both adapters, the others of eth0."""

MAX_BRIDGE_BYTES: Final = 15
"""IFNAMSIZ (linux/if.h) without the terminating NUL."""

WIDEST_PREFIX: Final = 8
NARROWEST_PREFIX: Final = 30
"""Prefix lengths of an IPv4 network of an adapter: it has two hosts at least."""

_BRIDGE_NAME: Final = re.compile(rb"[^\s/:%%\0]{1,%d}" % MAX_BRIDGE_BYTES)
_SPOOFING: Final = "spoofing="
_DEFAULT: Final = f"{_SPOOFING}{SPOOFING_REFUSED}"
_NO_VM: Final = "00000000-0000-0000-0000-000000000000"
_GROUP_BIT: Final = 1  # of the first byte of a MAC address (IEEE 802)


@dataclass(frozen=True, slots=True)
class AdapterAddresses:
    """The addresses of one adapter.

    Attributes:
        client: The guest's address.
        gateway: The host's address in the same network.
        mac: The adapter's own, in lower case.
        client_ipv6: The guest's IPv6 address, with prefix length; empty: none.
        further: The options of FURTHER.
        spoofing: One of SPOOFING_MODES.
    """

    client: ipaddress.IPv4Interface
    gateway: ipaddress.IPv4Address
    mac: str
    client_ipv6: str = ""
    further: tuple[str, ...] = ()
    spoofing: str = SPOOFING_REFUSED

    @property
    def host(self) -> ipaddress.IPv4Interface:
        """The host's address, with prefix length."""
        return ipaddress.IPv4Interface((self.gateway, self.client.network.prefixlen))


@dataclass(frozen=True, slots=True)
class RequestedAddresses:
    """The addresses that a client asks for. None or empty: not asked for.

    Attributes:
        gateway: The host's address; given with `client` only.
        bridge: Name of the bridge that the adapter's TAP is a port of; given with `client` only.
        further: The options of FURTHER.
        spoofing: One of SPOOFING_MODES.
    """

    client: ipaddress.IPv4Interface | None = None
    gateway: ipaddress.IPv4Address | None = None
    client_ipv6: str = ""
    mac: str = ""
    bridge: str = ""
    further: tuple[str, ...] = ()
    spoofing: str = SPOOFING_REFUSED

    def complete(self, subnet: ipaddress.IPv4Network) -> AdapterAddresses:
        """Return these addresses, and for those that are not asked for the defaults.

        Args:
            subnet: The network of `client`, or one of SUBNET_PREFIX if that is not given.
        """
        client = self.client or ipaddress.IPv4Interface((subnet[2], subnet.prefixlen))
        first = subnet[1] if subnet[1] != client.ip else subnet[2]
        return AdapterAddresses(
            client,
            self.gateway or first,
            self.mac or _mac(client),
            self.client_ipv6,
            self.further,
            self.spoofing,
        )


def requested_addresses(options: str, mode: NetworkingMode) -> RequestedAddresses:
    """Read the options of a request.

    Args:
        options: "key=value;…" of KEYS; empty: all defaults.
        mode: The mode that is to be set up.

    Raises:
        InvalidArgumentError: OPTIONS_TOO_LONG, OPTION_SYNTAX, OPTION_UNKNOWN, OPTION_CONFLICT,
            OPTION_VALUE or RATE_LIMIT_VALUE; the message has the value, the bound and the remedy.
    """
    check_length("eth0", options)
    items = [item for item in options.split(";") if item]
    if items and not mode.has_adapters:
        raise _refusal(items[0], f"of use: the networking mode {mode} has no adapter; leave it out")
    for item in items:
        if item.partition("=")[0] not in KEYS:
            raise InvalidArgumentError(
                "OPTION_UNKNOWN",
                f"option {item!r} is not one of networking; those are {', '.join(KEYS)}",
                option=item,
            )
    bridges = {item.partition("=")[2] for item in items if _is_bridge(item)}
    # The default needs client_mac= of a device, which here the owner chooses.
    passed_on = [item for item in items if not _is_bridge(item) and item != _DEFAULT]
    given = parse_net_options(build_options("eth0", ";".join(passed_on), None, _NO_VM))
    client = _client(given)
    return RequestedAddresses(
        client,
        _gateway(given, client),
        _ipv6(given, mode),
        _own_mac(given),
        _bridge(bridges, client, mode),
        tuple(dict.fromkeys(item for item in passed_on if item.partition("=")[0] in FURTHER)),
        _spoofing(items, given),
    )


def _spoofing(items: list[str], given: NetOptions) -> str:
    asked = {item for item in items if item.startswith(_SPOOFING)}
    if len(asked) > 1:
        raise InvalidArgumentError(
            "OPTION_CONFLICT",
            f"option {_SPOOFING} is given as {SPOOFING_ALLOWED} and as {SPOOFING_REFUSED}; give "
            "one",
            option="spoofing",
        )
    return given.spoofing if asked - {_DEFAULT} else SPOOFING_REFUSED


def _is_bridge(item: str) -> bool:
    return item.partition("=")[0] == "bridge"


def _bridge(asked: set[str], client: ipaddress.IPv4Interface | None, mode: NetworkingMode) -> str:
    if not asked:
        return ""
    if len(asked) > 1:
        raise InvalidArgumentError(
            "OPTION_CONFLICT",
            f"option bridge= is given as {' and as '.join(sorted(asked))}; an adapter is on one",
            option="bridge",
        )
    (name,) = asked
    said = f"bridge={name}"
    if mode is not NetworkingMode.NAT:
        raise _refusal(
            said,
            f"of use in the networking mode {mode}, which has no TAP; ask for NAT, or leave it out",
        )
    if not _BRIDGE_NAME.fullmatch(name.encode()):
        raise _refusal(
            said,
            f"the name of an interface: 1 to {MAX_BRIDGE_BYTES} bytes, without '/', ':', '%' and "
            "white space",
        )
    if client is None:
        raise _refusal(
            said, "of use alone: give the guest's address there too, client_ip=<address>/24"
        )
    return name


def _client(given: NetOptions) -> ipaddress.IPv4Interface | None:
    if given.client_ip is None:
        return None
    client = ipaddress.IPv4Interface(given.client_ip)
    if not WIDEST_PREFIX <= client.network.prefixlen <= NARROWEST_PREFIX:
        raise _refusal(
            f"client_ip={client}",
            f"in a network of adapters: its prefix length must be {WIDEST_PREFIX} to "
            f"{NARROWEST_PREFIX}, for instance {client.ip}/24",
        )
    _require_host("client_ip", client.ip, client.network)
    return client


def _gateway(
    given: NetOptions, client: ipaddress.IPv4Interface | None
) -> ipaddress.IPv4Address | None:
    if given.gateway_ip is None:
        return None
    said = f"gateway_ip={given.gateway_ip}"
    gateway = ipaddress.ip_address(given.gateway_ip)
    if client is None:
        raise _refusal(said, "of use alone: give the guest's address too, client_ip=<address>/24")
    if not isinstance(gateway, ipaddress.IPv4Address) or gateway not in client.network:
        raise _refusal(said, f"an address of {client.network}, the network of client_ip")
    if gateway == client.ip:
        raise _refusal(said, "an address of the host: client_ip is the same; choose another")
    _require_host("gateway_ip", gateway, client.network)
    return gateway


def _require_host(key: str, address: ipaddress.IPv4Address, network: ipaddress.IPv4Network) -> None:
    of_no_host = (
        address.is_loopback
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
        or address in (network.network_address, network.broadcast_address)
    )
    if of_no_host:
        raise _refusal(
            f"{key}={address}",
            f"an address that a host can have in {network}: not its first or last address, nor one "
            "of loopback or multicast",
        )


def _ipv6(given: NetOptions, mode: NetworkingMode) -> str:
    if given.client_ip_ipv6 is None:
        return ""
    said = f"client_ip_ipv6={given.client_ip_ipv6}"
    if mode is NetworkingMode.NAT:
        raise _refusal(
            said,
            f"of use in the networking mode {mode}, whose adapters have IPv4 alone; ask for "
            "VirtioProxy, or leave it out",
        )
    address = ipaddress.IPv6Interface(given.client_ip_ipv6)
    if address.ip.is_loopback or address.ip.is_multicast or address.ip.is_unspecified:
        raise _refusal(said, "an address of one host, for instance fd00::2/64")
    return str(address)


def _own_mac(given: NetOptions) -> str:
    mac = given.client_mac
    if mac is None:
        return ""
    if mac[0] & _GROUP_BIT or not any(mac):
        raise _refusal(
            f"client_mac={mac.hex(':')}",
            "the address of one adapter: its first byte must be even, and not all may be 0; for "
            "instance 52:54:00:12:34:56",
        )
    return mac.hex(":")


def _mac(client: ipaddress.IPv4Interface) -> str:
    # Locally administered (bit 1 of the first byte) and unique in this owner's subnets.
    return ":".join(f"{byte:02x}" for byte in (0x52, 0x54, *client.ip.packed))


def _refusal(value: str, want: str) -> InvalidArgumentError:
    return InvalidArgumentError("OPTION_VALUE", f"option {value!r} is not {want}", option=value)
