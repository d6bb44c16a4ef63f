"""TAP interfaces of the host: made, addressed and removed through rtnetlink (pyroute2).

Owns the contact with the kernel, and the names. Calls block: run them in a thread. Must not know
VMs, but their ids. The library takes a quarter of the time in which an owner starts, and most
owners have no adapters: the first call imports it.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
from hashlib import blake2s
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyroute2 import IPRoute

_BRIDGE: Final = "bridge"
"""The kernel's kind of a bridge (rtnl_link_ops)."""


def tap_name(vm_id: str, adapter: str) -> str:
    """Return the name of the TAP of one of a VM's adapters, of at most 15 bytes.

    It is made of the whole id, because ids that a client chose may begin alike: the first digits of
    a UUIDv7 are the time.
    """
    digest = blake2s(vm_id.encode(), digest_size=4).hexdigest()
    return f"ph{digest}-{adapter[0]}0"


def tap_names(vm_id: str) -> list[str]:
    """Return the names of all TAPs that a VM may have."""
    return [tap_name(vm_id, adapter) for adapter in events.ADAPTERS]


def create_tap(name: str, place: ipaddress.IPv4Interface | str) -> None:
    """Create a TAP interface, and set it up. A failure leaves nothing behind.

    The host has no IPv6 on it: from a router advertisement of the guest it would take an address
    and a default route.

    Args:
        name: At most 15 bytes.
        place: The address of the host's end, with prefix length; or the name of the bridge that it
            is a port of, whose MTU it then has.

    Raises:
        FailedPreconditionError: TAP_UNAVAILABLE or BRIDGE_UNAVAILABLE, with the remedy.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as routes:
            # The kernel would return an existing TAP as if it were new (TUNSETIFF).
            if routes.link_lookup(ifname=name):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            routes.link("add", ifname=name, kind="tuntap", mode="tap")
            try:
                index = routes.link_lookup(ifname=name)[0]
                _switch_ipv6_off(name)
                if isinstance(place, str):
                    bridge, mtu = _find_bridge(routes, place)
                    routes.link("set", index=index, master=bridge, mtu=mtu)
                else:
                    length = place.network.prefixlen
                    routes.addr("add", index=index, address=str(place.ip), prefixlen=length)
                routes.link("set", index=index, state="up")
            except BaseException:
                routes.link("del", ifname=name)
                raise
    except (NetlinkError, OSError) as error:
        raise _unavailable(name, error) from None


def _switch_ipv6_off(name: str) -> None:
    # A kernel without IPv6 has no such file.
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")


def delete_tap(name: str) -> None:
    """Remove a TAP interface; one that does not exist is no error.

    Raises:
        FailedPreconditionError: TAP_UNAVAILABLE.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as routes:
            routes.link("del", ifname=name)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise _unavailable(name, error) from None
    except OSError as error:
        raise _unavailable(name, error) from None


def host_networks() -> Iterable[ipaddress.IPv4Network]:
    """List the IPv4 networks that this host is on or has routes to, without the default route.

    Raises:
        FailedPreconditionError: TAP_UNAVAILABLE when the kernel does not answer.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    found: set[ipaddress.IPv4Network] = set()
    try:
        with IPRoute() as routes:
            for address in routes.get_addr(family=2):
                text = f"{address.get('address')}/{address['prefixlen']}"
                found.add(ipaddress.IPv4Interface(text).network)
            for route in routes.get_routes(family=2):
                if route.get("dst"):
                    found.add(ipaddress.IPv4Network(f"{route.get('dst')}/{route['dst_len']}"))
    except (NetlinkError, OSError) as error:
        raise _unavailable("(any)", error) from None
    return found


def _find_bridge(routes: IPRoute, name: str) -> tuple[int, int]:
    """Return the index and the MTU of a bridge."""
    for index in routes.link_lookup(ifname=name):
        (link,) = routes.get_links(index)
        if link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == _BRIDGE:
            return index, link.get_attr("IFLA_MTU")
    raise FailedPreconditionError(
        "BRIDGE_UNAVAILABLE",
        f"this host has no bridge {name!r}: make it (ip link add {name} type bridge && ip link set "
        f"{name} up), or name one that is there (ip link show type bridge)",
        bridge=name,
    )


def _unavailable(name: str, error: Exception) -> FailedPreconditionError:
    code = getattr(error, "code", None) or getattr(error, "errno", None) or 0
    return FailedPreconditionError(
        "TAP_UNAVAILABLE",
        f"TAP interface {name} cannot be set up: {errno.errorcode.get(code, code)} {error}; run "
        "the owner where /dev/net/tun exists and with CAP_NET_ADMIN, or use a VM without "
        "ConfigureNetworking",
        tap=name,
        errno=code,
    )
